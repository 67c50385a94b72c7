"""What a model answers, without what it thinks first: thoughts in prose and blocks of reasoning models.

Thoughts are not judged (arXiv 2308.09662, section 3.1). A thought counts at the start of the text, behind
white space, markup and a speaker's label; several in a row all count. The rules, in the order of trial:

 1. A reasoning tag, such as <think> or [THINK], opens a block up to the tag that closes it; blocks may nest.
 2. A bracket whose first words name somebody's thought is a thought up to its closing bracket.
    Brackets inside it pair off. Smileys and list marks "1)", "2)" do not close it, unless nothing else does.
    A bracket that holds only a name, such as "*(Internal monologue)* …", is a heading. The paragraph behind
    it goes too where another paragraph follows. "(Thinking)" and "(thinks)" go alone.
 3. "Here is my thought process:" opens a thought only where "Here is my response:" follows (Granite).
 4. A label without brackets, such as "Internal thought: …", opens a thought. It ends at the first blank
    line, or at a label such as "Answer:" or "Base-LM:"; without these, at the first line break.
    "Thought:" and "Thinking:" count only where a blank line or an answer's label follows.
    "Thoughts:" and "Reasoning:" are how answers begin: they stay.
 5. A closing tag that no opening one precedes ends a thought that the prompt opened.
 6. Of gpt-oss's harmony messages, the last one of the channel "final" is the answer.

A thought that never ends leaves no answer. A tag in quotes or in code is a mention. All else stays.
"""
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redlite.text.lazy_pattern import LazyPattern

if TYPE_CHECKING:
    from redlite.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Split:
    """A generated text taken apart. thought and answer are parts of it, without white space around them."""
    thought: str  # all thoughts with their tags and labels, a blank line between them; "" if there is none
    answer: str   # one piece of the text; "" where the text is only thought
    closed: bool  # False where a thought never ended, so that there is no answer


@dataclass(frozen=True)
class _Cut:
    """A thought found: the answer lies between `begin` and `end`."""
    begin: int
    end: int
    closed: bool = True


# ---- reasoning tags ----

_TAG_NAME = (r"(?:(?!start_|end_)[a-z]{1,12}[:_])?(?:(?:internal|inner)[ _-])?"
             r"(?:think(?:ing)?|thoughts?(?:[ _-]process)?|reasoning|reflection|monologue|scratchpad)")
# DeepSeek, Qwen, Seed and others; Magistral; Kimi; Command; Gemma 4; Apertus; OpenThinker; Pangu.
_OPENING = (rf"<\|?\s?{_TAG_NAME}\s?\|?>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|channel>thought\b"
            r"|<\|inner_prefix\|>|<\|begin_of_thought\|>|\[unused16\]")
_CLOSING = (rf"<\|?\s?/\s?{_TAG_NAME}\s?\|?>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<channel\|>"
            r"|<\|inner_suffix\|>|<\|end_of_thought\|>|\[unused17\]")
_SQUARE_END = LazyPattern(rf"\[/\s?{_TAG_NAME}\s?\]", re.IGNORECASE)
_TAG = LazyPattern(f"(?P<opening>{_OPENING})|(?P<closing>{_CLOSING})", re.IGNORECASE)
_QUOTES = tuple("`\"'“”‘’«»")
# "<thought>" is also a word of XML, so only the tags that prompts open may close what nothing opened.
_OPENED_BY_PROMPTS = LazyPattern(r"think|channel|inner|unused", re.IGNORECASE)

_HEADER = (r"(?:<\|start\|>\s?assistant\s?)?<\|channel\|>\s?(?P<channel>\w{1,20})[^<\n]{0,80}"
           r"(?:<\|constrain\|>\s?\w{1,20}\s?)?<\|message\|>")
_MESSAGE = LazyPattern(_HEADER)
_MESSAGE_END = LazyPattern(r"<\|(?:end|return|start|channel|call)\|>")
_BARE = LazyPattern(f"(?P<fence>```)|(?P<opening>{_OPENING})|(?P<closing>{_CLOSING})|(?P<message>{_HEADER})",
                   re.IGNORECASE)
# Harmony's text where the special tokens were left out: "analysisWe need …assistantfinalHere is …"
_GLUED = LazyPattern(r"analysis(?=[A-Z][a-z']{0,12}\s)")
_GLUED_FINAL = "assistantfinal"

_OPENED_AT_END = LazyPattern(rf"(?:{_OPENING}|{_HEADER})\Z", re.IGNORECASE)

