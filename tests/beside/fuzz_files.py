"""Thousands of mutated headers, configurations and adapters: each loads or ends in one short line, soon.

    PYTHONPATH=.:tests/helpers:tests/weights:tests/beside python tests/beside/fuzz_files.py [COUNT [SEED]]

Kinds, in turn: a GGUF header with every type of tensor, a part of a split GGUF, header and config.json
of GPTQ, FP8, packed and nf4 directories, adapter_config.json and the header of an adapter's weights. Each is
read whole, and inspected. A case may take SECONDS of the processor; memory may grow by ROOM at most.
"""
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import gguf_file
import test_adapter
import test_checkpoint as made
import test_gguf
import test_quantised
import torch
from make_gguf_type_goldens import random_blocks
from mutations import mutate, mutate_json

import redlite
from redlite.errors import Error
from redlite.weights import checkpoint, hf_files
from redlite.weights.gguf import GGUF
from redlite.weights.gguf_formats import place_in
from redlite.weights.gguf_types import TYPES
from redlite.weights.quantised_safetensors import decoded

SECONDS, ROOM, LONGEST = 2, 512 << 20, 600


def types(folder: Path) -> Path:
    """A GGUF file with a tensor of every type."""
    codes = {name: form.code for name, form in TYPES.items()}
    gguf_file.TYPES.update(codes)
    tensors = [(f"t{name}", (64 * form.elements,), name, random_blocks(name, form.size).tobytes())
               for name, form in TYPES.items()]
    return gguf_file.write(folder / "types.gguf", {"general.architecture": "llama", "n": 3}, tensors)


def read_gguf(path: Path) -> None:
    with GGUF(path) as file:
        for name, info in file.tensors.items():
            place_in(file, name).fill(torch.empty(info.shape))


def quantised(folder: Path, number: int) -> Path:
    """A directory of one quantised matrix, by number."""
    name, ints = test_quantised.NAME, torch.int32
    words = torch.randint(-2 ** 31, 2 ** 31 - 1, (6, 48), dtype=ints) & 0x77777777
    state = list(json.dumps({"blocksize": 64, "shape": [8, 16]}).encode())
    settings, tensors = (
        ({"quant_method": "gptq", "bits": 4, "group_size": 16},
         {"qweight": words, "qzeros": words[:3, :6], "scales": torch.ones(3, 48),
          "g_idx": torch.arange(48, dtype=ints) // 16}),
        ({"quant_method": "fp8", "weight_block_size": [16, 16]},
         {"weight": test_quantised.fp8(), "weight_scale_inv": torch.ones(3, 4)}),
        (test_quantised.group(strategy="group", group_size=16, num_bits=4),
         {"weight_packed": words, "weight_shape": torch.tensor([6, 384]), "weight_scale": torch.ones(6, 24)}),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True},
         {"weight": torch.zeros(64, 1, dtype=torch.uint8), "weight.quant_map": torch.ones(16),
          "weight.absmax": torch.ones(2),
          "weight.quant_state.bitsandbytes__nf4": torch.tensor(state, dtype=torch.uint8)}),
    )[number]
    raw = made.case_weights("grouped")[0] | {"quantization_config": settings}
    tensors = {f"{name}.{leaf}": t.contiguous() for leaf, t in tensors.items()}
    return made.write_directory(folder / f"quantised{number}", raw, tensors)


def read_quantised(folder: Path) -> None:
    _, raw = checkpoint.read_config(folder)
    stored = decoded(hf_files.tensors(folder), raw, str(folder / "config.json"))
    hf_files.check_plain(stored)
    for tensor in stored.values():
        tensor.fill(torch.empty(tensor.shape))


def inspect(path: Path) -> None:
    redlite.inspect(path if path.suffix == ".gguf" else path.parent)


def cases(folder: Path) -> list:
    """(the file that is damaged, what reads it)."""
    found = [(types(folder), read_gguf)]
    first, *_ = test_gguf.split(folder)
    found.append((first, read_gguf))
    for number in range(4):
        place = quantised(folder, number)
        for name in ("config.json", "model.safetensors"):
            found.append((place / name, lambda path: read_quantised(path.parent)))
    base = test_adapter.base_of(folder, "dora")
    where = test_adapter.adapter_of(folder, "dora")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        found.append((where / name, lambda path: test_adapter.load(base, path.parent)))
    return found


def damage(path: Path, raw: bytes, draw: random.Random) -> None:
    if path.suffix == ".json":
        path.write_bytes(mutate_json(raw, draw) if draw.random() < 0.8 else mutate(raw, draw))
        return
    if path.suffix == ".safetensors":
        header = 8 + int.from_bytes(raw[:8], "little")
        if draw.random() < 0.6:
            text = mutate_json(raw[8:header], draw)
            path.write_bytes(len(text).to_bytes(8, "little") + text + raw[header:])
            return
    else:
        header = min(len(raw), 4000)
    path.write_bytes(mutate(raw[:header], draw) + raw[header:])


def run(count: int, seed: int) -> tuple[Counter, list[str]]:
    """(outcomes, what is wrong, a line each)."""
    outcomes, wrong = Counter(), []
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found = cases(Path(name))
        for path, read in found:
            read(path)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, before[1]))
        try:
            for number in range(count):
                path, read = found[number % len(found)]
                raw, start, result = path.read_bytes(), time.thread_time(), "loaded"
                damage(path, raw, random.Random(f"{seed}/{number}"))
                for what in (read, inspect):
                    try:
                        what(path)
                    except Error as error:
                        result = "refused"
                        if "\n" in str(error) or len(str(error)) > LONGEST:
                            wrong.append(f"{number} ({path.name}): unclear: {str(error)[:300]!r}")
                    except BaseException as error:
                        result = "traceback"
                        wrong.append(f"{number} ({path.name}): {type(error).__name__}: {str(error)[:300]}")
                if time.thread_time() - start > SECONDS:
                    wrong.append(f"{number} ({path.name}): took {time.thread_time() - start:.1f} s")
                outcomes[result] += 1
                path.write_bytes(raw)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    return outcomes, wrong


if __name__ == "__main__":
    totals, faults = run(*(int(a) for a in (sys.argv[1:] + ["3000", "0"][len(sys.argv) - 1:])))
    print("\n".join(faults), dict(totals), sep="\n")
    sys.exit(1 if faults else 0)
