"""Whether the tensors of a model's files are those that its configuration needs, by their names and shapes.

It needs no torch, so `redeval inspect` can tell what loading would refuse.
"""
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from redlite.errors import Error
from redlite.model.config import Config
from redlite.model.parameters import Shapes

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OTHER_LAYOUT = "tok_embeddings.weight"  # what Meta and Mistral call the embedding in files of their own
# Matrices that files keep as one and the model as several: q, k, v and gate, up of Phi-3.
FUSED = {"self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
         "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj")}


class Told(Protocol):
    """What is known of a tensor in files; `where` names file and tensor in errors."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def where(self) -> str: ...


T = TypeVar("T", bound=Told)


def with_prefix(stored: dict[str, T]) -> dict[str, T]:
    """name → tensor, where a model was saved without its output: its names lack "model." then."""
    if EMBEDDING.removeprefix("model.") not in stored:
        return stored
    return {name if name == HEAD else f"model.{name}": tensor for name, tensor in stored.items()}


def parts_of(module: str, tensor: Told, config: Config) -> list[tuple[str, range]]:
    """The modules that a module is in the model, each with its rows of a tensor; itself if it is not fused.

    Raises Error if a fused module's tensor has another number of rows.
    """
    heads, groups, size = config.n_heads, config.n_kv_heads, config.head_dim
    sizes = {"self_attn.qkv_proj": (heads * size, groups * size, groups * size),
             "mlp.gate_up_proj": (config.ffn_dim, config.ffn_dim)}
    rows = tensor.shape[0] if tensor.shape else 0
    match = re.fullmatch(r"(model\.layers\.[0-9]+\.)(.*)", module)
    if match is None or match[2] not in FUSED:
        return [(module, range(rows))]
    counts = sizes[match[2]]
    if rows != sum(counts):
        raise Error(f"{tensor.where} has shape {list(tensor.shape)} and the configuration needs "
                    f"{sum(counts)} rows; they do not belong together")
    ends = [0, *itertools.accumulate(counts)]
    return [(match[1] + part, range(first, last))
            for part, first, last in zip(FUSED[match[2]], ends, ends[1:], strict=False)]


def check(stored: Mapping[str, Told], wanted: Shapes, path: Path) -> None:
    """Raises Error unless the files hold exactly the tensors that the model wants, in its shapes."""
    for name, shape in wanted.items():
        if name not in stored:
            raise Error(_missing(name, stored, path))
        if stored[name].shape != shape:
            raise Error(f"{stored[name].where} has shape {list(stored[name].shape)} and the configuration "
                        f"needs {list(shape)}; they do not belong together")
    for name, found in stored.items():
        if name not in wanted:
            raise Error(f"{found.where} does not belong to a model of this configuration")


def _missing(name: str, stored: Mapping[str, Told], path: Path) -> str:
    """What to say of a tensor that is not there."""
    alike = next((found for found in stored if found.endswith(f".{name}")), None)
    if alike:
        return (f"{stored[alike].where} stands where {name} is needed; rename the tensors, or "
                "save the model itself and not what is around it")
    if OTHER_LAYOUT in stored:
        return (f"{path}: the weights have the names of Meta's and Mistral's own files; fetch the files "
                "of Hugging Face's layout (model*.safetensors), or convert them")
    if name == HEAD:
        return (f"{path}: tensor {name} is missing, the output matrix; where the embedding is that too, "
                "tie_word_embeddings must say so, and embedding models and classifiers are not run")
    return (f"{path}: tensor {name} is missing; the weights do not belong to this configuration or are "
            "incomplete")
