#!/usr/bin/env bash
# mistral-common 1.13.1 (sentencepiece 0.2.3): in the second and third version of Mistral's format the system text stands before
# the LAST user message, so it moves whenever a conversation grows.
#
# The first version and the seventh put it at the beginning. In the second and third, the prompt of turn two
# is no continuation of the prompt of turn one: the first question has lost the system text, and the second
# has it.
#
# Surprise: a chat's prompt is expected to grow at its end.
# For evaluation: key-value caches cannot be kept from turn to turn; the first answer is seen again without
# the system text that it was given under; and a system text that forbids something stands right before the
# last question in these versions, and far from it in the others.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q mistral-common==1.13.1 sentencepiece==0.2.3
"$work/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

print("mistral-common", version("mistral-common"))
turns = [SystemMessage(content="SYSTEM"), UserMessage(content="one"), AssistantMessage(content="answer"),
         UserMessage(content="two")]
grows = {}
for name in ("v1", "v2", "v3", "v7"):
    tokenizer = getattr(MistralTokenizer, name)()
    before = tokenizer.encode_chat_completion(ChatCompletionRequest(messages=turns[:2]))
    after = tokenizer.encode_chat_completion(ChatCompletionRequest(messages=turns))
    grows[name] = after.tokens[:len(before.tokens)] == before.tokens
    print(f"seen: {name}: turn two {'continues' if grows[name] else 'does NOT continue'} turn one: {after.text}")
print("one would expect: every prompt continues the one before")
assert grows == {"v1": True, "v2": False, "v3": False, "v7": True}, "the system text stands elsewhere now"
PYTHON
