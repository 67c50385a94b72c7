"""Small models whose matrices are packed, for the tests of what runs in C."""
import torch

from redlite import kernels
from redlite.model.config import Config
from redlite.model.llama import LLaMA

VARIANTS = {
    "llama": Config("llama", 97, 32, 3, 4, 2, 8, 64),
    "windows and biases": Config("qwen2", 97, 40, 4, 6, 2, 10, 77, windows=(None, 9, 9, None), qkv_bias=True,
                                 o_bias=True, mlp_bias=True),
    "dynamic": Config("llama", 97, 32, 2, 4, 4, 8, 64, max_positions=24,
                      rope_scaling={"rope_type": "dynamic", "factor": 4.0}),
}


def make(name, format="float32"):
    """A packed model of VARIANTS, its norms and biases not those of a new model."""
    model = LLaMA(VARIANTS[name]).initialize(0, std=0.3).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter.add_(0.1 * noise)
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            weight = kernels.PackedMatrix.of(module.weight, format)
            del module.weight
            module.weight = weight
    for block in model.model.layers:
        block.pack()
    return model
