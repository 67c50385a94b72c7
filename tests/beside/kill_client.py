"""Kill a client with SIGKILL again and again while it asks a server that answers badly, and count what came
of it.

    python tests/beside/kill_client.py --requests 2000 --kills 20

The requests are four samples of each question, a fifth of them to each API: OpenAI's, Azure's, Anthropic's,
Gemini's and one that an endpoint file describes. The server (fault_server.py) lives on and counts what it
made. It refuses a parameter, refuses contents in providers' shapes, breaks answers off, and ignores `stop`.
At the end: every request answered exactly once in the journal, none lost, none made twice, each sample a draw
of its own, no text beyond a stop, the refused parameter paid for by the first process alone, the key nowhere
on disk. Exit code 0 if all of that holds.
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "helpers"))
import fault_server  # noqa: E402

KEY = "sk-kill-0123456789-only-for-this-test"
FAULTS = {
    "ok": 10, "429": 1, "429-after": 1, "500": 1, "503": 1, "hang": 0.1, "reset": 1, "cut": 1, "bad-json": 1,
    "bad-utf8": 1, "null": 1, "filter-error": 1, "filter-finish": 1, "duplicate-headers": 1,
    "invalid-prompt": 1, "policy-403": 1, "empty-choices": 1, "anthropic-refusal": 1, "max-tokens": 1,
    "goes-on": 2, **dict.fromkeys(fault_server.HALF, 0.5)
}
CONCURRENCY = 16
# API → path behind the server's address
APIS = {"openai": "/v1", "azure": "", "anthropic": "", "gemini": "/v1beta", "template": "/generate"}
ENDPOINT = {"headers": {"X-Key": "{{env:OPENAI_API_KEY}}"}, "answer": "outputs.0.text",
            "body": {"inputs": "{{prompt}}", "limit": "{{max_tokens}}", "sample": "{{sample}}"},
            "finish": "outputs.0.why", "prompt_tokens": "used.in", "completion_tokens": "used.out"}
WORKER = """
import sys
from redlite.net import client
from redlite.net.endpoints import Endpoint
from redlite.net.template import load
from redlite.store.run_directory import Run
directory, url, n, api = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
if api == "template":
    found = load(directory + ".json")
    endpoint = Endpoint(found.name, found.url, template=found)
else:
    endpoint = Endpoint("m", url, api)
with Run(directory, {"test": "kill"}) as run:
    c = client.Client(endpoint, run, concurrency=16, tries=40, timeouts=(2, 1), first_delay=0.01)
    asked = [[{"role": "user", "content": f"question {i // 4}"}] for i in range(n)]
    given = {"max_tokens": 8, "temperature": 1.0, "stop": ["\\nUser:"]}
    found = c.ask([client.Call(messages, given, i % 4) for i, messages in enumerate(asked)])
    sys.exit(3 if any([answer.finish == "error" for _, answer in found]) else 0)    # a later run asks again
"""


def trial(directory: Path, requests: int, kills: int, seed: int = 0, api: str = "openai") -> dict:
    """Run, kill `kills` times at random moments, run to the end; what the journal and the server say."""
    draw = random.Random(seed)
    keys = {f"{name}_API_KEY": KEY for name in ("OPENAI", "AZURE_OPENAI", "ANTHROPIC", "GEMINI")}
    environment = {**os.environ, **keys, "PYTHONPATH": str(Path(__file__).parents[2])}
    journal = directory / "api.jsonl"
    with fault_server.running(faults=FAULTS, delay=0.005, seed=seed, refuses=["temperature"],
                              by_key=True) as server:
        url = server.url.removesuffix("/v1") + APIS[api]
        directory.with_name(directory.name + ".json").write_text(json.dumps({"url": url, **ENDPOINT}))
        command = [sys.executable, "-c", WORKER, str(directory), url, str(requests), api]
        killed = 0
        while True:
            process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            answered = journal.read_bytes().count(b'"finish"') if journal.exists() else 0
            target = answered + draw.uniform(
                0.2, 1.0) * (requests - answered) / (kills - killed + 1) if killed < kills else None
            while process.poll() is None:
                if target is not None and journal.exists() and journal.read_bytes().count(
                        b'"finish"') >= target:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    killed += 1
                    break
                time.sleep(0.002)
            error = process.stderr.read()
            process.stderr.close()
            if process.returncode == 0:
                break
            if process.returncode not in (-signal.SIGKILL, 3):
                raise RuntimeError(error)
        counts = server.counts()
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    kept = [r for r in records if "finish" in r]
    answers = [r["key"] for r in kept]
    on_disk = b"".join(p.read_bytes() for p in directory.rglob("*") if p.is_file())
    return {
        "api": api, "killed": killed, "answers": len(answers), "different": len(set(answers)), "made": len(
            counts["made"]), "most_made": max(counts["made"].values()), "requests": counts["requests"],
        "with_key": counts["authorizations"].get(f"Bearer {KEY}", 0), "key_on_disk": KEY.encode() in on_disk,
        "beyond_stop": sum("User:" in r["text"] for r in kept),
        "finishes": Counter(r["finish"] for r in kept), "kinds": counts["kinds"]
    }


def holds(result: dict, requests: int, kills: int) -> bool:
    """Whether nothing was lost, doubled or leaked."""
    return (result["killed"] == kills
            and result["answers"] == result["different"] == result["made"] == requests
            and result["most_made"] == 1 and result["with_key"] == result["requests"]
            and not result["key_on_disk"] and not result["beyond_stop"]
            # an endpoint's file says itself which parameters are sent
            and int(result["api"] != "template") <= result["kinds"].get("parameter", 0) <= CONCURRENCY)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    share, killed = options.requests // len(APIS), options.kills // len(APIS)
    good = True
    for number, name in enumerate(APIS):
        with tempfile.TemporaryDirectory() as folder:
            outcome = trial(Path(folder) / "run", share, killed, number, name)
        good = good and holds(outcome, share, killed)
        print(json.dumps(outcome), flush=True)
    sys.exit(0 if good else 1)
