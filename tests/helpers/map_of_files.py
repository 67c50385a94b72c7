"""The section "The files" of redlite/README.md: a line for each source file, which is how the file begins.

`python tests/helpers/map_of_files.py` writes it anew; tests/test_map.py fails where it is out of date.
"""
import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAP = ROOT / "redlite/README.md"
START = "## The files\n"
FOLDERS = {
    "redlite": "bottom",
    "redlite/store": "files, records, run directories, text for people; no torch",
    "redlite/stats": "pure arithmetic",
    "redlite/text": "texts to token ids and back; no torch",
    "redlite/weights": "weight files in and out",
    "redlite/model": "the network",
    "redlite/inference": "ids in, ids out",
    "redlite/judges": "answers to verdicts",
    "redlite/redteam": "RED-EVAL and HARMFULQA",
    "redlite/bench": "utility and over-refusal",
    "redlite/training": "SAFE-ALIGN",
    "redlite/net": "the only sockets",
    "redlite/report": "pages made of plain data",
    "redlite/organism": "the embedded toy model",
    "redlite/perf": "what redlite measures of itself",
    "redlite/cli": "the commands",
    "kernels": "what runs in C, in Triton or in PyTorch; import it as redlite.kernels",
    "kernels/cpu": "the C library, called with ctypes",
    "kernels/triton": "GPU kernels",
    "kernels/c": "the C library's sources",
}
DATA = """**data/**: no code

- `prompts/` the red-teaming prompts (cou is RED-EVAL's, play is for training), those of a collection,
  and what attackers are told
- `judges/` the judges' prompts, the linear judge's weights, and how far judges agree with people
- `questions/`, `bench/` the questions and benchmark files that come along
- `topics.json` the topics of a collection
- `organism/` the embedded model; `recipes/` training recipes; `perf/` figures with their commands
- `published.json` the figures of the paper
"""


def first_sentence(path: Path) -> str:
    """How a file says what it is: the first paragraph's first sentence of its docstring or first comment."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(source)) or ""
    else:
        found = re.match(r"\s*/\*(.*?)\*/", source, re.S)
        text = re.sub(r"(?m)^\s*\* ?", "", found[1]) if found else ""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    sentence = re.match(r"(.{20,}?\.)(?= [A-Z_`]|$)", paragraph)
    return sentence[1] if sentence else paragraph


def files_section() -> str:
    """The section as it should be."""
    parts = [START]
    for folder, about in FOLDERS.items():
        parts.append(f"\n**{folder}/**: {about}\n\n")
        paths = [p for p in sorted((ROOT / folder).iterdir()) if p.suffix in (".py", ".c", ".h")]
        for path in paths:
            if said := first_sentence(path):
                parts.append(f"- `{path.name}` {said}\n")
    return "".join(parts) + "\n" + DATA


def main() -> None:
    """Write the section anew."""
    before = MAP.read_text(encoding="utf-8").partition(START)[0]
    MAP.write_text(before + files_section(), encoding="utf-8")


if __name__ == "__main__":
    main()
