"""The model's thread of a server: requests join its batch as they come; and texts that grow."""
import itertools
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from redlite.answer import Answer
from redlite.inference.engine import Request
from redlite.inference.lm import LM

END_SECONDS = 10    # for the model to end its step when the server ends


@dataclass(eq=False)
class Job:
    """One answer to make.

    grows   whether it is watched as it grows
    events  (choice, ids so far) as it grows; at last (choice, Answer), or what went wrong
    gone    set when nobody waits for it any more
    """
    request: Request
    choice: int
    grows: bool
    events: "queue.SimpleQueue[tuple[int, list[int] | Answer] | Exception]"
    gone: threading.Event


class Batcher:
    """One thread that owns the model: requests join its batch as they come, and leave it as they end."""

    def __init__(self, lm: LM):
        self.lm = lm
        self.waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.running: dict[int, Job] = {}
        self.first: list[Job | None] = []   # what woke the thread, and is to be taken first
        self.numbers = itertools.count()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True, name="model")
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Have an answer made."""
        self.waiting.put(job)

    def end(self) -> None:
        """Give up what is running, and wait until the model rests."""
        self.ended.set()
        self.waiting.put(None)
        self.thread.join(END_SECONDS)

    def _work(self) -> None:
        while not self.ended.is_set():
            self.first = [self.waiting.get()]
            try:
                for number, answer in self.lm.follow(self._arrivals):
                    job = self.running.pop(number)
                    job.events.put((job.choice, answer))
            except Exception as error:  # the thread must live on, and every client must hear of it
                for job in self.running.values():
                    job.events.put(error)
                self.running.clear()

    def _arrivals(self, free: int) -> list[tuple[int, Request]]:
        """Jobs that have come, as the engine takes them."""
        found: list[tuple[int, Request]] = []
        while len(found) < free:
            try:
                job = self.first.pop() if self.first else self.waiting.get_nowait()
            except queue.Empty:
                break
            if job and not job.gone.is_set() and not self.ended.is_set():
                number = next(self.numbers)
                self.running[number] = job
                found.append((number, replace(job.request, stopped=self._watch(job))))
        return found

    def _watch(self, job: Job) -> Callable[[list[int]], bool]:
        """What the engine asks after each token of a job."""
        def is_over(ids: list[int]) -> bool:
            if job.grows:
                job.events.put((job.choice, list(ids)))
            return job.gone.is_set() or self.ended.is_set()
        return is_over


class Growing:
    """The text of an answer that grows, in pieces that are sure: none is taken back."""

    def __init__(self, lm: LM, stop: tuple[str, ...]):
        self.lm, self.stop, self.sent = lm, (*stop, *lm.chat.stop_strings), ""

    def more(self, ids: list[int]) -> str:
        """What is sure of the text beyond what was given: no half character, no beginning of a stop text."""
        text = self.lm.tokenizer.decode([i for i in ids if i not in self.lm.stop_ids]).rstrip("\ufffd")
        cuts = [text.index(stop) for stop in self.stop if stop in text]
        for stop in self.stop:
            begun = [n for n in range(1, len(stop)) if text.endswith(stop[:n])]
            cuts += [len(text) - n for n in begun]
        text = text[:min(cuts, default=len(text))]
        return self.rest(text) if text.startswith(self.sent) else ""

    def rest(self, text: str) -> str:
        """What of the whole text was not given yet."""
        new, self.sent = text[len(self.sent):], text
        return new
