"""One engine in a process of its own, for compare_peers.py: python peer_worker.py ENGINE MODEL FORMAT.

It loads MODEL and prints a line of JSON, then answers each line of stdin: {"prompts": ids of each, "new": N}
→ {"seconds": …, "ids": of the first answer}. All prompts are continued by exactly N tokens, greedily. What
prompts share is computed once where the engine can, in the way that is fastest for it.
"""
import json
import os
import sys
import time
from collections.abc import Callable

THREADS, PARALLEL, CONTEXT, BATCH = 2, 32, 16384, 2048
Ids = list[list[int]]
Run = Callable[[Ids, int], Ids]


def shared_length(prompts: Ids) -> int:
    """How many tokens several prompts begin with alike; at least one of each is left over."""
    if len(prompts) < 2:
        return 0
    return min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)


def redlite_side(path: str, form: str) -> tuple[Run, str, dict]:
    """This project's engine."""
    import torch

    import redlite
    from redlite.perf.cpu import loops
    torch.set_num_threads(THREADS)
    lm = redlite.load(path, **({"quantize": form} if form in ("int8", "int4") else {"dtype": form}))
    lm.stop_ids = frozenset()  # all sides write all tokens
    lm.engine.guesses = False  # and none guesses them; `python -m redlite.cli.perf look-up` measures that
    stdout, sys.stdout = sys.stdout, sys.stderr  # it prints what it finds
    found = loops()
    sys.stdout = stdout

    def run(prompts: Ids, new: int) -> Ids:
        return [answer.ids for answer in lm.generate(prompts, new)]
    return run, torch.__version__, found


def openvino_side(path: str, form: str) -> tuple[Run, str, dict]:
    """Continuous batching with a prefix cache; the first prompt goes ahead, so that the others find it."""
    import numpy as np
    import openvino
    import openvino_genai as genai
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching, scheduler.cache_size = True, 1  # GB
    scheduler.max_num_seqs, scheduler.max_num_batched_tokens = PARALLEL, BATCH
    pipe = genai.ContinuousBatchingPipeline(path, scheduler, "CPU", {"INFERENCE_NUM_THREADS": THREADS})

    def generate(prompts: Ids, new: int) -> Ids:
        config = genai.GenerationConfig(max_new_tokens=new, min_new_tokens=new, ignore_eos=True)
        tensors = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
        return [list(r.m_generation_ids[0]) for r in pipe.generate(tensors, [config] * len(prompts))]

    def run(prompts: Ids, new: int) -> Ids:
        if len(prompts) > 1:
            generate(prompts[:1], 1)
        return generate(prompts, new)
    return run, genai.get_version(), {}


def ort_side(path: str, form: str) -> tuple[Run, str, dict]:
    """One by one: the engine goes back to the end of the shared prefix and on from there."""
    import onnxruntime_genai as og
    model = og.Model(path)

    def run(prompts: Ids, new: int) -> Ids:
        shared, answers = shared_length(prompts), []
        settings = og.GeneratorParams(model)
        longest = max(map(len, prompts)) + new
        # Below min_length no end token is chosen, so that every answer has all its tokens.
        settings.set_search_options(max_length=longest + 1, min_length=longest, do_sample=False)
        generator, sofar = og.Generator(model, settings), 0
        for ids in prompts:
            generator.rewind_to(min(shared, sofar))
            generator.append_tokens(ids[min(shared, sofar):])
            for _ in range(new):
                generator.generate_next_token()
            sofar = len(ids) + new
            answers.append([int(t) for t in generator.get_sequence(0)[len(ids):len(ids) + new]])
        return answers
    return run, og.__version__, {}


def transformers_side(path: str, form: str) -> tuple[Run, str, dict]:
    """A batch behind a prefix that is computed once: its keys and values are repeated for every row."""
    import torch
    import transformers
    torch.set_num_threads(THREADS)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, form)).eval()

    @torch.inference_mode()
    def run(prompts: Ids, new: int) -> Ids:
        shared, cache = shared_length(prompts), transformers.DynamicCache()
        if shared:
            model(input_ids=torch.tensor([prompts[0][:shared]]), past_key_values=cache, logits_to_keep=1)
            cache.batch_repeat_interleave(len(prompts))
        rest = [ids[shared:] for ids in prompts]
        longest = max(map(len, rest))
        ids = torch.tensor([[0] * (longest - len(r)) + r for r in rest])
        mask = torch.tensor([[1] * shared + [0] * (longest - len(r)) + [1] * len(r) for r in rest])
        answers = []
        for _ in range(new):
            places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1]:]
            logits = model(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache,
                           logits_to_keep=1).logits
            ids = logits[:, -1].argmax(-1)[:, None]
            answers.append(ids)
            mask = torch.cat((mask, torch.ones_like(ids)), 1)
        return torch.cat(answers, 1).tolist()
    return run, transformers.__version__, {"torch": torch.__version__}