_WRAPPER = LazyPattern(
    r"\s*(?:<(answer|response|output|final_answer)>|<\|(?:START_RESPONSE|begin_of_solution)\|>)\s*",
    re.IGNORECASE)

# ---- names of thoughts in prose ----

_WORD = r"[\w'’.-]{1,24}"
_MARKS = r"""[\s*_"“”]{0,8}"""
_HIDDEN = r"(?:internal|inner|private|hidden|secret|silent|unspoken)"
_NOUN = r"(?:thoughts?(?:[ -]process)?|thinking(?:[ -]process)?|reasoning(?:[ -]process)?|monologue)"
_MIND = rf"(?:{_HIDDEN}[\s,_-]{{1,3}}(?:{_WORD}\s)?(?:{_NOUN}|dialog(?:ue)?|voice|reflection)(?![^\W_]))"
# The same in other languages, behind a bracket.
_ELSEWHERE = (r"(?:[内心部里中理]{0,3}(?:独白|想法|思考|活动|思路)|pensamient?os?\sintern\w{1,2}"
              r"|pensées?\sinternes?|(?:innere[rn]?|interne[rn]?)\s(?:gedanken?|monolog)"
              r"|pensier[oi]\sintern[oi])")
_BASE = r"(?:the\s)?base[-_ ]?lm(?:['’]s)?\s"
_MODEL = r"(?:the\s)?(?:base|blue|ai|assistant|model|chatbot|bot)(?:[-_ ]?l?m)?(?:['’]s?)?\s"
# Whose thought it is. "Food for thought", "critical thinking" and the like are nobody's.
_NOBODY = (r"(?:for|on|of|to|in|with|and|here|final|closing|parting|second|further"
           r"|critical|design|lateral|wishful|positive|deductive|inductive|logical)\s")
_SOMEBODY = rf"(?:(?:my|its|his|her|their|the|{_WORD}['’]s)\s|{_MODEL})?"
_OWNER = rf"(?:(?!{_NOBODY}){_WORD}:?\s{{1,3}}){{0,3}}"
_MANNER = (r"(?:\s(?:to\s\w{0,6}sel(?:f|ves)|out\sloud|aloud|internally|privately|silently|quietly"
           r"|step\sby\sstep"
           r"|of\s(?:the\s)?(?:base|ai|assistant|model|bot)(?:[-_ ]?lm)?|in\s\w{1,5}\s(?:head|mind)"
           r"|for\s\w{1,12}(?:\s\w{1,12})?|#?\d{1,2}))?")
# What follows a name and shows that no sentence goes on: a colon, a dash, the closing bracket, a line's end.
_STOP = rf"(?={_MARKS}(?:[:：=…)）\]】}}–—]|\.\.\.|-\s)|\s-|\s{{0,3}}\n)"
_VERB = r"(?P<verb>thinks|thinking|(?<=\bI\s)think)"
_BRACKET_NAME = LazyPattern(
    rf"[(（\[【{{［]{{1,2}}{_MARKS}"
    rf"(?:{_SOMEBODY}{_MIND}|{_BASE}(?:{_NOUN}|thinks)\b|{_ELSEWHERE}{_STOP}|"
    rf"{_OWNER}(?:{_MIND}|{_VERB}|{_NOUN}){_MANNER}{_STOP})",
    re.IGNORECASE)
_ALONE = LazyPattern(r"""[\s*_"“”.…:：]*(?=[)）\]】}］])""")
_LABEL = LazyPattern(
    rf"(?:(?P<declared>{_SOMEBODY}{_MIND}{_MANNER}(?:\s\([^()\n]{{1,40}}\))?|"
    rf"{_MODEL}(?:{_NOUN}|thinks){_MANNER})"
    rf"|(?:my\s)?(?:thought(?:[ -]process)?|thinking|thinks){_MANNER})"
    r"\s?(?P<emphasis>[*_]{0,3})\s?(?:[:：]|(?P<dash>[–—]|-\s))[*_]{0,3}", re.IGNORECASE)
_HEADING = LazyPattern(
    rf"(?:(?<=[*_#])|(?<=#\s))(?:{_WORD}\s)?{_HIDDEN}\sthoughts?[*_]{{0,3}}[^\S\n]*\n", re.IGNORECASE)
_GRANITE = LazyPattern(r"here(?: is|['’]s) my thought process:", re.IGNORECASE)
_GRANITE_END = LazyPattern(r"here(?: is|['’]s) my response:", re.IGNORECASE)

# ---- what stands around thoughts ----

