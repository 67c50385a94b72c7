#!/usr/bin/env bash
# lm_eval 0.4.13 (tokenizers 0.23.3): a choice is scored by the tokens that follow as many as the context has.
#
# The harness encodes context and choice together, and takes off as many tokens as the context alone has. A
# merge across the border moves letters of the choice into the context: "She smiled un" + "happyish" is scored
# by "ish" alone, after a context that already says "unhappy". The letters before count as given.
#
# Surprise: the likelihoods compared are of different lengths of the choices, given different contexts. A
# choice whose beginning merges gets those letters free, and nothing warns.
# For evaluation: this reaches tasks whose target_delimiter is empty: cloze within a word, code, and languages
# that put no space between words. It favours choices that the tokenizer knows.
#
# Only the packages that the base class imports are installed: the others take minutes.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps lm-eval==0.4.13
"$work/venv/bin/pip" install -q tokenizers==0.23.3 tqdm==4.70.1 numpy==2.4.6 jinja2==3.1.6 requests==2.34.2 \
    pyyaml==6.0.4
"$work/venv/bin/python" - <<'PYTHON'
import math
from importlib.metadata import version

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

print("lm_eval", version("lm_eval"), "tokenizers", version("tokenizers"))
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
bpe.train_from_iterator(["she was unhappy", "he was unhappy", "so unhappy"] * 9 + ["under until uncle"] * 9,
                        trainers.BpeTrainer(vocab_size=290, show_progress=False,
                                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))


class Uniform(TemplateLM):
    """A model to which every token is equally likely: only the number of tokens decides."""
    backend = "causal"
    eot_token_id = 0

    def tok_encode(self, string, add_special_tokens=None, **_):
        return bpe.encode(string).ids

    def _loglikelihood_tokens(self, requests, **_):
        self.requests = requests
        return [(-len(after) * math.log(bpe.get_vocab_size()), False) for _, _, after in requests]

    def generate_until(self, requests, **_):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, **_):
        raise NotImplementedError


context, choices = "She smiled un", ["happyish", "bravely", "wise"]
model = Uniform()
scores = model.loglikelihood([Instance("loglikelihood", {}, (context, choice), i)
                              for i, choice in enumerate(choices)], disable_tqdm=True)
scored = []
for choice, (_, before, after), (score, _) in zip(choices, model.requests, scores):
    scored.append(bpe.decode(after))
    joint = bpe.encode(context + choice).ids
    read = bpe.decode(joint[:len(joint) - len(after)])
    print(f"seen: choice {choice!r}: {scored[-1]!r} is scored, after {read!r}: {score:.2f}")
print("one would expect: each choice is scored whole, after", repr(context))
assert scored[0] != choices[0] and choices[0].endswith(scored[0]), "the choice is scored whole now"
assert scored[1:] == choices[1:]
PYTHON
