"""Guards' prompts: equal to their authors' for conversations without imitations, and without a turn that an
answer
could forge."""
import json
import random
import re
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import guards
import pytest
import tiny
from guards import CONVERSATIONS, IMITATIONS, TEMPLATES, TEXTS, Characters
from make_guard_goldens import GOLDEN, digest

from redlite.answer import Answer
from redlite.errors import Error
from redlite.judges import api, choice, formats, model
from redlite.judges.verdict import Verdict

KNOWN = json.loads(GOLDEN.read_text())
LLAMA = Path(__file__).parents[3] / "shared" / "tokenizers" / "llama.model"
EVERY = [*TEXTS, *TEMPLATES]
# How each frame announces a turn or its end, as a reader of the prompt would look for it.
USER_AGENT, TAGS = r"(?im)^(user|agent)\s*:|<END CONVERSATION>", r"|<(start|end)_of_turn>"
TURNS = {
    "llama-guard": USER_AGENT,
    "md-judge": USER_AGENT + r"|\[/INST\]",
    "qwen3guard": r"(?im)^(user|assistant)\s*:|<END CONVERSATION>",
    "wildguard": r"(?im)^(human user|ai assistant|answers):|\[/INST\]",
    "harmbench": r"(?im)^(behavior|generation|rules|answer):|\[/INST\]|<</?SYS>>",
    "harmbench-mistral": r"(?im)^\[(behavior|generation)\]:|^(rules|answer):|\[/INST\]",
    "shieldgemma": r"(?im)^(human question|chatbot response):" + TAGS,
    "granite-guardian": r"(?im)^(user|assistant) message:" + TAGS,
    "granite-guardian-3.3": r"(?im)^(user|assistant) message:" + TAGS,
}


def as_read(text):
    """A text as a reader sees it: in plain letters, without the characters that have no glyph."""
    text = unicodedata.normalize("NFKC", text).replace("\ua789", ":").replace("\u2236", ":")
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Mn") and c not in "\u115f\u1160")


def prompts(name, **settings):
    if name in TEMPLATES:
        pytest.importorskip("redlite.text.template", reason="needs the interpreter of chat templates")
    return formats.prompts(name, Characters(TEMPLATES.get(name)), tiny.Turns(), **settings)


@pytest.fixture
def policies(tmp_path):
    path = tmp_path / "policies.txt"
    path.write_text(KNOWN["variables"]["guideline"] + "\n")
    return path


@pytest.mark.parametrize("name", [n for n in KNOWN["texts"] if n != "strongreject"])
def test_prompts_are_the_authors(name, policies):
    (prompt,) = prompts(name, path=policies if name == "shieldgemma" else None)
    texts = [Characters.text(prompt.encode(q, a)) for q, a in CONVERSATIONS]
    if name in TEXTS:
        texts = [text.removeprefix("<s>") for text in texts]    # the authors' tokenizer puts it there
    assert [digest(text) for text in texts] == KNOWN["texts"][name]


def test_the_rubric_is_its_authors():
    asked = [api.rubric().messages(q, a)[1]["content"] for q, a in CONVERSATIONS]
    assert [digest(text) for text in asked] == KNOWN["texts"]["strongreject"]


@pytest.mark.skipif(not LLAMA.is_file(), reason="needs ../shared/tokenizers/llama.model")
@pytest.mark.parametrize("name", sorted(KNOWN["llama_ids"]))
def test_token_ids_are_those_of_the_whole_text(name, tmp_path):
    from redlite.text import tokenizer
    (tmp_path / "tokenizer.model").write_bytes(LLAMA.read_bytes())
    words = tokenizer.load(tmp_path)
    (prompt,) = formats.prompts(name, words, tiny.Turns())
    assert [digest(prompt.encode(q, a)) for q, a in CONVERSATIONS] == KNOWN["llama_ids"][name]


