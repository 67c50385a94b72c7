"""Plain text for patterns, the language of a text, and how refusals are worded outside English.

The language is told by script and by function words. That needs no table of n-grams and works on one
sentence. It is made to err on one side: text that shows no sign of English is "" (unknown), never English.
"""
import re
import unicodedata
from collections import Counter

_APOSTROPHES = dict.fromkeys(map(ord, "’‘‛ʼʻʹ´`′＇ʾʿˈ＇ꞌ"), "'")
_QUOTES = dict.fromkeys(map(ord, "“”„‟«»″"), '"')
_NOTHING = dict.fromkeys(map(ord, "*\u00ad\u034f\u200c\u200d\u200e\u200f\u2060\ufe0e\ufe0f\ufeff\u180e"))
_NOTHING |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
_TABLE = _APOSTROPHES | _QUOTES | _NOTHING | {0x3002: ". ", 0xFF01: "! ", 0xFF1F: "? ", 0x0964: ". "}
_ZERO_WIDTH = "\u200b"
_SPACES = re.compile(r"  +|[^\S\n ] *")
_LINES = re.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")


def plain(text: str) -> str:
    """Text in NFKC and folded case, with straight quotes, plain spaces and no markup or invisible characters.

    A zero-width space stands for a space if a text has at least as many of them as of spaces; else it is
    dropped. Sentence ends of Chinese, Japanese and Hindi become ". ", so that sentences can be split alike.
    """
    if text.isascii():
        text = text.replace("*", "").replace("`", "'")
    else:
        if _ZERO_WIDTH in text:
            text = text.replace(_ZERO_WIDTH, " " if text.count(_ZERO_WIDTH) >= text.count(" ") else "")
        text = unicodedata.normalize("NFKC", text.translate(_TABLE)).casefold().replace("i\u0307", "i")
    return _SPACES.sub(" ", _LINES.sub("\n", text)).strip().lower()


# Words that are frequent in one language and rare in the others. Those that English shares with another
# language ("is", "was", "die", "no") are left out on both sides unless the other language needs them.
_FUNCTION_WORDS = {
    "en": "the and you your that this with it its it's are aren't have haven't has had not be been being "
    "can cannot can't will "
    "won't would wouldn't i i'm i've i'll my they them their there what how which from by or if about "
    "should shouldn't "
    "could couldn't these those our his her she who when where why than then some any more other into "
    "out up only also "
    "such because while through between after before just like you're you'll that's there's here's "
    "let's don't "
    "doesn't didn't isn't us but does did make use get here until without within "
    "please sorry step first second next sure help yes it'll all each one two born were name number "
    "date work works something someone anyone",
    "es": "el los las una que de y en por para con no se lo le su es son como pero más este esta esto "
    "puedo puede puedes ni "
    "nada mi tu usted eso sobre al del está hacer ayudar lamento siento sin o un la si te me",
    "fr": "le les des une que et je ne pas vous pour dans avec ce cette ces est sont mais sur au aux du de "
    "il elle nous "
    "qui peux peut suis désolé cela ça ou en un la mon votre n'est j'ai c'est d'une l' à si me te se "
    "on",
    "de": "der die das und ich nicht ist sie es zu den dem ein eine einen mit für auf von im kann kein "
    "keine dass aber wie "
    "werde bei auch sich wir ihnen dir dabei leider oder nein mich diese dieser um tut leid mir",
    "pt": "o os as um uma que de e em por para com não se lhe seu sua é são como mas mais este esta isso "
    "isto posso pode você "
    "nem meu do da dos das no na ao sobre fazer ajudar sinto muito desculpe eu nesse nisso",
    "it": "il lo gli le un una che di e in per con non si è sono come ma più questo questa posso può ti mi "
    "tuo del della "
    "dei nel al dispiace io ciò aiutarti aiutarla spiacente questa a la da ci ne",
    "nl": "de het een en ik niet van is dat te op met voor dit die maar kan zijn deze je u bij om aan hier "
    "geen ook helaas "
    "wil daarmee hiermee spijt mij naar nee",
    "pl": "nie i w na z to jest się że do o jak ale co tym mogę przykro mi ci pomóc tego o tej za "
    "przepraszam jako są lub "
    "po od dla pan pani niestety moje poza moich moimi odmawiam",
    "id": "saya tidak dan yang untuk dengan ini itu anda di dari dapat bisa maaf ke akan karena adalah "
    "atau membantu hal "
    "kami mohon permintaan dalam pada",
    "tr": "bu ve bir için ile değil size sana yardımcı olamam edemem ben üzgünüm konuda bunu ama da de "
    "gibi var yok "
    "olarak mümkün hayır",
    "vi": "tôi không thể và của là cho bạn này với các có được xin lỗi việc một để trong giúp những yêu "
    "cầu rất tiếc",
    "": "jeg jag ikke inte det att och og som på er är med nem és hogy az nu să cu este și se je na že ne "
    "ni za ako ang hindi "
    "sa siwezi kwa ya nije ek nie daar ei en se on nuk të dhe mund",
}
# Words that other languages have as well: they count for less.
_SHARED = frozenset(("is", "to", "of", "for", "as", "at", "we", "in", "on", "an", "do", "over", "was",
                     "plus"))
