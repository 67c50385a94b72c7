"""redlite: red-team language models and make them safer, on a machine with no network.

`redlite.load(path)` gives a model; `redlite.kernels` and `redlite.loss` hold the operations that
an auditor reads. Importing `redlite` imports neither torch nor numpy.
"""
from importlib import import_module

from redlite.errors import Error

__version__ = "0.1.0"
__all__ = ["Error", "load", "__version__"]


def load(path, dtype="float32", device="cpu", quantize=None, template=None):
    """Load a model for generation, scoring and training.

    path      a directory in Hugging Face layout, a `.gguf` file, or an embedded name ("organism")
    dtype     "float32", "bfloat16" or "float16": the dtype of the weights and activations
    device    a torch device, e.g. "cpu" or "cuda"
    quantize  None, "int8" or "int4": weight-only quantisation of the matrices
    template  a chat format's name; None chooses it from the model's own files
    Returns a `redlite.inference.lm.LM`. Raises `redlite.Error` for anything wrong with the files or names.
    """
    from redlite.inference.lm import LM

    return LM.load(path, dtype=dtype, device=device, quantize=quantize, template=template)


def __getattr__(name):
    """`redlite.kernels` and `redlite.loss` on first use, so that `import redlite` stays light."""
    if name in ("kernels", "loss"):
        return import_module(f"redlite.{name}")
    raise AttributeError(f"module 'redlite' has no attribute {name!r}")
