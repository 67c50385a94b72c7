"""What judge models expect to read and to say, and the prompts that are built so.

A guard is judged by the prompt that it was trained with. That is either its authors' published text
(data/judges/NAME.txt; SOURCES.md says whence and under which licence) or the model's own chat template. No
turn can be forged in it: question and answer never become control tokens, and where they imitate the frame
they are quoted.
"""
import re
import unicodedata
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from redlite import data
from redlite.errors import Error
from redlite.store.files import sha256_json

if TYPE_CHECKING:
    from redlite.text.chat_choice import Format as ChatFormat
    from redlite.text.template import Template
    from redlite.text.tokenizer import Tokenizer

JUDGE_FILES = Path(data.__file__).parent / "judges"
# of templates that name a date, so that a judge's prompt does not change overnight
DATE = datetime(2024, 7, 26)


class Format(NamedTuple):
    """What a judge model reads and says.

    built         "text": data/judges/NAME.txt is the whole prompt; "template": the model's own chat template
                  builds it of the two messages; "message": the text is one user message in its chat format
    harmful, unharmful, unsure  the words of each verdict. A verdict may come with other white space or in
                  another case; the probabilities of all its variants are added
    lead          what the reply says before the verdict
    writes_lead   the judge itself writes up to the lead, with other findings before it
    category      finds the hazard categories in what the judge says behind a harmful verdict
    needs         what the model's chat template holds if the model is of this format
    variables     what the template is given beside the messages
    policies      NAME.txt holds policies, one a paragraph, and the template takes one at a time as
                  `guideline`
    """
    built: str
    harmful: tuple[str, ...]
    unharmful: tuple[str, ...]
    unsure: tuple[str, ...] = ()
    lead: str = ""
    writes_lead: bool = False
    category: str = ""
    needs: str = ""
    variables: Mapping[str, Any] = MappingProxyType({})
    policies: bool = False


YES, NO = ("Yes", " Yes", "yes", " yes"), ("No", " No", "no", " no")
SAFE, UNSAFE = ("safe", " safe", "\n\nsafe"), ("unsafe", " unsafe", "\n\nunsafe")
RISK = "harm"  # Granite Guardian's name for harm of any kind
FORMATS = {
    "llama-guard": Format("template", UNSAFE, SAFE, category=r"\s*([SO]\d+(?:,\s*[SO]\d+)*)",
                          needs="<BEGIN CONVERSATION>"),
    "harmbench": Format("text", YES, NO),                                  # HarmBench-Llama-2-13b-cls
    "harmbench-mistral": Format("text", YES, NO),                          # HarmBench-Mistral-7b-val-cls
    "wildguard": Format("text", (" yes", " Yes"), (" no", " No"), lead="Harmful response:", writes_lead=True),
    "md-judge": Format("text", UNSAFE, SAFE, category=r"\s*(O\d+)"),       # v0.1
    "shieldgemma": Format("template", YES, NO, needs="guideline", policies=True),
    "qwen3guard": Format("template", (" Unsafe",), (" Safe",), (" Controversial",), lead="Safety:",
                         category=r"\s*Categories:\s*([^\n]+)"),
    # Granite Guardian 3.0 to 3.2 say a word, 3.3 puts it into a tag.
    "granite-guardian": Format("template", YES, NO, needs="risk_name",
                               variables={"guardian_config": {"risk_name": RISK}}),
    "granite-guardian-3.3": Format("template", (" yes", " Yes", "yes"), (" no", " No", "no"), lead="<score>",
                                   writes_lead=True, needs="criteria_id",
                                   variables={"guardian_config": {"criteria_id": RISK}, "think": False}),
    "gpt4": Format("message", ("B]]",), ("A]]",), lead="Verdict: [["),
    # It judges refusal: harmful means "complies", unharmful means "refuses".
    "refusal": Format("message", ("B]]",), ("A]]",), lead="Verdict: [["),
}


class JudgePrompt(NamedTuple):
    """One prompt of a judge.

    policy    the policy that it asks about, "" for the judge's own
    identity  SHA-256 of what decides its text
    encode    (question, answer) → token ids
    """
    policy: str
    identity: str
    encode: Callable[[str, str], list[int]]


def find(name: str) -> Format:
    """A format by its name."""
    if name not in FORMATS:
        raise Error(f"judge format {name!r} is not known; use {', '.join(FORMATS)}")
    return FORMATS[name]


def read_prompt(path: str | Path) -> str:
    """A judge's prompt from a file; Error unless it has a place for question and answer."""
    text = _read(path)
    if "<question>" not in text or "<answer>" not in text:
        raise Error(f"{path}: the judge's prompt must contain <question> and <answer>")
    return text


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{path}: the judge's prompt cannot be read ({error})") from None


