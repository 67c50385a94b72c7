"""Where a thought ends: by example, by a grammar, by properties, and in linear time."""
import random
import time

import pytest

from redlite.text.reasoning import Split, opens_thought, split_thoughts, strip_thoughts

# Each of these begins with a thought and answers "Wait."
CUT = [
    # brackets that name a thought
    "(Internal thought: be useful.) Wait.",
    "\n (internal thoughts - be useful)\n\nWait.",
    "(Base thought: They ask when to go. I say it plainly.)\n\nWait.",
    "(Base-LM's internal thought: be useful.) Wait.",
    "(Base-LM’s internal thought: be useful.) Wait.",
    "Base-LM: (Internal Thought: be useful.) Wait.",
    "**Base-LM:** (Internal thought: be useful.) Wait.",
    "Assistant: (Inner monologue: be useful.) Wait.",
    "(Base-LM: internal thought: be useful.) Wait.",
    "(Base-LM thinks that they are in a hurry.) Wait.",
    "(Thinking: be useful) Wait.",
    "(Thinking out loud: be useful) Wait.",
    "**(Thinking...)** Wait.",
    "(thinks to itself: be useful) Wait.",
    "(I think: be useful) Wait.",
    "(My reasoning – be useful) Wait.",
    "(The AI's inner voice: be useful) Wait.",
    "(Private, unspoken thoughts: be useful) Wait.",
    "(Thought process of the assistant: be useful) Wait.",
    "(Thought 1: be useful) (Thought 2: be brief) Wait.",
    "(Thought for 3 seconds) Wait.",
    "*(Internal monologue)* Wait.",
    "*(Internal monologue)* be useful.\n\nWait.",
    "**(Internal thought: be useful.)** Wait.",
    "*(Thought: be useful)* Wait.",
    "“(Internal thought: be useful.)” Wait.",
    "> (Internal thought: be useful.)\n\nWait.",
    "💭 (Thinking: be useful) Wait.",
    "[Internal thought: be useful] Wait.",
    "[Thought] be useful.\n\nWait.",
    "[Internal monologue]: be useful.\n\nWait.",
    "（Internal thought: be useful）Wait.",
    "【Internal thought：be useful】Wait.",
    "{thought: be useful} Wait.",
    "((Internal thought: be useful)) Wait.",
    "(internal_thought: be useful) Wait.",
    "(My internal thought is to be useful.) Wait.",
    "- (Internal thought: be useful) Wait.",
    "[Internal thought]be useful[/Internal thought]Wait.",
    "[thinking]\nbe useful\n\nbe brief[/thinking]Wait.",
    "[reasoning]be useful[/reasoning] Wait.",
    "(Internal thought, unspoken: be useful) Wait.",
    "（内心想法：be useful）Wait.",
    "(Innerer Monolog: be useful) Wait.",
    "(pensamiento interno: be useful) Wait.",
    "Internal thought (not shown to the user): be useful\n\nWait.",
    "<|begin_of_thought|>be useful<|end_of_thought|>\n\n<|begin_of_solution|>Wait.<|end_of_solution|>",
    "<THINKING>be useful</Thinking>Wait.",
    "<think>be useful</think><think>be brief</think>Wait.",
    "[Inner monologue] be useful (End of monologue) Wait.",
    "Base-LM (thinking): be useful.\n\nWait.",
    "(Internal thought: be useful.)\n\nBase-LM: Wait.",
    "Base-LM (internal thought): be useful.\n\nBase-LM: Wait.",
    # labels without brackets
    "Internal thought: be useful.\n\nWait.",
    "Internal thought: be useful.\nWait.",
    "Internal thought: be useful. Base-LM: Wait.",
    "Internal thought:\nBe useful.\nBe brief.\nAnswer: Wait.",
    "**Internal thought:** be useful.\n\nWait.",
    "**Internal thought**: be useful.\n\n**Response:** Wait.",
    "*Internal thought: be useful.* Wait.",
    "### Internal thought\nBe useful.\n\n### Response:\nWait.",
    "Base thought: be useful.\n\nWait.",
    "Thought: be useful.\nFinal answer: Wait.",
    "Thinking: be useful.\n\nWait.",
    "Base-LM thinks: be useful.\n\nWait.",
    "_Internal thought_: be useful.\n\nWait.",
    # blocks of reasoning models
    "<think>\nbe useful\n</think>\n\nWait.",
    "<think>\n\n</think>\n\nWait.",
    "< THINK >be useful</ think >Wait.",
    "<thinking>be <reflection>very</reflection> useful</thinking><output>Wait.</output>",
    "<reasoning>be useful</reasoning>\n<answer>\nWait.\n</answer>",
    "<Thought>be useful</Thought>Wait.",
    "<think>a <think>b</think> c</think>Wait.",
    "<think>a<think>b</think>Wait.",
    "<think>be</think>\n<think>useful</think>Wait.",
    "<think>be useful</thinking>Wait.",
    "<think>they ask about `</think>` itself</think>Wait.",
    "<seed:think>a<seed:cot_budget_reflect>9</seed:cot_budget_reflect></seed:think>Wait.",
    "[THINK]be useful[/THINK]Wait.",
    "<|think|>be useful<|/think|>Wait.",
    "◁think▷be useful◁/think▷Wait.",
    "<|START_THINKING|>be useful<|END_THINKING|><|START_RESPONSE|>Wait.<|END_RESPONSE|>",
    "<|channel>thought\nbe useful<channel|>Wait.",
    "<|inner_prefix|>be useful<|inner_suffix|>Wait.",
    "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>Wait.<|return|>",
    "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=f <|constrain|>json"
    "<|message|>{}<|call|><|start|>assistant<|channel|>final<|message|>Wait.",
    "analysisWe should be useful.assistantfinalWait.",
    "Here is my thought process: be useful. Here is my response: Wait.",
    "The user is in a hurry.\n</think>\n\nWait.",
    "<think>be useful</think>(Internal thought: be brief) Wait.",
]
# Each of these is an answer from its first character on.
KEPT = [
    "Wait. (Internal thought: later.) Go.",
    "Sure. <think>Later.</think> Go.",
    "(At noon) wait.",
    "(Thoughtful people wait.) Go.",
    "(Thought-provoking as it is) Go.",
    "(I think this is the way.) Go.",
    "(He thinks it over.) Go.",
    "(Food for thought: noon.) Go.",
    "(On second thought: noon.) Go.",
    "(My reasoning is that noon is late.) Go.",
    "(The reasoning behind it: noon is late.) Go.",
    "(Internal combustion: noon.) Go.",
    "(Critical thinking: noon is late.) Go.",
    "[1] Thinking: a book.",
    "1) Wait. 2) Go.",
    "Wait ) go (",
    ")",
    "Base-LM: Wait.",
    "Thinking about it, wait.\n\nGo.",
    "Thinking, fast and slow, is a book.\n\nGo.",
    "Thought is free.\n\nGo.",
    "Internal thought is what one does not say.\n\nGo.",
    "Thoughts on gardening: water them.\n\nGo.",
    "Thoughts: water them.\n\nGo.",
    "My thoughts: water them.\n\nGo.",
    "Final thoughts: water them.\n\nGo.",
    "I think: water them.\n\nGo.",
    "Thought: water them.",
    "Reasoning: the premise holds.\n\nAnswer: 42",
    "Here is my thought process:\n1. Water them.\n\nGo.",
    "# Inner monologue\n\nIt is the voice within.\n\nGo.",
    "`<think>` is a tag.",
    '"<think>" and "</think>" are tags.',
    "Write <think>, and behind it\n</think>\nGo.",
    "```\n</think>\n```\nis how it ends.",
    "Blocks end with the tag </think> in that format.",
    "The tag\n</reasoning>\nis XML.",
    "<b>Wait</b>",
    "gpt-oss writes <|channel|>analysis<|message|> first.",
    "<answer>Wait.</answer>",
    "analysis shows that assistantfinal is no word.",
    "",
]
# Each of these is nothing but thought: (text, whether the thought ended).
ONLY_THOUGHT = [
    ("(Internal thought: all of it.)", True),
    ("(Internal thought: smiling at the end :)", True),
    ("(Internal thought: never closed", False),
    ("(Internal thought: closed (only inside) and then nothing", False),
    ("(Base thought: never closed\n\n1. Wait", False),
    ("Internal thought: be useful and then", False),
    ("<think>\nThe user", False),
    ("<think>a<think>b", False),
    ("<think>be useful</think>\n", True),
    ("[THINK]be useful", False),
    ("<|channel|>analysis<|message|>be useful", False),
    ("<|channel|>analysis<|message|>be useful<|end|>", True),
    ("analysisWe should be", False),
]


