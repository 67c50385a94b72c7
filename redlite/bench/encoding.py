"""What a task asks of a model, and how it becomes token ids.

A request is a context with a continuation to be scored, or a context to be continued. Encoding follows the
harness: trailing spaces of a context move to its continuation; context and continuation are encoded together
and split at the length of the context's own encoding; too long a context loses its beginning.
"""
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redlite.errors import Error

if TYPE_CHECKING:
    from redlite.inference.lm import LM


@dataclass(frozen=True)
class Scored:
    """Ask for the log-probability of `continuation` after `context`."""
    context: str
    continuation: str


@dataclass(frozen=True)
class Continued:
    """Ask for a greedy continuation of lead + shots + context, cut before the first of `stop`.

    limit  shots are dropped from the last one on while the prompt has more tokens; 0 keeps them all
    """
    context: str
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    lead: str = ""
    shots: tuple[str, ...] = ()
    limit: int = 0


class Encoder:
    """Requests to token ids, by the harness's rules.

    chat  put every context as a user's message in the model's own format
    """

    def __init__(self, lm: "LM", chat: bool = False):
        self.lm, self.chat = lm, chat
        self.window = lm.engine.context_limit()
        bos = lm.tokenizer.bos_id
        self.bos = [bos] if lm.tokenizer.add_bos and bos is not None else []
        self._last: tuple[str, list[int]] = ("", [])

    def _context(self, text: str) -> list[int]:
        if self._last[0] != text or not self._last[1]:
            if self.chat:
                messages = [{"role": "user", "content": text}]
                ids = self.lm.template.encode(messages, add_generation_prompt=True).ids
            else:
                ids = self.bos + self.lm.tokenizer.encode(text)
            self._last = text, ids
        return self._last[1]

    def scored(self, request: Scored) -> tuple[list[int], list[int], int]:
        """(context ids, continuation ids, tokens cut from the context's beginning)."""
        context, continuation = request.context, request.continuation
        if self.chat:
            # The harness joins chat format and answer without a space between.
            messages = [{"role": "user", "content": context},
                        {"role": "assistant", "content": continuation.lstrip(" ")}]
            encoded = self.lm.template.encode(messages)
            start = encoded.trained.index(True)
            before = encoded.ids[:start]
            behind = zip(encoded.ids[start:], encoded.trained[start:], strict=True)
            after = [token for token, trained in behind if trained]
            while after and after[-1] in self.lm.stop_ids:
                after.pop()
        else:
            kept = context.rstrip()
            context, continuation = kept, context[len(kept):] + continuation
            before = self._context(context)
            after = (self.bos + self.lm.tokenizer.encode(context + continuation))[len(before):]
        if not before:
            before = [self._prefix_token()]
        return self._fit(before, after)

    def _prefix_token(self) -> int:
        for token in (self.lm.tokenizer.bos_id, self.lm.tokenizer.eos_id):
            if token is not None:
                return token
        raise Error("an empty context needs a BOS or EOS token, and the model has neither")

    def _fit(self, before: list[int], after: list[int]) -> tuple[list[int], list[int], int]:
        if not after:  # lm_eval 0.4.13 would give it log-probability 0, so that it would win
            raise Error("an answer merges wholly into the last token of its question, so that nothing of it "
                        "can be scored; leave the example out")
        if len(after) > self.window:
            raise Error(f"an answer of {len(after)} tokens does not fit the model's window of {self.window}; "
                        "leave the example out")
        cut = max(0, len(before) + len(after) - 1 - self.window)
        return before[cut:], after, cut

    def continued(self, request: Continued) -> tuple[list[int], int, int]:
        """(prompt ids, tokens cut from its beginning, shots dropped); room is kept for all new tokens."""
        shots = list(request.shots)
        ids = self._context(request.lead + "".join(shots) + request.context)
        while request.limit and shots and len(ids) > request.limit:
            shots.pop()
            ids = self._context(request.lead + "".join(shots) + request.context)
        room = self.window - request.max_new_tokens
        if room < 1:
            raise Error(
                f"{request.max_new_tokens} new tokens leave no room for a prompt in the model's window of "
                f"{self.window}")
        cut = max(0, len(ids) - room)
        return ids[cut:], cut, len(request.shots) - len(shots)
