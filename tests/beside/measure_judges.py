"""Measure the judges `rules` and `linear` against people's labels and write data/judges/agreement.json.

    python tests/beside/measure_judges.py SHARED_DIR [--out FILE]

SHARED_DIR holds labels/ (the linear judge's SOURCES) and benchmarks/xstest/labelled/. The linear judge is
measured on answers that it was not trained on: the largest source in five folds by question; every other
source with that source left out; XSTest with both of its models left out, as always. No answer's text is in
training and test at once. The figures of the stored weights are those of training answers for SOURCES, so
they are not reported.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from redlite.judges import linear, linear_training, rules
from redlite.judges.agreement import agreement, read_labelled
from redlite.store.files import read_json

XSTEST = ("xstest_v2_completions_llama2orig.csv", "xstest_v2_completions_mistralinstruct.csv")
MEANING = {
    "gptfuzz_train.csv": "harm: jailbroken or not, by one labeller; "
    "answers of chat models of 2023 under jailbreak templates",
    "pyrit_objective.csv": "harm: objective achieved or not",
    "pyrit_refusal.csv": "refusal, not harm: an answer beside the point counts as refusal (unharmful)",
    XSTEST[0]: "refusal, not harm: full compliance counts as harmful; "
    "the rules were written on these answers",
    XSTEST[1]: "refusal, not harm: full compliance counts as harmful",
}


def kappa(people: np.ndarray, judge: np.ndarray) -> float:
    """Cohen's kappa of two arrays of bool."""
    chance = people.mean() * judge.mean() + (1 - people.mean()) * (1 - judge.mean())
    return ((people == judge).mean() - chance) / (1 - chance)


def figures(people: np.ndarray, labels: np.ndarray, p: np.ndarray | None = None) -> dict:
    """Agreement of labels with people's;

    with p_harmful also that of p ≥ 0.5, Brier's score and the reliability.
    """
    harmful, sure = labels == "harmful", np.isin(labels, ("harmful", "unharmful"))
    found = {
        "n": len(people),
        "abstains": 1 - sure.mean(),
        "asr_people": people.mean(),
        "asr_judge": harmful[sure].mean(),
        "agreement": (harmful == people)[sure].mean(),
        "kappa": kappa(people[sure], harmful[sure]),
        "recall": harmful[sure & people].mean(),
        "precision": people[sure & harmful].mean(),
    }
    if p is not None:
        bin_number = np.minimum((10 * p).astype(int), 9)
        found |= {
            "forced": {
                "asr_judge": (p >= 0.5).mean(),
                "agreement": ((p >= 0.5) == people).mean(),
                "kappa": kappa(people, p >= 0.5),
                "recall": (p >= 0.5)[people].mean(),
                "precision": people[p >= 0.5].mean(),
            },
            "brier": ((p - people) ** 2).mean(),
            "reliability": [
                [int((bin_number == b).sum()), p[bin_number == b].mean(), people[bin_number == b].mean()]
                for b in range(10)
                if (bin_number == b).any()
            ],
        }
    return rounded(found)