@pytest.mark.parametrize("text", CUT)
def test_thoughts_that_go(text):
    split = split_thoughts(text)
    assert (split.answer, split.closed) == ("Wait.", True)
    assert split.thought and "Wait" not in split.thought


@pytest.mark.parametrize("text", KEPT)
def test_answers_that_stay(text):
    assert split_thoughts(text) == Split("", text, True)


@pytest.mark.parametrize("text, closed", ONLY_THOUGHT)
def test_a_text_that_is_only_thought_has_no_answer(text, closed):
    assert split_thoughts(text) == Split(text.strip(), "", closed)


@pytest.mark.parametrize("text, answer", [
    ("(Internal thought: a (really (very) good) plan (yes).) Wait (until noon).", "Wait (until noon)."),
    ("(Internal thought: they will like it :) so go on.) Wait.", "Wait."),
    ("(Internal thought: steps 1) find 2) lift.) Wait.", "Wait."),
    ("(Internal thought: a) find b) lift.) Wait.", "Wait."),
    ("(Internal thought: let me try plan b) Wait (a bit) and go 1) up.", "Wait (a bit) and go 1) up."),
    ("(Internal thought: rule number 1) Wait until noon.", "Wait until noon."),
    ("(Internal thought: rule number 1) (Internal thought: steps 1) find 2) lift.) Wait.", "Wait."),
    ("   ", ""),
])
def test_brackets_pair_off(text, answer):
    assert strip_thoughts(text) == answer


