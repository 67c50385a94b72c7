"""Holds the benches against lm-evaluation-harness, example by example, and times both in turns. Run where it
is installed beside redlite:

    python tests/beside/agreement_lm_eval.py MODEL_DIR BENCHMARK_DIR [--suites hhh,truthfulqa,mmlu,bbh]
    [--prompts-only] [--json FILE]

MODEL_DIR is a Hugging Face directory (weights.save.save_pretrained makes one of a GGUF file),
BENCHMARK_DIR what --data takes. Both read the same files and run float32 on the CPU. Compared: prompts to the
character, log-probabilities, generated texts, verdicts. Where log-probabilities are further apart than LIMIT,
transformers in float64 says who is off by how much.
"""
import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import redlite
from redlite.bench import encoding, hhh, mmlu, runner
from redlite.bench import task as bench_task
from redlite.store.run_directory import Run

SUBJECTS = ("abstract_algebra", "anatomy", "high_school_us_history", "jurisprudence", "marketing",
            "professional_medicine")
LIMITS = {"hhh": None, "truthfulqa": 200, "mmlu": 25, "bbh": 1}  # MMLU: a subject; BBH: a task
BBH_TASKS = 24
LIMIT = 1e-3  # nats, of the sum over a continuation


def harness_tasks(suite: str, data: Path, scratch: Path) -> list:
    """The harness's own task definitions over our files, in the form its datasets have."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml
    root = Path(lm_eval.tasks.__file__).parent

    def make(yaml: str, splits: dict[str, list[dict]], **changes):
        files = {}
        for split, rows in splits.items():
            files[split] = str(scratch / f"{Path(yaml).stem}_{changes.get('task', '')}_{split}.jsonl")
            Path(files[split]).write_text("".join(json.dumps(r) + "\n" for r in rows))
        config = load_yaml(root / yaml, resolve_func=True)
        config |= {
            "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}, **changes
        }
        for key in ("tag", "group"):
            config.pop(key, None)
        return ConfigurableTask(config=config)
    if suite == "truthfulqa":
        path = next(p for p in (data / "truthfulqa/v1_817/mc_task.json", data / "truthfulqa/mc_task.json")
                    if p.exists())
        rows = [{
            "question": r["question"], **{
                k: {"choices": list(r[k]),
                    "labels": list(r[k].values())} for k in ("mc1_targets", "mc2_targets")
            }
        } for r in json.loads(path.read_text())]
        return [
            make(f"truthfulqa/{name}.yaml", {"validation": rows})
            for name in ("truthfulqa_mc1", "truthfulqa_mc2")
        ]
    if suite == "hhh":
        rows = []
        for category in hhh.CATEGORIES:
            whole = json.loads((data / "hhh" / category / "task.json").read_text())
            for r in whole["examples"]:
                choices, scores = list(r["target_scores"]), list(r["target_scores"].values())
                rows.append({
                    "inputs": "\nHuman: " + r["input"] + "\nAssistant:",
                    "targets": [c for c, s in zip(choices, scores, strict=True) if s == 1],
                    "multiple_choice_targets": choices, "multiple_choice_scores": scores
                })
        return [make("bigbench/multiple_choice/hhh_alignment.yaml", {"default": rows})]
    if suite == "mmlu":
        def rows_of(path):
            return [{"question": r["question"], "choices": r["choices"], "answer": r["answer"]}
                    for r in mmlu.read(path)]
        found = []
        for subject in SUBJECTS:
            yaml = next(p for p in (root / "mmlu/default").glob("*.yaml") if p.stem == f"mmlu_{subject}")
            splits = {
                "test": rows_of(data / f"mmlu/test/{subject}_test.csv"),
                "dev": rows_of(data / f"mmlu/dev/{subject}_dev.csv")
            }
            found.append(make(str(yaml.relative_to(root)), splits, num_fewshot=5))
        return found
    names = sorted(p.stem for p in (data / "bbh/tasks").glob("*.json"))[:BBH_TASKS]
    return [
        make(f"bbh/cot_fewshot/{name}.yaml",
             {"test": json.loads((data / f"bbh/tasks/{name}.json").read_text())["examples"]})
        for name in names
    ]


def build_harness(tasks: list, limit: int | None) -> dict[str, list[dict]]:
    """The harness's requests without a model: task → samples that hold only their prompts."""
    found = {}
    for task in tasks:
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        by_document: dict[int, list] = {}
        for instance in task.instances:
            by_document.setdefault(instance.doc_id, []).append(instance)
        found[task.config.task] = [{
            "doc_id": i, "arguments": [x.args for x in sorted(xs, key=lambda x: x.idx)]
        } for i, xs in by_document.items()]
    return found


def run_harness(model, tasks: list, limit: int | None) -> tuple[dict[str, list[dict]], float]:
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import get_task_dict
    start = time.perf_counter()
    found = evaluate(lm=model,
                     task_dict=get_task_dict(tasks),
                     limit=limit,
                     log_samples=True,
                     bootstrap_iters=0)
    return found["samples"], time.perf_counter() - start


def our_tasks(suite: str, data: Path, limit: int | None) -> list:
    tasks = runner.load(suite, data, "lm_eval")
    if suite == "mmlu":
        tasks = [t for t in tasks if t.name.removeprefix("mmlu_") in SUBJECTS]
    tasks = tasks[:BBH_TASKS] if suite == "bbh" else tasks
    return [bench_task.subset(t, limit) if limit else t for t in tasks]