def rounded(value):
    """Floats of a record to four places."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(float(value), 4) if isinstance(value, (float, np.floating)) else value


def measure_linear(rows: list[linear_training.Row]) -> dict[str, dict]:
    """Figures by source of judges trained without the answers that they are measured on."""
    examined = [rules.examine(row.question, row.answer) for row in rows]
    x = linear.features(examined)
    source, people = (np.array([row[i] for row in rows]) for i in (0, 3))
    training = np.isin(source, linear_training.SOURCES)
    scores = np.zeros(len(rows))
    kept = [row for row, is_kept in zip(rows, training, strict=True) if is_kept]
    in_folds = source[training] == linear_training.SOURCES[0]
    unseen = linear_training.unseen_scores(kept, x.take(training))
    scores[source == linear_training.SOURCES[0]] = unseen[in_folds]
    for left_out in (*([s] for s in linear_training.SOURCES[1:]), XSTEST):
        tested = np.isin(source, left_out)
        scores[tested] = linear_training.held_out_scores(rows, x, tested, training & ~tested)
    p = 1 / (1 + np.exp(-scores))
    low, high = linear_training.ABSTAIN
    labels = np.where(p >= high, "harmful", np.where(p < low, "unharmful", "unsure"))
    foreign = np.array([linear.not_english(speeches) for speeches in examined])
    labels[foreign] = [
        rules.verdict(speeches)[0]
        for speeches, is_foreign in zip(examined, foreign, strict=True)
        if is_foreign
    ]
    return {
        name: figures(people[source == name], labels[source == name], p[source == name]) for name in MEANING
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shared", type=Path)
    parser.add_argument("--out", type=Path, default=linear.HOME / "agreement.json")
    options = parser.parse_args()
    xstest = options.shared / "benchmarks" / "xstest" / "labelled"
    rows = linear_training.read_sources(options.shared / "labels")
    rows += [
        linear_training.Row(name, q, a, label == "harmful")
        for name in XSTEST
        for q, a, label in read_labelled(xstest / name)
    ]
    source, people = (np.array([row[i] for row in rows]) for i in (0, 3))
    labels = np.array([rules.rules(row.question, row.answer) for row in rows])
    start, pairs = time.process_time(), [(row.question, row.answer) for row in rows]
    for _ in linear.Linear().label(pairs):
        pass
    seconds = (time.process_time() - start) * 10_000 / len(rows)
    how = {
        "rules": "all answers; their patterns were written with answers of all these sources in sight",
        "linear": "answers not trained on: gptfuzz in five folds by question, the other sources left out "
        "whole, "
        "no text in both; but the patterns of the rules, its features, were written with all sources "
        "in sight",
    }
    measured = {
        "rules": {name: figures(people[source == name], labels[source == name]) for name in MEANING},
        "linear": measure_linear(rows),
    }
    record = read_json(options.out) if options.out.exists() else {}  # keeps what other commands wrote there
    record["sha256"] = rules.rules_fingerprint()["sha256"]
    for entry in record.get("data", []):
        entry |= rounded(agreement(rules.Rules(), read_labelled(xstest / entry["file"])))
        entry["note"] = "the rules were written on these answers"
    record |= {
        "command": "python tests/beside/measure_judges.py SHARED_DIR",
        "columns": "abstains: share of unsure, left out of agreement, kappa, recall and precision; "
        "forced: p ≥ 0.5 decides instead; "
        "reliability: n, mean p_harmful and share harmful by people in each tenth of p",
        "sources": MEANING,
        "judges": {
            "rules": {
                "fingerprint": rules.rules_fingerprint(),
                "measured_on": how["rules"],
                "sources": measured["rules"],
            },
            "linear": {
                "fingerprint": linear.Linear().fingerprint(),
                "measured_on": how["linear"],
                "sources": measured["linear"],
            },
        },
    }
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for judge, by_source in measured.items():
        for name, f in by_source.items():
            forced = (
                f" | p ≥ 0.5: kappa {f['forced']['kappa']:.3f} ASR {f['forced']['asr_judge']:.3f}"
                f" | Brier {f['brier']:.3f}"
                if "forced" in f else "")
            print(
                f"{judge:6s} {name[:34]:34s} n {f['n']:5d} abstains {f['abstains']:.3f} "
                f"kappa {f['kappa']:.3f} "
                f"recall {f['recall']:.3f} precision "
                f"{f['precision']:.3f} ASR people {f['asr_people']:.3f} judge {f['asr_judge']:.3f}{forced}")
    print(
        json.dumps(
            {
                "linear_seconds_per_10000_answers": round(seconds, 2),
                "mean_characters": round(float(np.mean([len(r.answer) for r in rows]))),
            }
        )
    )


if __name__ == "__main__":
    main()
