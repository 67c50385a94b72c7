"""Writes tests/golden/pipelines.json: what tokenizers 0.23.3 and mistral-common 1.13.1 make of nasty strings.

Run by hand where both are installed:

    python tests/beside/make_pipeline_goldens.py

The file holds small tokenizers, trained here on the strings and on invented words, each with digests of the
ids and of the decoded text of every string; what each behavior of a Split makes of the strings; and a small
tekken.json, with the ids of strings and of conversations in each version of its format.
"""
import base64
import json
import random
import sys
import tempfile
from pathlib import Path

import make_tokenizer_goldens as maker

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import mistral_conversations

GOLDEN = Path(__file__).parents[1] / "golden" / "pipelines.json"
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
POSSESSIVE = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
              r"|\s*[\r\n]|\s+(?!\S)|\s")
BEHAVIORS = ("isolated", "removed", "contiguous", "merged_with_previous", "merged_with_next")
CLASSES = (r"\w", r"\W+", r"[^\S\r\n]+", r"[\P{L}a-c]", r"\d", "[-a\\-]", r"[\]a]", r"\p{^L}+", ".",
           "^.", ".$", r"\x41|\u00e9", "a{2}", "a{1,}?", "(a)(?=b)", "(?<!a)b")
CONTROLS = ("<s>", "</s>", "<unk>", "[INST]", "[/INST]")
VERSIONS = ("v3", "v7", "v11", "v13")


def extra() -> list[str]:
    """Strings for added tokens and spaces."""
    rng = random.Random(14)
    parts = (" ", "  ", "\n", "\t", "▁", "a", "b_", "é", "12", ".", "<L>", "<R>", "<W>", "<N>", "<B>", "s>",
             "\u200d", "\u0301", "Ⓐ", "漢")
    return ["".join(rng.choices(parts, k=rng.randrange(1, 9))) for _ in range(200)]


def texts() -> list[str]:
    """All strings but the longest, so that the file stays small; and none that spells a control token.

    The library's merges can make a control token of such text, and redlite's cannot.
    """
    found = [text for text in maker.strings() if len(text) < 120] + extra()
    return [text for text in found if not any(control in text for control in CONTROLS)]


def digests(rows: list) -> str:
    """Four characters a row."""
    return "".join(maker.digest(row)[:4] for row in rows)


def corpus() -> list[str]:
    rng = random.Random(5)
    words = ["".join(rng.choices("aabcdefghiklmnoprstuéß漢字", k=rng.randrange(1, 8))) for _ in range(300)]
    lines = [" ".join(rng.choices(words, k=9)) for _ in range(300)]
    return [*lines, *(text for text in texts() if len(set(text)) < 40)]


def added() -> list:
    from tokenizers import AddedToken
    return [AddedToken("<L>", lstrip=True, normalized=False),
            AddedToken("<R>", rstrip=True, normalized=False),
            AddedToken("<W>", single_word=True, normalized=False), AddedToken("<N>", normalized=True),
            AddedToken("<B>", lstrip=True, rstrip=True, normalized=True)]


def recipes() -> dict:
    """name → (model, normalizer, pre_tokenizer, decoder) of the tokenizers library."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                decoders.Strip(" ", 1, 0)])

    def split(*expressions: str):
        steps = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
        return pre_tokenizers.Sequence([*steps, bytes_only])

    def metaspace(scheme: str, cut: bool):
        return pre_tokenizers.Metaspace("▁", scheme, cut)

    def fallback():
        return models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)

    replace = normalizers.Replace(" ", "▁")
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(False), pre_tokenizers.Punctuation("contiguous"),
                                      pre_tokenizers.ByteLevel(add_prefix_space=True)])
    return {
        "tekken": (models.BPE(ignore_merges=True), None, split(TEKKEN), decoders.ByteLevel()),
        "o200k": (models.BPE(), normalizers.NFC(), split(O200K), decoders.ByteLevel()),
        "deepseek": (models.BPE(), normalizers.Sequence([]), split(*DEEPSEEK), decoders.ByteLevel()),
        "possessive": (models.BPE(), None, split(POSSESSIVE), decoders.ByteLevel()),
        "digits": (models.BPE(), normalizers.Lowercase(), digits, decoders.ByteLevel()),
        "first": (fallback(), None, metaspace("first", False), pieces),
        "always": (fallback(), None, metaspace("always", True), decoders.Sequence([
            decoders.ByteFallback(), decoders.Metaspace("▁", "always", True)])),
        "never": (fallback(), None, metaspace("never", False), decoders.Metaspace("▁", "never", False)),
        "prepend": (fallback(), normalizers.Sequence([normalizers.Prepend("▁"), replace]), None, pieces),
        "gemma": (fallback(), replace, pre_tokenizers.Split(" ", "merged_with_previous"), decoders.Sequence([
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])),
        "unknown": (models.BPE(unk_token="<unk>"), normalizers.Strip(), pre_tokenizers.WhitespaceSplit(),
                    pieces),
        "unigram": (models.Unigram(), normalizers.NFKC(), metaspace("always", True),
                    decoders.Metaspace("▁", "always", True)),
        "unigram_bytes": (models.Unigram([("<unk>", 0.0)], 0, True), None, metaspace("never", False), pieces),
    }


def trained(name: str, recipe: tuple):
    """A tokenizer of some 400 tokens; the byte tokens that a trainer leaves out come from the file's JSON."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    model, normalizer, pre, decoder = recipe
    made = Tokenizer(model)
    if normalizer is not None:
        made.normalizer = normalizer
    if pre is not None:
        made.pre_tokenizer = pre
    made.decoder = decoder
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    special = list(CONTROLS)
    if isinstance(model, models.Unigram):
        trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>",
                                          show_progress=False)
    else:
        byte_level = name in ("tekken", "o200k", "deepseek", "possessive", "digits")
        alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else list("abcdefghi▁ .,\n")
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False,
                                      initial_alphabet=alphabet, limit_alphabet=256 if byte_level else 60)
    made.train_from_iterator(corpus()[:300] if name.startswith("unigram") else corpus(), trainer)
    core = json.loads(made.to_str())
    vocab = core["model"]["vocab"]
    if core["model"].get("byte_fallback") or name == "unigram_bytes":
        core["model"]["byte_fallback"] = True
        for byte in names:
            if isinstance(vocab, list):
                vocab.append([byte, -20.0])
            else:
                vocab[byte] = len(vocab)
    made = Tokenizer.from_str(json.dumps(core))
    made.add_tokens(added())
    return made


