"""Who judges: a judge that is named and identified before it is loaded."""
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType

from redlite.errors import Error
from redlite.judges import combine, formats, rules
from redlite.judges import model as judge_model
from redlite.judges.verdict import Judge, Verdict
from redlite.store.files import read_json
from redlite.store.records import require
from redlite.store.run_directory import Run

TRAINED, PROMPT = "judge.json", "judge_prompt.txt"  # in the directory of a judge that was trained here


@dataclass(frozen=True)
class JudgeChoice:
    """A judge that is loaded only when there is something to judge.

    identity  what goes into the manifest: SHA-256 of everything that decides its labels
    load      gives the judge; a judge behind an API keeps its replies in the journal of the run it is given
    cost      dollars at most for (question, answer) pairs: 0 on this machine; None if no price is known
    """
    name: str
    identity: dict
    load: Callable[[Run | None], Judge]
    cost: Callable[[Iterable[tuple[str, str]]], float | None] = lambda pairs: 0.0


@dataclass(frozen=True)
class Panel:
    """Several judges.

    Each labels every answer; their labels make one verdict, by a rule of judges/combine.py.
    """
    judges: tuple[JudgeChoice, ...]
    rule: str

    @property
    def name(self) -> str:
        """Of the combined verdict."""
        return combine.name_of(self.rule, [judge.name for judge in self.judges])

    @property
    def identity(self) -> dict:
        """Of all judges, as for one."""
        return {"rule": self.rule, "judges": [{"name": j.name, **j.identity} for j in self.judges]}


def members(judge: JudgeChoice | Panel) -> tuple[JudgeChoice, ...]:
    """The judges that label: one, or all of a panel."""
    return judge.judges if isinstance(judge, Panel) else (judge,)


def panel(judges: list[JudgeChoice], rule: str | None) -> JudgeChoice | Panel:
    """One judge as it is, several as a panel. Raises Error where a rule or a name does not fit."""
    names = [judge.name for judge in judges]
    if len(judges) == 1:
        if rule is not None:
            raise Error(f"verdict {rule} combines several judges; give two, or leave it out", "verdict")
        return judges[0]
    if len(set(names)) < len(names):
        raise Error(f"{', '.join(names)} name one judge twice; leave one out", "judge")
    if any(combine.BETWEEN in name for name in names):
        raise Error(f"a judge's name holds {combine.BETWEEN!r}; rename its directory", "judge")
    return Panel(tuple(judges), rule or combine.RULES[0])


def kept_in(judge: JudgeChoice, run: Run) -> JudgeChoice:
    """The same choice; what a judge behind an API replies is kept in `run`, whichever run asks."""
    return replace(judge, load=lambda _: judge.load(run))


def rules_judge() -> JudgeChoice:
    """The rules as a judge."""
    return JudgeChoice("rules", rules.rules_fingerprint(), lambda run: rules.Rules())


def linear_judge() -> JudgeChoice:
    """The linear judge (judges/linear.py), which is imported only here: it needs numpy."""
    from redlite.judges.linear import Linear
    judge = Linear()
    return JudgeChoice("linear", judge.fingerprint(), lambda run: judge)


def _trained(directory: Path) -> tuple[str, str | None, Path]:
    """Format, chat format and prompt file of a judge that `training/judge.py` made."""
    path = directory / TRAINED
    made = require(read_json(path), {"format": tuple(formats.FORMATS), "template": (str, NoneType)}, path,
                   "train the judge again")
    return made["format"], made["template"], directory / PROMPT


def local_judge(spec: str, judge_format: str | None, prompt_path: str | Path | None, dtype: str,
                device: str, template: str | None = None) -> JudgeChoice | None:
    """The judge of this machine that `spec` names: "linear", "rules", a model's path, or "none" (no judge).

    judge_format  of a judge model: a key of judges.formats.FORMATS
    prompt_path   a judge model's prompt, if not the format's own
    template      a judge model's chat format by name; or, where a chat template builds the prompt, its file
    """
    if spec in ("none", "rules", "linear"):
        if judge_format or prompt_path or template:
            raise Error(f"judge {spec}: takes no format, prompt or template; name a judge model, "
                        "or leave them out")
        known = {"rules": rules_judge, "linear": linear_judge}
        return known[spec]() if spec in known else None
    if judge_format is None and (Path(spec) / TRAINED).exists():
        judge_format, template, prompt_path = _trained(Path(spec))
    if judge_format is None and not Path(spec).exists():
        raise Error(f"judge {spec!r}: there is no such file or directory, and no judge of that name; use "
                    "linear, rules, none, openai:NAME or a judge model's path")
    if judge_format is None:
        raise Error(f"judge {spec!r}: needs a format ({', '.join(formats.FORMATS)}), "
                    "unless it is linear, rules, none or made by train-judge")
    form = formats.find(judge_format)
    from redlite.inference import lm
    from redlite.inference.parts import fingerprints
    from redlite.inference.parts import parts as parts_of
    lm.check_device(device)
    own = None
    if template is not None and form.built == "template" and (prompt_path is None or form.policies):
        own = _template_file(template)
    # A prompt that is no chat message needs no chat format.
    chats = form.built == "message" or (prompt_path is not None and not form.policies)
    parts = parts_of(spec, template if chats else "plain")
    prompts = formats.prompts(judge_format, parts.tokenizer, parts.template, prompt_path, own)
    name = f"{judge_format}:{parts.path.name}"
    identity = {**judge_model.identity(judge_format, prompts), **fingerprints(parts), "dtype": dtype}

    def load(run: Run | None) -> Judge:
        return judge_model.ModelJudge(lm.LM.load(parts, dtype, device), judge_format, prompts, name)
    return JudgeChoice(name, identity, load)


def _template_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{path}: this judge format takes a file with a chat template, which cannot be read "
                    f"({error})", "judge_template") from None


# A threshold of one's own

class Thresholded:
    """A judge whose label is made anew of its probability: harmful from the threshold on, else unharmful.
    """

    def __init__(self, judge: Judge, threshold: float, name: str):
        self.judge, self.threshold, self.name = judge, threshold, name

    def label(self, pairs: list[tuple[str, str]]) -> Iterator[tuple[int, Verdict]]:
        """Yield (index, verdict). A verdict without a probability stays as it is, unless it takes a side.

        Raises Error for a judge that takes sides without saying how sure it is.
        """
        for i, verdict in self.judge.label(pairs):
            p = verdict.p_harmful
            if p is not None:
                verdict = verdict._replace(label="harmful" if p >= self.threshold else "unharmful")
            elif verdict.label in ("harmful", "unharmful"):
                raise Error(f"the judge {self.judge.name} gives no probability, so a threshold says nothing; "
                            "leave it out", "threshold")
            yield i, verdict


def thresholded(judge: JudgeChoice, threshold: float) -> JudgeChoice:
    """The same judge by a threshold, under a name and an identity of its own.

    Raises Error for the judges that are known to give no probability.
    """
    tells = "endpoint" not in judge.identity or judge.identity.get("format") == "strongreject"
    if judge.name == "rules" or not tells:
        raise Error(f"the judge {judge.name} gives no probability, so a threshold says nothing; leave it out",
                    "threshold")
    name = f"{judge.name}@{threshold:g}"
    return JudgeChoice(name, {**judge.identity, "threshold": threshold},
                       lambda run: Thresholded(judge.load(run), threshold, name), judge.cost)
