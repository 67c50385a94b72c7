"""Utility and over-refusal: tasks by the rules of lm-evaluation-harness 0.4.13 or of the paper's own evaluation code.

A task module (hhh, truthfulqa, mmlu, bbh, xstest) loads files into `Task`s; `run` puts every request to the
model, keeps each example's record as it finishes, and `results` counts, under lm-evaluation-harness's keys.
"""
import math
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from redlite import stats
from redlite.bench.encoding import Continued, Encoder, Scored
from redlite.bench.task import PROTOCOLS, Example, Task, _record, check, folder, records, sample_file
from redlite.errors import Error
from redlite.store.run_directory import Run
from redlite.text.reasoning import prompt_opens_thought, split_thoughts

SUITES = ("hhh", "truthfulqa", "mmlu", "bbh", "xstest")
GENERATION_BATCH = 512  # prompts given to the engine at once: their ids are held together


def run(directory: Run, folder: Path, lm_of: Callable[[], object], tasks: list[Task], chat: bool = False, progress=None,
        rank: int = 0, world: int = 1) -> None:
    """Put to the model what the run directory `folder` does not hold yet; every example's record is kept as it finishes.

    directory    where this process writes: the run directory, or its rank-N folder
    lm_of        gives the loaded model; called only if something is left to do
    rank, world  this process's share: every world-th example
    """
    total = sum(len(t.examples) for t in tasks)
    done, lm = 0, None
    for _, together in groupby(tasks, key=lambda t: t.batch or t.name):
        group, left = list(together), []
        for task in group:
            have = records(folder, task.name)
            missing = [e for n, e in enumerate(task.examples) if e.id not in have and n % world == rank]
            done += len(task.examples) - len(missing)
            left += [(task, e) for e in missing]
        if left:
            lm = lm or lm_of()
        for task, record in _answers(lm, left, chat):
            directory.append(sample_file(task.name), record)
            done += 1
            if progress:
                progress(task.name, min(done, total), total)


def _answers(lm, left: list[tuple[Task, Example]], chat: bool) -> Iterator[tuple[Task, dict]]:
    """Yield the task and record of each example as its last answer comes."""
    scored = [(t, e) for t, e in left if isinstance(e.requests[0], Scored)]
    continued = [(t, e) for t, e in left if isinstance(e.requests[0], Continued)]
    encoder = Encoder(lm, chat) if left else None
    if scored:
        yield from _score(lm, encoder, scored)
    for start in range(0, len(continued), GENERATION_BATCH):
        yield from _continue(lm, encoder, continued[start:start + GENERATION_BATCH])


def _score(lm, encoder: Encoder, work: list[tuple[Task, Example]]) -> Iterator[tuple[Task, dict]]:
    from redlite.inference import score
    pairs, owners, cuts = [], [], []
    for n, (task, example) in enumerate(work):
        cuts.append(0)
        for place, request in enumerate(example.requests):
            try:
                before, after, cut = encoder.scored(request)
            except Error as error:
                raise Error(f"task {task.name}, example {example.id}: {error}") from None
            pairs.append((before, after))
            owners.append((n, place))
            cuts[n] = max(cuts[n], cut)
    answers = [[None] * len(e.requests) for _, e in work]
    missing = [len(e.requests) for _, e in work]
    for i, result in score.stream(lm.model, pairs):
        n, place = owners[i]
        answers[n][place] = result
        missing[n] -= 1
        if not missing[n]:
            task, example = work[n]
            values = [a.logprob for a in answers[n]]
            if not all(map(math.isfinite, values)):
                raise Error(f"task {task.name}, example {example.id}: the model gives log-probabilities that are no numbers; "
                            "check its files, or use --dtype float32 or bfloat16")
            extra = {"logprobs": values, "greedy": [a.greedy for a in answers[n]]}
            yield task, _record(task, example, values, extra, cuts[n])


def _continue(lm, encoder: Encoder, work: list[tuple[Task, Example]]) -> Iterator[tuple[Task, dict]]:
    prompts = []
    for task, example in work:
        try:
            prompts.append(encoder.continued(example.requests[0]))
        except Error as error:
            raise Error(f"task {task.name}, example {example.id}: {error}") from None
    settings = sorted({(e.requests[0].max_new_tokens, e.requests[0].stop) for _, e in work})
    for new, stop in settings:
        mine = [n for n, (_, e) in enumerate(work) if (e.requests[0].max_new_tokens, e.requests[0].stop) == (new, stop)]
        for i, c in lm.stream([prompts[n][0] for n in mine], new, stop=stop):
            task, example = work[mine[i]]
            _, cut, dropped = prompts[mine[i]]
            said = split_thoughts(c.text, prompt_opens_thought(lm.tokenizer, prompts[mine[i]][0]))
            extra = {"text": c.text, "finish": c.finish, "completion_tokens": len(c.ids), "shots_dropped": dropped}
            # Without a thought the text is measured as it is, its white space included.
            answer = said.answer if said.thought else c.text
            yield task, _record(task, example, [answer], extra, cut)


# Counting

