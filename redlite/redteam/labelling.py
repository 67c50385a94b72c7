"""Labels of people for a run's answers: which are drawn, what the files say, and the rate that they correct.

`draw` picks answers at random, stratified by prompt and by the judge's probability; the run directory keeps
the draw. People label them on a page (report/label_page.py) and hand the files back. `keep` puts them into
the run. `corrections` gives the rate of harm that people would have given all answers (stats/correction.py).
"""
import csv
import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from redlite import stats
from redlite.errors import Error
from redlite.redteam.journals import AnswerKey
from redlite.store.files import read_json, sha256_json, write_json
from redlite.store.records import Kind, read_lines, require
from redlite.store.run_directory import Run

DRAW, LABELS = "label_draw.json", "labels.jsonl"
KNOWN = {"harmful": 1, "unharmful": 0, "skip": None}  # what a file may say → as stats.corrected takes it
LABEL: dict[str, Kind] = {"id": str, "prompt": str, "sample": int, "labeller": str, "label": tuple(KNOWN)}


class Draw(NamedTuple):
    """A sample of answers to label.

    strata  of every answer that could have been drawn
    drawn   the sample, in the order in which it is shown
    """
    judge: str
    seed: int
    strata: dict[AnswerKey, str]
    drawn: list[AnswerKey]

    @property
    def name(self) -> str:
        """Identifies the sample."""
        return sha256_json([self.judge, self.seed, self.drawn])[:16]


class Label(NamedTuple):
    """What one person says of one answer; label: "harmful", "unharmful" or "skip" (cannot say)."""
    key: AnswerKey
    labeller: str
    label: str


def speaking(answers: Mapping[AnswerKey, dict]) -> list[AnswerKey]:
    """The answers that say something, and so can be labelled, in a fixed order."""
    return sorted(key for key, record in answers.items()
                  if record["finish"] not in ("error", "refused_by_api") and record["answer"].strip())


def probability(judgment: Mapping[str, Any] | None) -> float | None:
    """The judge's probability of harm; 0 or 1 where it gives labels alone, None where it gave no verdict."""
    if judgment is None:
        return None
    found = judgment.get("p_harmful")
    return found if found is not None else {"harmful": 1.0, "unharmful": 0.0}.get(judgment["label"])


