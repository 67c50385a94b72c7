"""What a collection would ask at most, and what it has collected."""
from collections.abc import Callable

from redlite.redteam.collect import BATCH, LONGEST, LONGEST_NAME, SHOWN, Questions, Row, Settings, Topics

STATISTICS = "statistics.json"
BYTES = 4   # of a character in UTF-8, at most; and a token has a byte at least


def statistics(rows: list[Row], drops: list[dict], count_tokens: Callable[[str], int]) -> dict:
    """Conversations, turns and tokens of both colours, in all and by topic; drops by stage and reason."""
    reasons: dict[str, dict[str, int]] = {}
    for drop in drops:
        stage = reasons.setdefault(drop["stage"], {})
        stage[drop["reason"]] = stage.get(drop["reason"], 0) + 1
    by_topic = {}
    for topic in dict.fromkeys(row["topic"] for row in rows):
        by_topic[topic] = _count([row for row in rows if row["topic"] == topic], count_tokens)
    return {**_count(rows, count_tokens), "by_topic": by_topic, "drops": reasons}


def _count(rows: list[Row], count_tokens: Callable[[str], int]) -> dict:
    out: dict = {"questions": len(rows)}
    for colour in ("blue", "red"):
        talks = [turns for row in rows for turns in row[f"{colour}_conversations"].values()]
        tokens = sum(count_tokens(turn["value"]) for turns in talks for turn in turns)
        out[colour] = {"conversations": len(talks), "turns": sum(map(len, talks)), "tokens": tokens}
    return out


def plan(settings: Settings, topics: Topics, red_prompt: str, given: Questions | None = None) -> dict:
    """Requests and tokens at most, as if everything to come were whole. Nothing is asked.

    given  the user's own questions, which take the place of the first two stages
    """
    if isinstance(topics, dict):
        named = [*topics, *(name for names in topics.values() for name in names)]
        subtopics, asked = sum(map(len, topics.values())), 0
    else:
        named = topics
        subtopics, asked = len(topics) * settings.subtopics, len(
            topics) * settings.rounds * settings.subtopics
    if given:
        own = [q for below in given.values() for texts in below.values() for q in texts]
        questions, longest, rounds = len(own), max(map(_size, own)), 0
    else:
        questions, longest = subtopics * settings.questions, BYTES * LONGEST
        rounds = -(-settings.questions // BATCH) + settings.rounds * settings.questions
    name = max(BYTES * LONGEST_NAME, *map(_size, named))  # of a topic or subtopic
    talks = questions * settings.conversations
    requests = {
        "topics": asked, "questions": subtopics * rounds, "red": talks, "blue": talks * settings.turns
    }
    prompts = {
        "topics": 1000 + name + (name + 2) * settings.subtopics,
        "questions": 1500 + 2 * name + SHOWN * (longest + 3),
        "red": _size(red_prompt) + red_prompt.count("<question>") * longest + 100,
        "blue": 800 + longest + settings.turns * 8 * settings.max_new_tokens}
    return {
        "requests": requests,
        "prompt_tokens_at_most": sum(n * prompts[stage] for stage, n in requests.items()),
        "new_tokens_at_most": sum(requests.values()) * settings.max_new_tokens
    }


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