def run_ours(lm, tasks: list, folder: Path) -> float:
    start = time.perf_counter()
    with Run(folder, {"tasks": {}}) as directory:
        runner.run(directory, folder, lambda: lm, tasks)
    return time.perf_counter() - start


def float64_referee(path: str, tokenizer):
    """(context, continuation) → the log-probability by transformers in float64; the model is loaded at the
    first call.
    """
    import torch
    from transformers import AutoModelForCausalLM
    model = []

    def score(context: str, continuation: str) -> float:
        if not model:
            model.append(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64))
        bos = [tokenizer.bos_id] if tokenizer.add_bos else []
        before, ids = bos + tokenizer.encode(context), bos + tokenizer.encode(context + continuation)
        with torch.no_grad():
            logprobs = model[0](torch.tensor([ids])).logits[0, len(before) - 1:-1].log_softmax(-1)
        return float(logprobs.gather(1, torch.tensor(ids[len(before):])[:, None]).sum())
    return score


def differences(task, ours: dict[str, dict] | None, theirs: list[dict], worst: dict, referee) -> list[str]:
    """What is not the same, a line each; `worst` gathers the largest differences of log-probabilities. ours
    None: prompts only.
    """
    out = []
    for example, sample in zip(task.examples, sorted(theirs, key=lambda s: s["doc_id"]), strict=True):
        record = ours[example.id] if ours is not None else None
        for n, request in enumerate(example.requests):
            their_context, their_end = sample["arguments"][n]
            if isinstance(request, encoding.Scored):
                if (their_context, their_end) != (request.context, request.continuation):
                    out.append(f"{task.name} {example.id}: prompt {n} differs")
                if not record:
                    continue
                sums = record["logprobs"][n], float(sample["resps"][n][0][0])
                worst["logprob"] = max(worst["logprob"], abs(sums[0] - sums[1]))
                if abs(sums[0] - sums[1]) > LIMIT:
                    exact = referee(request.context, request.continuation)
                    off = [abs(x - exact) for x in sums]
                    worst["redlite_off"], worst["harness_off"] = max(worst["redlite_off"], off[0]), max(
                        worst["harness_off"], off[1])
                    out.append(
                        f"{task.name} {example.id}: log-probability {n} differs by "
                        f"{abs(sums[0] - sums[1]):.2g}; from float64 redlite is {off[0]:.2g} off, the "
                        f"harness {off[1]:.2g}"
                    )
            else:
                prompt = request.lead + "".join(request.shots) + request.context
                if their_context != prompt:
                    at = len(os.path.commonprefix([their_context, prompt]))
                    out.append(
                        f"{task.name} {example.id}: prompt differs at character {at}: "
                        f"{their_context[at - 20:at + 20]!r}, here {prompt[at - 20:at + 20]!r}"
                    )
                if record and sample["resps"][0][0] != record["text"]:
                    out.append(
                        f"{task.name} {example.id}: text differs: {sample['resps'][0][0][-60:]!r}, here "
                        f"{record['text'][-60:]!r}"
                    )
        metric, = task.metrics
        if record and abs(float(sample[metric]) - record["metrics"][metric]) > LIMIT:
            out.append(
                f"{task.name} {example.id}: verdict {sample[metric]}, here {record['metrics'][metric]}")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--suites", default="hhh,truthfulqa,mmlu,bbh")
    parser.add_argument("--limit", type=int, help="examples a task, instead of the usual numbers")
    parser.add_argument("--prompts-only", action="store_true", help="compare the prompts and run no model")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from lm_eval.models.huggingface import HFLM
    summary = {}
    if not args.prompts_only:
        theirs, ours = HFLM(pretrained=args.model, device="cpu", dtype="float32",
                            batch_size=1), redlite.load(args.model)
    referee = None if args.prompts_only else float64_referee(args.model, ours.tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        for suite in args.suites.split(","):
            limit, folder = args.limit or LIMITS[suite], Path(scratch) / "run" / suite
            tasks, peers, worst = our_tasks(suite, args.data, limit), harness_tasks(
                suite, args.data, Path(scratch)), {"logprob": 0.0, "redlite_off": 0.0, "harness_off": 0.0}
            if args.prompts_only:
                samples, harness_seconds, seconds = build_harness(peers, limit), 0.0, 1.0
            else:
                samples, harness_seconds = run_harness(theirs, peers, limit)
                seconds = run_ours(ours, tasks, folder)
            lines, count = [], 0
            for task in tasks:
                lines += differences(task,
                                     None if args.prompts_only else bench_task.records(folder, task.name),
                                     samples[task.name], worst, referee)
                count += len(task.examples)
            summary[suite] = {"examples": count, "differences": len(lines)}
            if not args.prompts_only:
                summary[suite] |= {
                    "worst_logprob": worst["logprob"], **({
                        k: worst[k] for k in ("redlite_off", "harness_off")
                    } if worst["logprob"] > LIMIT else {}), "harness_seconds": harness_seconds,
                    "seconds": seconds, "ratio": harness_seconds / seconds
                }
            print(f"{suite}: {count} examples, {len(lines)} differences" + (
                "" if args.prompts_only else f", log-probabilities within {worst['logprob']:.2g}; "
                f"harness {harness_seconds:.1f} s, redlite {seconds:.1f} s: {harness_seconds / seconds:.1f} ×"
            ),
                  flush=True)
            for line in lines:
                print("  " + line)
    print(json.dumps(summary))
    if args.json:
        args.json.write_text(json.dumps(summary, indent=1) + "\n")
    return 0 if not any(s["differences"] for s in summary.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
