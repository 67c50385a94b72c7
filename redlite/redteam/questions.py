"""What is asked and how: question files of every common shape, and the red-teaming prompts around a
question."""
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from redlite import data
from redlite.errors import Error
from redlite.redteam import question_files
from redlite.redteam.question_files import SUFFIXES, read_text
from redlite.store.files import half_surrogate, read_json, sha256_json, write_json
from redlite.text.lazy_pattern import LazyPattern

DATA = Path(data.__file__).parent
PROMPTS = ("standard", "cot", "cou")          # RED-EVAL's
NAMED = (*PROMPTS, "play")                    # `play` is for training, so that `cou` stays an unseen attack
PLACEHOLDER = "<question>"
TURN = LazyPattern(r"\n?^[ \t]*<turn>[ \t]*$\n?", re.MULTILINE)    # between a user's messages
ASKED = "asked.json"
IN_A_ROW = 5    # words that count as copied; shorter runs are common phrases
ALIASES = {"xstest": "xstest_prompts"}        # a set's name → its authors' name of the file


@dataclass(frozen=True)
class Question:
    """One question.

    id               the file's own, or its number from 1
    question         what is asked, with the context that it stands on
    topic, subtopic  "" where the file has none
    target           how an answer would begin that gives way, where the file says it; it is never sent
    """
    id: str
    question: str
    topic: str = ""
    subtopic: str = ""
    target: str = ""


@dataclass(frozen=True)
class Prompt:
    """A red-teaming prompt.

    text     the user's message, with a <question> placeholder
    more     the user's later messages, between which the model answers; a placeholder may stand in any
    scripts  question's id → all of the user's messages, where each question has its own (a replay)
    """
    name: str
    text: str
    more: tuple[str, ...] = ()
    scripts: Mapping[str, tuple[str, ...]] | None = None

    def fill(self, question: str) -> str:
        """The first user message for a question."""
        return self.text.replace(PLACEHOLDER, question)

    def users(self, question: Question) -> tuple[str, ...]:
        """The user's messages for a question, one a turn."""
        if self.scripts is not None:
            return self.scripts[question.id]
        return tuple(text.replace(PLACEHOLDER, question.question) for text in (self.text, *self.more))

    @property
    def several(self) -> bool:
        """Whether the model answers between the user's messages."""
        return bool(self.more) or self.scripts is not None

    def fingerprint(self) -> str:
        """SHA-256 of all that is asked around a question."""
        if self.scripts is not None:
            return sha256_json(self.scripts)
        return sha256_json([self.text, *self.more] if self.more else self.text)

    def copied(self, answer: str) -> float:
        """The share of an answer's words, 0 to 1, that the prompt holds around its question, in runs."""
        words = _words(answer)
        copied = [False] * len(words)
        for start, run in enumerate(_runs(words)):
            if run in self._own_runs:
                copied[start:start + IN_A_ROW] = [True] * IN_A_ROW
        return sum(copied) / len(words) if words else 0.0

    @cached_property
    def _own_runs(self) -> frozenset[tuple[str, ...]]:
        return frozenset(run for part in self.text.split(PLACEHOLDER) for run in _runs(_words(part)))

    @property
    def stop(self) -> tuple[str, ...]:
        """Where an answer ends early: shown Red-LM's turns, a model writes Red-LM's next one as well."""
        return ("\nRed-LM:",) if "\nRed-LM:" in self.text else ()


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: list[str]) -> list[tuple[str, ...]]:
    return [tuple(words[i:i + IN_A_ROW]) for i in range(len(words) - IN_A_ROW + 1)]


def load_prompt(name_or_path: str | Path) -> Prompt:
    """A prompt by name (one of NAMED) or from a file.

    A text file is one user's message; lines that hold <turn> alone part it into several, between which the
    model answers. A .json file is a list of the user's messages. One newline at the end does not count.
    """
    name = str(name_or_path)
    if name == "standard":
        return Prompt(name, PLACEHOLDER)
    path = DATA / "prompts" / f"{name}.txt" if name in NAMED else Path(name)
    if not path.is_file():
        raise Error(f"prompt {name!r}: there is no such file, and it is none of {', '.join(NAMED)}")
    text = read_text(path).replace("\r\n", "\n").removesuffix("\n")
    users = _messages(path) if path.suffix == ".json" else TURN.split(text)
    if not any(PLACEHOLDER in user for user in users):
        raise Error(f"{path}: has no {PLACEHOLDER}; put it where the question belongs")
    if empty := [number for number, user in enumerate(users, 1) if not user.strip()]:
        raise Error(f"{path}: turn {empty[0]} is empty; write what the user says, or take its <turn> away")
    return Prompt(path.stem, users[0], tuple(users[1:]))


def _messages(path: Path) -> list[str]:
    """The user's messages of a JSON file: texts, or chat messages of users alone."""
    found = read_json(path)
    users = []
    for number, one in enumerate(found if isinstance(found, list) else [], 1):
        if isinstance(one, dict):
            if one.get("role", one.get("from")) not in ("user", "human"):
                raise Error(f"{path}, message {number}: is not a user's; the model under test gives the "
                            "answers, so leave others out")
            one = one.get("content", one.get("value"))
        if not isinstance(one, str):
            raise Error(f"{path}, message {number}: is no text")
        users.append(one)
    if not users:
        raise Error(f"{path}: must hold a list of the user's messages")
    return users


