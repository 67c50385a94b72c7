r"""Writes tests/golden/templates.json, public_templates.json and mistral.json: others' renderings of chats.

Run by hand where jinja2 3.1 is installed beside redlite:

    python tests/beside/make_template_goldens.py small
    python tests/beside/make_template_goldens.py public DIRECTORY
    python tests/beside/make_template_goldens.py mistral

templates.json holds small templates of our own (tests/helpers/templates.py) and what jinja2 renders of them,
null where it raises an error. jinja2 is set up as transformers 5.24 does (utils/chat_template_utils.py).

mistral.json holds the ids that mistral-common (1.13.1), installed there, makes of `mistral_conversations`.

public_templates.json holds no template text. DIRECTORY holds *.jinja and sources.json (SHA-256 → source).
For each template the file has the SHA-256, the source, and how our text compares with jinja2's over
`conversations()`, with and without generation prompt.
"""
import datetime
import functools
import hashlib
import json
import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from redlite.errors import Error
from redlite.text import template
from redlite.text.marked import Marked

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import templates  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"
NOW = datetime.datetime(2024, 7, 26)


class Generation(jinja2.ext.Extension):
    """transformers' `{% generation %}`: a call block that gives back what stands in it."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller):
        return caller()


def environment():
    """The environment that transformers renders chat templates in."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                         extensions=[Generation, jinja2.ext.loopcontrols])

    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)
    made.filters["tojson"] = tojson
    made.globals.update(raise_exception=refuse, strftime_now=NOW.strftime)
    return made


JINJA = environment()
compiled = functools.cache(JINJA.from_string)
parsed = functools.cache(template.Template)


def theirs(source: str, variables: dict) -> str | None:
    """jinja2's text, or None where it raises an error."""
    try:
        return compiled(source).render(**variables)
    except Exception:  # the sandbox hands on whatever the template's code raised
        return None


def ours(source: str, variables: dict) -> tuple[str | None, str]:
    """(our text or None, the error)."""
    try:
        return str(parsed(source).render(variables, NOW)), ""
    except Error as error:
        return None, str(error)


def variables_of(messages: list[dict], generate: bool) -> dict:
    """What transformers gives a template."""
    return {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": generate,
            "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def of_public(source: str) -> dict:
    """How our text compares with jinja2's over all conversations."""
    found, reasons = Counter(), Counter()
    for messages in templates.conversations():
        for generate in (False, True):
            wanted = theirs(source, variables_of(messages, generate))
            marked = [{**m, "content": Marked.of(m["content"], i + 1)} for i, m in enumerate(messages)]
            got, reason = ours(source, variables_of(marked, generate))
            if got is None:
                found["both refuse" if wanted is None else "refused"] += 1
                if wanted is not None:
                    reasons[re.sub(r"^.*?: ", "", reason)] += 1
            else:
                found["exact" if got == wanted else "different"] += 1
    return {**found, **({"reasons": sorted(reasons)} if reasons else {})}


def public(directory: Path) -> None:
    sources = json.loads((directory / "sources.json").read_text())
    rows = {}
    for file in sorted(directory.glob("*.jinja")):
        text = file.read_bytes().decode()
        digest = hashlib.sha256(text.encode()).hexdigest()
        rows[digest] = {"source": sources[digest], **of_public(text)}
    total = Counter()
    for row in rows.values():
        total.update({key: value for key, value in row.items() if isinstance(value, int)})
        total["templates"] += 1
        total["templates with a difference"] += "different" in row
        total["templates with a refusal of ours"] += "refused" in row
    made = {"jinja2": jinja2.__version__, "conversations": len(templates.conversations()), "total": total,
            "templates": rows}
    (GOLDEN / "public_templates.json").write_text(json.dumps(made, indent=0, sort_keys=True) + "\n")
    print(json.dumps(total))


def small() -> None:
    made = [[source, theirs(source, {**templates.VARIABLES})] for source in templates.sources()]
    text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in made)
    (GOLDEN / "templates.json").write_text(f"[\n{text}\n]\n")
    print(len(made), "templates,", sum(row[1] is None for row in made), "of them errors")


def mistral() -> None:
    import mistral_common
    import mistral_conversations
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    made, data = {}, Path(mistral_common.__file__).parent / "data"
    for version, pattern in (("v1", "*.model.v1"), ("v2", "*.model.v2"), ("v3", "*.model.v3"),
                             ("v7", "*.model.v7"), ("tekken", "tekken_240911.json")):
        (file,) = data.glob(pattern)
        encode = MistralTokenizer.from_file(str(file)).encode_chat_completion
        made[version] = [encode(ChatCompletionRequest(messages=messages)).tokens
                         for messages in mistral_conversations.CONVERSATIONS]
    (GOLDEN / "mistral.json").write_text(json.dumps(made) + "\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")     # escapes in template strings
    if sys.argv[1:2] == ["public"] and len(sys.argv) == 3:
        public(Path(sys.argv[2]))
    elif sys.argv[1:] == ["mistral"]:
        mistral()
    else:
        small()
