"""The list of a run's answers, on its page and, where there are many, in files beside it.

The answers travel as one JSON block whose markup characters are escaped; the page's script builds text nodes
from it, never markup.
"""
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from redlite.judges.verdict import LABELS
from redlite.report import html
from redlite.store.text import in_natural_order

# of one file, so that it opens; the answers to one question stay together
PER_FILE, CHARACTERS = 10_000, 20_000_000

_ANSWERS = """<p>What the model wrote, word for word; it may be harmful or untrue.
Thoughts, which are not judged, are set in italics.</p>
<noscript><p class="note">The list of answers needs JavaScript; everything else here does not.</p></noscript>
<form id="filters" hidden>
<label>prompt <select id="prompt"></select></label>
<label>label <select id="label"></select></label>
<label>topic <select id="topic"></select></label>
<label>ended <select id="finish"></select></label>
<label class="search">search
<input id="search" type="search" placeholder="words in question or answer"></label>
</form>
<p id="count" aria-live="polite"></p>
<div id="rows"></div>
<nav id="pages" hidden><button type="button" id="back">← Back</button><span id="page"></span>
<button type="button" id="next">Next →</button></nav>
"""


class AnswerList:
    """A run's answers as they are listed, by question, and cut into files.

    Questions on whose answers judges take different sides come first. The first file is the page itself.
    `report.html#question=ID` leads to a question's answers in whatever file they are.
    """

    def __init__(self, prompts: Sequence[str], answers: Mapping[Any, dict], judgments: Mapping[Any, dict],
                 differ: Collection = ()):
        """
        prompts             the names of the prompts, in their order
        answers, judgments  (id, prompt, sample) → the record
        differ              the answers on which judges take different sides
        """
        self.prompts, self.answers, self.judgments, self.differ = prompts, answers, judgments, differ
        place = in_natural_order(key[0] for key in answers)
        rank = {name: i for i, name in enumerate(prompts)}
        disputed = {key[0] for key in differ}
        order = sorted(answers, key=lambda k: (k[0] not in disputed, place[k[0]], k not in differ, k[2],
                                               rank[k[1]]))
        self.files: list[list] = [[]]
        characters = 0
        for _, group in groupby(order, key=lambda key: key[0]):
            keys = list(group)
            size = sum(map(self._size, keys))
            if self.files[-1] and (len(self.files[-1]) + len(keys) > PER_FILE
                                   or characters + size > CHARACTERS):
                self.files.append([])
                characters = 0
            self.files[-1] += keys
            characters += size
        self.first = answers[order[0]]["question"] if order else "<question>"

    def _size(self, key: Any) -> int:
        record = self.answers[key]
        return len(record["text"]) + sum(len(turn["answer"]) for turn in record.get("turns") or [])

    def pages(self, title: str) -> Iterator[tuple[str, str]]:
        """The files beside the page: each one's name and its HTML."""
        for number in range(2, len(self.files) + 1):
            lead = f"Answers {self._span(number)} of {len(self.answers)}"
            page = html.document(title, lead, self.section(number), self.data(number))
            yield _file_of(number), page

    def section(self, number: int) -> str:
        """The part of a page that lists the answers of a file. number: from 1."""
        links = ""
        if len(self.files) > 1:
            every = [self._link(n, number) for n in range(1, len(self.files) + 1)]
            links = f"<p>Each file lists some of the answers: {', '.join(every)}.</p>\n"
        return html.section("Answers", links + _ANSWERS)

    def _link(self, number: int, here: int) -> str:
        shown = self._span(number)
        return shown if number == here else f'<a href="{_file_of(number)}">{shown}</a>'

    def _span(self, number: int) -> str:
        """Which answers a file lists."""
        before = sum(map(len, self.files[:number - 1]))
        return f"{before + 1}–{before + len(self.files[number - 1])}"

    def data(self, number: int) -> dict:
        """A file's answers for its script: columns of repeated values as indices into lists.

        The page itself has the ids of the questions in every other file as well, for links.
        """
        lists: dict[str, list] = {"prompt": list(self.prompts), "label": list(LABELS), "topic": [],
                                  "finish": [], "question": []}
        index = {name: {value: i for i, value in enumerate(values)} for name, values in lists.items()}

        def place(name: str, value: str) -> int:
            if value not in index[name]:
                index[name][value] = len(lists[name])
                lists[name].append(value)
            return index[name][value]
        rows = [self._row(key, place) for key in self.files[number - 1]]
        data = {"lists": lists, "rows": rows, "samples": max((r[6] for r in rows), default=0) + 1}
        if number == 1 and len(self.files) > 1:
            data["files"] = [list(dict.fromkeys(key[0] for key in keys)) for keys in self.files[1:]]
        return data

    def _row(self, key: Any, place: Callable[[str, str], int]) -> list:
        r = self.answers[key]
        verdict = self.judgments.get(key) or {"label": "not_judged", "raw": ""}
        topic = " / ".join(filter(None, (r.get("topic"), r.get("subtopic"))))
        text = r["text"].strip()
        thought = text.removesuffix(r["answer"]) if text.endswith(r["answer"]) else text
        row = [
            place("prompt", r["prompt"]), place("label", verdict["label"]),
            place("topic", r.get("topic") or ""), place("finish", r["finish"]),
            place("question", r["question"]), key[0], key[2], topic, thought, r["answer"], verdict["raw"],
            int(key in self.differ), verdict.get("category") or ""]
        if turns := r.get("turns"):     # of a conversation only
            said = [[turn["user"], turn["answer"], int(turn.get("taken_back") or 0)] for turn in turns]
            row += [said, verdict.get("turn") or 0]
        if ended := r.get("ended"):     # of an attempt of an attack only
            row += [[], 0] if not turns else []
            row.append(ended)
        return row


def _file_of(number: int) -> str:
    return html.PAGE if number == 1 else f"answers-{number}.html"