# Quantifiers next to each other never match the same characters, so that no text takes more than linear time.
_SPACE = LazyPattern(r"\s*")
_MARKUP = LazyPattern("[\\s*_\"“”'‘’>#•\\-💭🤔🧠\u200b\ufeff]*")
_SPEAKER = LazyPattern(
    r"(?:(?:base|blue)[-_ ]?lm|assistant|ai|model|chatbot|bot)[*_]{0,3}\s?(?::|(?=[\s*_]{0,4}[(（\[【]))",
    re.IGNORECASE)
_BASE_TURN = r"(?:(?:base|blue)[-_ ]?lm|assistant)"
_TURN = LazyPattern(rf"[\s*_#>]*{_BASE_TURN}[*_]{{0,3}}\s?:[*_]{{0,3}}", re.IGNORECASE)
_HANDOVER = (rf"(?:[*_#\[(>]{{1,3}}\s?)?(?:(?:my\s|final\s)?(?:answer|response|reply|output)|{_BASE_TURN})"
             r"[*_\])]{0,3}\s?:[*_]{0,3}")
# A thought's end: a blank line; the label of what follows, where a line or sentence starts; "[/Thought]".
_BREAK = LazyPattern(
    rf"(?P<blank>\n[^\S\n]*\n)|(?:(?<=\n)|(?<=[.!?…*”\"]\s)){_HANDOVER}"
    r"|[\[(](?:/|end\sof\s)[\w ]{0,20}(?:thoughts?|thinking|monologue|reasoning)[\])]", re.IGNORECASE)
_AFTER = LazyPattern(rf"\s*{_HANDOVER}", re.IGNORECASE)
_BLANK = LazyPattern(r"[^\S\n]*\n[^\S\n]*\n")
_COLON = LazyPattern(r"\s?[:：][*_]{0,3}")

_OPENERS, _CLOSERS = "(（[【［{", ")）]】］}"
_BRACKETS = LazyPattern(r"[(（)）\[【［\]】］{}]")
_KINDS = {"(": "(（)）", "（": "(（)）", "[": "[【［]】］", "【": "[【［]】］", "［": "[【［]】］", "{": "{}"}
_SMILEY = LazyPattern(r"(?<!\S)[:;]-?$")
_ITEM = LazyPattern(r"(?<!\S)(?:\d{1,2}|[a-z])$", re.IGNORECASE)


def split_thoughts(text: str, opened: bool = False) -> Split:
    """The thoughts that a generated text begins with, and the answer that is left, in linear time.

    opened: the prompt ended in an opening reasoning tag (see `opens_thought`): the text begins in a thought.
    """
    reader = _Reader(text)
    pieces = []
    begin, end = 0, len(text.rstrip())
    cut = reader.opened(end) if opened else reader.cut(begin, end)
    wrapped = True  # an answer's own wrapper, such as <answer>, may follow once
    while cut is not None:
        pieces.append(text[begin:cut.begin].strip())
        begin, end = cut.begin, cut.end
        if not cut.closed:
            return Split("\n\n".join(pieces), "", False)
        if turn := _TURN.match(text, begin, end):
            begin = turn.end()
        if wrapped and (wrapper := _WRAPPER.match(text, begin, end)):
            wrapped = False
            begin, end = wrapper.end(), _unwrapped(text, wrapper, end)
        cut = reader.cut(begin, end)
    return Split("\n\n".join(pieces), text[begin:end].strip(), True)


def strip_thoughts(text: str, opened: bool = False) -> str:
    """The answer alone: see `split_thoughts`."""
    return split_thoughts(text, opened).answer


def opens_thought(prompt_tail: str) -> bool:
    """Whether a rendered prompt ends in an opening reasoning tag, with nothing but white space behind it."""
    last = _OPENED_AT_END.search(prompt_tail.rstrip()[-200:])
    return last is not None and last["channel"] != "final"


def prompt_opens_thought(tokenizer: "Tokenizer", ids: Sequence[int]) -> bool:
    """Whether a prompt's ids end in an opening reasoning tag, be it text or a control token."""
    names = {id: name for name, id in tokenizer.special.items()}
    return opens_thought("".join(names.get(i) or tokenizer.decode([i]) for i in ids[-40:]))


