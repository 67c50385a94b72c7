"""Damages model files at random and loads each: no crash, no load over two seconds, nothing but a one-line
Error, memory bounded.

    python tests/helpers/mutations.py [--count 10000] [--seed 0]

Kinds, in turn: the header of a GGUF file (with either kind of tokenizer) and of a safetensors file, a shard
index, config.json, tokenizer.model, tokenizer.json and tokenizer_config.json. Bytes are damaged anywhere;
JSON files also as JSON, value by value, and GGUF metadata likewise, so that damage gets past the parser. What
loads must also run: the model its logits, the tokenizer its encoding and decoding.

A child process loads a batch. It may take ROOM more address space than it began with, and a load's resident
memory may grow by SLACK and GROWTH times the file's size at most. A load may take SECONDS of the processor's
time (not the clock's: the machine may be busy). A child that dies or stands still is found out by its parent.
Exit code 0 if nothing was found.
"""
import argparse
import json
import multiprocessing
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import gguf_file
import numpy as np
import test_checkpoint as made
import torch

from redlite import data, kernels
from redlite.errors import Error
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences, packed_attention
from redlite.text import chat_choice, export
from redlite.weights import checkpoint
from redlite.weights.fingerprint import fingerprint
from redlite.weights.gguf import GGUF

KINDS = ("gguf", "safetensors", "config.json", "tokenizer.model", "gguf llama", "tokenizer.json",
         "safetensors", "index", "tokenizer_config", "gguf")
ROOM = 256 << 20     # bytes of address space beyond what the child has when it begins
SLACK, GROWTH = 16 << 20, 16
SECONDS, STUCK, BATCH = 2, 30, 250
ORGANISM = Path(data.__file__).parent / "organism"
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>{{ '\n' }}"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}")
PROBE = "Hello, 12 worlds.\n\n <|im_end|> </s> é日本\U0001f600\ud800"
NUMBERS = (-1, 0, 1, 2, 3, 7, 255, 256, 2 ** 31 - 1, 2 ** 31, 2 ** 32, 2 ** 53, 2 ** 62, 2 ** 64 - 1,
           10 ** 30, 0.5, 1e308, -1e308, float("nan"), float("inf"))
TEXTS = ("", " ", "\0", "<s>", "</s>", "<unk>", "<0x0A>", "BPE", "\ud800", "é", "a" * 5000, "../x",
         "model.safetensors", "llama", "linear", "F16", "▁", "Ġ")


def random_value(draw: random.Random):
    """A value of any JSON type that a field would not expect."""
    return draw.choice((None, True, False, draw.choice(NUMBERS), draw.choice(NUMBERS), draw.choice(TEXTS), [],
                        {}, f"deep {draw.choice((1, 50, 900, 5000))}",
                        [draw.choice(NUMBERS)] * 3, {"a": draw.choice(TEXTS)}))


def mutate(raw: bytes, draw: random.Random) -> bytes:
    """One to four changes: bits, bytes, numbers, cuts, repeats, insertions."""
    out = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at, how = draw.randrange(max(1, len(out))), draw.randrange(8)
        if how == 0 and out:
            out[at] ^= 1 << draw.randrange(8)
        elif how == 1 and out:
            out[at] = draw.choice((0, 1, 127, 128, 255, 34, 44, 91, 123, 125, 57))
        elif how == 2:
            out[at:at
                + 8] = draw.choice((0, 1, 2 ** 31 - 1, 2 ** 32, 2 ** 62, 2 ** 64 - 1)).to_bytes(8, "little")
        elif how == 3:
            out[at:at
                + 4] = draw.choice((0, 1, 8, 9, 255, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1)).to_bytes(4, "little")
        elif how == 4 and draw.random() < 0.3:  # a cut is a dull mutation
            del out[at:]
        elif how == 5:
            out[at:at] = out[at:at + draw.randint(1, 64)]
        elif how == 6:
            del out[at:at + draw.randint(1, 16)]
        else:
            out[at:at] = str(draw.choice((-1, 0, 10 ** 9, 10 ** 30, 1e400, 0.5))).encode()
    return bytes(out)


def mutate_json(raw: bytes, draw: random.Random) -> bytes:
    """One to three values of a JSON text replaced, removed, doubled or renamed."""
    whole = json.loads(raw)
    for _ in range(draw.randint(1, 3)):
        node, steps = whole, []
        while isinstance(node, (dict, list)) and node and (not steps or draw.random() < 0.7):
            key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
            steps.append((node, key))
            node = node[key]
        if not steps:
            return b"[]"
        (parent, key), how = steps[-1], draw.randrange(6)
        if how == 0:
            del parent[key]
        elif how == 1 and isinstance(parent, dict):
            parent[draw.choice((*TEXTS, *whole))] = parent.pop(key)
        elif how == 2 and isinstance(parent, list):
            parent.append(parent[key])
        elif how == 3 and type(parent[key]) in (int, float):
            parent[key] = draw.choice((parent[key] + 1, parent[key] - 1, parent[key] * 2, -parent[key],
                                       draw.choice(NUMBERS)))
        else:
            parent[key] = random_value(draw)
    return re.sub(r'"deep (\d+)"', lambda m: "[" * int(m[1]) + "]" * int(m[1]),
                  json.dumps(whole)).encode()  # too deep for json.dumps itself


