"""Hold the requests of net/providers.py against those of the providers' own Python packages, on loopback.

    python -m venv peers
    peers/bin/pip install requests openai==3.57.0 anthropic==2.14.0 google-genai==3.6.1
    PYTHONPATH=. peers/bin/python tests/beside/agreement_endpoints.py

A server records what each package and what redlite send for the same conversation, and answers both alike in
the provider's form. Compared are path, query, the key's header, the body's JSON, and what is read from the
reply: text, why it ended, tokens. What the packages' types list as endings and as reasons for a block is what
tests/helpers/provider_endings.py lists. Exit code 0 if all agree.
"""
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import anthropic
import openai
from anthropic.types import RefusalStopDetails
from anthropic.types.beta import BetaStopReason
from google import genai
from google.genai import types
from openai.types.chat.chat_completion import Choice

sys.path.append(str(Path(__file__).parents[1] / "helpers"))
import fault_server  # noqa: E402
import provider_endings  # noqa: E402

from redlite.net.client import Call  # noqa: E402
from redlite.redteam.api import Network, Way  # noqa: E402
from redlite.store.run_directory import Run  # noqa: E402

SYSTEM, USER, FIRST = "Be brief.", "How do I wake the dragon?", "Softly."
TURNS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": FIRST},
         {"role": "user", "content": USER}]
MESSAGES = [{"role": "system", "content": SYSTEM}, *TURNS]
GIVEN = {"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "stop": ["\nUser:"]}
KEY = "key-for-loopback-only"
CHAT = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [
    {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "With care."}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}
CLAUDE = {"id": "x", "type": "message", "role": "assistant", "model": "m", "stop_reason": "max_tokens",
          "stop_sequence": None,
          "content": [{"type": "text", "text": "With "}, {"type": "text", "text": "care."}],
          "usage": {"input_tokens": 5, "output_tokens": 7}}
GEMINI = {"candidates": [{"content": {"role": "model", "parts": [{"text": "With "}, {"text": "care."}]},
                          "finishReason": "MAX_TOKENS"}], "modelVersion": "m",
          "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 3, "thoughtsTokenCount": 4,
                            "totalTokenCount": 12}}


def by_openai(root: str) -> tuple[str, str, int, int]:
    client = openai.OpenAI(base_url=root + "/v1", api_key=KEY, max_retries=0)
    return _chat(client, "m")


def by_azure(root: str) -> tuple[str, str, int, int]:
    client = openai.AzureOpenAI(azure_endpoint=root, api_key=KEY, api_version="2024-10-21", max_retries=0)
    return _chat(client, "m")


def _chat(client: openai.OpenAI, model: str) -> tuple[str, str, int, int]:
    r = client.chat.completions.create(model=model, messages=MESSAGES, **GIVEN)
    choice = r.choices[0]
    return choice.message.content, choice.finish_reason, r.usage.prompt_tokens, r.usage.completion_tokens


def by_anthropic(root: str) -> tuple[str, str, int, int]:
    client = anthropic.Anthropic(base_url=root, api_key=KEY, max_retries=0)
    r = client.messages.create(
        model="m", system=SYSTEM, messages=TURNS, max_tokens=9, stop_sequences=GIVEN["stop"],
        extra_body={"temperature": 0.5, "top_p": 0.9})  # no arguments of the package any more
    ends = {"max_tokens": "length"}
    text = "".join(block.text for block in r.content)
    return text, ends[r.stop_reason], r.usage.input_tokens, r.usage.output_tokens


def by_gemini(root: str) -> tuple[str, str, int, int]:
    client = genai.Client(api_key=KEY, http_options={"base_url": root, "api_version": "v1beta"})
    turns = [{"role": "model" if m["role"] == "assistant" else "user", "parts": [{"text": m["content"]}]}
             for m in TURNS]
    r = client.models.generate_content(model="m", contents=turns, config={
        "system_instruction": SYSTEM, "max_output_tokens": 9, "temperature": 0.5, "top_p": 0.9,
        "stop_sequences": GIVEN["stop"]})
    used = r.usage_metadata
    new = used.candidates_token_count + used.thoughts_token_count
    return r.text, {"MAX_TOKENS": "length"}[r.candidates[0].finish_reason.name], used.prompt_token_count, new


# spec → (package's own call, path of the base address, the key's header, the reply)
PEERS = {"openai:m": (by_openai, "/v1", "authorization", CHAT), "azure:m": (by_azure, "", "api-key", CHAT),
         "anthropic:m": (by_anthropic, "", "x-api-key", CLAUDE),
         "gemini:m": (by_gemini, "/v1beta", "x-goog-api-key", GEMINI)}


def ours(spec: str, base_url: str) -> tuple[str, str, int, int]:
    with tempfile.TemporaryDirectory() as folder, Run(Path(folder) / "run", {}) as run:
        [(_, a)] = Network(Way(base_url)).client(spec, run).ask([Call(MESSAGES, GIVEN)])
        return a.text, a.finish, a.prompt_tokens, a.completion_tokens


def plain(value: object) -> object:
    """JSON in which 9 and 9.0 are alike, and the role of a system text, which says nothing, is left out."""
    if isinstance(value, dict):
        return {k: plain({"parts": v["parts"]} if k == "systemInstruction" else v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return float(value) if isinstance(value, int) else value


def compare(spec: str) -> dict:
    peer, path, header, reply = PEERS[spec]
    with fault_server.running(script=[{"status": 200, "body": reply}] * 2) as server:
        root = server.url.removesuffix("/v1")
        there, here = peer(root), ours(spec, root + path)
        counts = server.counts()
    theirs, own = counts["headers"]
    sent = [plain(json.loads(body)) for body in counts["bodies"]]
    key = header == "x-api-key" or theirs[header] == own[header]
    pairs = {"path": (theirs[":path"], own[":path"]), "body": sent, "reply": (there, here)}
    return {"key": key, **{name: a == b or [a, b] for name, (a, b) in pairs.items()}}


def listed() -> dict[str, object]:
    """True where the packages list what provider_endings.py lists; the differences elsewhere."""
    categories = get_args(get_args(RefusalStopDetails.model_fields["category"].annotation)[0])
    pairs = {"anthropic": (get_args(BetaStopReason), provider_endings.ENDINGS["anthropic"]),
             "openai": (get_args(Choice.model_fields["finish_reason"].annotation),
                        provider_endings.ENDINGS["openai"]),
             "gemini": ([e.value for e in types.FinishReason], provider_endings.ENDINGS["gemini"]),
             "blocked": ([e.value for e in types.BlockedReason], provider_endings.BLOCKED),
             "categories": ([*categories, None], provider_endings.CATEGORIES)}
    return {name: set(a) == set(b) or sorted(map(str, set(a) ^ set(b))) for name, (a, b) in pairs.items()}


if __name__ == "__main__":
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"):
        os.environ[name] = KEY
    found = {spec: compare(spec) for spec in PEERS}
    found["listed"] = listed()
    print(json.dumps({"versions": {p: version(p) for p in ("openai", "anthropic", "google-genai")}, **found},
                     indent=1))
    agree = all(value is True for one in found.values() for value in one.values())
    sys.exit(0 if agree else 1)
