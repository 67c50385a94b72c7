"""redlite: red-team language models and make them safer, on a machine with no network.

`redlite.load(path)` gives a model; `redlite.kernels` and `redlite.loss` hold the operations that an auditor
reads. Importing `redlite` imports neither torch nor numpy.
"""
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from redlite.errors import Error

if TYPE_CHECKING:
    from redlite.inference.lm import LM
    from redlite.inspection import Inspection

__version__ = "0.1.0"
__all__ = ["Error", "inspect", "load", "__version__"]


def load(path: str | Path, dtype: str = "float32", device: str = "cpu", quantize: str | None = None,
         template: str | None = None, adapter: str | Path | None = None) -> "LM":
    """Load a model for generation and scoring.

    path      a directory in Hugging Face layout, a `.gguf` file, or an embedded name ("organism")
    dtype     "float32", "bfloat16" or "float16": of the weights and the activations
    device    a torch device, e.g. "cpu" or "cuda"
    quantize  None, "int8" or "int4": the matrices are kept as whole numbers with a scale for each 32 inputs.
              On CPUs that needs the C library and dtype "float32", on GPUs triton
    template  a chat format's name (a key of `redlite.text.chat.FORMATS`) or a file with a template; None
              takes the model's own. Without one the model loads, and `lm.template` raises Error
    adapter   the directory of a LoRA adapter that PEFT wrote; it is merged into the weights

    Returns a `redlite.inference.lm.LM`. In its shapes, T is the tokens of one sequence and V the vocabulary:
    - `logits(ids)` gives a float32 tensor [T, V] for a list of T ids;
    - `generate(prompts, max_new_tokens, …)` takes lists of ids, gives an answer for each, in the same order;
    - `score(pairs)` gives log-probabilities in nats of (context ids, continuation ids);
    - `tokenizer` and `template` turn texts and conversations into ids.

    Raises `redlite.Error`, one line that says what to mend:
    - a path that is neither file, directory nor embedded name; a dtype, device or quantisation that cannot be
      had;
    - a configuration, tokenizer or tensor that is missing, damaged, or of a kind that redlite does not run;
    - a chat format that is not known, or that the model's files do not say;
    - REDLITE_KERNELS or REDLITE_ISA in the environment, if it names what is not there.
    """
    _imported("kernels")
    from redlite.inference.lm import LM

    return LM.load(path, dtype=dtype, device=device, quantize=quantize, template=template,
                   adapter=adapter)


def inspect(path: str | Path, template: str | None = None) -> "Inspection":
    """What a model is and would do, from its files' headers alone, within a moment and without torch.

    path, template  as for `load`
    Returns a dict; see `redlite.inspection.Inspection` for its fields. Raises `redlite.Error` for a path that
    is no model and for damaged headers; what else `load` would refuse stands in its field `refused`.
    """
    from redlite import inspection

    return inspection.inspect(path, template)


def _imported(name: str) -> ModuleType:
    """A module of redlite. Raises Error where the environment forces kernels that are not there."""
    try:
        return import_module(f"redlite.{name}")
    except ValueError as error:
        if not str(error).startswith(("REDLITE_KERNELS=", "REDLITE_ISA=")):
            raise
        raise Error(str(error)) from None


def __getattr__(name: str) -> ModuleType:
    """`redlite.kernels` and `redlite.loss` on first use, so that `import redlite` stays light."""
    if name in ("kernels", "loss"):
        return _imported(name)
    raise AttributeError(f"module 'redlite' has no attribute {name!r}")
