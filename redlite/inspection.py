"""What a model is and would do, told from its files' headers: no weight is read, and no torch is needed."""
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

from redlite.errors import Error
from redlite.model.config import Config
from redlite.model.parameters import shapes
from redlite.store.files import read_json
from redlite.store.text import columns, printable, short
from redlite.text import chat_choice, tokenizer
from redlite.weights import configuration, fit, gguf_llama
from redlite.weights.gguf import GGUF
from redlite.weights.gguf_types import TYPES, packed_format
from redlite.weights.headers import CODES, gathered, safetensors_entries, weight_files
from redlite.weights.source import Source, open_source, path_of

MERGES = "tokenizer.ggml.merges"  # the longest part of a header, and no part of what is told here
PANEL, BLOCK = 16, 32             # rows and inputs that packed matrices are rounded up to
T = TypeVar("T")


class TypeUse(TypedDict):
    """How much of a model is stored in one type; in_c: whether the C library decodes it."""
    tensors: int
    parameters: int
    bytes: int
    in_c: bool


class Inspection(TypedDict):
    """What `redlite.inspect` gives.

    path, files     the directory or file, and the files of its weights
    family          model_type, or a GGUF file's architecture
    parameters      stored numbers; None where only loading tells (.bin files, quantised directories)
    bytes           of all files of weights
    types           name of a stored type → how much of the model is of it
    quantisation    what config.json's quantization_config names, or None
    config          sizes: layers, width, heads, kv_heads, head_size, context, vocabulary; {} if it is refused
    tokenizer       kind, tokens, bos, eos, pad (texts or ids), or None if it is refused
    special_tokens  text → id of the control tokens
    stop_ids        ids that end an answer
    chat            as `chat_choice.describe`, or None; `chat_refused` then says why
    refused         why loading would end, a line each; [] if nothing that the headers show is wrong
    runs            in words: what runs in C, and which types are decoded in Python first
    memory          bytes of the weights in memory by format: "float32", "bfloat16", "int8", "int4";
                    None as above
    cache_bytes_per_token  of keys and values, by the same formats
    """
    path: str
    files: int
    family: str
    parameters: int | None
    bytes: int
    types: dict[str, TypeUse]
    quantisation: str | None
    config: dict[str, int]
    tokenizer: dict[str, Any] | None
    special_tokens: dict[str, int]
    stop_ids: list[int]
    chat: dict[str, Any] | None
    chat_refused: str
    refused: list[str]
    runs: list[str]
    memory: dict[str, int] | None
    cache_bytes_per_token: dict[str, int] | None


class Stored(NamedTuple):
    """A tensor as a header tells it. where: file and tensor, for errors."""
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    where: str


def inspect(path: str | Path, template: str | None = None) -> Inspection:
    """Tell what a model is without loading it; `redlite.inspect`.

    path      as for `redlite.load`; template: likewise
    Raises Error for a path that is no model, and for weight files whose headers are damaged. What else
    loading would refuse stands in the result. The merges of a GGUF file's tokenizer are not looked at.
    """
    source, refused = open_source(path, (MERGES,)), list[str]()

    def attempt(what: Callable[[], T]) -> T | None:
        try:
            return what()
        except Error as error:
            refused.append(str(error))
            return None
    tensors, size, files = _stored(source)
    found = attempt(lambda: configuration.read_config(source))
    config, raw = found if found else (None, {})
    method = None
    if config:
        method = configuration.quantisation(raw, str(path_of(source)))
        attempt(lambda: _check_tensors(source, config, tensors, method is not None))
    words = attempt(lambda: _tokenizer(source))
    if config and words and words.base_size > config.vocab_size:
        refused.append(f"{path_of(source)}: the tokenizer has {words.base_size} tokens and the model only "
                       f"{config.vocab_size}; they do not belong together")
    chat, why = None, "the tokenizer is refused"
    stop_ids = set(config.eos_ids if config else ())
    if words:
        chosen = chat_choice.choose(words, path_of(source), template)
        stop_ids |= {*chosen.stop_ids, *words.end_ids, *(() if words.eos_id is None else (words.eos_id,))}
        if isinstance(chosen, chat_choice.NoFormat):
            why = chosen.why
        else:
            chat, why = chat_choice.describe(chosen), ""
    known = bool(tensors) and method is None
    return {
        "path": str(path_of(source)), "files": files, "family": _family(source), "bytes": size,
        "parameters": sum(_count(t.shape) for t in tensors.values()) if known else None,
        "types": _types(tensors), "quantisation": method, "config": _sizes(config) if config else {},
        "tokenizer": _words(words) if words else None, "special_tokens": dict(words.special) if words else {},
        "stop_ids": sorted(stop_ids), "chat": chat, "chat_refused": why, "refused": refused,
        "runs": _runs(tensors, method, config),
        "memory": {format: _memory(tensors, format) for format in FORMATS} if known else None,
        "cache_bytes_per_token": _cache(config) if config else None}


# ---- what the headers say ----

