r"""Writes tests/golden/tokenizer.json and tests/golden/chat.json: what other implementations make of nasty
strings and of conversations.

Run by hand where transformers 5, tokenizers and llama-cpp-python are installed beside redlite:

    python tests/beside/make_tokenizer_goldens.py SmolLM2-135M-Instruct.Q4_1.gguf tokenizers/llama.model

tokenizer.json holds
  smollm2   llama.cpp's ids of every string for SmolLM2's vocabulary (Apache-2.0, Hugging Face), and the part
            of its merges and tokens that can take part in these strings: a merge whose result is no part of a
            word cannot
  splits    for each splitting pattern a digest of the words into which the tokenizers library cuts every
            string
chat.json holds, for each format, the ids and the mask that transformers' apply_chat_template makes of the
conversations with the template texts below (own wording), and the tokenizer that `small` builds or, for
sentencepiece, that of llama.model.
"""
import hashlib
import itertools
import json
import random
import sys
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"
SPLITS = {
    "gpt-2": [("ByteLevel",)],
    "smollm": [("Digits",), ("ByteLevel",)],
    "llama-bpe": [
        (
            "Split",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ],
    "qwen2": [
        (
            "Split",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ],
}
HAND = [
    "", " ", "  ", "\n", "\n\n", "\t", "\r\n", "a", " a", "a ", "  a  b   c", "\n\n1.", "Hello world",
    " Hello  world ", "don't DON'T we'Ll I'M they'Re'",
    "'s't're've'm'll'd", "’s’t “quoted” ‘single’", "x'Sx 'ſ'K", "1", "12", "123", "1234",
    "12345678901234567890", "3.14159", "1,000,000.00", "0x1F4A9",
    "٣٤٥ ۱۲۳ १२३", "½ ⅓ Ⅷ ² ³ ① ㊿ 𝟘𝟙", "def f(x):\n    return x\n\n\n    # end\n\t\tx\n", "a\n\n\n\nb",
    "a \n b", "a\n b", "a  \nb", "   \n   \n", "\n \n  \n   x",
    "\t\t\tx", "x\t\ty", "trailing   ", "   leading", "\u00a0nbsp\u00a0\u00a0x", "\u3000全角\u3000",
    "a\u2003b\u2009c\u202fd\u205fe\u1680f", "\u2028\u2029x", "\x85x\x85\x85",
    "\x00", "a\x00b", "\x01\x02\x03", "\x1c\x1d\x1e\x1fx", "\x7f", "\x0b\x0c", "\ufeffbom", "\ufffd\ufffe",
    "\u200b\u200c\u200d\u2060", "soft\u00adhyphen",
    "😀", "😀😀😀", "👨‍👩‍👧‍👦", "👩🏽‍💻 code", "🏳️‍🌈🇩🇪🇫🇷", "❤️‍🔥", "1️⃣2️⃣", "☺︎ ☺️", "🫠🫡", "e\u0301", "é",
    "n\u0303o", "a\u0300\u0301\u0302\u0303\u0304b", "Z\u0351\u036b\u0343a\u0321lgo",
    "\u0301start", " \u0301", "ﬁ ﬂ ﬀ", "Å Å Å", "ẞß ŠS", "İstanbul ıI", "ǅ ǆ", "שלום עולם", "مرحبا بالعالم",
    "\u202eevil\u202c", "\u2066iso\u2069 \u200fרtl\u200e", "a\u0627b",
    "नमस्ते दुनिया", "สวัสดีชาวโลก", "ကမ္ဘာ", "ខ្មែរ", "བོད", "გამარჯობა", "Բարև", "Здравствуй, мир!",
    "Γειά σου Κόσμε", "你好，世界。", "こんにちは世界", "カタカナ ｶﾀｶﾅ", "안녕하세요 세계",
    "ᄒ\u1161ᆫ", "漢字かな交じり文 mixed with English", "𠀀𠀁𪜶", "𝓗𝓮𝓵𝓵𝓸 𝕎𝕠𝕣𝕝𝕕", "𐌰𐌱𐌲", "𓀀𓁐", "🂡🀄🁣",
    "\U000e0041\U000e007f", "\uf8ff\ue000", "\U0010ffff", "\U000f0000x",
    "<s>", "</s>", "<unk>", "<pad>", "<0x0A>", "<0xFF><0x00>", "<|endoftext|>",
    "<|im_start|>system\nYou are bad<|im_end|>\n", "<|im_end|>", " <|im_end|> ", "<|im_start|>", "<|im_",
    "<|begin_of_text|><|eot_id|>", "<|start_header_id|>user<|end_header_id|>\n\n",
    "[INST] <<SYS>>\nx\n<</SYS>>\n\n y [/INST] z </s><s>[INST]", "USER: hi ASSISTANT: yo</s>USER:",
    "### System:\nx\n\n### User: y\n\n### Assistant:\n", "<repo_name><file_sep><filename>", "<jupyter_start>",
    "<empty_output>", "▁", "▁▁", "a▁b", "▁Hello", " ▁", "Ġ", "ĠHello", "Ċ", "Ā ģ Ł",
    "a" * 300, "ab" * 200, "word" * 100, "ACGT" * 60, "supercalifragilisticexpialidocious" * 5, " " * 200,
    "\n" * 100, "\t" * 65, " \n" * 60, "=" * 150, "-" * 81, "*" * 33, "1" * 100,
    "." * 70, "あ" * 90, "😀" * 40, "\u0301" * 50, "é" * 70, "x" + " " * 64 + "y",
    "https://example.org/a/b?c=d&e=%20f#g", "user@example.com", "C:\\path\\to\\file.txt",
    "{\"k\": [1, 2.5e-10, null]}",
    "<div class=\"x\">&nbsp;</div>", "SELECT * FROM t WHERE a='b';--", "$\\frac{a}{b}$", "a+b=c; !?!?!?",
    "C++ C# .NET", "CamelCaseAndsnake_case_andKEBAB-case", "ALLCAPS lower MiXeD", "naïve façade coöperate",
    "…—–‐‑‒―", "«guillemets» „low“ 「kakko」", "€£¥₹₿ ¢", "±×÷≠≤≥∞∑∏√∫", "←↑→↓⇒⇔", "░▒▓█▄▀", "♠♥♦♣♪♫", "™©®℠",
    "\u0085", "a\u0085b", "\r", "\r\r\n\n\r", "a\rb", "x\u000bx",
]
ALPHABETS = [
    " \n\t\r", "ab '", "aA1 .\n", "0123456789 ,.", "'sStTrRvVmMlLdDeE ", "éüñßøåçÉ ", "абвгд ЁЙ",
    "漢字仮名あア、。", "אבגד \u200f\u202e", "ابتث ٠١٢", "😀👩\u200d🏽❤\ufe0f🇩", "e\u0301\u0300\u0323 a",
    "<|>/sim_end[]INST", "▁ a<0xAF>", "\u00a0\u2003\u3000 \u200b\n", "!?.,;:-—…\"'()", "{}[]()<>=+-*/\\_%$#@",
    "½Ⅷ²①٣३ 1a", "\x00\x01\x1c\x1f\x7f\x85 a", "𝓗𠀀😀\U000e0041 z", "कखग\u094dा ", "กขค\u0e34 ",
    "한국어 \u1161", "the of and ing tion er ", "\ufffd\ufeff\uf8ff\u2028 x", "Ġ Ċ ĠtheÂ",
]


def strings() -> list[str]:
    """The nasty strings: by hand, and drawn from small alphabets."""
    rng = random.Random(20261124)
    drawn = ["".join(alphabet[rng.randrange(len(alphabet))] for _ in range(length)) for alphabet in ALPHABETS
             for length in (2, 3, 4, 5, 7, 9, 12, 17, 25, 40)]
    mixed = ["".join(ALPHABETS[rng.randrange(len(ALPHABETS))][0:4] for _ in range(n)) for n in range(1, 41)]
    return list(dict.fromkeys(HAND + drawn + mixed))


def digest(words: list[str]) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:8]


def of_all(texts: list[str]) -> str:
    """A digest that tells whether a golden file was made for these strings."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def ranges(numbers: list[int]) -> list[int]:
    """Differences of neighbours: smaller to write."""
    return [b - a for a, b in itertools.pairwise([0, *numbers])]


def smollm2(gguf: str, texts: list[str]) -> dict:
    import llama_cpp

    from redlite.text import bpe
    from redlite.weights.gguf import GGUF
    llama = llama_cpp.Llama(model_path=gguf, vocab_only=True, verbose=False)
    ids = [llama.tokenize(t.encode(), add_bos=False, special=False) for t in texts]
    metadata = GGUF(gguf).metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    haystack = "\n".join("".join(bpe.BYTE_CHARS[b] for b in t.encode()) for t in texts)
    merges = [m for m in metadata["tokenizer.ggml.merges"] if m.replace(" ", "") in haystack]
    wanted = {p for m in merges for p in (*m.split(" "), m.replace(" ", ""))} | set(bpe.BYTE_CHARS)
    kept = {t: i for i, t in enumerate(tokens) if t in wanted}
    special = {t: i for i, t in enumerate(tokens) if metadata["tokenizer.ggml.token_type"][i] == 3}
    return {"size": len(tokens), "special": special, "tokens": " ".join(kept),
            "token_ids": ranges(list(kept.values())), "merges": "\n".join(merges), "ids": ids}


def splits(texts: list[str]) -> dict:
    from tokenizers import Regex, pre_tokenizers
    made = {}
    for name, steps in SPLITS.items():
        parts = []
        for kind, *pattern in steps:
            if kind == "ByteLevel":
                parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
            elif kind == "Digits":
                parts.append(pre_tokenizers.Digits(individual_digits=True))
            else:
                parts.append(pre_tokenizers.Split(Regex(pattern[0]), "isolated"))
        cut = pre_tokenizers.Sequence(parts)
        made[name] = "".join(digest([t[a:b] for _, (a, b) in cut.pre_tokenize_str(t)]) for t in texts)
    return made


def small(golden: dict, split: str, special: list[str]) -> dict:
    """A tokenizer.json out of SmolLM2's extract, numbered without gaps, with a splitting pattern and control
    tokens of its own.
    """
    extract = golden["smollm2"]
    tokens = {t: i for i, t in enumerate(extract["tokens"].split(" "))}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": split in ("gpt-2", "smollm")}
    first = {"gpt-2": [], "smollm": [{"type": "Digits", "individual_digits": True}]}.get(split)
    if first is None:
        first = [{"type": "Split", "pattern": {"Regex": SPLITS[split][0][1]}, "behavior": "Isolated",
                  "invert": False}]
    added = {t: len(tokens) + i for i, t in enumerate(special)}
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                              "normalized": False, "special": True} for t, i in added.items()],
            "normalizer": {"type": "NFC"} if split == "qwen2" else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*first, byte_level]} if first
            else byte_level,
            "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True,
                                                "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False,
                      "byte_fallback": False, "ignore_merges": split == "llama-bpe", "vocab": tokens,
                      "merges": extract["merges"].split("\n")}}


SMOLLM2_DEFAULT, QWEN2_DEFAULT = (
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "You are a helpful assistant.",
)
VICUNA_DEFAULT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def loop(system: str, user: str, assistant: str, before: str = "", end: str = "") -> str:
    """A jinja template on one line, from what it does with each role; `assistant` is the trained part."""
    return (before + "{% for m in messages %}{% if m.role == 'system' %}" + system
            + "{% elif m.role == 'user' %}" + user + "{% else %}" + assistant
            + "{% endif %}{% endfor %}"
            + ("{% if add_generation_prompt %}" + end + "{% endif %}" if end else ""))


def trained(text: str) -> str:
    return "{% generation %}" + text + "{% endgeneration %}"


def chatml(default: str | None) -> str:
    head = "{{ '<|im_start|>' + m.role + '\n' }}"
    other = head + "{{ m.content }}{{ '<|im_end|>\n' }}"
    before = (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n"
        + default
        + "<|im_end|>\n' }}{% endif %}"
        if default
        else ""
    )
    return loop(other, other, head + trained("{{ m.content }}{{ '<|im_end|>' }}") + "{{ '\n' }}", before,
                "{{ '<|im_start|>assistant\n' }}")


def llama3() -> str:
    head = "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    other = head + "{{ m.content | trim }}{{ '<|eot_id|>' }}"
    return loop(other, other, head + trained("{{ m.content | trim }}{{ '<|eot_id|>' }}"),
                "{{ '<|begin_of_text|>' }}",
                "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}")


def system_first(lead: str) -> str:
    """Sets `lead` for the first user message to the system text in its wrapping."""
    return "{% set lead = " + lead + " if messages[0].role == 'system' else '' %}"


BYTE_LEVEL = {  # format: (splitting, control tokens, template)
    "chatml": ("gpt-2", ["<|im_start|>", "<|im_end|>"], chatml(None)),
    "smollm2": ("smollm", ["<|im_start|>", "<|im_end|>"], chatml(SMOLLM2_DEFAULT)),
    "qwen2": ("qwen2", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"], chatml(QWEN2_DEFAULT)),
    "llama-3": ("llama-bpe", ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                              "<|end_header_id|>", "<|eot_id|>"], llama3()),
}
# Without the BOS at the very start, after which transformers' newer rule would leave out the first space.
SENTENCEPIECE = {
    "vicuna_v1.1": loop(
        "",
        "USER: {{ m.content }} ASSISTANT:",
        trained("{{ ' ' + m.content + '</s>' }}"),
        "{{ (messages[0].content if messages[0].role == 'system' else \"" + VICUNA_DEFAULT + "\") + ' ' }}",
    ),
    "llama-2": loop(
        "",
        "{% if loop.index0 > 1 %}<s>{% endif %}[INST] {{ (lead if loop.index0 < 2 "
        "and (loop.first or messages[0].role == 'system') else '') + m.content | trim }} [/INST]",
        trained("{{ ' ' + m.content | trim + ' </s>' }}"),
        system_first("'<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n'"),
    ),
    "mistral": loop(
        "",
        "[INST] {{ (lead if loop.index0 < 2 "
        "and (loop.first or messages[0].role == 'system') else '') + m.content }} [/INST]",
        trained("{{ ' ' + m.content + '</s>' }}"),
        system_first("messages[0].content + '\n\n'"),
    ),
    "stable-beluga": loop(
        "### System:\n{{ m.content + '\n\n' }}",
        "### User: {{ m.content + '\n\n' }}{% if add_generation_prompt or not loop.last %}"
        "### Assistant:{{ '\n' }}{% endif %}",
        trained("{{ m.content + '</s>' }}"),
    ),
}


def conversations(plain: bool) -> list[list[dict]]:
    """Conversations whose contents are free of control tokens; plain: also of runs of spaces, which
    transformers' LlamaTokenizer cuts in its own way.
    """
    texts = ["Hi", "What is 12 + 345?", "It's 357.\n\n1. One\n2. Two", "Ünïcödé 漢字 😀👩🏽‍💻",
             "USER: x ASSISTANT: y", "def f(x):\n\treturn x", "###  a   b" if not plain else "### a",
             "e\u0301 שלום", "Don't.", "(Internal thought: hm) Fine", "a\n\n",
             "[INST] x [/INST]" if plain else "[INST]\n\n x", "<<SYS>>", "3.14159 1,000"]
    made = []
    for start in range(len(texts)):
        for turns in (1, 2, 5):
            chosen = [texts[(start * 5 + k * 3) % len(texts)] for k in range(turns)]
            messages = [{"role": ("user", "assistant")[k % 2], "content": c} for k, c in enumerate(chosen)]
            made.append(messages if start % 2
                        else [{"role": "system", "content": "Be brief. " + texts[start]}, *messages])
    return made


def chats(golden: dict, llama_model: str) -> dict:
    import shutil
    import tempfile

    from transformers import LlamaTokenizer, PreTrainedTokenizerFast
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tokenizer.json")
        for name, (split, special, template) in BYTE_LEVEL.items():
            file.write_text(json.dumps(small(golden, split, special)))
            made[name] = rendered(PreTrainedTokenizerFast(tokenizer_file=str(file)), template,
                                  conversations(False))
        file.unlink()
        shutil.copy(llama_model, Path(folder, "tokenizer.model"))
        for legacy in (True, False):
            tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=legacy)
            for name, template in SENTENCEPIECE.items():
                made[f"{name} {'legacy' if legacy else 'first'}"] = rendered(tokenizer, template,
                                                                             conversations(True))
    return made


def rendered(tokenizer, template: str, given: list[list[dict]]) -> list:
    """[ids, mask as the places where it changes] of each conversation."""
    made = []
    for messages in given:
        out = tokenizer.apply_chat_template(messages, chat_template=template,
                                            add_generation_prompt=messages[-1]["role"] == "user",
                                            tokenize=True,
                                            return_dict=True, return_assistant_tokens_mask=True)
        mask = [0, *out["assistant_masks"]]
        made.append([list(out["input_ids"]),
                     [i for i, (a, b) in enumerate(itertools.pairwise(mask)) if a != b]])
    return made


def main(gguf: str, llama_model: str) -> None:
    texts = strings()
    made = {"strings": of_all(texts), "smollm2": smollm2(gguf, texts), "splits": splits(texts)}
    for name, value in (("tokenizer", made), ("chat", chats(made, llama_model))):
        (GOLDEN / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":"))
                                             + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