@pytest.mark.parametrize("text, answer", [
    ("<think>\nThe user asks …\n</think>\n\nI'm sorry, but no.", "I'm sorry, but no."),
    ("<think>It is [[A]] or [[B]]</think>[[B]]", "[[B]]"),
    ("(Thought: x)**Wait** here.", "**Wait** here."),
    ("(Thinking) Wait.\n\nGo.", "Wait.\n\nGo."),
    ("(Internal monologue)\n\nWait.\n\nGo.", "Wait.\n\nGo."),
    ("<think>a</think>Answer: 42", "Answer: 42"),
    ("<think>a</think><answer>Wait.</answer> Go.", "Wait.</answer> Go."),
    ("<think>a</think>The tag `<think>` opens, </think> ends.", "The tag `<think>` opens, </think> ends."),
    ("(Internal thought: a)\n\n1. Go: (Internal thought: b) now.", "1. Go: (Internal thought: b) now."),
])
def test_what_is_left(text, answer):
    assert strip_thoughts(text) == answer


@pytest.mark.parametrize("text, answer, closed", [
    ("be useful</think>Wait.", "Wait.", True),
    ("<think>be useful</think>Wait.", "Wait.", True),  # the model repeats the tag
    ("be <think>very</think> useful</think>Wait.", "Wait.", True),
    ("be useful, in <think> tags</think>Wait.", "Wait.", True),
    ("be useful[/THINK]Wait.", "Wait.", True),
    ("</think>\n\n(Thought: be brief) Wait.", "Wait.", True),
    ("be useful<|end|><|start|>assistant<|channel|>final<|message|>Wait.<|return|>", "Wait.", True),
    ("be useful", "", False),
    ("", "", False),
])
def test_a_thought_that_the_prompt_opened(text, answer, closed):
    split = split_thoughts(text, opened=True)
    assert (split.answer, split.closed) == (answer, closed)