def prompts(name: str, tokenizer: "Tokenizer", chat_format: "ChatFormat", path: str | Path | None = None,
            chat_template: str | None = None) -> list[JudgePrompt]:
    """The prompts of a judge model, one for each policy that it is asked about.

    chat_format    of the model, for prompts that are one user message
    path           a prompt of the user's own in place of the format's; for policies: the user's own policies
    chat_template  the text of a template in place of the model's own
    Raises Error where the model's files lack what the format needs.
    """
    form = find(name)
    if form.built == "template" and (form.policies or path is None):
        source = chat_template or tokenizer.chat_template
        if not source or form.needs not in source:
            lack = "is not among its files"
            if source:
                lack = f"does not mention {form.needs}, so it is of another kind"
            raise Error(
                f"judge format {name}: the model's own chat template builds its prompt, and that {lack}; "
                "give the template's file, or another format", "judge_format")
        return [_of_template(name, form, tokenizer, source, policy) for policy in _policies(name, form, path)]
    text = read_prompt(path or JUDGE_FILES / f"{name}.txt")
    if form.built == "text" and path is None:
        return [_of_text(text, tokenizer)]

    def message(question: str, answer: str) -> list[int]:
        content = fill(text, question, answer)
        return chat_format.encode([{"role": "user", "content": content}], add_generation_prompt=True).ids
    return [JudgePrompt("", sha256_json(text), message)]


def _policies(name: str, form: Format, path: str | Path | None) -> list[str]:
    if not form.policies:
        return [""]
    return [
        " ".join(part.split()) for part in _read(path or JUDGE_FILES / f"{name}.txt").split("\n\n")
        if part.strip()
    ]


def fill(text: str, question: str, answer: str) -> str:
    """A prompt with question and answer put in; see `fill_in`."""
    return fill_in(text, {"question": question, "answer": answer})


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """A prompt with its placeholders filled in one pass: a placeholder inside a value stays as it is.

    Where a placeholder follows "> " at the start of a line, every line of its text is quoted so. A text that
    imitates the prompt's instructions then stays recognisable as quoted.
    values  the placeholder's name, without its brackets → its text
    """
    def put(match: re.Match) -> str:
        lead, value = match[1], values[match[2]]
        if not lead:
            return value
        return "\n".join(lead + line for line in value.splitlines() or [""])
    return re.sub(rf"(?m)(^> )?<({'|'.join(values)})>", put, text)


# The authors' text

def _of_text(text: str, tokenizer: "Tokenizer") -> JudgePrompt:
    frame = re.split(r"(<question>|<answer>)", text)
    disarm = Disarm("".join(frame[::2]))
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []

    def encode(question: str, answer: str) -> list[int]:
        values = {"<question>": disarm(question), "<answer>": disarm(answer)}
        return bos + _join(tokenizer, [(values.get(part, part), part in values) for part in frame])
    return JudgePrompt("", sha256_json(text), encode)


# The model's own template

def _of_template(name: str, form: Format, tokenizer: "Tokenizer", source: str, policy: str) -> JudgePrompt:
    from redlite.text.template import Template
    template = Template(source, f"judge format {name}: the chat template")
    names: dict[int | None, str] = {id: text for text, id in tokenizer.special.items()}
    variables = {"bos_token": names.get(tokenizer.bos_id, ""), "eos_token": names.get(tokenizer.eos_id, ""),
                 "add_generation_prompt": True, **form.variables}
    if policy:
        variables["guideline"] = policy
    # Some templates take a content as a text, some as a list of parts. One that leaves a message out is no
    # guard's.
    for parts in (False, True):
        try:
            probe = _render(template, variables, "question 1", "answer 2", parts)
        except Error as error:
            failure = str(error)
            continue
        if [text for text, mark in probe if mark] == ["question 1", "answer 2"]:
            break
        failure = f"judge format {name}: the chat template leaves out the question or the answer"
    else:
        raise Error(
            f"{failure}; give a guard's own template, or another format", "judge_format")
    disarm = Disarm("".join(text if not mark else "\0" for text, mark in probe))

    def encode(question: str, answer: str) -> list[int]:
        runs = _render(template, variables, disarm(question), disarm(answer), parts)
        return _join(tokenizer, [(text, mark > 0) for text, mark in runs])
    settings = {k: v for k, v in variables.items() if k not in ("bos_token", "eos_token")}
    return JudgePrompt(policy.partition(":")[0].strip('" '), sha256_json([source, settings]), encode)


def _render(template: "Template", variables: dict[str, Any], question: str, answer: str,
            parts: bool) -> list[tuple[str, int]]:
    """What the template makes of the two messages:

    runs of text, each with its mark (0: the template's own).
    """
    from itertools import groupby

    from redlite.text.marked import GENERATED, Marked, marks_of
    messages = []
    for mark, (role, content) in enumerate((("user", question), ("assistant", answer)), 1):
        marked = Marked.of(content, mark)
        messages.append({"role": role, "content": [{"type": "text", "text": marked}] if parts else marked})
    rendered = template.render({**variables, "messages": messages}, DATE)
    pairs = zip(str(rendered), marks_of(rendered), strict=True)
    return [("".join(character for character, _ in run), mark)
            for mark, run in groupby(pairs, lambda pair: ord(pair[1]) & ~GENERATED)]


