"""Times RED-EVAL's CoU prompt with redlite, transformers and llama.cpp, in turns in one process. Run where they are installed beside redlite:

    python tests/compare_speed.py MODEL.gguf HF_DIR [--questions 16] [--rounds 2] [--json FILE]

HF_DIR is the same model as a Hugging Face directory. Every side answers the same questions with 64 new tokens, greedy, on 2 threads; figures are
seconds a question, medians over the rounds, and their ratios.
"""
import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import redlite
from redlite import questions

NEW = 64


def prompts(count: int) -> list[str]:
    """CoU prompts about mild questions, all different."""
    sample = questions.load_questions(questions.find_questions("sample", None))
    cou = questions.load_prompt("cou")
    return [cou.fill(f"{sample[i % len(sample)].question} (case {i})") for i in range(count)]


def ours(path, quantize):
    lm = redlite.load(path, quantize=quantize)
    lm.stop_ids = frozenset()  # all sides write all tokens

    def run(texts):
        ids = [lm.template.encode([{"role": "user", "content": t}], add_generation_prompt=True).ids for t in texts]
        done = lm.generate(ids, NEW)
        assert all(len(c.ids) == NEW for c in done)
    return run


def transformers_side(path, batch: int):
    from transformers import AutoModelForCausalLM
    lm, model = redlite.load(path), AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    pad = lm.tokenizer.pad_id if lm.tokenizer.pad_id is not None else lm.tokenizer.eos_id

    def run(texts):
        for start in range(0, len(texts), batch):
            ids = [lm.template.encode([{"role": "user", "content": t}], add_generation_prompt=True).ids for t in texts[start:start + batch]]
            longest = max(map(len, ids))
            padded = torch.tensor([[pad] * (longest - len(i)) + i for i in ids])
            mask = torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i in ids])
            with torch.no_grad():
                model.generate(input_ids=padded, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=pad)
    return run


def llama_side(path):
    from llama_cpp import Llama
    lm, model = redlite.load(path, quantize="int4"), Llama(str(path), n_ctx=2048, n_threads=2, n_threads_batch=2, verbose=False)

    def run(texts):
        for t in texts:  # generate() keeps the longest prefix that the context before shares
            ids = lm.template.encode([{"role": "user", "content": t}], add_generation_prompt=True).ids
            for n, _ in enumerate(model.generate(ids, temp=0.0, repeat_penalty=1.0), 1):
                if n == NEW:
                    break
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("hf")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    sides = {"redlite float32": (ours(args.gguf, None), args.questions * 2), "redlite int8": (ours(args.gguf, "int8"), args.questions * 2),
             "redlite int4": (ours(args.gguf, "int4"), args.questions * 2), "transformers batch 16": (transformers_side(args.hf, 16), 16),
             "transformers one by one": (transformers_side(args.hf, 1), 2), "llama.cpp Q4_1 one by one": (llama_side(args.gguf), args.questions)}
    seconds = {name: [] for name in sides}
    for round_ in range(args.rounds + 1):
        for name, (run, count) in sides.items():
            texts = prompts(count if round_ else min(count, 2))  # the first turn warms up
            start = time.perf_counter()
            run(texts)
            if round_:
                seconds[name].append((time.perf_counter() - start) / count)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    for name, s in median.items():
        print(f"{name:28} {s:7.3f} s a question  {s / median['redlite float32']:6.2f} × float32  {s / median['redlite int8']:6.2f} × int8", flush=True)
    print(json.dumps(median))
    if args.json:
        args.json.write_text(json.dumps({"what": "seconds a CoU question, 64 new tokens", "machine": "2 cores, AVX2", "seconds": median, "rounds": args.rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
