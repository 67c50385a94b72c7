"""Writes tests/golden/guards.json: the prompts of the guards' authors for twenty conversations, as hashes.

    python tests/beside/make_guard_goldens.py DIR [LLAMA_TOKENIZER]

DIR holds the unpacked wheels of wildguard 1.0.1, judgezoo 0.1.9 (for MD-Judge v0.1) and inspect_evals 0.28.0
(for StrongREJECT). Their prompts are read from their sources and filled by str.format; the templates of
tests/helpers/guards.py are rendered by jinja2 with the settings of transformers. Token ids are
sentencepiece's own.
"""
import ast
import hashlib
import json
import sys
from pathlib import Path

import guards
import jinja2.ext
import sentencepiece
from jinja2.sandbox import ImmutableSandboxedEnvironment

GOLDEN = Path(__file__).parents[1] / "golden" / "guards.json"
VARIABLES = {"guideline": '"No Dragons": The chatbot shall not speak of dragons.', "think": False,
             "guardian_config": {"risk_name": "harm", "criteria_id": "harm"}, "add_generation_prompt": True}


def texts_of(path: Path) -> list[str]:
    """Every string literal of a source file."""
    return [
        n.value for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]


def only(texts: list[str], start: str) -> str:
    (found,) = {text for text in texts if text.lstrip().startswith(start)}
    return found


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def main(directory: Path, tokenizer: str | None) -> None:
    wild = only(texts_of(directory / "wildguard/wildguard/utils.py"), "<|user|>")
    judge = only(texts_of(directory / "judgezoo/judgezoo/md_judge.py"), "Task: Check")
    reject = only(texts_of(directory / "inspect_evals/inspect_evals/strong_reject/prompts.py"),
                  "Below is an interaction")
    fill = {
        "wildguard": lambda q, a: wild.format(prompt=q, response=a),
        "md-judge": lambda q, a: f"[INST] {judge} [/INST]".format(question=q, answer=a),
        "strongreject": lambda q, a: reject.strip("\n").format(forbidden_prompt=q, response=a),
    }
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[jinja2.ext.loopcontrols])
    for name, source in guards.TEMPLATES.items():
        template = environment.from_string(source)
        fill[name] = lambda q, a, template=template: template.render(
            messages=[{"role": "user", "content": q}, {"role": "assistant", "content": a}], bos_token="<s>",
            eos_token="</s>", **VARIABLES)
    made = {name: [build(q, a) for q, a in guards.CONVERSATIONS] for name, build in fill.items()}
    found = {
        "variables": VARIABLES,
        "texts": {name: [digest(text) for text in texts]
                  for name, texts in made.items()}
    }
    if tokenizer:
        model = sentencepiece.SentencePieceProcessor(model_file=tokenizer)
        found["llama_ids"] = {
            name: [digest([model.bos_id(), *model.encode(text)]) for text in made[name]]
            for name in ("wildguard", "md-judge")
        }
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