def mutate_metadata(path: Path, sound: bytes, draw: random.Random) -> None:
    """Rewrite a GGUF file with one to three metadata values replaced."""
    path.write_bytes(sound)
    with GGUF(path) as file:
        metadata, tensors = dict(file.metadata), gguf_file.stored(file)
    for _ in range(draw.randint(1, 3)):
        key = draw.choice(list(metadata))
        old, number = metadata[key], draw.choice([n for n in NUMBERS if type(n) is int
                                                  and -2 ** 63 <= n < 2 ** 32])
        if draw.random() < 0.2:
            del metadata[key]
        elif isinstance(old, list) and old and draw.random() < 0.8:
            changed = list(old)
            changed[draw.randrange(len(old))] = draw.choice((draw.choice(TEXTS[:8]), old[0],
                                                             draw.choice(old)))
            metadata[key] = changed if draw.random() < 0.7 else changed[:draw.randrange(len(old))]
        elif isinstance(old, np.ndarray) and draw.random() < 0.8:
            changed = old.copy()
            changed[draw.randrange(len(old))] = draw.choice((-1, 0, 1, 2, 3, 4, 5, 6, 7, 100)
                                                            if old.dtype.kind == "i"
                                                            else (0.0, float("nan"), float("inf"), 1e30))
            metadata[key] = changed if draw.random() < 0.7 else changed[:draw.randrange(len(old))]
        else:
            real = draw.choice((0.0, 1.0, float("nan"), float("inf"), 1e-30, -1.0))
            metadata[key] = draw.choice((number, number, real, True, "llama", "", ["a"],
                                         np.arange(3, dtype="<i4")))
        metadata = metadata or {"general.architecture": "llama"}
    path.write_bytes(gguf_file.write(path, metadata, tensors).read_bytes())


def with_control_tokens(metadata: dict) -> dict:
    """The tokenizer with the tokens of ChatML, so that its template finds them."""
    added = {"tokenizer.ggml.tokens": metadata["tokenizer.ggml.tokens"] + ["<|im_start|>", "<|im_end|>"],
             "tokenizer.chat_template": TEMPLATE,
             "tokenizer.ggml.token_type": np.append(metadata["tokenizer.ggml.token_type"],
                                                    np.array([3, 3], "<i4"))}
    if "tokenizer.ggml.scores" in metadata:
        added["tokenizer.ggml.scores"] = np.append(metadata["tokenizer.ggml.scores"], np.zeros(2, "<f4"))
    return metadata | added


def build(folder: Path) -> dict[str, tuple[Path, bytes, int]]:
    """kind → (the file, its sound bytes, how many of them make its header).

    A load reads the folder of its kind.
    """
    found, case = {}, next(iter(made.GOLDEN))
    for kind, metadata in (("gguf", made.byte_level_metadata("smollm")),
                           ("gguf llama", made.llama_metadata())):
        path = made.write_gguf(folder / f"{kind}.gguf", case, "F16", **with_control_tokens(metadata))
        with GGUF(path) as file:
            found[kind] = path, path.read_bytes(), min(t.offset for t in file.tensors.values())
    for kind, name in (("safetensors", "model.safetensors"), ("config.json", "config.json")):
        home = made.write_directory(folder / kind, *made.case_weights(case))
        raw = (home / name).read_bytes()
        found[kind] = home / name, raw, 8 + int.from_bytes(raw[:8],
                                                           "little") if kind == "safetensors" else len(raw)
    (folder / "index").mkdir()
    index = made.sharded(folder / "index")[0] / "model.safetensors.index.json"
    found["index"] = index, index.read_bytes(), len(index.read_bytes())
    for kind in ("tokenizer.model", "tokenizer_config", "tokenizer.json"):
        home, name = folder / kind, "tokenizer_config.json" if kind == "tokenizer_config" else kind
        home.mkdir()
        if kind == "tokenizer.json":
            with GGUF(found["gguf"][0]) as file:
                export.write(file.path, file.metadata, home)
        else:
            for file in ("tokenizer.model", "tokenizer_config.json"):
                shutil.copy(ORGANISM / file, home / file)
        found[kind] = home / name, (home / name).read_bytes(), len((home / name).read_bytes())
    return found


def damage(kind: str, path: Path, raw: bytes, header: int, draw: random.Random) -> None:
    """Write a damaged file to `path`."""
    if kind.startswith("gguf") and draw.random() < 0.5:
        mutate_metadata(path, raw, draw)
    elif path.suffix == ".json" and draw.random() < 0.6:
        path.write_bytes(mutate_json(raw, draw))
    elif kind == "safetensors" and draw.random() < 0.5:
        text = mutate_json(raw[8:header], draw)
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[header:])
    else:
        path.write_bytes(mutate(raw[:header], draw) + raw[header:])


