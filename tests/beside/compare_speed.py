"""Times RED-EVAL's CoU prompt and plain decoding with redlite, transformers and llama.cpp, in turns in one
process. Run where they are installed beside redlite:

    python tests/beside/compare_speed.py MODEL.gguf HF_DIR [--questions 16] [--rounds 2] [--only
    redlite,llama] [--json FILE]

MODEL.gguf is Q4_1 (a Q8_0 file is made of it for llama.cpp); HF_DIR is the same model as a Hugging Face
directory. Every side answers the same questions with 64 new tokens, greedy, on 2 threads. Seconds a
question, and tokens/s of one sequence, are medians over the rounds.
"""
import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import redlite
from redlite.redteam import questions

NEW, PARALLEL, CONTEXT = 64, 32, 16384


def prompts(lm, count: int) -> list[list[int]]:
    """Ids of CoU prompts about mild questions, all different."""
    sample = questions.load_questions(questions.find_questions("sample", None))
    cou = questions.load_prompt("cou")
    texts = [cou.fill(f"{sample[i % len(sample)].question} (case {i})") for i in range(count)]
    return [lm.template.encode([{"role": "user", "content": t}], add_generation_prompt=True).ids
            for t in texts]


def ours(path, quantize):
    lm = redlite.load(path, quantize=quantize)
    lm.stop_ids = frozenset()  # all sides write all tokens

    def run(ids, new=NEW):
        assert all(len(c.ids) == new for c in lm.generate(ids, new))
    return run


def transformers_side(path, batch: int, pad: int):
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def run(ids, new=NEW):
        for part in (ids[i:i + batch] for i in range(0, len(ids), batch)):
            longest = max(map(len, part))
            padded = torch.tensor([[pad] * (longest - len(i)) + i for i in part])
            mask = torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i in part])
            with torch.no_grad():
                model.generate(input_ids=padded, attention_mask=mask, max_new_tokens=new, min_new_tokens=new,
                               do_sample=False, pad_token_id=pad)
    return run


def llama_one_by_one(path):
    from llama_cpp import Llama
    model = Llama(str(path), n_ctx=2048, n_threads=2, n_threads_batch=2, verbose=False)

    def run(ids, new=NEW):
        for prompt in ids:  # generate() keeps the longest prefix that the context before shares
            for n, _ in enumerate(model.generate(prompt, temp=0.0, repeat_penalty=1.0), 1):
                if n == new:
                    break
    return run


