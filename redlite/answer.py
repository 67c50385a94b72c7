"""One answer of a model, whoever made it: the engine here, or an endpoint."""
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt.

    text               without special tokens and stop strings
    finish             "stop", "length", "refused_by_api" or "error"
    prompt_tokens      tokens of the prompt; None where an endpoint does not say
    completion_tokens  tokens generated, the end token included; None where an endpoint does not say
    seconds            wall time, of a local model in its shared batch
    ids                token ids as generated, the end token included; empty for endpoints
    detail             why there is no text, or what came instead of it
    served             what an endpoint says answered: the model's name and system fingerprint
    opened             the prompt ended in an opening reasoning tag: the text begins in a thought
    """
    text: str
    finish: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float
    ids: Sequence[int] = ()
    detail: str = ""
    served: str = ""
    opened: bool = False