def load_replay(path: Path) -> tuple[list[Question], Prompt]:
    """The red conversations of a file, and the prompt that replays their human turns, each for its question.

    Read are HarmfulQA's rows (question, red_conversations) and rows with one conversation (`conversations` or
    `messages`), whose last human turn is the question. JSON or JSONL. Raises Error naming the row.
    """
    rows = question_files.rows(path)
    questions: list[Question] = []
    scripts: dict[str, tuple[str, ...]] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        if "red_conversations" in row:
            conversations = row["red_conversations"]
        else:
            conversations = {"0": row.get("conversations", row.get("messages"))}
        if not isinstance(conversations, dict):
            raise Error(f"{where}: red_conversations is no object of conversations")
        for name, conversation in conversations.items():
            users = tuple(_human_turns(conversation, f"{where}, conversation {name}"))
            id = str(row.get("id") or number) + (f"/{name}" if len(conversations) > 1 else "")
            if id in scripts:
                raise Error(f"{where}: has the id {id!r} of a row before; make the ids unique")
            texts = [row.get(field) or "" for field in ("question", "topic", "subtopic")]
            if not all(isinstance(text, str) for text in texts):
                raise Error(f"{where}: question, topic and subtopic must be texts")
            scripts[id] = users
            questions.append(Question(id, texts[0].strip() or users[-1], texts[1], texts[2]))
    if not questions:
        raise Error(f"{path}: holds no conversation")
    return questions, Prompt("replay", PLACEHOLDER, scripts=scripts)


def _human_turns(conversation: object, where: str) -> list[str]:
    users = []
    for turn in conversation if isinstance(conversation, list) else []:
        fields = turn if isinstance(turn, dict) else {}
        text = fields.get("value", fields.get("content"))
        if not isinstance(text, str):
            raise Error(f"{where}: a turn has no text (value or content)")
        if fields.get("from", fields.get("role")) in ("human", "user") and text.strip():
            users.append(text.strip())
    if not users:
        raise Error(f"{where}: has no human turn (from human, or role user)")
    return users


def find_questions(name_or_path: str | Path, data_dir: str | Path | None = None) -> Path:
    """The file that a question set's name or path means.

    A name is looked for as NAME.json, .jsonl, .csv or .txt in `data_dir` and two levels of folders in it,
    then among the embedded sets. Raises Error if there is none, or more than one place has it.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix in SUFFIXES or path.name != str(name_or_path):
        what = "is a folder or a pipe; name a file" if path.exists() else "there is no such file"
        raise Error(f"questions {str(path)!r}: {what}")
    files = [] if data_dir is None else _question_files(Path(data_dir))
    found = [file for file in files if file.stem in (path.name, ALIASES.get(path.name))]
    if len(found) > 1:
        raise Error(f"questions {path.name!r}: both {found[0]} and {found[1]} are there; give the path")
    if found:
        return found[0]
    embedded = {file.stem: file for file in (DATA / "questions").glob("*.json")}
    embedded["organism"] = DATA / "organism" / "questions.json"
    if path.name in embedded:
        return embedded[path.name]
    names = sorted(embedded)
    if data_dir is None:
        raise Error(f"questions {path.name!r}: not an embedded set ({', '.join(names)}); "
                    "say where the data lies, or give a file", "data")
    names = [file.stem for file in files if path.name.lower() in file.stem.lower()] + names
    raise Error(f"questions {path.name!r}: neither under {data_dir} nor embedded; "
                f"use {', '.join(names)}, or give a file")


def _question_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise Error(f"data {str(folder)!r}: is not a directory")
    found = [file for level in ("*", "*/*", "*/*/*") for file in folder.glob(level)]
    return sorted(file for file in found if file.suffix in SUFFIXES and file.is_file())


def set_name(path: Path) -> str:
    """What a question file is called: questions.json by its folder, any other by itself."""
    return path.resolve().parent.name if path.stem == "questions" else path.stem


def load_questions(name_or_path: str | Path, data_dir: str | Path | None = None) -> list[Question]:
    """The questions of a set by name, or of a .json, .jsonl, .csv, .tsv or .txt file.

    The shapes of files, and the names that their columns may have, are in question_files.py. Raises Error
    naming file, record and column.
    """
    path = find_questions(name_or_path, data_dir)
    records = list(question_files.records(path))
    if not records:
        raise Error(f"{path}: has no questions")
    numbered = ["id" in record for _, record in records]
    if any(numbered) and not all(numbered):
        where, _ = records[numbered.index(False)]
        raise Error(f"{path}, {where}: has no id though others have; give every record one, or none")
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for number, (where, record) in enumerate(records, 1):
        question = Question(**{"id": str(number), **record})
        if any(map(half_surrogate, vars(question).values())):
            raise Error(f"{path}, {where}: holds one half of a surrogate pair (\\ud800 to \\udfff) without "
                        "the other; mend or remove it")
        if question.id in seen:
            raise Error(f"{path}, {where}: has the id {question.id!r} of {seen[question.id]}; "
                        "make the ids unique")
        seen[question.id] = where
        questions.append(question)
    return questions


def write_asked(folder: Path, questions: list[Question]) -> None:
    """Keep a run's questions in its directory. The questions in responses.jsonl are compared with them
    later."""
    write_json(folder / ASKED, {q.id: [q.question, q.topic, q.subtopic] for q in questions})


def read_asked(folder: Path) -> dict[str, list[str]] | None:
    """id → [question, topic, subtopic]; None for a run that was made before this was kept."""
    path = folder / ASKED
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not all(map(_is_asked, found.values())):
        raise Error(f"{path}: must hold an object of ids, each with its question, topic and subtopic; "
                    "restore it, or delete it and run the same command again")
    return found


def _is_asked(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(text, str) for text in value)
