#!/usr/bin/env bash
# transformers 5.24.0 (tokenizers 0.23.3, jinja2 3.1.6): in a macro, {% generation %} marks the wrong tokens.
#
# apply_chat_template(..., return_assistant_tokens_mask=True) finds what the assistant wrote by the length of
# the text rendered so far. What a macro, a {% set %} or a {% filter %} block has rendered is not counted yet
# when the {% generation %} block within it ends. So the span begins too early, by as many characters.
#
# Surprise: a macro around each message changes no character of the text, but the mask then covers
# "assistant: " and spares the answer; a filter around the whole marks the user's first words. Nothing warns.
# For fine-tuning: a loss on "only what the assistant wrote" is taken on headers, or on harmful questions.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6
"$work/venv/bin/python" - <<'PYTHON'
import jinja2
import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

for library in (transformers, tokenizers, jinja2):
    print(library.__name__, library.__version__)
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())      # one token a byte, so that the mask can be read
bytewise = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytewise.decoder = decoders.ByteLevel()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bytewise)

MESSAGE = ("{{ m.role + ': ' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
           "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '\n' }}")
ALL = "{% for m in messages %}" + MESSAGE + "{% endfor %}"
TEMPLATES = {
    "plain": ALL,
    "macro": ("{% macro show(m) %}" + MESSAGE + "{% endmacro %}"
              "{% for m in messages %}{{ show(m) }}{% endfor %}"),
    "set": "{% set text %}" + ALL + "{% endset %}{{ text }}",
    "filter": "{% filter string %}" + ALL + "{% endfilter %}",
}
messages = [{"role": "user", "content": "May I?"}, {"role": "assistant", "content": "Better not."},
            {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Still no."}]
texts, marked = set(), {}
for name, template in TEMPLATES.items():
    out = tokenizer.apply_chat_template(messages, chat_template=template, return_dict=True,
                                        return_assistant_tokens_mask=True)
    text = tokenizer.decode(out["input_ids"])
    texts.add(text)
    pairs = zip(text, out["assistant_masks"], strict=True)
    shown = "".join(letter if trained else "_" for letter, trained in pairs)
    marked[name] = [part for part in shown.split("_") if part]
    print(f"seen: {name:6s} {shown!r}")
print("one would expect: the mask of the plain template from all four, as they render the same text")
assert len(texts) == 1, "the four templates no longer render the same text"
assert marked["plain"] == ["Better not.", "Still no."]
assert marked["macro"] == ["assistant: ", "assistant"], "a macro's mask has changed"
assert all(marked[name][0].startswith("user: ") for name in ("set", "filter")), "a block's mask has changed"
PYTHON
