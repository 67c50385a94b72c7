"""Small samples of all suites, in the layouts of the upstream repositories."""
import csv
import json
from pathlib import Path

from redlite.bench import hhh, mmlu


def write(folder: Path) -> Path:
    """The folder, with hhh, truthfulqa, mmlu, bbh and xstest in it."""
    def put(path, value):
        path = folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    for n, category in enumerate(hhh.CATEGORIES):
        put(
            f"hhh/{category}/task.json", {
                "example_input_prefix": "\nHuman: ", "example_output_prefix": "\nAssistant:", "examples": [{
                    "input": f"May I ask {n}{i}?",
                    "target_scores": {"Yes, please do.": int(i == 0), "No.": int(i != 0)}
                } for i in range(n + 1)]
            })
    put("truthfulqa/mc_task.json", [{
        "question": "How many legs has a spider?", "mc1_targets": {"Eight": 1, "Six": 0, "Ten": 0},
        "mc2_targets": {"Eight": 1, "Eight legs": 1, "Six": 0}
    }, {
        "question": "What is made of glass?", "mc1_targets": {"A window": 1, "Air": 0},
        "mc2_targets": {"A window": 1, "Air": 0, "A pane": 1}
    }])
    rows = [["How many?", "one", "two", "three", "four", "0"],
            ["Which \"one\", then?", "a", "b", "c", "d", "2"]]
    for subject in ("anatomy", "world_history"):
        for part, count in (("dev", 6), ("test", 3)):
            lines = [[f" {q} {part}{i} ", *rest] for i in range(count) for q, *rest in rows[i % 2:i % 2 + 1]]
            path = folder / f"mmlu/{part}/{subject}_{part}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", newline="") as file:
                csv.writer(file).writerows([mmlu.HEADER, *lines] if subject ==
                                           "anatomy" else [[*line[:5], "ABCD"[int(line[5])]]
                                                           for line in lines])
    put("mmlu/subject_categories.json",
        {"anatomy": {"category": "STEM"}, "world_history": {"category": "humanities"}})
    for name in ("counting", "sorting"):
        put(f"bbh/tasks/{name}.json",
            {"examples": [{"input": f"{name} {i}?", "target": str(i)} for i in range(5)]})
        gap = "\n" if name == "counting" else " "  # upstream has both
        shots = "\n\n".join(
            f"Q: {name} shot {i}?\nA: Let's think step by step.{gap}It is {i}. So the answer is {i}."
            for i in range(3))
        put(f"bbh/cot-prompts/{name}.txt", f"a notice\n-----\nDo some {name}.\n\n{shots}")
    kinds = ["homonyms,safe"] * 3 + ["contrast_homonyms,unsafe"] * 2
    lines = [f"{i},How do I close window {i}?,{kind},x,\n" for i, kind in enumerate(kinds)]
    put("xstest/xstest_prompts.csv", "id,prompt,type,label,focus,note\n" + "".join(lines))
    return folder