@pytest.mark.parametrize("name", EVERY)
def test_an_answer_cannot_forge_a_turn(name):
    """What a reader takes for turns, and the control tokens, are those of a conversation without imitation.
    """
    for prompt in prompts(name):
        def seen(question, answer, prompt=prompt):
            ids = prompt.encode(question, answer)
            text = "".join(chr(i) if i < 0x110000 else Characters.text([i]) for i in ids)
            text = as_read(re.sub("[\r\u2028\x85]", "\n", text))
            return [i for i in ids if i >= 0x110000], re.findall(TURNS[name], text)
        plain = seen("q", "X")
        assert len(plain[1]) >= 2
        for imitation in IMITATIONS:
            assert seen("q", imitation) == plain, imitation
            assert seen(imitation, "X") == plain, imitation


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_taken_apart_can_be_put_together(name):
    frame = formats.read_prompt(formats.JUDGE_FILES / f"{name}.txt")
    disarm = formats.Disarm(frame)
    drawn = random.Random(1)
    pieces = [
        "User:", "Agent :", "Human user:", "> ", " ", "\n", "\r", "<", "[", "/", "END CONVERSATION", "INST",
        "]", ">", "|", "SYS", "x", "Answers:", "Generation:", "s", "user", "*"
    ]
    texts = ["".join(drawn.choices(pieces, k=drawn.randrange(1, 30))) for _ in range(3000)]
    for text in [*IMITATIONS, *texts]:
        assert disarm.undo(disarm(text)) == text


def test_taking_apart_takes_time_in_proportion():
    import time
    disarm = formats.Disarm(formats.read_prompt(formats.JUDGE_FILES / "md-judge.txt"))
    start = time.process_time()
    for text in ("<" * 200_000, "< " * 100_000, "> " * 100_000, "\n> User" * 50_000, "[/" * 100_000,
                 "User:\n" * 50_000, "\n" + "\u200b" * 200_000, "\u200bUser" * 50_000, "U\u200b" * 100_000,
                 "\n\u3164> " * 50_000, "[\u200b" * 100_000, "[" + "/\u200b" * 100_000):
        disarm(text)
    assert time.process_time() - start < 5


def test_a_template_may_take_contents_in_parts():
    pytest.importorskip("redlite.text.template")
    whole, parts = (formats.prompts("llama-guard", Characters(source), tiny.Turns())[0].encode("q ", "a")
                    for source in (guards.LLAMA_GUARD, guards.LLAMA_GUARD_PARTS))
    assert whole == parts and "Agent: a\n" in Characters.text(whole)


def test_a_guard_without_its_template_is_refused():
    for template, message in ((None, "is not among its files"), ("{{ messages }}",
                                                                 "does not mention <BEGIN CONVERSATION>")):
        with pytest.raises(Error, match=f"judge format llama-guard: .*{message}.*give the template's file"):
            formats.prompts("llama-guard", Characters(template), tiny.Turns())
    pytest.importorskip("redlite.text.template")
    with pytest.raises(Error, match="leaves out the question or the answer"):
        formats.prompts("llama-guard", Characters("<BEGIN CONVERSATION>{{ messages[0].content }}"),
                        tiny.Turns())
    with pytest.raises(Error, match="no risk"):
        formats.prompts("granite-guardian", Characters(guards.GRANITE.replace("'harm'", "'other'")),
                        tiny.Turns())


def test_shieldgemma_is_asked_about_each_policy():
    asked = prompts("shieldgemma")
    assert [p.policy for p in asked] == [
        "No Dangerous Content", "No Harassment", "No Hate Speech", "No Sexually Explicit Information"
    ]
    assert len({p.identity for p in asked}) == 4
    assert '\n\n"No Harassment": The chatbot' in Characters.text(asked[1].encode("q", "a"))


# What guards say

class Speaker:
    """A judge model that says a text:

    after a prompt it goes on as `says` does, with the next words' probabilities.
    """

    def __init__(self, says, odds):
        self.tokenizer, self.template, self.path = tiny.Bytes(), tiny.Turns(), Path("speaker")
        self.engine, self.says, self.odds, self.generated = SimpleNamespace(
            context_limit=lambda: 100_000), says, odds, 0

    def score(self, pairs):
        """The probability of a continuation is that of the first text of `odds` that context and continuation
        end with.
        """
        import math
        found = []
        for context, continuation in pairs:
            text = bytes(i for i in [*context, *continuation] if i < 256).decode()
            found.append(
                SimpleNamespace(logprob=next((math.log(p)
                                              for end, p in self.odds if text.endswith(end)), -30.0)))
        return found

    def generate(self, contexts, max_new_tokens, stop=()):
        self.generated += len(contexts)
        replies = []
        for context in contexts:
            text = bytes(i for i in context if i < 256).decode()
            said = next(reply for end, reply in self.says if text.endswith(end))[:max_new_tokens]
            for s in stop:
                said = said[:said.index(s) + len(s)] if s in said else said
            replies.append(Answer(said, "stop", 0, len(said), 0.0, list(said.encode())))
        return replies


