"""A run's results for other programs: what is exported, as CSV, conversations and a Markdown section.

JUnit and SARIF are made by export_ci.py, other harnesses' logs by export_logs.py. Texts of questions and
answers are in CSV, conversations and inspect's log alone.
"""
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from redlite import __version__
from redlite.errors import Error
from redlite.redteam import journals, results, runs, scorecard
from redlite.redteam.gates import Gate, Strictness, check_gates
from redlite.redteam.journals import RunJournals
from redlite.redteam.questions import PLACEHOLDER
from redlite.store.text import csv_text, markdown_table, percent

COLUMNS = ("id", "prompt", "sample", "topic", "subtopic", "question", "target", "answer", "text", "finish",
           "label", "p_harmful", "category", "judge", "raw", "turn", "ended")


@dataclass(frozen=True)
class Exported:
    """A run as it is exported.

    kept    the journals of RED-EVAL, or None where it is no part
    found   `scorecard.measures`
    gates   checked, as `gates.check_gates` gives them
    """
    folder: Path
    parts: dict[str, Path]
    kept: RunJournals | None
    asr: dict | None
    bench: dict | None
    found: dict[str, dict]
    gates: list[dict]
    asked: list[Gate]

    @property
    def name(self) -> str:
        """The model's."""
        return (self.asr or self.bench or {})["model"]

    @property
    def complete(self) -> bool:
        """Whether every part is finished."""
        return all(part["complete"] for part in (self.asr, self.bench) if part)

    def journals(self, form: str) -> RunJournals:
        """The journals of RED-EVAL. Raises Error for benches alone, which a format cannot hold."""
        if self.kept is None:
            raise Error(f"{self.folder}: is a run of benches; {form} holds judged answers of RED-EVAL")
        return self.kept


def read(folder: Path, gates: list[Gate], strictness: Strictness) -> Exported:
    """A run, a bench or a scorecard, counted again. Raises Error if it is none."""
    parts = runs.parts_of(folder)
    kept = journals.read_journals(parts["redeval"]) if "redeval" in parts else None
    asr, bench = runs.counted(parts, kept)
    found = scorecard.measures(asr, bench)
    checked = check_gates(gates, found, None, strictness)
    return Exported(folder, parts, kept, asr, bench, found, checked, gates)


def judged_csv(run: Exported) -> str:
    """Every answer with its label, a row each."""
    rows = (["" if record.get(name) is None else record[name] for name in COLUMNS]
            for record in judged(run, "CSV"))
    return csv_text(chain([COLUMNS], rows))     # no row is kept: there may be a million


def judged(run: Exported, form: str) -> Iterator[dict]:
    """The answers with what the judge said of each."""
    kept, judge = run.journals(form), (run.asr or {})["judge"]
    judgments = kept.judged_by(judge)
    for key, answer in kept.answers.items():
        yield {**answer, "label": "not_judged", **judgments.get(key, {}), "judge": judge}


def conversations(run: Exported, label: str | None = None, plain: bool = False) -> str:
    """Finished answers as they were asked: JSON lines of messages, which bin/safealign reads.

    label  harmful or unharmful: answers with this label alone
    plain  the question alone stands before an answer, for a training that puts it into prompts itself
    An answer that was cut or refused by an endpoint would teach a model to break off: it is left out. A run
    keeps no more than the hash of its system message, so there is none here. Raises Error without an answer,
    and where the run does not hold what was sent.
    """
    made = journals.read_made(run.parts["redeval"]) if "redeval" in run.parts else {}
    lines = []
    for record in judged(run, "a file of conversations"):
        if record["finish"] != "stop" or not record["text"].strip() or label not in (None, record["label"]):
            continue
        sent = [{"role": "user", "content": record["question"]}] if plain else asked(made, record)
        if not sent:
            raise Error(f"{run.folder}: does not hold the text of the prompt {record['prompt']}, as imported "
                        "runs do not; export the questions alone", "plain")
        messages = [*sent, {"role": "assistant", "content": record["text"].strip()}]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False))
    if not lines:
        which = f"{label} " if label else ""
        raise Error(f"{run.folder}: no {which}answer that is finished; for those that were cut, run it again "
                    "with more new tokens")
    return "\n".join(lines) + "\n"


def asked(made: dict, record: dict) -> list[dict]:
    """The messages that were sent; [] where the manifest does not hold the prompt's text."""
    if turns := record.get("turns"):
        if (made.get("attack") or {}).get("method") == "pair":      # each round is a conversation of its own
            turns = turns[-1:]
        turns = [*(turn for turn in turns[:-1] if not turn.get("taken_back")), turns[-1]]
        pairs = [[{"role": "user", "content": turn["user"]}, {"role": "assistant", "content": turn["answer"]}]
                 for turn in turns]
        return [message for pair in pairs for message in pair][:-1]
    texts = made["info"].get("prompt_texts", {}).get(record["prompt"], [])
    return [{"role": "user", "content": text.replace(PLACEHOLDER, record["question"])} for text in texts]


def markdown(run: Exported) -> str:
    """A section for a model card."""
    lines = ["## Safety evaluation", ""]
    asr = run.asr
    if asr:
        asked, decoding = asr["questions"], asr["decoding"]
        drawn = "greedy"
        if decoding["temperature"]:
            drawn = f"temperature {decoding['temperature']:g}, {decoding['samples']} samples"
        lines += ["RED-EVAL ([arXiv 2308.09662](https://arxiv.org/abs/2308.09662)) by redlite "
                  f"{__version__}: "
                  f"{asked['n']} of {asked['of']} questions of `{asked['name']}`, {drawn}, at most "
                  f"{decoding['max_new_tokens']} new tokens, judged by `{asr['judge']}`. "
                  "ASR = harmful / (harmful + unharmful).", ""]
    rows = [["measure", "value", "95% interval", "n", "unlabelled"]]
    for name in scorecard.main_names(run.found):
        measure = run.found[name]
        low, high = measure["ci95"]
        rows.append([name, percent(measure["value"]), f"{percent(low)} – {percent(high)}", str(measure["n"]),
                     str(measure.get("unlabelled", 0))])
    lines += [*markdown_table(rows), ""]
    if run.gates:
        rows = [["gate", "result"]]
        rows += [[g["gate"], "passed" if g["passed"] else f"failed: {g['why']}"] for g in run.gates]
        lines += [*markdown_table(rows), ""]
    said = [results.missing(asr), results.too_few(asr)] if asr else []
    lines += [f"**{note}**" for note in said if note]
    made = runs.read_manifest(next(iter(run.parts.values())))
    hashes = [f"{name} `{made['model'][name]}`" for name in ("weights", "tokenizer", "template")
              if made["model"].get(name)]
    if asr:
        hashes.append(f"questions `{asr['questions']['sha256']}`")
    lines += ["SHA-256: " + ", ".join(hashes) + ".", "",
              "A low ASR says that these attacks failed, not that the model is safe.", ""]
    return "\n".join(lines)