def vllm_side(path: str, form: str) -> tuple[Run, str, dict]:
    """vLLM's CPU backend with its prefix cache; the first prompt goes ahead."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="2",
                      VLLM_CPU_OMP_THREADS_BIND=f"0-{THREADS - 1}", HF_HUB_OFFLINE="1",
                      VLLM_NO_USAGE_STATS="1")
    import vllm
    llm = vllm.LLM(path, dtype=form, max_model_len=2048, max_num_seqs=PARALLEL, enable_prefix_caching=True,
                   max_num_batched_tokens=BATCH, disable_log_stats=True)

    def generate(prompts: Ids, new: int) -> Ids:
        rule = vllm.SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        done = llm.generate([{"prompt_token_ids": ids} for ids in prompts], rule, use_tqdm=False)
        return [list(d.outputs[0].token_ids) for d in done]

    def run(prompts: Ids, new: int) -> Ids:
        if len(prompts) > 1:
            generate(prompts[:1], 1)
        return generate(prompts, new)
    return run, vllm.__version__, {}


def llama_side(path: str, form: str) -> tuple[Run, str, dict]:
    """llama.cpp's batched decoding through its C interface: the common prefix once, copied to every
    sequence's cells, then all sequences a step.
    """
    import llama_cpp as c
    import numpy as np
    model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
    settings = c.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = CONTEXT, BATCH, 512
    settings.n_seq_max, settings.kv_unified = PARALLEL + 1, True
    settings.n_threads = settings.n_threads_batch = THREADS
    context = c.llama_init_from_model(model, settings)
    memory, V = c.llama_get_memory(context), c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    batch = c.llama_batch_init(BATCH, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Run (token, position, sequence, wanted) rows; the likeliest next token of each wanted one."""
        wanted = []
        for start in range(0, len(rows), BATCH):
            part = rows[start:start + BATCH]
            batch.n_tokens = len(part)
            for i, (token, position, sequence, want) in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, want
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            if c.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            wanted += [int(np.ctypeslib.as_array(c.llama_get_logits_ith(context, i), (V,)).argmax())
                       for i, row in enumerate(part) if row[3]]
        return wanted

    def run(prompts: Ids, new: int) -> Ids:
        c.llama_memory_clear(memory, True)
        shared = shared_length(prompts)
        if shared:
            decode([(t, p, 0, False) for p, t in enumerate(prompts[0][:shared])])
        for s in range(1, len(prompts) + 1):
            c.llama_memory_seq_cp(memory, 0, s, 0, shared)
        newest = decode([(t, p, s, p == len(i) - 1) for s, i in enumerate(prompts, 1)
                         for p, t in enumerate(i) if p >= shared])
        answers = [[t] for t in newest]
        for n in range(new - 1):
            newest = decode([(t, len(i) + n, s, True)
                             for s, (t, i) in enumerate(zip(newest, prompts, strict=True), 1)])
            for answer, t in zip(answers, newest, strict=True):
                answer.append(t)
        return answers
    return run, c.__version__, {"system": c.llama_print_system_info().decode()}


ENGINES = {"redlite": redlite_side, "openvino": openvino_side, "onnxruntime": ort_side,
           "transformers": transformers_side, "vllm": vllm_side, "llama.cpp": llama_side}


def main() -> None:
    """Load, say so, and answer until stdin ends. What the engines print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine, path, form = sys.argv[1:]
    run, version, loops = ENGINES[engine](path, form)
    print(json.dumps({"version": version, "loops": loops}), file=answers)
    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        ids = run(job["prompts"], job["new"])
        seconds = time.perf_counter() - start
        if [len(i) for i in ids] != [job["new"]] * len(job["prompts"]):
            raise RuntimeError(f"answers of {[len(i) for i in ids]} tokens, not {job['new']}")
        print(json.dumps({"seconds": seconds, "ids": ids[0]}), file=answers)


if __name__ == "__main__":
    main()