def _stored(source: Source) -> tuple[dict[str, Stored], int, int]:
    """(the tensors that headers name, bytes of the files, how many files). A .bin file has no header."""
    if isinstance(source, GGUF):
        size = sum(part.path.stat().st_size for part in source.parts)
        named = {}
        for t in source.tensors.values():
            where = f"{source.parts[t.part].path}: tensor {short(t.name)}"
            named[t.name] = Stored(t.type, t.shape, t.nbytes, where)
        return named, size, len(source.parts)
    files = [file for file in weight_files(source)[1] if file.suffix != ".json"]
    found = gathered(source, _of_header)
    return found, sum(file.stat().st_size for file in files), len(files)


def _of_header(file: Path) -> dict[str, Stored]:
    """The tensors of one file of weights; {} of a .bin file."""
    if file.suffix == ".bin":
        return {}
    return {name: Stored(entry.kind, entry.shape, entry.nbytes, f"{file}: tensor {short(name)}")
            for name, entry in safetensors_entries(file).items()}


def _check_tensors(source: Source, config: Config, tensors: dict[str, Stored], quantised: bool) -> None:
    """Raises the Error with which loading would end for the tensors' names and shapes."""
    if quantised or not tensors or any(tensor.kind in CODES for tensor in tensors.values()):
        _check_by_torch(source, config)
        return
    if isinstance(source, GGUF):
        found = {name: tensors[stored] for stored, name in gguf_llama.names(source).items()}
    else:
        found = fit.with_prefix(tensors)
    if config.family.fused:
        found = _split(found, config)
    if config.tied and fit.HEAD in found:   # see checkpoint._settle_tied, which compares the numbers too
        found.setdefault(fit.EMBEDDING, found[fit.HEAD])
        config = replace(config, tied=False)
    fit.check(found, shapes(config), path_of(source))


def _split(tensors: dict[str, Stored], config: Config) -> dict[str, Stored]:
    """What loading takes apart, taken apart; see `fused.split`."""
    found = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        for part, rows in fit.parts_of(module, tensor, config):
            found[f"{part}.{leaf}"] = tensor._replace(shape=(len(rows), *tensor.shape[1:]))
    return found


def _check_by_torch(source: Source, config: Config) -> None:
    """`_check_tensors` of files whose headers do not tell enough. torch maps them, and reads little."""
    import torch

    from redlite.model.llama import LLaMA
    from redlite.weights import checkpoint
    with torch.device("meta"):
        model = LLaMA(config)
    checkpoint.tensors(source, model)


def _tokenizer(source: Source) -> tokenizer.Tokenizer:
    if isinstance(source, GGUF):
        return tokenizer.from_gguf(source.path, source.metadata)
    return tokenizer.load(source)


def _family(source: Source) -> str:
    if isinstance(source, GGUF):
        return str(source.metadata.get("general.architecture", "unknown"))[:80]
    raw = read_json(source / "config.json")
    return str(raw.get("model_type", "unknown"))[:80] if isinstance(raw, dict) else "unknown"


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _types(tensors: dict[str, Stored]) -> dict[str, TypeUse]:
    found: dict[str, TypeUse] = {}
    for tensor in tensors.values():
        kind = tensor.kind
        in_c = kind in TYPES and TYPES[kind].in_c
        use = found.setdefault(kind, TypeUse(tensors=0, parameters=0, bytes=0, in_c=in_c))
        use["tensors"] += 1
        use["parameters"] += _count(tensor.shape)
        use["bytes"] += tensor.nbytes
    return found


def _sizes(config: Any) -> dict[str, int]:
    return {"layers": config.n_layers, "width": config.dim, "heads": config.n_heads,
            "kv_heads": config.n_kv_heads, "head_size": config.head_dim, "context": config.max_positions,
            "vocabulary": config.vocab_size}


def _words(words: tokenizer.Tokenizer) -> dict[str, Any]:
    of_id = {id: text for text, id in words.special.items()}
    roles = {"bos": words.bos_id, "eos": words.eos_id, "pad": words.pad_id}
    return {"kind": words.kind, "tokens": words.vocab_size, "adds_bos": words.add_bos,
            **{role: None if id is None else of_id.get(id, id) for role, id in roles.items()}}


# ---- what it would need ----

ACTIVATIONS_IN_C = ("silu", "gelu_tanh", "relu2", "xielu")  # kernels.PACKED_ACTIVATIONS, which needs torch
FORMATS = ("float32", "bfloat16", "int8", "int4")
HEADS, EMBEDDINGS = ("lm_head.weight", "output.weight"), ("model.embed_tokens.weight", "token_embd.weight")
# Of a packed matrix: kernels/c/packed_matrix.h
WEIGHT_BITS = {"float32": 32.0, "bfloat16": 16.0, "int8": 8.5, "int4": 5.0, "q4_k": 4.625, "q6_k": 6.5625}


