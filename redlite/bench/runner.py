"""Utility and over-refusal, by lm-evaluation-harness 0.4.13's rules or the paper's own.

A task module (hhh, truthfulqa, mmlu, bbh, xstest) loads files into `Task`s. `run` puts every request to the
model and keeps each example's record as it finishes. `results` (results.py) counts.
"""
import math
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from redlite.bench import task as bench_task
from redlite.bench.encoding import Continued, Encoder, Scored
from redlite.bench.task import Example, Task, records, sample_file
from redlite.errors import Error
from redlite.store.run_directory import Run
from redlite.text.reasoning import prompt_opens_thought, split_thoughts

if TYPE_CHECKING:
    from redlite.inference.lm import LM

GENERATION_BATCH = 512  # prompts given to the engine at once: their ids are held together

Progress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many
Work = list[tuple[Task, Example]]


def load(suite: str, data: Path | str | None, protocol: str) -> list[Task]:
    """The tasks of a suite by a protocol. XSTest is not among them: it is judged (xstest.py)."""
    if protocol not in bench_task.PROTOCOLS:
        raise Error(f"protocol {protocol!r} is not known; use {', '.join(bench_task.PROTOCOLS)}", "protocol")
    from redlite.bench import bbh, hhh, mmlu, truthfulqa
    modules: dict[str,
                  bench_task.TaskModule] = {"hhh": hhh, "truthfulqa": truthfulqa, "mmlu": mmlu, "bbh": bbh}
    return [bench_task.check(task) for task in modules[suite].load(bench_task.folder(data, suite), protocol)]


def is_share(number: int, rank: int, world: int) -> bool:
    """Whether the example of this number is for this process: every world-th one."""
    return number % world == rank


def run(directory: Run, folder: Path, lm_of: "Callable[[], LM]", tasks: list[Task], chat: bool = False,
        progress: Progress | None = None, rank: int = 0, world: int = 1) -> None:
    """Put to the model what the run directory `folder` does not hold yet, and keep every example's record.

    directory    where this process writes: the run directory, or its rank-N folder
    lm_of        gives the loaded model; called only if something is left to do
    chat         put every context as a user's message in the model's chat format
    rank, world  this process's number, and how many share the examples
    """
    total, done = sum(len(t.examples) for t in tasks), 0
    encoder = None
    for _, together in groupby(tasks, key=lambda t: t.batch or t.name):
        left: Work = []
        for task in together:
            have = records(folder, task.name)
            mine = [e for n, e in enumerate(task.examples) if is_share(n, rank, world)]
            missing = [e for e in mine if e.id not in have]
            done += len(task.examples) - len(missing)
            left += [(task, e) for e in missing]
        if not left:
            continue
        encoder = encoder or Encoder(lm_of(), chat)
        for task, record in _answers(encoder, left):
            directory.append(sample_file(task.name), record)
            done += 1
            if progress:
                progress(task.name, min(done, total), total)


def _answers(encoder: Encoder, left: Work) -> Iterator[tuple[Task, dict]]:
    """Yield the task and record of each example as its last answer comes."""
    scored = [(task, e) for task, e in left if isinstance(e.requests[0], Scored)]
    continued = [(task, e) for task, e in left if isinstance(e.requests[0], Continued)]
    if scored:
        yield from _score(encoder, scored)
    for start in range(0, len(continued), GENERATION_BATCH):
        yield from _continue(encoder, continued[start:start + GENERATION_BATCH])


def _score(encoder: Encoder, work: Work) -> Iterator[tuple[Task, dict]]:
    from redlite.inference import score
    pairs, owners = [], []
    cuts = [0] * len(work)
    for n, (task, example) in enumerate(work):
        for place, request in enumerate(example.requests):
            try:
                before, after, cut = encoder.scored(request)
            except Error as error:
                raise _named(error, task, example) from None
            pairs.append((before, after))
            owners.append((n, place))
            cuts[n] = max(cuts[n], cut)
    answers: list[dict[int, score.Score]] = [{} for _ in work]
    for i, result in score.stream(encoder.lm.model, pairs):
        n, place = owners[i]
        answers[n][place] = result
        task, example = work[n]
        if len(answers[n]) < len(example.requests):
            continue
        scores = [answers[n][place] for place in range(len(example.requests))]
        values = [s.logprob for s in scores]
        if not all(map(math.isfinite, values)):
            fault = Error(
                "the model gives log-probabilities that are no numbers; check its files, or use the dtype "
                "float32 or bfloat16", "dtype")
            raise _named(fault, task, example)
        extra = {"logprobs": values, "greedy": [s.greedy for s in scores]}
        yield task, _record(task, example, values, extra, cuts[n])


def _continue(encoder: Encoder, work: Work) -> Iterator[tuple[Task, dict]]:
    groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    prompts = []
    for n, (task, example) in enumerate(work):
        request = example.requests[0]
        try:
            prompts.append(encoder.continued(request))
        except Error as error:
            raise _named(error, task, example) from None
        groups.setdefault((request.max_new_tokens, request.stop), []).append(n)
    for (new, stop), mine in sorted(groups.items()):
        for i, answer in encoder.lm.stream([prompts[n][0] for n in mine], new, stop=stop):
            task, example = work[mine[i]]
            _, cut, dropped = prompts[mine[i]]
            opened = prompt_opens_thought(encoder.lm.tokenizer, prompts[mine[i]][0])
            said = split_thoughts(answer.text, opened)
            extra = {"text": answer.text, "finish": answer.finish, "completion_tokens": len(answer.ids),
                     "shots_dropped": dropped}
            # Without a thought the text is measured as it is, its white space included.
            measured = said.answer if said.thought else answer.text
            yield task, _record(task, example, [measured], extra, cut)


def _named(error: Error, task: Task, example: Example) -> Error:
    return Error(f"task {task.name}, example {example.id}: {error}", error.setting)


def _record(task: Task, example: Example, answers: list, extra: dict, cut: int) -> dict:
    prompt = [vars(request) for request in example.requests]
    return bench_task.record_of(example, prompt, extra, cut, task.measure(example, answers))