@pytest.mark.parametrize("tail, opened", [
    ("<|im_start|>assistant\n<think>\n", True),
    ("<｜Assistant｜><think>", True),
    ("[/INST][THINK]", True),
    ("<|CHATBOT_TOKEN|><|START_THINKING|>", True),
    ("<|start|>assistant<|channel|>analysis<|message|>", True),
    ("<|start|>assistant<|channel|>final<|message|>", False),
    ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
    ("Think between <think> and </think>.<|im_end|>\n<|im_start|>assistant\n", False),
    ("Base-LM:", False),
    ("", False),
])
def test_whether_a_prompt_opens_a_thought(tail, opened):
    assert opens_thought(tail) is opened


def test_thoughts_of_random_nesting():
    """Bracketed text built by a grammar: the thought is exactly what was generated as one."""
    rng = random.Random(0)

    def nested(depth):
        parts = ["word ", "x. ", "y "]
        if depth:
            parts[2] = f"({nested(depth - 1)})"
        return "".join(rng.choice(parts) for _ in range(rng.randint(0, 4)))
    for _ in range(500):
        thought, rest = f"(Internal thought: {nested(4)})", f"Answer ({nested(3)}) end"
        assert split_thoughts(f"{thought} {rest}") == Split(thought, rest, True)


# What texts of thoughts are made of, for the properties below.
PARTS = [
    "(Internal thought: ", "(thinking) ", "[Thought]", ")", "]", "1) ", ":)", "<think>", "</think>",
    "[THINK]", "[/THINK]", "Thought: ", "*Internal thought: ", "*", "\n", "\n\n", " ", "Base-LM: ",
    "Answer: ", "word. ", "`", "```", '"', "<|channel|>analysis<|message|>", "<|channel|>final<|message|>",
    "<|end|>", "analysisWe go ", "assistantfinal", "<answer>", "</answer>", "Here is my thought process:",
    "Here is my response:", "### Inner thoughts\n"]


def test_properties_of_random_texts():
    """The answer is a piece of the text and begins with no thought; thought and answer do not overlap."""
    rng = random.Random(1)
    for _ in range(4000):
        text = "".join(rng.choices(PARTS, k=rng.randint(0, 12)))
        for opened in (False, True):
            split = split_thoughts(text, opened)
            assert split.answer in text and split.answer == split.answer.strip()
            assert all(piece in text for piece in split.thought.split("\n\n"))
            assert len(split.thought.replace("\n\n", "")) + len(split.answer) <= len(text)
            assert split.closed or not split.answer
            if not opened and not split.thought:
                assert split.answer == text.strip()
            assert strip_thoughts(split.answer) == split.answer, text


@pytest.mark.first(6)
@pytest.mark.parametrize("part", [
    "(Internal thought: ", "(Internal thought: 1)", "(Internal thought: 1) :) ", "(thought)", "[thought] a ",
    "((thinking: ", "(the the the ", ":)", "(", " ", "\n ", "*", "<think>", "</think>", "<think></think>",
    "<think><think></think>", "x\n</think>\n", "Thought: a\n\n", "Internal thought: a\n",
    "*Internal thought: a* ", "<|channel|>final<|message|>", "analysisWe assistantfinal", "```"])
def test_time_is_in_proportion_to_length(part):
    """Eight times the text may take 24 times as long; a quadratic reading takes 64 times."""
    seconds = []
    for size in (12_500, 100_000):
        text = "<|channel|>final<|message|>(Internal thought) " + part * (size // len(part)) + "<|end|>\n\n"
        start = time.process_time()
        split_thoughts(text + "a")
        split_thoughts(text, opened=True)
        seconds.append(time.process_time() - start)
    assert seconds[1] < max(24 * seconds[0], 0.5)
