"""From conversation files to the training mixture: what is used, and what every step draws."""
import inspect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from redlite import loss
from redlite.errors import Error
from redlite.text.chat_choice import Format
from redlite.training import colours, conversations, dataset
from redlite.training.conversations import Conversation
from redlite.training.dataset import Mixture, Phase, TokenizedConversation

MOST_STEPS = 10_000_000
STEPS_A = 200       # of strategy A before B, as in the paper, unless that is over a third of all steps
Files = Mapping[str, Sequence[str | Path]]      # colour → files of conversations


@dataclass(frozen=True)
class Plan:
    """What is trained on, and by which objective.

    Strategy A takes blue and helpful conversations. B takes red ones too, after `steps_a` steps of A. None
    stands for the default: 200, and at most a third of all steps.
    objective, parameters  the loss of B's steps, a key of loss.OBJECTIVES, and its parameters; the weight
                           `blue` applies to A as well
    mix    the weight of each colour in a step; the weight of a colour that is not drawn goes to the others
    An epoch is one pass over the blue conversations (the helpful ones where there is no blue).
    """
    strategy: str = "A"
    objective: str = "B"
    parameters: dict[str, float] = field(default_factory=lambda: dict(loss.PRESETS["capped"]))
    steps_a: int | None = None
    epochs: float = 3.0
    steps: int | None = None             # overrides epochs
    batch_size: int = 64                 # conversations of a step, over all processes
    mix: dict[str, float] = field(default_factory=lambda: dict.fromkeys(loss.COLOURS, 1.0))
    max_tokens: int = 1280               # per conversation; last exchanges are dropped until it fits
    validation: float = 0.02             # share of the questions that is held out
    seed: int = 0
    # name → text that first user turns are put into; questions take them in turns
    prompts: dict[str, str] = field(default_factory=dict)
    plain_helpful: bool = False          # helpful conversations stay as they are, whatever the prompts
    answer_tokens: int | None = None     # of each answer, the first so many alone are trained


@dataclass(frozen=True)
class Corpus:
    """Conversations to train on, and those whose questions are held out.

    notes  how many others were left out, by reason
    looks  what the judge says of a sample of the blue and red answers (see colours.py)
    """
    training: list[TokenizedConversation]
    validation: list[TokenizedConversation]
    notes: dict[str, int]
    looks: dict[str, colours.Look] = field(default_factory=dict)

    def count(self, colour: str) -> int:
        """The number of training conversations of a colour."""
        return sum(e.colour == colour for e in self.training)


def read(files: Files, limit: int | None = None) -> tuple[list[Conversation], Counter[str]]:
    """The conversations of the files, without repetitions, the first `limit` of each colour.

    Also counts what was left out, by reason.
    """
    found, notes = list[Conversation](), Counter[str]()
    for colour in loss.COLOURS:
        for path in files.get(colour) or ():
            more, dropped = conversations.read(path, colour)
            found += more
            notes.update(dropped)
    kept, dropped = conversations.deduplicate(found)
    taken, seen = list[Conversation](), Counter[str]()
    for c in kept:
        seen[c.colour] += 1
        if limit is None or seen[c.colour] <= limit:
            taken.append(c)
    return taken, notes + dropped + Counter({"beyond the limit": len(kept) - len(taken)})


def corpus(files: Files, template: Format, plan: Plan, limit: int | None = None) -> Corpus:
    """Read, split by question, encode. Raises Error when a file cannot be used."""
    found, notes = read(files, limit)
    parts = []
    for part in conversations.split(found, plan.validation, plan.seed):
        if plan.prompts:
            wrapped = ("blue", "red") if plan.plain_helpful else loss.COLOURS
            part = conversations.ask_through(part, list(plan.prompts.values()), wrapped)
        examples, dropped = dataset.encode_all(part, template, plan.max_tokens, plan.answer_tokens)
        notes.update(dropped)
        parts.append(examples)
    training, validation = parts
    if not training:
        reasons = ", ".join(f"{n} {why}" for why, n in notes.items()) or "no file was given"
        raise Error(f"no conversation is left to train on ({reasons}); "
                    "give blue or helpful a file, or raise max_tokens", "max_tokens")
    return Corpus(training, validation, {why: n for why, n in notes.items() if n}, colours.look(found))