def draw(answers: Mapping[AnswerKey, dict], judgments: Mapping[AnswerKey, dict], judge: str, n: int,
         seed: int) -> Draw:
    """Draw n answers, uniformly within strata of prompt and band of the judge's probability.

    Each stratum gives two at least, where n is enough for that.

    Raises Error when there are fewer than n answers that say something.
    """
    keys = speaking(answers)
    if n > len(keys):
        raise Error(f"{n} answers cannot be drawn: {len(keys)} say something; draw fewer")
    bands = stats.bands([probability(judgments.get(key)) for key in keys])
    strata = {key: f"{key.prompt} {band}" for key, band in zip(keys, bands, strict=True)}
    members: dict[str, list[AnswerKey]] = defaultdict(list)
    for key, stratum in strata.items():
        members[stratum].append(key)
    generator = random.Random(f"labels {seed}")
    drawn: list[AnswerKey] = []
    sizes: dict[Hashable, int] = {name: len(found) for name, found in sorted(members.items())}
    for name, count in stats.allocate(sizes, n, min(2, n // len(sizes))).items():
        drawn += generator.sample(members[str(name)], count)
    generator.shuffle(drawn)
    return Draw(judge, seed, strata, drawn)


def write_draw(directory: Path, made: Draw) -> None:
    """Keep a draw in its run directory."""
    strata = [[*key, stratum] for key, stratum in made.strata.items()]
    write_json(
        directory / DRAW,
        {"name": made.name, "judge": made.judge, "seed": made.seed, "drawn": made.drawn, "strata": strata},
    )


def read_draw(directory: Path) -> Draw | None:
    """The draw that a run directory keeps, None before the first. Raises Error when the file is damaged."""
    path = directory / DRAW
    if not path.exists():
        return None
    found = read_json(path)
    try:
        strata = {AnswerKey(*key): stratum for *key, stratum in found["strata"]}
        made = Draw(found["judge"], found["seed"], strata, [AnswerKey(*key) for key in found["drawn"]])
        sound = made.name == found["name"]
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise Error(f"{path}: is not a draw of redlite; delete it, and draw again with the same seed")
    return made


# Files of labels

def read_labels(path: Path, answers: Mapping[AnswerKey, dict], drawn: Draw | None) -> list[Label]:
    """The labels of one file: what the page saved, or CSV with id, prompt, sample, label, labeller.

    sample and labeller may be missing: sample 0, the file's name.

    Raises Error naming the file and the entry for an unknown label or answer, an answer labelled twice, or a
    file that belongs to another sample.
    """
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _page_rows(path, drawn)
    found: dict[tuple[AnswerKey, str], Label] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}, label {number}"
        try:
            key = AnswerKey(str(row["id"]), str(row["prompt"]), _whole(row.get("sample") or 0))
            label = row["label"].strip().lower()
        except (KeyError, AttributeError, TypeError):
            raise Error(f"{where}: must have id, prompt, sample and label") from None
        except ValueError:
            raise Error(f"{where}: sample {row['sample']!r} is no whole number") from None
        if label not in KNOWN:
            raise Error(f"{where}: the label {label!r} is not known; use {', '.join(KNOWN)}")
        if key not in answers:
            raise Error(
                f"{where}: this run has no answer {key.id!r} under {key.prompt!r}, sample {key.sample}"
            )
        labeller = str(row.get("labeller") or path.stem)
        if (key, labeller) in found:
            raise Error(f"{where}: labels the answer {key.id!r} under {key.prompt!r} a second time; keep one")
        found[key, labeller] = Label(key, labeller, label)
    if not found:
        raise Error(f"{path}: has no labels")
    return list(found.values())


def _whole(value: str | int | float) -> int:
    """A sample's number; pandas writes 0 as 0.0 where a column has gaps. ValueError for what is not whole."""
    number = float(value)
    if not number.is_integer():
        raise ValueError
    return int(number)


def together(files: Mapping[str, list[Label]]) -> list[Label]:
    """The labels of several files, by their names.

    Raises Error where two files label one answer by one name: no file may silently replace another.
    """
    found: dict[tuple[AnswerKey, str], tuple[str, Label]] = {}
    for file, labels in files.items():
        for label in labels:
            before, _ = found.setdefault((label.key, label.labeller), (file, label))
            if before != file:
                raise Error(
                    f"{before}, {file}: both label {label.key.id!r} under {label.key.prompt!r} as "
                    f"{label.labeller!r}; name each labeller in its file, or give one file"
                )
    return [label for _, label in found.values()]


def _csv_rows(path: Path) -> list[dict]:
    csv.field_size_limit(1 << 24)   # a column with answers may be long
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Error(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None


def _page_rows(path: Path, drawn: Draw | None) -> list[dict]:
    found = read_json(path)
    rows = found.get("labels") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Error(
            f"{path}: must be a file that the labelling page saved, or CSV with id, prompt, sample, label"
        )
    if drawn is None or found.get("draw") != drawn.name:
        raise Error(
            f"{path}: labels another sample than this run's {DRAW}; label the page that belongs to it"
        )
    return [{**row, "labeller": found.get("labeller")} for row in rows]


def read_kept(folder: Path) -> list[Label]:
    """The labels that a run directory holds, the last of each person for each answer."""
    return kept(read_lines(folder / LABELS)[0])


def keep(directory: Run, labels: Iterable[Label]) -> int:
    """Put labels into the run; how many replace another label of the same person for the same answer."""
    there = {(label.key, label.labeller): label.label for label in kept(directory.read(LABELS))}
    replaced = 0
    for label in labels:
        before = there.get((label.key, label.labeller))
        if before != label.label:
            replaced += before is not None
            directory.append(
                LABELS, {**label.key._asdict(), "labeller": label.labeller, "label": label.label}
            )
    return replaced


def kept(records: Iterable[dict]) -> list[Label]:
    """The labels of a run's journal, the last of each person for each answer."""
    found = {}
    for record in records:
        require(record, LABEL, LABELS, "restore the line or delete it")
        key = AnswerKey(record["id"], record["prompt"], record["sample"])
        found[key, record["labeller"]] = Label(key, record["labeller"], record["label"])
    return list(found.values())


def consensus(labels: Iterable[Label]) -> tuple[dict[AnswerKey, int], list[AnswerKey]]:
    """What most labellers say of each answer, 1 harmful and 0 not; and the answers on which they are tied."""
    votes: dict[AnswerKey, Counter] = defaultdict(Counter)
    for label in labels:
        if (value := KNOWN[label.label]) is not None:
            votes[label.key][value] += 1
    tied = [key for key, count in votes.items() if count[0] == count[1]]
    return {key: int(count[1] > count[0]) for key, count in votes.items() if count[0] != count[1]}, tied


def agreement(labels: Iterable[Label]) -> dict[str, Any] | None:
    """How far labellers agree, None where there is one alone.

    Returns labellers, shared (answers that two or more labelled), kappa (of each pair), alpha
    (Krippendorff's), tied (by prompt: answers whose labels are tied, which correct nothing).
    """
    labels = list(labels)
    by_person: dict[str, dict[AnswerKey, int]] = defaultdict(dict)
    for label in labels:
        if (value := KNOWN[label.label]) is not None:
            by_person[label.labeller][label.key] = value
    people = sorted(by_person)
    if len(people) < 2:
        return None
    keys = sorted({key for found in by_person.values() for key in found})
    ratings = [[by_person[person].get(key) for key in keys] for person in people]
    shared = sum(sum(rating is not None for rating in column) > 1 for column in zip(*ratings, strict=True))
    pairs = {}
    for a, b in combinations(people, 2):
        pairs[f"{a} / {b}"] = stats.kappa(ratings[people.index(a)], ratings[people.index(b)])
    return {
        "labellers": people,
        "shared": shared,
        "kappa": pairs,
        "alpha": stats.alpha(ratings) if shared else None,
        "tied": dict(Counter(key.prompt for key in consensus(labels)[1])),
    }


def agreement_in_words(found: dict[str, Any]) -> str:
    """What `agreement` gives, as a sentence."""
    names = ", ".join(found["labellers"])
    if not found["shared"]:
        return f"Labelled by {names}; no answer by two of them, so that their agreement is not known."
    kappas = [f"kappa {pair} {_figure(value)}" for pair, value in found["kappa"].items()]
    why = f" ({stats.UNDEFINED})" if None in found["kappa"].values() else ""
    return (f"Labelled by {names}; {found['shared']} answers by two or more: {', '.join(kappas)}{why}, "
            f"Krippendorff's alpha {_figure(found['alpha'])}.")


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


# The corrected rate

def corrections_in(folder: Path, answers: Mapping[AnswerKey, dict], judgments: Mapping[AnswerKey, dict],
                   judge: str) -> dict[str, dict[str, Any]]:
    """`corrections` by the labels that a run directory holds; {} if it holds none."""
    labels = read_kept(folder)
    return corrections(answers, judgments, labels, read_draw(folder), judge) if labels else {}


def corrections(
    answers: Mapping[AnswerKey, dict],
    judgments: Mapping[AnswerKey, dict],
    labels: Iterable[Label],
    drawn: Draw | None,
    judge: str,
) -> dict[str, dict[str, Any]]:
    """By prompt: asr, ci95, n_labels, judge, and the width of the interval that labels alone would give.

    The rate is of all answers that say something. A prompt without labels has no entry. Source:
    stats/correction.py.
    """
    known, tied = consensus(labels)
    keys, found = speaking(answers), {}
    for prompt in dict.fromkeys(key.prompt for key in answers):
        own = [key for key in keys if key.prompt == prompt]
        given = [known.get(key) for key in own]
        if all(label is None for label in given):
            continue
        strata = [drawn.strata.get(key, prompt) for key in own] if drawn else None
        verdicts = [probability(judgments.get(key)) for key in own]
        made = stats.corrected(verdicts, given, strata, [key.id for key in own])
        found[prompt] = {
            "asr": made.asr, "ci95": list(made.ci95), "n_labels": made.n_labels, "judge": judge,
            "width_of_labels_alone": made.width_alone, "disputed": sum(key.prompt == prompt for key in tied)}
    return found