def small() -> dict:
    from tokenizers import Tokenizer
    found = {}
    for name, recipe in recipes().items():
        core = trained(name, recipe).to_str()
        theirs = Tokenizer.from_str(core)
        theirs.encode_special_tokens = True
        ids = [theirs.encode(text, add_special_tokens=False).ids for text in texts()]
        found[name] = {"core": json.loads(core), "made": digests([[row, theirs.decode(row)] for row in ids])}
    return found


def behaviors() -> dict:
    from tokenizers import Regex, pre_tokenizers
    found = {}
    tried = [(r"\p{L}+| \d", behavior, invert) for behavior in BEHAVIORS for invert in (False, True)]
    tried += [(expression, "isolated", False) for expression in CLASSES]
    for expression, behavior, invert in tried:
        cut = pre_tokenizers.Split(Regex(expression), behavior, invert)
        words = [[word for word, _ in cut.pre_tokenize_str(text)] for text in texts()]
        found[f"{expression} {behavior} {invert}"] = digests(words)
    return found


def tekken() -> dict:
    """A tekken.json of some 300 tokens, and what mistral-common makes with it."""
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    tokens = [bytes([byte]) for byte in range(256)]
    for lead, tail in ((b"e", b"l"), (b"l", b"o"), (b" ", b"t"), (b" t", b"h"), (b"a", b"a"), (b"aa", b"aa"),
                       (b"\xe6", b"\xbc"), (b"\xe6\xbc", b"\xa2"), (b"H", b"el"), (b"\n", b"\n"),
                       (b"H", b"i"), (b" ", b" "), (b"[", b"I"), (b"1", b"2"), (b"d", b"on"), (b"o", b"n")):
        tokens.append(lead + tail)
    listed = [{"rank": i, "token_str": text, "is_control": True} for i, text in enumerate((
        "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]",
        "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
        "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "[MODEL_SETTINGS]", "[/MODEL_SETTINGS]"))]
    core = {"config": {"pattern": TEKKEN, "num_vocab_tokens": len(tokens), "default_vocab_size": 290,
                       "default_num_special_tokens": 30, "version": "v3"},
            "vocab": [{"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
                      for i, token in enumerate(tokens)]}
    made: dict = {"core": core, "special_tokens": listed, "chats": {}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tekken.json")
        for version in VERSIONS:
            core["config"]["version"] = version
            file.write_text(json.dumps(core | ({"special_tokens": listed} if version != "v3" else {})))
            encode = MistralTokenizer.from_file(str(file)).encode_chat_completion
            made["chats"][version] = [encode(ChatCompletionRequest(messages=messages)).tokens
                                      for messages in mistral_conversations.CONVERSATIONS]
        theirs = Tekkenizer.from_file(file)
        ids = [theirs.encode(text, False, False) for text in texts()]
    return made | {"made": digests([[row, theirs.decode(row)] for row in ids])}


if __name__ == "__main__":
    value = {"strings": maker.of_all(texts()), "small": small(), "behaviors": behaviors(), "tekken": tekken()}
    GOLDEN.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
