"""A model on this machine in an API client's place: the same `ask`, the same journal."""
from collections.abc import Iterator

from redlite.answer import Answer
from redlite.inference import sampling
from redlite.inference.engine import Request
from redlite.inference.lm import LM
from redlite.net.api_journal import JOURNAL, recall, record_of
from redlite.net.client import Call
from redlite.store.files import sha256_json
from redlite.store.run_directory import Run
from redlite.text.reasoning import prompt_opens_thought


class LocalAsker:
    """Answers calls with a local model, each at most once in a run directory. seed: of the sampling."""

    def __init__(self, lm: LM, name: str, directory: Run, seed: int):
        self.lm, self.name, self.directory, self.seed = lm, name, directory, seed
        self.answers: dict[str, Answer] = {}
        for record in directory.read(JOURNAL):
            if answer := recall(record, directory.directory / JOURNAL):
                self.answers[record["key"]] = answer

    def key(self, call: Call) -> str:
        """What identifies a call in the journal."""
        return sha256_json([self.name, call.messages, call.parameters, call.sample])

    def ask(self, calls: list[Call]) -> Iterator[tuple[int, Answer]]:
        """Yield (index, Answer) as each comes; see `net.client.Client.ask`."""
        places: dict[str, list[int]] = {}
        for i, call in enumerate(calls):
            places.setdefault(self.key(call), []).append(i)
        prompts: dict[str, Request] = {}
        for key, (i, *_) in places.items():
            if key not in self.answers and (prompt := self._prompt(key, calls[i])):
                prompts[key] = prompt
        for key, indices in places.items():
            if key in self.answers:
                for i in indices:
                    yield i, self.answers[key]
        keys = list(prompts)
        for n, made in self.lm.run(list(prompts.values())):
            # A thought that the prompt opened is kept with its tag, so that the journal shows it as one.
            opened = prompt_opens_thought(self.lm.tokenizer, prompts[keys[n]].ids)
            text = f"<think>\n{made.text}" if opened else made.text
            answer = Answer(text, made.finish, made.prompt_tokens, len(made.ids), round(made.seconds, 3))
            self.answers[keys[n]] = answer
            self.directory.append(JOURNAL, record_of(keys[n], answer))
            for i in places[keys[n]]:
                yield i, answer

    def _prompt(self, key: str, call: Call) -> Request | None:
        """The call in the model's chat format; None, and an "error" for its answer, where it does not fit."""
        ids = self.lm.template.encode(call.messages, add_generation_prompt=True).ids
        room = self.lm.engine.context_limit() - len(ids)
        if room < 1:
            detail = f"the prompt's {len(ids)} tokens do not fit the model"
            self.answers[key] = Answer("", "error", 0, 0, 0.0, detail=detail)
            return None
        given = call.parameters
        return Request(ids, min(given["max_tokens"], room), sampling.Rule(given["temperature"]),
                      sampling.request_seed(self.seed, ids, call.sample), tuple(given.get("stop", ())))