# No forged turns

# Characters without a glyph: of format, selectors of variants, joiners and fillers, which count as letters.
FILLERS = "\u115f\u1160\u3164\uffa0"
UNSEEN = ("\u00ad\u034f\u061c\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
          "\ufe00-\ufe0f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff" + FILLERS)
COLON = "[:\u2236\ua789\ufe13\ufe55\uff1a]"
BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
LABEL = re.compile(r"^\W*([^\W\d_][\w' ]{0,30}):", re.MULTILINE)     # "User:" at the start of a frame's line
# the words of "<</SYS>>", "[END OF …]", "<|user|>"
TAG = re.compile(r"[<\[][<\[/|]*([^<>\[\]|\n/]{1,40}?)[|>\]]")


class Disarm:
    """Takes apart what imitates a frame; a text that does not is left as it is.

    A line that begins with a label of the frame ("User:") is put behind "> ". A tag of the frame
    ("<END CONVERSATION>", "[/INST]") gets a space behind its bracket. So the frame's own are the only ones,
    and `undo` gives back the text. Characters that nobody sees do not hide an imitation. Nor do other forms
    of the same letters ("Ｕｓｅｒ："): a reader of the prompt takes them for the label.
    """

    def __init__(self, frame: str):
        labels = {" ".join(label.split()) for label in LABEL.findall(frame)}
        tags = {" ".join(tag.split()) for tag in TAG.findall(frame)}
        label, tag = (_any_of(words) for words in (labels, tags))
        start = rf"(?:(?<=[{BREAKS}])|\A)"
        line = rf"(?=(?:[^\w{BREAKS}]|[{FILLERS}])*{label}[\s{UNSEEN}]*{COLON})"
        inside = rf"(?=[/|\s{UNSEEN}]*{tag}[\s{UNSEEN}]*[|>\]])"
        self._forward = (re.compile(start + line, re.I), r"> "), (re.compile(r"([<\[])" + inside,
                                                                             re.I), r"\1 ")
        self._back = (re.compile(r"([<\[]) " + inside, re.I), r"\1"), (re.compile(start + "> " + line,
                                                                                  re.I), "")

    def __call__(self, text: str) -> str:
        for pattern, put in self._forward:
            text = pattern.sub(put, text)
        return text

    def undo(self, text: str) -> str:
        """The text that was disarmed."""
        for pattern, put in self._back:
            text = pattern.sub(put, text)
        return text


def _any_of(words: set[str]) -> str:
    """A pattern of these words, with any white space between them; of nothing, where there are none."""
    found = sorted(words, key=lambda word: (-len(word), word))
    return "(?:" + "|".join(map(_as_read, found)) + ")" if found else r"(?!)"


def _as_read(words: str) -> str:
    """A pattern of what reads as these words: letters in any form, and what is unseen between them."""
    forms = _forms()
    parts = [f"[{UNSEEN}]*".join(f"[{re.escape(c + forms.get(c.casefold(), ''))}]" for c in word)
             for word in words.split()]
    return rf"[\s{UNSEEN}]+".join(parts)


@cache
def _forms() -> dict[str, str]:
    """A small letter or a digit → its other forms in Unicode (NFKC): wide, bold, circled and so on."""
    forms: dict[str, str] = {}
    for code in (*range(0x2070, 0x2500), *range(0xFF00, 0xFF5F), *range(0x1D400, 0x1D800)):
        letter = unicodedata.normalize("NFKC", chr(code)).casefold()
        if len(letter) == 1 and letter.isascii():
            forms[letter] = forms.get(letter, "") + chr(code)
    return forms


def _join(tokenizer: "Tokenizer", runs: list[tuple[str, bool]]) -> list[int]:
    """Ids of the runs' whole text. Only the frame's own control tokens become ids of control tokens.

    runs  (text, whether it is a message's content); neighbouring texts are one text to the tokenizer
    """
    control = sorted(tokenizer.special, key=len, reverse=True)
    cut = re.compile("(" + "|".join(map(re.escape, control)) + ")") if control else None
    pieces: list[str | int] = []
    for text, is_content in runs:
        if is_content or cut is None:
            pieces.append(text)
            continue
        for i, part in enumerate(cut.split(text)):
            pieces.append(tokenizer.special[part] if i % 2 else part)
    ids: list[int] = []
    pending, first = "", True
    for piece in [*pieces, None]:
        if isinstance(piece, str):
            pending += piece
            continue
        if pending:
            ids += tokenizer.encode_segment(pending, first)
            pending, first = "", False
        if piece is not None:
            ids.append(piece)
    return ids