def phases(plan: Plan, counts: Mapping[str, int]) -> list[Phase]:
    """The phases of a plan.

    counts  how many training conversations there are of each colour, and, as "pair", of blue/red pairs
    Raises Error when the plan asks for what is not there.
    """
    kept = [c for c in ("helpful", "blue") if counts.get(c) and plan.mix.get(c, 0) > 0]
    if not kept:
        lead = "strategy A trains on blue and helpful conversations, and there is none"
        if counts.get("helpful") or counts.get("blue"):
            raise Error(f"{lead} that the mix draws; give blue or helpful a weight above 0", "mix")
        raise Error(f"{lead}; give blue or helpful a file")
    draw_a = apportion(plan.batch_size, {c: plan.mix[c] for c in kept})
    epoch_colour = "blue" if "blue" in kept else "helpful"
    steps = plan.steps or max(1, math.ceil(plan.epochs * counts[epoch_colour] / draw_a[epoch_colour]))
    if steps > MOST_STEPS:
        raise Error(f"{plan.epochs:g} epochs are {steps:.3g} steps, more than {MOST_STEPS:,}; lower them",
                    "epochs")
    blue_weight = {k: v for k, v in plan.parameters.items() if k == "blue"}
    if plan.strategy == "A":
        return [Phase(steps, draw_a, "A", blue_weight)]
    if not counts.get("red"):
        raise Error("strategy B needs red conversations; give red a file, or use strategy A", "red")
    steps_a = min(STEPS_A, steps // 3) if plan.steps_a is None else plan.steps_a
    if steps <= steps_a:
        raise Error(f"all {steps} steps would be of strategy A, which takes the first {steps_a}; "
                    "raise epochs or steps, or lower steps_a", "steps_a")
    first = [Phase(steps_a, draw_a, "A", blue_weight)] if steps_a else []
    draw_b = _draw_b(plan, [*kept, "red"], counts)
    return [*first, Phase(steps - steps_a, draw_b, plan.objective, dict(plan.parameters))]


def _draw_b(plan: Plan, colours: list[str], counts: Mapping[str, int]) -> dict[str, int]:
    """What a step of strategy B draws."""
    draw = apportion(plan.batch_size, {c: plan.mix[c] for c in colours if plan.mix.get(c, 0) > 0})
    if plan.objective == "dpo":
        if not counts.get("pair"):
            raise Error("dpo needs blue and red conversations that ask the same question, and there is none; "
                        "use another objective", "objective")
        draw["pair"] = max(1, (draw.pop("blue", 0) + draw.pop("red", 0)) // 2)  # a pair is two conversations
    elif "red" not in draw:
        raise Error("strategy B draws no red conversation with this mix; give red a weight above 0", "mix")
    return draw


def mixture(plan: Plan, examples: list[TokenizedConversation]) -> Mixture:
    """What every step draws from these training examples."""
    streams = dataset.singles(examples)
    if plan.objective == "dpo" and plan.strategy == "B":
        streams["pair"] = dataset.pairs(examples)
    counts = {name: len(units) for name, units in streams.items()}
    return Mixture(streams, phases(plan, counts), plan.seed)


def settled(plan: Plan, mixture: Mixture) -> Plan:
    """The plan with the steps of A that it came to, as a manifest holds it."""
    steps_a = mixture.phases[0].steps if len(mixture.phases) > 1 else 0
    return replace(plan, steps_a=steps_a if plan.strategy == "B" else STEPS_A)


def require_fit(corpus: Corpus, mixture: Mixture, tokens_per_batch: int) -> None:
    """Raises Error for a conversation or a pair that is drawn or held out, and larger than a micro-batch."""
    drawn = {name for phase in mixture.phases for name, count in phase.draw.items() if count}
    units = [unit for name in sorted(drawn) for unit in mixture.streams[name]]
    dataset.require_fit(units + [(e,) for e in corpus.validation], tokens_per_batch)


def cost(mixture: Mixture) -> dict[str, int]:
    """tokens: exact total of all steps; largest_step: upper bound of one step."""
    drawn, largest = Counter[str](), 0
    for phase in mixture.phases:
        most = 0
        for name, count in phase.draw.items():
            if count:
                drawn[name] += phase.steps * count
                most += count * max(dataset.tokens([unit]) for unit in mixture.streams[name])
        largest = max(largest, most)
    tokens = sum(mixture.tokens(name, count) for name, count in drawn.items())
    return {"tokens": tokens, "largest_step": largest}


def apportion(total: int, parts: Mapping[str, float]) -> dict[str, int]:
    """`total` split in proportion to `parts` (largest remainders), at least 1 each.

    Raises Error if total < len(parts).
    """
    if total < len(parts):
        raise Error(f"batch_size {total} is too small for one conversation of each of {', '.join(parts)}; "
                    "raise it", "batch_size")
    left, weight = total - len(parts), sum(parts.values())
    exact = {name: left * part / weight for name, part in parts.items()}
    out = {name: 1 + math.floor(x) for name, x in exact.items()}
    by_remainder = sorted(exact, key=lambda n: math.floor(exact[n]) - exact[n])
    for name in by_remainder[:total - sum(out.values())]:
        out[name] += 1
    return out


def parameters(objective: str, preset: str | None, settings: Sequence[str]) -> dict[str, float]:
    """The parameters of an objective: those of a preset of loss.PRESETS, changed by NAME=NUMBER texts.

    Raises Error for a name that the objective does not have, and for a number that is out of range.
    """
    own = inspect.signature(loss.OBJECTIVES[objective]).parameters.values()
    known = [p.name for p in own if p.kind == p.KEYWORD_ONLY]
    if preset and objective != "B":
        reason = "strategy A has no red term" if objective == "A" else f"this is {objective}"
        raise Error(f"preset {preset} is for the objective B of strategy B, and {reason}; leave it out",
                    "preset")
    found = dict(loss.PRESETS[preset or "capped"]) if objective == "B" else {}
    names = [text.partition("=")[0] for text in settings]
    for name, text in zip(names, settings, strict=True):
        if names.count(name) > 1:
            raise Error(f"parameter {name!r} is given twice; keep one", "parameter")
        try:
            number = float(text.partition("=")[2])
        except ValueError:
            number = math.nan
        if name not in known or not abs(number) <= 1e30:   # NaN fails this test too
            raise Error(f"parameter {text!r}: must be NAME=NUMBER, where NAME is one of {', '.join(known)}",
                        "parameter")
        if wrong := _out_of_range(name, number):
            raise Error(f"parameter {text!r}: {wrong}", "parameter")
        found[name] = number
    return found


def _out_of_range(name: str, number: float) -> str:
    """What is wrong with a parameter's number, "" if nothing.

    A negative weight would reverse the objective.
    """
    if number < 0 and name in ("blue", "red", "low", "high"):
        return f"{name} must be at least 0"
    if number <= 0 and name in ("beta", "floor", "tau"):   # β divides, and the logarithm of floor is taken
        return f"{name} must be above 0"
    return ""