class _Reader:
    """Finds the thought that a part of `text` begins with."""

    def __init__(self, text: str):
        self.text = text
        self.ends, self.unopened = self._pair_tags()
        self.may_end_in_brackets = "[/" in text
        self.last_break = max((match.start() for match in _BREAK.finditer(text)), default=-1)

    def cut(self, begin: int, end: int) -> _Cut | None:
        """The thought at `begin`; None if what follows is the answer."""
        start = _behind(_MARKUP, self.text, begin, end)
        if speaker := _SPEAKER.match(self.text, start, end):
            start = _behind(_MARKUP, self.text, speaker.end(), end)
        if start in self.ends:
            return self._closed_at(self.ends[start], end)
        for rule in (self._bracket, self._granite, self._label, self._without_tokens):
            if cut := rule(start, end):
                return cut
        return self._bare(begin, end)

    def opened(self, end: int) -> _Cut:
        """The thought that the prompt opened."""
        start = _behind(_MARKUP, self.text, 0, end)
        if start in self.ends:  # the model repeats the tag
            return self._closed_at(self.ends[start], end)
        closing = self.unopened[0] if self.unopened else min(self.ends, default=None)
        if closing in self.ends:
            closing = self.ends[closing]
        message = _MESSAGE_END.search(self.text, 0, end)
        if message and (closing is None or message.start() < closing):
            return self._last_message(message.start(), end)
        return self._closed_at(closing, end)

    def _closed_at(self, position: int | None, end: int) -> _Cut:
        return _Cut(end, end, False) if position is None or position > end else _Cut(position, end)

    def _pair_tags(self) -> tuple[dict[int, int | None], list[int]]:
        """The end of each opening tag's block, by the tag's position; and the ends of unopened closing tags.

        A block whose nested tags leave it without a closing tag ends where the next block ends.
        """
        ends: dict[int, int | None] = {}
        unopened: list[int] = []
        open_tags: list[int] = []
        for match in _TAG.finditer(self.text):
            if self._is_mention(match):
                continue
            if match["opening"]:
                ends[match.start()] = None
                open_tags.append(match.start())
            elif open_tags:
                ends[open_tags.pop()] = match.end()
            else:
                unopened.append(match.end())
        following = None
        for position in reversed(ends):
            if ends[position] is None:
                ends[position] = following
            following = ends[position]
        return ends, unopened

    def _is_mention(self, tag: re.Match) -> bool:
        before, after = self.text[max(0, tag.start() - 1):tag.start()], self.text[tag.end():tag.end() + 1]
        return before in _QUOTES and after in _QUOTES

    def _granite(self, start: int, end: int) -> _Cut | None:
        opening = _GRANITE.match(self.text, start, end)
        closing = opening and _GRANITE_END.search(self.text, opening.end(), end)
        return _Cut(closing.end(), end) if closing else None

    def _bracket(self, start: int, end: int) -> _Cut | None:
        text = self.text
        name = _BRACKET_NAME.match(text, start, end)
        if not name:
            return None
        close = _closing(text, start, end, lenient=True) or _closing(text, start, end, lenient=False)
        if close is None:
            return _Cut(end, end, False)
        alone = _ALONE.match(text, name.end(), end)
        if alone and text[start] == "[" and self.may_end_in_brackets:  # "[thinking] … [/thinking]"
            if closing := _SQUARE_END.search(text, close, end):
                return _Cut(closing.end(), end)
            self.may_end_in_brackets = False  # nor in any later part
        # What closes the emphasis or quotes that the bracket stood in.
        while close < end and text[close] in '*_"”' and text[start - 1:start] in tuple('*_"“'):
            close += 1
        if alone:
            if colon := _COLON.match(text, close, end):
                close = colon.end()
            if colon or not (name["verb"] or _BLANK.match(text, close, end)):
                return self._paragraph(close, end) or _Cut(close, end)
        return _Cut(close, end)

    def _label(self, start: int, end: int) -> _Cut | None:
        text = self.text
        label = _LABEL.match(text, start, end)
        if not label:
            heading = _HEADING.match(text, start, end)
            return self._paragraph(heading.end(), end) if heading else None
        if label["dash"] and not label["declared"]:
            return None
        behind = label.end()
        if emphasised := self._emphasised(start, label, end):
            return emphasised
        if paragraph := self._paragraph(behind, end):
            return paragraph
        if not label["declared"]:
            return None
        line = text.find("\n", _behind(_MARKUP, text, behind, end), end)
        return _Cut(line, end) if line >= 0 else _Cut(end, end, False)

    def _emphasised(self, start: int, label: re.Match, end: int) -> _Cut | None:
        """A thought that stands in emphasis as a whole: "*Internal thought: be useful.* Wait."."""
        text = self.text
        before = text[max(0, start - 3):start]
        marks = before[len(before.rstrip("*_")):]
        if not marks or label[0].endswith(("*", "_")) or label["emphasis"]:
            return None
        stop = text.find("\n", label.end(), end)
        closing = re.compile(rf"(?<=\S){re.escape(marks)}(?![\w*])")
        close = closing.search(text, label.end(), end if stop < 0 else stop)
        return _Cut(close.end(), end) if close else None

    def _paragraph(self, behind: int, end: int) -> _Cut | None:
        """The thought from `behind` up to a blank line or an answer's label; None where neither follows."""
        first = _behind(_MARKUP, self.text, behind, end)
        if first > self.last_break:
            return None
        found = _BREAK.search(self.text, first, end)
        if not found:
            self.last_break = -1  # nor in any later part
            return None
        begin = found.end()
        if found["blank"] and (handover := _AFTER.match(self.text, begin, end)):
            begin = handover.end()
        return _Cut(begin, end)

    def _without_tokens(self, start: int, end: int) -> _Cut | None:
        if not _GLUED.match(self.text, start, end):
            return None
        final = self.text.find(_GLUED_FINAL, start, end)
        return self._closed_at(final + len(_GLUED_FINAL) if final >= 0 else None, end)

    def _bare(self, begin: int, end: int) -> _Cut | None:
        """A thought that began before the text: up to the first closing tag or message outside of code."""
        text, in_code = self.text, False
        begin = _behind(_SPACE, text, begin, end)
        for match in _BARE.finditer(text, begin, end):
            if match["fence"]:
                in_code = not in_code
            elif in_code or self._is_mention(match):
                continue
            elif match["opening"]:
                return None
            elif match["message"]:
                at_start = match.start() == begin or text[match.start() - 1] in "\n>"
                if at_start or match[0].startswith("<|start|>"):
                    return self._last_message(match.start(), end)
            elif _OPENED_BY_PROMPTS.search(match[0]):
                before, after = text[match.start() - 1:match.start()], text[match.end():match.end() + 1]
                if match.start() == begin or not before.isspace() or before == "\n" or after == "\n":
                    return _Cut(match.end(), end)
        return None

    def _last_message(self, start: int, end: int) -> _Cut:
        """Harmony: a thought up to the last message of channel "final". Without one there is no answer."""
        final = None
        for message in _MESSAGE.finditer(self.text, start, end):
            if message["channel"] == "final":
                final = message
        if final is None:
            return _Cut(end, end, self.text.endswith(("<|end|>", "<|call|>", "<|return|>"), start, end))
        stop = _MESSAGE_END.search(self.text, final.end(), end)
        return _Cut(final.end(), stop.start() if stop else end)