def _memory(tensors: dict[str, Stored], format: str) -> int:
    """Bytes of the weights in a packed format; see `checkpoint._pack`. Vectors stay float32.

    An embedding beside an output matrix stays in its file.
    """
    total, untied = 0.0, any(name in tensors for name in HEADS)
    for name, tensor in tensors.items():
        shape = tensor.shape
        if untied and name in EMBEDDINGS:
            continue
        if len(shape) != 2:
            total += 4 * _count(shape)
            continue
        own = packed_format(tensor.kind, format)[0] if tensor.kind in TYPES else format
        rows = -(-shape[0] // PANEL) * PANEL
        inputs = shape[1] if own == "float32" else -(-shape[1] // BLOCK) * BLOCK
        total += rows * inputs * WEIGHT_BITS[own] / 8
    return round(total)


def _cache(config: Any) -> dict[str, int]:
    """Bytes of a token's keys and values: two a number on CPUs but for float32 weights."""
    numbers = 2 * config.n_layers * config.n_kv_heads * config.head_dim
    return {"float32": 4 * numbers, "bfloat16": 2 * numbers, "int8": 2 * numbers, "int4": 2 * numbers}


def library_is_built() -> bool:
    """Whether the C library lies beside the kernels; loading it may still fail."""
    folder = Path(__file__).parent / "kernels"
    return any((folder / f"_c{suffix}").exists() for suffix in EXTENSION_SUFFIXES)


def _runs(tensors: dict[str, Stored], method: str | None, config: Any) -> list[str]:
    """What runs in C on this machine's processor, in words. config: of the model, None where it is refused"""
    if not library_is_built():
        return ["the C library is not built: everything runs in PyTorch, which is slower"]
    formats = "C, in float32, bfloat16, int8 or int4 (float16 in PyTorch)"
    if config and config.act not in ACTIVATIONS_IN_C:
        found = [f"layers of {config.model_type}: PyTorch, for C has no activation {config.act}",
                 f"attention and matrix products: {formats}"]
    else:
        of = f" of {config.model_type}" if config else ""
        found = [f"layers{of}, attention and matrix products: {formats}"]
    slow = sorted(kind for kind, use in _types(tensors).items() if not use["in_c"])
    if method:
        found.append(f"weights of {method}: decoded in Python at load; float32 in memory unless quantised")
    elif slow:
        found.append(f"tensors of {', '.join(slow)}: decoded in Python at load, then packed as the others")
    blocks = sorted(kind for kind in _types(tensors) if kind in TYPES and TYPES[kind].elements > 1)
    if blocks and not method:
        found.append(f"tensors of {', '.join(blocks)}: float32 in memory unless quantised")
    return found


# ---- for people ----

def lines(found: Inspection) -> list[str]:
    """The result as one screen of text."""
    def size(count: float) -> str:
        return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
    config, words, memory = found["config"], found["tokenizer"], found["memory"]
    count = found["parameters"]
    about = "" if count is None else f", {count / 1e9:.2f} billion parameters"
    if count is not None and count < 1e8:
        about = f", {count / 1e6:.2f} million parameters"
    files = f" in {found['files']} files" if found["files"] > 1 else ""
    out = [f"{found['path']}: {found['family']}{about}, {size(found['bytes'])}{files}"]
    if config:
        out.append("context {context} tokens; {layers} layers of width {width}, {heads} heads ({kv_heads} of "
                   "keys and values) of {head_size}, vocabulary {vocabulary}".format_map(config))
    if found["quantisation"]:
        out.append(f"quantised: {found['quantisation']}")
    rows = [["type", "tensors", "parameters", "size"]]
    rows += [[kind, str(use["tensors"]), str(use["parameters"]), size(use["bytes"])]
             for kind, use in sorted(found["types"].items(), key=lambda item: -item[1]["bytes"])]
    if len(rows) > 1:
        out += columns(rows)
    if words:
        roles = ", ".join(f"{role} {short(words[role])}" for role in ("bos", "eos", "pad"))
        out.append(f"tokenizer: {words['kind']}, {words['tokens']} tokens; {roles}")
    special, shown = found["special_tokens"], list(found["special_tokens"])[:12]
    if special:
        more = f" and {len(special) - len(shown)} more" if len(special) > len(shown) else ""
        out.append(f"special tokens: {', '.join(map(printable, shown))}{more}")
    out.append(f"stop ids: {', '.join(map(str, found['stop_ids'])) or 'none'}")
    chat = found["chat"]
    if chat:
        stops = ", ".join(chat["stops"]) or "nothing of its own"
        out.append(f"chat format: {chat['name']}; stops at {stops}")
        out += [f"  | {line}" for line in chat["sample"].splitlines()[:20]]
    else:
        out.append(f"chat format: none ({found['chat_refused']})")
    out += [f"runs: {line}" for line in found["runs"]]
    if memory:
        cache = found["cache_bytes_per_token"] or {}
        out.append("memory of the weights: " + ", ".join(f"{f} {size(memory[f])}" for f in FORMATS))
        if cache:
            sizes = [f"{f} {size(1000 * cache[f])}" for f in FORMATS]
            out.append(f"memory of 1,000 tokens: {', '.join(sizes)}")
    out += [f"would be refused: {reason}" for reason in found["refused"]]
    return out