_ENGLISH = frozenset(_FUNCTION_WORDS.pop("en").split())
_POSSESSIVES = frozenset(word for word in _ENGLISH if word.endswith("'s"))
_SETS = {
    language: frozenset(words.split()) - _ENGLISH - _SHARED for language, words in _FUNCTION_WORDS.items()
}
_SCRIPTS = {
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "ko": re.compile(r"[\u1100-\u11ff\uac00-\ud7af]"),
    "zh": re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]"),
    "ru": re.compile(r"[\u0400-\u052f]"),
    "ar": re.compile(r"[\u0600-\u06ff\u0750-\u077f]"),
    "hi": re.compile(r"[\u0900-\u097f]"),
}
_OTHER_SCRIPT = re.compile(r"[^\W\d_\u0000-\u024f\u0300-\u036f\u1e00-\u1eff\u2000-\u22ff]")
_LATIN = re.compile(r"[a-z\u00df-\u024f\u1e00-\u1eff]")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_CODE = re.compile(r"'''|```|[{};=<>]")
FIRST_LOOK = 400  # characters of an ASCII text that may be enough to see that it is English
HEAD, TAIL = 2000, 500  # characters of a long text that are looked at for function words
FOREIGN_SHARE = 0.3  # of the letters: more in another script than this, and a text is not English
ENGLISH_SHARE = 0.08  # of the words: fewer function words than this, and a text is not English
CLEARLY_ENGLISH = 0.25  # of the words: more function words than this, and a text is English
CODE_SHARE = 0.03  # of the characters: more braces and signs than this, and a text is code


def language_of(text: str) -> str:
    """The language of a `plain` text: "en", a key of REFUSALS, or "" for one that is not known.

    Code and text without any letter count as English: they hold no wording that could be misread.
    """
    if text.isascii() and _clearly_english(_WORD.findall(text[:FIRST_LOOK])):
        return "en"
    if not text.isascii():
        sample = text[:HEAD] + " " + text[-TAIL:]
        others = len(_OTHER_SCRIPT.findall(sample))
        if others and others > FOREIGN_SHARE * (others + len(_LATIN.findall(sample)) / 3):
            counts = {name: len(pattern.findall(sample)) for name, pattern in _SCRIPTS.items()}
            if counts["ja"] > 0.1 * counts["zh"]:
                return "ja" if counts["ja"] + counts["zh"] > 0.5 * others else ""
            best = max(counts, key=counts.__getitem__)
            return best if counts[best] > 0.5 * others else ""
    sample = text if len(text) <= HEAD + TAIL else text[:HEAD] + " " + text[-TAIL:]
    words = _WORD.findall(sample)
    if not words:
        return "en"
    if _clearly_english(words):
        return "en"
    counts = Counter(words)
    owners = sum(word.endswith("'s") for word in words)  # "Anna's": the possessive is English alone
    english = _count(counts, _ENGLISH - _POSSESSIVES) + _count(counts, _SHARED) / 3 + owners
    scores = {name: _count(counts, known) for name, known in _SETS.items()}
    best = max(scores, key=scores.__getitem__)
    accented = sum(not word.isascii() for word in words)
    if english > max(scores[best], accented) and english > ENGLISH_SHARE * len(words):
        return "en"
    if len(_CODE.findall(sample)) > CODE_SHARE * len(sample):
        return "en"
    return best if scores[best] > 0 else ""


def _clearly_english(words: list[str]) -> bool:
    return sum(word in _ENGLISH for word in words) > CLEARLY_ENGLISH * len(words)


def _count(counts: Counter, known: frozenset[str]) -> int:
    return sum(counts[word] for word in counts.keys() & known)


def identity() -> list:
    """All that decides on a text's language."""
    words = {name: sorted(known) for name, known in {"en": _ENGLISH, "shared": _SHARED, **_SETS}.items()}
    return [words, FIRST_LOOK, HEAD, TAIL, FOREIGN_SHARE, ENGLISH_SHARE, CLEARLY_ENGLISH, CODE_SHARE]
