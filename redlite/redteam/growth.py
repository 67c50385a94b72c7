"""Runs that grow: which later manifest asks all that the earlier one asked, and more.

A trial goes on to the whole set, a prompt, a sample, a task or a judge is added. Nothing is asked twice,
since an answer is decided by its own question, prompt and sample. Of a local model that is so but for last
bits, which the length of what all prompts share decides; more questions may share less. What grew is kept
in the manifest's `info.grown`. Any other difference is still refused.
"""
import time
from pathlib import Path

from redlite.bench.task import Task, subset
from redlite.errors import Error
from redlite.redteam.labelling import LABELS
from redlite.store.run_directory import INFORMATION, difference


def redeval(folder: Path, there: dict, here: dict) -> dict | None:
    """The manifest of a RED-EVAL run that has grown, None where it differs in another way.

    there, here  the manifest in `folder`, and that of the command that goes on
    Raises Error where people have labelled a sample of the answers: new ones could not have been drawn.
    """
    counts = [("questions", "n"), ("decoding", "samples")]
    grown: dict = {}
    for part, field in counts:
        before, now = there.get(part, {}).get(field), here[part][field]
        if before != now:
            if not isinstance(before, int) or before > now:
                return None
            grown[f"{part}.{field}"] = [before, now]
    if grown and (folder / LABELS).exists():
        raise Error(f"{folder / LABELS}: people have labelled a sample of the {there['questions']['n']} "
                    "questions, of which new answers could not have been drawn; "
                    "use another directory for more questions", "questions.n")
    before, now = there.get("prompts", {}), here["prompts"]
    if not before.items() <= now.items():
        return None
    if added := [name for name in now if name not in before]:
        grown["prompts"] = added
    if there.get("judge") != here["judge"]:
        if not _holds(here["judge"], there.get("judge", {})):
            return None
        grown["judge"] = [there["judge"]["name"], here["judge"]["name"]]
    same = {**there, "prompts": now, "judge": here["judge"]}
    for part, field in counts:
        same[part] = {**there[part], field: here[part][field]}
    return _merged(there, here, same, grown)


def _holds(judge: dict, before: dict) -> bool:
    """Whether a judge's entry in the manifest holds another's: none, one of a panel, some of a panel."""
    if before.get("name") == "none":
        return True
    members = judge.get("judges", [])
    if "judges" in before:
        return before.get("rule") == judge.get("rule") and all(one in members for one in before["judges"])
    return before in members


def bench(there: dict, here: dict, tasks: list[Task]) -> dict | None:
    """The manifest of a bench that has grown by tasks or by examples, None where it differs otherwise.

    tasks  of the command that goes on; their first examples must be those of before
    """
    known = {task.name: task for task in tasks}
    grown = {}
    for name, before in there.get("tasks", {}).items():
        now = here["tasks"].get(name)
        if now is None:
            return None
        if before != now:
            same = {**now, "n": before["n"], "sha256": subset(known[name], before["n"]).fingerprint()}
            if before["n"] >= now["n"] or before != same:
                return None
            grown[name] = [before["n"], now["n"]]
    grown |= {name: [0, entry["n"]] for name, entry in here["tasks"].items() if name not in there["tasks"]}
    same = {**there, "tasks": here["tasks"]}
    if there.get("judge") is None:      # XSTest came along
        same |= {"judge": here["judge"], "refusal_tokens": here["refusal_tokens"]}
    return _merged(there, here, same, {"tasks": grown})


def _merged(there: dict, here: dict, same: dict, grown: dict) -> dict | None:
    """The later manifest with what grew, if `same` (the earlier one, grown) equals it."""
    compared = [{k: v for k, v in made.items() if k not in INFORMATION} for made in (same, here)]
    if difference(compared[0], compared[1]):
        return None
    event = {"when": time.strftime("%Y-%m-%d %H:%M:%S %Z"), "command_before": there.get("command"), **grown}
    earlier = there.get("info", {}).get("grown", [])
    return {**here, "info": {**here["info"], "grown": [*earlier, event]}}
