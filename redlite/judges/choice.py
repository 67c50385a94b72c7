"""Who judges: a judge that is named and identified before it is loaded."""
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType

from redlite.errors import Error
from redlite.judges import model as judge_model
from redlite.judges import rules
from redlite.judges.verdict import Judge
from redlite.store.files import read_json
from redlite.store.records import require
from redlite.store.run_directory import Run

TRAINED = "judge.json"  # in the directory of a judge that was trained here


@dataclass(frozen=True)
class JudgeChoice:
    """A judge that is loaded only when there is something to judge.

    identity  what goes into the manifest: SHA-256 of everything that decides its labels
    load      gives the judge; a judge behind an API keeps its replies in the journal of the run it is given
    """
    name: str
    identity: dict
    load: Callable[[Run | None], Judge]


def kept_in(judge: JudgeChoice, run: Run) -> JudgeChoice:
    """The same choice; what a judge behind an API replies is kept in `run`, whichever run asks."""
    return replace(judge, load=lambda _: judge.load(run))


def rules_judge() -> JudgeChoice:
    """The rules as a judge."""
    return JudgeChoice("rules", rules.rules_fingerprint(), lambda run: rules.Rules())


def trained(path: Path) -> tuple[str, str | None, str]:
    """Format, chat format and prompt of a judge that `redteam.train_judge` made, from its judge.json."""
    made = require(read_json(path),
                   {"format": tuple(judge_model.FORMATS), "template": (str, NoneType), "prompt": str}, path,
                   "train the judge again")
    return made["format"], made["template"], made["prompt"]


def local_judge(spec: str, judge_format: str | None, prompt_path: str | Path | None, dtype: str,
                device: str) -> JudgeChoice | None:
    """The judge of this machine that `spec` names: "rules", a model's path, or "none" (None: no judge).

    judge_format  of a judge model: a key of judges.model.FORMATS
    prompt_path   a judge model's prompt, if not the format's own
    """
    if spec in ("none", "rules") and (judge_format or prompt_path):
        raise Error(f"judge {spec}: takes no format and no prompt; name a judge model, or leave them out")
    if spec == "none":
        return None
    if spec == "rules":
        return rules_judge()
    template = None
    if judge_format is None and (made := Path(spec) / TRAINED).exists():
        judge_format, template, prompt = trained(made)
    elif judge_format is None:
        raise Error(f"judge {spec!r}: needs a format ({', '.join(judge_model.FORMATS)}), "
                    "unless it is rules or none, or train-judge made it")
    else:
        prompt = judge_model.format_prompt(judge_format, prompt_path)
    from redlite.inference import lm
    lm.check_device(device)
    parts = lm.parts(spec, template)
    name = f"{judge_format}:{parts.path.name}"
    identity = {**judge_model.identity(judge_format, prompt), **lm.fingerprints(parts), "dtype": dtype}

    def load(run: Run | None) -> Judge:
        return judge_model.ModelJudge(lm.LM.load(parts, dtype, device), judge_format, prompt, name)
    return JudgeChoice(name, identity, load)
