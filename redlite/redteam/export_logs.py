"""A run's results as the files of other harnesses: lm-evaluation-harness and inspect_ai."""
import math
import time

from redlite import __version__
from redlite.redteam import journals, runs
from redlite.redteam.export import Exported, asked, judged
from redlite.store.files import sha256_json

TOLD = ("topic", "subtopic", "prompt", "label", "p_harmful", "category")    # of an answer, in inspect's log


def lm_eval(run: Exported) -> dict:
    """lm-evaluation-harness's results file: a task for each prompt ("redeval_cou"), and the benches' own."""
    out: dict = {name: dict((run.bench or {}).get(name, {})) for name in
                 ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples")}
    for part in ("results", "groups"):
        out[part] = {task: _figures(found) for task, found in out[part].items()}
    better = {}
    for prompt, r in (run.asr or {"prompts": {}})["prompts"].items():
        name, labelled = f"redeval_{prompt}", r["harmful"] + r["unharmful"]
        error = None if labelled < 2 else math.sqrt(r["asr"] * (1 - r["asr"]) / (labelled - 1))
        out["results"][name] = {"alias": name, "asr,none": r["asr"], "asr_stderr,none": error}
        out["versions"][name], out["n-shot"][name] = __version__, 0
        out["n-samples"][name] = {"original": r["n"], "effective": labelled}
        better[name] = {"asr": False}
    made = runs.read_manifest(next(iter(run.parts.values())))
    config = {"model": "redlite", "model_args": run.name, "limit": None, "random_seed": made.get("seed")}
    return {**out, "higher_is_better": better, "configs": {}, "config": config, "date": time.time(),
            "model_name": run.name, "model_source": "redlite"}


def _figures(found: dict) -> dict:
    """A task's figures without our own intervals and categories, which its readers take for figures."""
    return {name: value for name, value in found.items() if not isinstance(value, list | dict)}


def inspect_log(run: Exported) -> dict:
    """inspect_ai's evaluation log (version 2): a sample for each answer, scored by the judge's label.

    C (correct) is an unharmful answer and I (incorrect) a harmful one; N has no label.
    """
    if run.asr is None:
        run.journals("inspect's log")
    asr = run.asr or {}
    made = journals.read_made(run.parts["redeval"])
    when = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    samples = []
    for record in judged(run, "inspect's log"):
        spent = {"input_tokens": record["prompt_tokens"], "output_tokens": record["completion_tokens"]}
        spent["total_tokens"] = sum(spent.values())
        for name, n in spent.items():
            usage[name] += n
        score = {"harmful": "I", "unharmful": "C"}.get(record["label"], "N")
        sent = [m | {"source": "generate"} if m["role"] == "assistant" else m for m in asked(made, record)]
        told = {name: record[name] for name in TOLD if record.get(name) not in (None, "")}
        said = {"role": "assistant", "content": record["text"], "source": "generate", "model": run.name}
        reason = {"length": "max_tokens", "refused_by_api": "content_filter"}.get(record["finish"], "stop")
        samples.append({
            "id": f"{record['id']}/{record['prompt']}", "epoch": record["sample"] + 1,
            "input": record["question"], "target": record.get("target", ""),
            "messages": [*sent, said],
            "output": {"model": run.name, "choices": [{"message": said, "stop_reason": reason}],
                       "usage": spent, "time": record["seconds"]},
            "scores": {"harm": {"value": score, "answer": record["answer"],
                                "explanation": record.get("raw")}},
            "metadata": told, "store": {}, "events": [], "model_usage": {}, "attachments": {}})
    scores = [{"name": f"harm/{prompt}", "scorer": str(asr["judge"]), "params": {},
               "metrics": {"asr": {"name": "asr", "value": r["asr"], "params": {}}}}
              for prompt, r in asr["prompts"].items() if r["asr"] is not None]
    digest = sha256_json(made)
    return {
        "version": 2, "status": "success" if run.complete else "started",
        "eval": {"eval_id": digest[:22], "run_id": digest[22:44], "created": when, "task": "red-eval",
                 "task_id": digest[44:], "task_version": 0, "task_attribs": {}, "task_args": {},
                 "dataset": {"name": asr["questions"]["name"], "samples": asr["questions"]["n"]},
                 "model": run.name, "model_args": {}, "model_generate_config": {},
                 "config": {"epochs": made["decoding"]["samples"]},
                 "packages": {"redlite": made["version"]}},
        "plan": {"name": "plan", "steps": [],
                 "config": {"max_tokens": made["decoding"]["max_new_tokens"],
                            "temperature": made["decoding"]["temperature"]}},
        "results": {"total_samples": asr["answers_wanted"], "completed_samples": len(samples),
                    "scores": scores},
        "stats": {"started_at": when, "completed_at": when, "model_usage": {run.name: usage}},
        "samples": samples}
