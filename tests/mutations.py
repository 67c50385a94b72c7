"""Damages model files at random and loads each: no crash, no load over two seconds, nothing but a one-line Error, memory bounded.

    python tests/mutations.py [--count 10000] [--seed 0]

Kinds, in turn: a GGUF header, a safetensors header, config.json, tokenizer.model, tokenizer_config.json. A child process loads a batch under a limit of
address space; one that dies is a crash. Exit code 0 if nothing was found.
"""
import argparse
import json
import multiprocessing
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import test_checkpoint as made
import torch

from redlite import checkpoint, data, tokenizer
from redlite.errors import Error
from redlite.model import LLaMA

KINDS = ("gguf", "safetensors", "config", "tokenizer.model", "tokenizer_config")
ROOM = 1 << 30       # bytes of address space beyond what the child has when it begins
SECONDS, BATCH = 2, 250
ORGANISM = Path(data.__file__).parent / "organism"


def mutate(raw: bytes, draw: random.Random) -> bytes:
    """One to four changes: bits, bytes, numbers, cuts, repeats, spans that change places."""
    out = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at, how = draw.randrange(max(1, len(out))), draw.randrange(7)
        if how == 0 and out:
            out[at] ^= 1 << draw.randrange(8)
        elif how == 1 and out:
            out[at] = draw.choice((0, 1, 127, 128, 255, 34, 44, 91, 123, 125, 57))
        elif how == 2:
            out[at:at + 8] = draw.choice((0, 1, 2 ** 31 - 1, 2 ** 32, 2 ** 62, 2 ** 64 - 1)).to_bytes(8, "little")
        elif how == 3:
            del out[at:]
        elif how == 4:
            out[at:at] = out[at:at + draw.randint(1, 64)]
        elif how == 5:
            del out[at:at + draw.randint(1, 16)]
        else:
            out[at:at] = str(draw.choice((-1, 0, 10 ** 9, 10 ** 30, 1e400, 0.5))).encode()
    return bytes(out)


def build(folder: Path) -> dict[str, tuple[Path, bytes, int]]:
    """kind → (the file, its sound bytes, how many of them make its header). A load reads the folder of its kind."""
    found = {}
    path = folder / "tiny.gguf"
    made.write_gguf(path, next(iter(made.GOLDEN)))
    raw = path.read_bytes()
    found["gguf"] = path, raw, raw.index(b"output_norm") + 512 if b"output_norm" in raw else 2048
    for kind, name in (("safetensors", "model.safetensors"), ("config", "config.json")):
        home = made.write_directory(folder / kind, *made.case_weights(next(iter(made.GOLDEN))))
        raw = (home / name).read_bytes()
        found[kind] = home / name, raw, 8 + int.from_bytes(raw[:8], "little") if kind == "safetensors" else len(raw)
    for kind, name in (("tokenizer.model", "tokenizer.model"), ("tokenizer_config", "tokenizer_config.json")):
        (folder / kind).mkdir()
        for file in ("tokenizer.model", "tokenizer_config.json"):
            shutil.copy(ORGANISM / file, folder / kind / file)
        raw = (folder / kind / name).read_bytes()
        found[kind] = folder / kind / name, raw, len(raw)
    return found


def load(kind: str, path: Path) -> None:
    """Load what the file belongs to, weights too."""
    where = path if kind == "gguf" else path.parent
    if kind.startswith("tokenizer"):
        tokenizer.load(where).encode("Hello, 12 worlds.")
        return
    config, _ = checkpoint.read_config(where)
    with torch.device("meta"):
        model = LLaMA(config)
    checkpoint.load_weights(model, where)


def batch(folder: Path, seed: int, first: int, count: int, results) -> None:
    """A child's work: mutations first … first + count − 1, each named before it is loaded, so that the parent knows which one killed us."""
    torch.set_num_threads(1)
    files = build(folder)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))

    def late(*_):
        raise TimeoutError
    signal.signal(signal.SIGALRM, late)
    for number in range(first, first + count):
        kind = KINDS[number % len(KINDS)]
        path, raw, header = files[kind]
        path.write_bytes(mutate(raw[:header], random.Random(f"{seed}/{number}")) + raw[header:])
        results.put((number, kind, "begun", ""))
        signal.alarm(SECONDS + 1)
        start = time.monotonic()
        try:
            load(kind, path)
            outcome, why = "loaded", ""
        except Error as error:
            outcome, why = ("refused", "") if "\n" not in str(error) else ("two lines", str(error))
        except TimeoutError:
            outcome, why = "hang", ""
        except BaseException as error:
            outcome, why = "traceback", f"{type(error).__name__}: {error}"
        signal.alarm(0)
        if time.monotonic() - start > SECONDS:
            outcome = "hang"
        results.put((number, kind, outcome, why))
        path.write_bytes(raw)
    results.put((first + count, "", "end", ""))


def run(count: int, seed: int) -> tuple[dict[str, Counter], list[str]]:
    """(kind → outcomes, what is wrong, a line each)."""
    outcomes, wrong, number = {k: Counter() for k in KINDS}, [], 0
    context = multiprocessing.get_context("spawn")
    while number < count:
        with tempfile.TemporaryDirectory() as folder:
            results = context.SimpleQueue()
            child = context.Process(target=batch, args=(Path(folder), seed, number, min(BATCH, count - number), results))
            child.start()
            current = None
            while True:
                if results.empty():
                    if not child.is_alive() and results.empty():
                        break
                    time.sleep(0.002)
                    continue
                n, kind, outcome, why = results.get()
                if outcome == "end":
                    number, current = n, None
                    break
                current = (n, kind)
                if outcome != "begun":
                    outcomes[kind][outcome] += 1
                    number = n + 1
                    if outcome not in ("loaded", "refused"):
                        wrong.append(f"{n} ({kind}): {outcome} {why}")
            child.join()
            if child.exitcode and current:
                outcomes[current[1]]["crash"] += 1
                wrong.append(f"{current[0]} ({current[1]}): the process died, exit code {child.exitcode}")
                number = current[0] + 1
    return outcomes, wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts, faults = run(options.count, options.seed)
    for line in faults:
        print(line)
    print(json.dumps({"seed": options.seed, "count": options.count, **counts, "wrong": len(faults)}))
    sys.exit(1 if faults else 0)
