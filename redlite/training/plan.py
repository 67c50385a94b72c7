"""SAFE-ALIGN from files to a mixture: which conversations are used, and what every step draws from them."""
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from redlite import loss
from redlite.errors import Error
from redlite.training import conversations, dataset
from redlite.training.conversations import Conversation

MOST_STEPS = 10_000_000


@dataclass(frozen=True)
class Plan:
    """What is trained on, and by which objective. Strategy A: blue and helpful. Strategy B: `steps_a` steps of A, then red as well.

    objective, parameters: of loss.OBJECTIVES, for the steps of B that follow; `blue` among the parameters holds for A too.
    mix: the parts that the colours have in the conversations of a step; what a phase does not draw leaves its part to the others.
    An epoch is one pass over the blue conversations (the helpful ones where there is no blue).
    """
    strategy: str = "A"
    objective: str = "B"
    parameters: dict = field(default_factory=lambda: dict(loss.PRESETS["capped"]))
    steps_a: int = 200
    epochs: float = 3.0
    steps: int | None = None             # instead of epochs
    batch_size: int = 64                 # conversations of a step, over all ranks
    mix: dict = field(default_factory=lambda: {c: 1.0 for c in loss.COLOURS})
    max_tokens: int = 1280               # of a conversation; later exchanges are cut, whole
    validation: float = 0.02             # share of the questions that is held out
    seed: int = 0


@dataclass(frozen=True)
class Corpus:
    """Conversations that can be trained on, and those whose questions are held out; `notes`: what became of the rest, counted by reason."""
    training: list[dataset.TokenizedConversation]
    validation: list[dataset.TokenizedConversation]
    notes: dict[str, int]

    def count(self, colour: str) -> int:
        """Training conversations of a colour."""
        return sum(e.colour == colour for e in self.training)


def read(files: dict[str, list[str | Path]], limit: int | None = None) -> tuple[list[Conversation], Counter]:
    """The conversations of {colour: files}, without repetitions; the first `limit` of each colour. And what was dropped, by reason."""
    found, notes = [], Counter()
    for colour in loss.COLOURS:
        own = []
        for path in files.get(colour) or ():
            more, dropped = conversations.read(path, colour)
            own += more
            notes.update(dropped)
        found += own
    kept, dropped = conversations.deduplicate(found)
    taken, seen = [], Counter()
    for c in kept:
        seen[c.colour] += 1
        if limit is None or seen[c.colour] <= limit:
            taken.append(c)
    return taken, notes + dropped + Counter({"beyond --limit": len(kept) - len(taken)})


def corpus(files: dict[str, list[str | Path]], template, plan: Plan, limit: int | None = None) -> Corpus:
    """Read, split by question, encode. Raises Error when a file cannot be used."""
    found, notes = read(files, limit)
    parts = []
    for part in conversations.split(found, plan.validation, plan.seed):
        examples, dropped = dataset.encode_all(part, template, plan.max_tokens)
        notes.update(dropped)
        parts.append(examples)
    if not parts[0]:
        raise Error(f"no conversation is left to train on ({', '.join(f'{n} {why}' for why, n in notes.items()) or 'no file was given'}); "
                    "give --blue or --helpful a file, or raise --max-tokens")
    return Corpus(*parts, {why: n for why, n in notes.items() if n})