def label(name, speaker, pairs=(("q", "a"),)):
    asked = formats.prompts(name, Characters(TEMPLATES.get(name)), tiny.Turns())
    asked = [
        p.__class__(p.policy, p.identity, lambda q, a, p=p: list(Characters.text(p.encode(q, a)).encode()))
        for p in asked
    ]
    return [verdict for _, verdict in sorted(model.ModelJudge(speaker, name, asked, name).label(list(pairs)))]


def test_the_category_is_kept():
    pytest.importorskip("redlite.text.template")
    speaker = Speaker([("unsafe", "\nS1,S10\n"), ("", "")], [("unsafe", 0.8), ("safe", 0.1)])
    (found,) = label("llama-guard", speaker)
    assert (found.label, found.category) == ("harmful", "S1, S10") and found.p_harmful == pytest.approx(8 / 9)
    speaker = Speaker([], [("unsafe", 0.1), ("safe", 0.8)])
    (found,) = label("llama-guard", speaker)
    assert (found.label, found.category, speaker.generated) == ("unharmful", "", 0)
    (found, ) = label("md-judge",
                      Speaker([("unsafe", "\nO5: Malicious Use")], [("unsafe", 0.8), ("safe", 0.1)]))
    assert found.category == "O5"


def test_qwen3guard_has_three_words():
    pytest.importorskip("redlite.text.template")
    says = [("Unsafe", "\nCategories: Violent, PII\nRefusal: No")]
    (found, ) = label(
        "qwen3guard",
        Speaker(says, [("Safety: Unsafe", 0.6), ("Safety: Controversial", 0.2), ("Safety: Safe", 0.1)]))
    assert (found.label, found.category) == ("harmful", "Violent, PII") and found.p_harmful == pytest.approx(
        (0.6 + 0.1) / 0.9)
    (found,) = label("qwen3guard", Speaker(says, [("Unsafe", 0.2), ("Controversial", 0.6), ("Safe", 0.1)]))
    assert found.label == "unsure" and found.p_harmful == pytest.approx((0.2 + 0.3) / 0.9)


def test_wildguards_verdict_is_its_third_line():
    says = [("<|assistant|>\n", "Harmful request: yes\nResponse refusal: no\nHarmful response: yes")]
    (found,) = label("wildguard", Speaker(says, [("response: yes", 0.3), ("response: no", 0.6)]))
    assert found.label == "unharmful" and found.p_harmful == pytest.approx(
        1 / 3) and "Response refusal: no" in found.raw
    (found,) = label("wildguard", Speaker([("", "I like dragons.")], []))
    assert found.label == "unparsed" and "I like dragons." in found.raw


def test_a_policy_that_is_broken_decides():
    pytest.importorskip("redlite.text.template")

    class Strict(Speaker):
        def score(self, pairs):
            odds = self.odds
            found = []
            for context, continuation in pairs:
                self.odds = [("Yes", 0.7),
                             ("No", 0.2)] if b"Hate" in bytes(i for i in context if i < 256) else odds
                found += super().score([(context, continuation)])
            self.odds = odds
            return found
    (found,) = label("shieldgemma", Strict([], [("Yes", 0.1), ("No", 0.8)]))
    assert (found.label, found.category) == ("harmful",
                                             "No Hate Speech") and found.p_harmful == pytest.approx(7 / 9)
    (found,) = label("shieldgemma", Speaker([], [("Yes", 0.1), ("No", 0.8)]))
    assert (found.label, found.category) == ("unharmful", "")


def test_a_threshold_labels_by_the_probability():
    verdicts = [
        Verdict("unharmful", "", 0.4),
        Verdict("unsure", "", 0.5),
        Verdict("harmful", "", 0.9),
        Verdict("unparsed", "")
    ]
    judge = SimpleNamespace(name="j", label=lambda pairs: enumerate(verdicts))
    made = choice.thresholded(choice.JudgeChoice("j", {"format": "f"}, lambda run: judge), 0.5)
    assert (made.name, made.identity) == ("j@0.5", {"format": "f", "threshold": 0.5})
    assert [v.label for _, v in made.load(None).label([])] == ["unharmful", "harmful", "harmful", "unparsed"]
    verdicts[:] = [Verdict("harmful", "")]
    with pytest.raises(Error, match="the judge j gives no probability, so a threshold"):
        list(made.load(None).label([]))
