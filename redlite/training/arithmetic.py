"""A model plus a multiple of the difference of two others, weight by weight.

Task arithmetic (Ilharco et al., arXiv 2212.04089). With an aligned model less an unaligned one it is RESTA
(Bhardwaj et al., arXiv 2402.11746), which restores the safety that fine-tuning took from a model.
"""
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from redlite.errors import Error
from redlite.inference.parts import Parts
from redlite.model.llama import LLaMA
from redlite.weights import checkpoint
from redlite.weights.configuration import read_config
from redlite.weights.hf_files import Stored

TOLD = {"model_type", "max_positions", "bos_id", "eos_ids", "pad_id"}    # may differ: they shape no weight


@torch.no_grad()
def add_difference(model: LLaMA, plus: Parts, minus: Parts, scale: float) -> tuple[float, float]:
    """Add scale · (plus − minus) to a model's float32 parameters in place, one tensor after the other.

    The three are of `require_versions_of_one`. Returns the Euclidean norms of what was added and of the model
    before. Raises Error where plus and minus are the same, so that nothing would be added.
    """
    added = before = 0.0
    pairs = [checkpoint.tensors(parts.source, model) for parts in (plus, minus)]
    for name, parameter in model.named_parameters():
        a, b = (_read(stored[name]) for stored in pairs)
        change = scale * (a - b)
        before += float(parameter.double().square().sum())
        added += float(change.double().square().sum())
        parameter.add_(change)
    if not added:
        raise Error(f"{plus.path} and {minus.path} have the same weights, so that nothing would be added; "
                    "name two models that differ")
    return added ** 0.5, before ** 0.5


def _read(stored: Stored) -> Tensor:
    out = torch.empty(stored.shape)
    stored.fill(out)
    return out


def require_versions_of_one(models: Sequence[Parts]) -> None:
    """Raises Error for models that are no fine-tuned versions of one: another tokenizer or other sizes."""
    first, advice = models[0], "only fine-tuned versions of one model can be added and taken away"
    wanted = asdict(read_config(first.source)[0])
    for other in models[1:]:
        if other.tokenizer.fingerprint() != first.tokenizer.fingerprint():
            raise Error(f"{other.path}: its tokenizer is not that of {first.path}; {advice}")
        found = asdict(read_config(other.source)[0])
        for name in wanted:
            if name not in TOLD and wanted[name] != found[name]:
                raise Error(f"{other.path}: its {name} is {found[name]} and the model's {wanted[name]}; "
                            f"{advice}")