def llama_parallel(path):
    """llama.cpp's batched decoding through its C interface: the common prefix once, copied to every
    sequence's cells, then all sequences a step.
    """
    import llama_cpp as c
    model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
    settings = c.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = CONTEXT, 2048, 512, PARALLEL + 1
    settings.n_threads = settings.n_threads_batch = 2
    settings.kv_unified = True
    context = c.llama_init_from_model(model, settings)
    memory, V = c.llama_get_memory(context), c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    batch = c.llama_batch_init(2048, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Run (token, position, sequence, wanted) rows; the likeliest next token of each wanted one."""
        wanted = []
        for start in range(0, len(rows), 2048):
            part = rows[start:start + 2048]
            batch.n_tokens = len(part)
            for i, (token, position, sequence, want) in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, want
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            assert c.llama_decode(context, batch) == 0
            wanted += [int(np.ctypeslib.as_array(c.llama_get_logits_ith(context, i), (V,)).argmax())
                       for i, row in enumerate(part) if row[3]]
        return wanted

    def run(ids, new=NEW):
        for part in (ids[i:i + PARALLEL] for i in range(0, len(ids), PARALLEL)):
            c.llama_memory_clear(memory, True)
            shared = len(os.path.commonprefix(part)) if len(part) > 1 else 0
            decode([(t, p, 0, False) for p, t in enumerate(part[0][:shared])])
            for s in range(1, len(part) + 1):
                c.llama_memory_seq_cp(memory, 0, s, 0, shared)
            newest = decode([(t, p, s, p == len(i) - 1) for s, i in enumerate(part, 1)
                             for p, t in enumerate(i) if p >= shared])
            for n in range(new - 1):
                newest = decode([(t, len(i) + n, s, True)
                                 for s, (t, i) in enumerate(zip(newest, part, strict=True), 1)])
    return run


def requantised(path: Path, folder: Path) -> Path:
    """The model in Q8_0, by llama.cpp itself."""
    import llama_cpp as c
    settings = c.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize, settings.nthread = c.LLAMA_FTYPE_MOSTLY_Q8_0, True, 2
    out = folder / "model.Q8_0.gguf"
    assert c.llama_model_quantize(str(path).encode(), str(out).encode(), settings) == 0
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("hf")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", help="sides whose name begins so, with commas between")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    lm = redlite.load(args.hf)
    pad = lm.tokenizer.pad_id if lm.tokenizer.pad_id is not None else lm.tokenizer.eos_id
    with tempfile.TemporaryDirectory() as folder:
        q8, many = requantised(args.gguf, Path(folder)), 2 * PARALLEL
        makers = {"redlite float32": (lambda: ours(args.gguf, None), many),
                  "redlite int8": (lambda: ours(args.gguf, "int8"), many),
                  "redlite int4": (lambda: ours(args.gguf, "int4"), many),
                  "transformers batch 16": (lambda: transformers_side(args.hf, 16, pad), 16),
                  "transformers one by one": (lambda: transformers_side(args.hf, 1, pad), 2),
                  "llama.cpp Q4_1 one by one": (lambda: llama_one_by_one(args.gguf), args.questions),
                  "llama.cpp Q8_0 one by one": (lambda: llama_one_by_one(q8), args.questions),
                  "llama.cpp Q4_1 parallel": (lambda: llama_parallel(args.gguf), PARALLEL),
                  "llama.cpp Q8_0 parallel": (lambda: llama_parallel(q8), PARALLEL)}
        chosen = tuple(args.only.split(",")) if args.only else ("",)
        sides = {name: (make(), count) for name, (make, count) in makers.items() if name.startswith(chosen)}
        questions_, plain, single = {n: [] for n in sides}, {n: []
            for n in sides}, lm.tokenizer.encode("The history of the city begins with a river.")[:8]
        for round_ in range(args.rounds + 1):
            for name, (run, count) in sides.items():
                start = time.perf_counter()
                run(prompts(lm, count if round_ else min(count, 2)))  # the first turn warms up
                if round_:
                    questions_[name].append((time.perf_counter() - start) / count)
                if "parallel" in name or "batch" in name:
                    continue
                took = []
                for new in (1, NEW + 1):  # the difference leaves out what comes before the first token
                    start = time.perf_counter()
                    run([[single[0] + round_, *single[1:]]], new)
                    took.append(time.perf_counter() - start)
                if round_:
                    plain[name].append(NEW / (took[1] - took[0]))
    found = {name: {"seconds_a_question": statistics.median(questions_[name]),
                    "tokens_per_s_batch_1": statistics.median(plain[name]) if plain[name] else None}
             for name in sides}
    for name, row in found.items():
        s = row["seconds_a_question"]
        ratios = "".join(f"  {s / found[f'redlite {q}']['seconds_a_question']:6.2f} × {q}"
                         for q in ("float32", "int8", "int4") if f"redlite {q}" in found)
        print(f"{name:28} {s:7.3f} s a question{ratios}"
              + (f"  {row['tokens_per_s_batch_1']:6.1f} tokens/s at batch 1" if plain[name] else ""),
              flush=True)
    what = f"RED-EVAL's CoU prompt, {NEW} new tokens, greedy; and one sequence of 8 + {NEW} tokens"
    result = {"what": what,
              "machine": f"{platform.machine()}, 2 threads, torch {torch.__version__}",
              "model": args.gguf.name, "rounds": args.rounds, "sides": found}
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