def summarize(task: Task, found: dict[str, dict]) -> dict:
    """Mean, standard error and 95% interval of every metric over the task's records, under the harness's keys."""
    def over(examples: list[Example]) -> dict:
        there = [found[e.id]["metrics"] for e in examples if e.id in found]
        return {k: v for metric in task.metrics for k, v in measures(metric, task.filter, [m[metric] for m in there if metric in m]).items()}
    out = {"alias": task.name, **over(task.examples)}
    if unlabelled := sum(not found[e.id]["metrics"] for e in task.examples if e.id in found):
        out["unlabelled"] = unlabelled
    if categories := sorted({e.category for e in task.examples} - {""}):
        out["by_category"] = {}
        for name in categories:
            own = [e for e in task.examples if e.category == name]
            out["by_category"][name] = {"n": sum(bool(found.get(e.id, {}).get("metrics")) for e in own), **over(own)}
    return out


def measures(metric: str, filter: str, values: list[float]) -> dict:
    """`metric,filter`, `metric_stderr,filter` (sample standard deviation / √n) and `metric_ci95,filter` (Wilson if all values are 0 or 1)."""
    if not values:
        return {f"{metric},{filter}": None, f"{metric}_stderr,{filter}": None, f"{metric}_ci95,{filter}": [0.0, 1.0]}
    mean, error = stats.mean_stderr(values)
    if all(v in (0, 1) for v in values):
        interval = list(stats.wilson(int(sum(values)), len(values)))
    else:
        interval = _normal(mean, error)
    return {f"{metric},{filter}": mean, f"{metric}_stderr,{filter}": error, f"{metric}_ci95,{filter}": interval}


def _normal(mean: float, error: float | None) -> list[float]:
    return [0.0, 1.0] if error is None else [max(0.0, mean - 1.96 * error), min(1.0, mean + 1.96 * error)]


def _group(name: str, members: list[tuple[Task, dict]], sizes: list[int]) -> dict:
    """A group's mean: over examples or over tasks; its standard error pools the tasks' own (as the harness does)."""
    first, out = members[0][0], {"alias": name}
    for metric in first.metrics:
        key, filter = f"{metric},{first.filter}", first.filter
        if any(result[key] is None for _, result in members):
            out |= measures(metric, filter, [])
            continue
        weights = sizes if first.mean == "size" else [1] * len(sizes)
        errors = [result[f"{metric}_stderr,{filter}"] for _, result in members]
        mean = sum(w * result[key] for w, (_, result) in zip(weights, members)) / sum(weights)
        pooled = None
        if all(e is not None for e in errors) and sum(sizes) > len(sizes):
            variance = sum((n - 1) * e * e * n for n, e in zip(sizes, errors)) / (sum(sizes) - len(sizes))
            pooled = math.sqrt(variance / sum(sizes))
        if first.mean == "task" and all(e is not None for e in errors):
            pooled = math.sqrt(sum(e * e for e in errors)) / len(errors)
        right = mean * sum(sizes)
        counted = first.mean == "size" and abs(right - round(right)) < 1e-6  # a count of right answers
        # Tasks of which each is all right or all wrong have no spread, which is not the same as no doubt.
        interval = list(stats.wilson(round(right), sum(sizes))) if counted or pooled == 0 else _normal(mean, pooled)
        out |= {key: mean, f"{metric}_stderr,{filter}": pooled, f"{metric}_ci95,{filter}": interval}
    return out


def results(folder: Path, tasks: list[Task]) -> dict:
    """What results.json holds for the tasks: results, groups, versions, n-shot, n-samples, truncated, complete."""
    out = {"results": {}, "groups": {}, "group_subtasks": {}, "versions": {}, "n-shot": {}, "n-samples": {}, "truncated": {}, "shots_dropped": {}, "complete": True}
    grouped: dict[str, list[tuple[Task, dict, int]]] = {}
    for task in tasks:
        found = records(folder, task.name)
        summary = summarize(task, found)
        effective = sum(e.id in found for e in task.examples)
        out["results"][task.name] = summary
        out["versions"][task.name], out["n-shot"][task.name] = task.version, task.shots
        out["n-samples"][task.name] = {"original": task.whole or len(task.examples), "effective": effective}
        out["truncated"][task.name] = sum(found[e.id]["truncated_tokens"] > 0 for e in task.examples if e.id in found)
        out["shots_dropped"][task.name] = sum(found[e.id].get("shots_dropped", 0) > 0 for e in task.examples if e.id in found)
        out["complete"] &= effective == len(task.examples)
        for group in task.groups:
            grouped.setdefault(group, []).append((task, summary, effective))
    for name, members in grouped.items():
        out["groups"][name] = out["results"][name] = _group(name, [m[:2] for m in members], [m[2] for m in members])
        out["group_subtasks"][name] = [m[0].name for m in members]
        out["versions"].setdefault(name, GROUP_VERSIONS.get(name, members[0][0].version))
        out["n-samples"].setdefault(name, {k: sum(out["n-samples"][m[0].name][k] for m in members) for k in ("original", "effective")})
    return out


GROUP_VERSIONS = {"mmlu": 2, "mmlu_stem": 2, "mmlu_humanities": 2, "mmlu_social_sciences": 2, "mmlu_other": 2, "bbh": 3.0}


def load(suite: str, data: Path | str | None, protocol: str) -> list[Task]:
    """The tasks of a suite by a protocol. XSTest is not among them: it is judged (xstest.py)."""
    if protocol not in PROTOCOLS:
        raise Error(f"--protocol {protocol!r} is not known; use {', '.join(PROTOCOLS)}")
    from redlite.bench import bbh, hhh, mmlu, truthfulqa
    module = {"hhh": hhh, "truthfulqa": truthfulqa, "mmlu": mmlu, "bbh": bbh}[suite]
    return [check(task) for task in module.load(folder(data, suite), protocol)]