@torch.no_grad()
def load(kind: str, path: Path) -> None:
    """Load what the file belongs to, and use it."""
    where = path if kind.startswith("gguf") else path.parent
    if kind.startswith(("gguf", "tokenizer")):
        words = gguf_file.tokenizer_of(where)
        words.decode(words.encode(PROBE))
        template = chat_choice.given(chat_choice.choose(words, where, None))
        template.encode([{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}])
    if kind.startswith("tokenizer"):
        return
    config, _ = checkpoint.read_config(where)
    fingerprint(where)
    for format in (*(("float32", "int8", "int4") if not kernels.unpackable("cpu") else ()),
                   None):  # packed, and last as plain tensors
        with torch.device("meta"):
            model = LLaMA(config)
        checkpoint.load_weights(model, where, packed=format)
    packed = PackedSequences.of([[0, 1, 2]])
    model.logits(model(packed.ids, packed.positions, packed_attention(config, packed.offsets)))


def kilobytes(field: str) -> int:
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines()
                    if line.startswith(field)).split()[1])


def attempt(kind: str, path: Path) -> tuple[str, str, int]:
    """(outcome, why, bytes of resident memory that the load took) of one load."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak, starts again from here
    before, start = kilobytes("VmRSS"), time.thread_time()
    signal.alarm(STUCK - 10)
    outcome, why = "loaded", ""
    try:
        load(kind, path)
    except Error as error:
        outcome = "refused"
        if (
            "\n" in str(error)
            or str(path.parent) not in str(error)
            and kind != "tokenizer.model"
            and "vicuna" not in str(error)
        ):
            outcome, why = "unclear", str(error)
    except TimeoutError:
        outcome = "hang"
    except BaseException as error:
        outcome, why = "traceback", f"{type(error).__name__}: {error}"
    signal.alarm(0)
    if time.thread_time() - start > SECONDS:  # of the processor: the machine may be busy with others
        outcome = "hang"
    grown = max(0, kilobytes("VmHWM") - before) << 10
    if grown > SLACK + GROWTH * path.stat().st_size:
        outcome, why = (
            "memory",
            f"{grown >> 20} MiB for a file of {path.stat().st_size} bytes; {outcome} {why}",
        )
    return outcome, why, grown


def batch(folder: Path, seed: int, first: int, count: int, results) -> None:
    """A child's work: mutations first … first + count − 1, each named before it is loaded, so that the parent
    knows which one killed us.
    """
    torch.set_num_threads(1)
    files = build(folder)
    for kind, (path, _, _) in files.items():
        for _ in range(2):      # the first load sets up what torch and the tables of characters need
            outcome, why, _ = attempt(kind, path)
        if outcome != "loaded":
            raise RuntimeError(f"the sound {kind} does not load: {outcome} {why}")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))

    def late(*_):
        raise TimeoutError
    signal.signal(signal.SIGALRM, late)
    for number in range(first, first + count):
        kind = KINDS[number % len(KINDS)]
        path, raw, header = files[kind]
        damage(kind, path, raw, header, random.Random(f"{seed}/{number}"))
        results.send((number, kind, "begun", "", 0))
        results.send((number, kind, *attempt(kind, path)))
        path.write_bytes(raw)


def run(count: int, seed: int) -> tuple[dict[str, Counter], list[str], int]:
    """(kind → outcomes, what is wrong, a line each, the most bytes that a load took)."""
    outcomes, wrong, number, most = {k: Counter() for k in KINDS}, [], 0, 0
    context = multiprocessing.get_context("spawn")
    while number < count:
        end = min(number + BATCH, count)
        with tempfile.TemporaryDirectory() as folder:
            results, theirs = context.Pipe(duplex=False)
            child = context.Process(target=batch, args=(Path(folder), seed, number, end - number, theirs))
            child.start()
            theirs.close()
            current = None
            try:
                while results.poll(STUCK if current else 300):
                    n, kind, outcome, why, grown = results.recv()
                    current = (n, kind)
                    if outcome == "begun":
                        continue
                    outcomes[kind][outcome] += 1
                    number, current, most = n + 1, None, max(most, grown)
                    if outcome not in ("loaded", "refused"):
                        wrong.append(f"{n} ({kind}): {outcome} {why}")
            except EOFError:  # the child is done, or dead
                pass
            child.kill()
            child.join()
        if number < end:
            if current is None:
                raise RuntimeError("the child died before a load; see its message above")
            outcomes[current[1]]["crash"] += 1
            wrong.append(f"{current[0]} ({current[1]}): the process died or stood still")
            number = current[0] + 1
    return outcomes, wrong, most


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts, faults, peak = run(options.count, options.seed)
    for line in faults:
        print(line)
    print(json.dumps({"seed": options.seed, "count": options.count, **counts,
                      "most_mebibytes": round(peak / 2 ** 20, 1), "wrong": len(faults)}))
    sys.exit(1 if faults else 0)