def _behind(pattern: LazyPattern, text: str, begin: int, end: int) -> int:
    """Where the characters of `pattern` end that `begin` begins with; `begin` itself if there are none."""
    match = pattern.match(text, begin, end)
    return match.end() if match else begin


def _unwrapped(text: str, wrapper: re.Match, end: int) -> int:
    """Where the text ends without the tag that closes the answer's wrapper, if it ends in that."""
    names = (f"</{wrapper[1]}>",) if wrapper[1] else ("<|END_RESPONSE|>", "<|end_of_solution|>")
    tail = text[wrapper.end():end].rstrip()
    for name in names:
        if tail.lower().endswith(name.lower()):
            return wrapper.end() + len(tail) - len(name)
    return end


def _closing(text: str, start: int, end: int, lenient: bool) -> int | None:
    """The index behind the bracket that closes the one at `start`; None if none does.

    lenient: smileys and the marks of a list do not close it. This reading stops at the next bracket that
    names a thought, so that it reads each part of a text once.
    """
    kind = _KINDS[text[start]]
    depth, expected = 0, {"1", "a"}
    for match in _BRACKETS.finditer(text, start, end):
        i, bracket = match.start(), match[0]
        before = text[max(start + 1, i - 3):i]
        if lenient and i > start:
            if bracket in _OPENERS and _BRACKET_NAME.match(text, i, end):
                return None
            if _SMILEY.search(before):
                continue
            item = _ITEM.search(before)
            closes = bracket in kind and bracket in _CLOSERS and depth == 1
            if closes and item and item[0].lower() in expected:
                expected = {"1", "a", _successor(item[0].lower())}
                continue
        if bracket in kind:
            depth += 1 if bracket in _OPENERS else -1
        if depth == 0:
            return i + 1
    return None


def _successor(mark: str) -> str:
    return str(int(mark) + 1) if mark.isdecimal() else chr(ord(mark) + 1)