def phases(plan: Plan, counts: dict[str, int]) -> list[dataset.Phase]:
    """The phases of a plan, given how many training conversations (and, as "pair", blue/red pairs) there are of each colour.

    Raises Error when the plan asks for what is not there.
    """
    kept = [c for c in ("helpful", "blue") if counts.get(c) and plan.mix.get(c, 0) > 0]
    if not kept:
        raise Error("strategy A trains on blue and helpful conversations, and there is none" + (
            " that --mix draws; give blue or helpful a part" if counts.get("helpful") or counts.get("blue") else "; give --blue or --helpful a file"))
    draw_a = shared(plan.batch_size, {c: plan.mix[c] for c in kept})
    measure = "blue" if "blue" in kept else "helpful"
    steps = plan.steps or max(1, math.ceil(plan.epochs * counts[measure] / draw_a[measure]))
    if steps > MOST_STEPS:
        raise Error(f"--epochs {plan.epochs:g} are {steps:.3g} steps, more than {MOST_STEPS:,}; lower it")
    blue = {k: v for k, v in plan.parameters.items() if k == "blue"}
    if plan.strategy == "A":
        return [dataset.Phase(steps, draw_a, "A", blue)]
    if not counts.get("red"):
        raise Error("strategy B needs red conversations; give --red a file, or use --strategy A")
    if steps <= plan.steps_a:
        raise Error(f"{steps} steps are all of strategy A, which has {plan.steps_a}; raise --epochs or --steps, or lower --steps-a")
    draw_b = shared(plan.batch_size, {c: plan.mix[c] for c in (*kept, "red") if plan.mix.get(c, 0) > 0})
    if plan.objective == "dpo":
        if not counts.get("pair"):
            raise Error("dpo needs blue and red conversations that ask the same question, and there is none; use another --objective")
        pairs = max(1, (draw_b.pop("blue", 0) + draw_b.pop("red", 0)) // 2)
        draw_b["pair"] = pairs
    elif "red" not in draw_b:
        raise Error("strategy B draws no red conversation with this --mix; give red a part")
    first = [dataset.Phase(plan.steps_a, draw_a, "A", blue)] if plan.steps_a else []
    return [*first, dataset.Phase(steps - plan.steps_a, draw_b, plan.objective, dict(plan.parameters))]


def mixture(plan: Plan, examples: list[dataset.TokenizedConversation]) -> dataset.Mixture:
    """What every step draws from these training examples."""
    streams = dataset.singles(examples)
    if plan.objective == "dpo" and plan.strategy == "B":
        streams["pair"] = dataset.pairs(examples)
    return dataset.Mixture(streams, phases(plan, {name: len(units) for name, units in streams.items()}), plan.seed)


def require_fit(corpus: Corpus, mixture: dataset.Mixture, tokens_per_batch: int) -> None:
    """Raises Error for a conversation, or a pair, that is drawn or held out and is larger than a micro-batch."""
    drawn = {name for phase in mixture.phases for name, count in phase.draw.items() if count}
    dataset.require_fit([unit for name in sorted(drawn) for unit in mixture.streams[name]] + [(e,) for e in corpus.validation], tokens_per_batch)


def cost(mixture: dataset.Mixture) -> dict[str, int]:
    """The tokens of all steps, exactly, and the most that one step can have."""
    drawn, most = Counter(), 0
    for phase in mixture.phases:
        sizes = {name: [sum(len(e) for e in unit) for unit in mixture.streams[name]] for name, count in phase.draw.items() if count}
        drawn.update({name: phase.steps * phase.draw[name] for name in sizes})
        most = max(most, sum(phase.draw[name] * max(lengths) for name, lengths in sizes.items()))
    return {"tokens": sum(mixture.tokens(name, count) for name, count in drawn.items()), "largest_step": most}


def shared(total: int, parts: dict[str, float]) -> dict[str, int]:
    """`total` split in proportion to `parts`, by largest remainders, at least 1 each."""
    if total < len(parts):
        raise Error(f"--batch-size {total} has no room for a conversation of each of {', '.join(parts)}; raise it")
    left, weight = total - len(parts), sum(parts.values())
    exact = {name: left * part / weight for name, part in parts.items()}
    out = {name: 1 + math.floor(x) for name, x in exact.items()}
    for name in sorted(exact, key=lambda n: math.floor(exact[n]) - exact[n])[:total - sum(out.values())]:
        out[name] += 1
    return out


def parameters(objective: str, preset: str | None, settings: list[str]) -> dict:
    """The parameters of an objective from a preset's name and NAME=VALUE texts. Raises Error for a name that the objective does not have."""
    import inspect

    known = [p.name for p in inspect.signature(loss.OBJECTIVES[objective]).parameters.values() if p.kind == p.KEYWORD_ONLY]
    if preset and objective != "B":
        raise Error(f"--preset {preset} is for --strategy B with --objective B, and {'strategy A has no red term' if objective == 'A' else f'this is --objective {objective}'}; leave it out")
    found = dict(loss.PRESETS[preset or "capped"]) if objective == "B" else {}
    for text in settings:
        name, _, value = text.partition("=")
        if sum(name == t.partition("=")[0] for t in settings) > 1:
            raise Error(f"--parameter names {name!r} twice; keep one")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in known or not abs(number) <= 1e30:   # NaN neither
            raise Error(f"--parameter {text!r}: must be NAME=NUMBER with a name of {', '.join(known)}")
        if number < 0 and name != "delta" or number == 0 and name in ("beta", "floor", "tau"):   # β divides, log(floor) is taken; a negative weight turns an objective round
            raise Error(f"--parameter {text!r}: {name} must be {'at least 0' if name in ('blue', 'red', 'low', 'high') else 'above 0'}")
        found[name] = number
    return found
