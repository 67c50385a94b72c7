"""Question files of every shape, sets by name, prompts; and each fault named by file and record."""
import json
from pathlib import Path

import pytest

from redlite.errors import Error
from redlite.redteam import questions
from redlite.redteam.questions import Question, find_questions, load_prompt, load_questions
from redlite.store.text import natural

SHARED = Path(__file__).parents[3] / "shared" / "benchmarks"


def load(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(
        content
        if isinstance(content, bytes)
        else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    return load_questions(path)


SHAPES = {
    "list.json": (["a?", " b? "], [Question("1", "a?"), Question("2", "b?")]),
    "topics.json": ({"T:": ["a?"], "U": ["b?", {"prompt": "c?", "id": 7}]}, "has no id though others have"),
    "flat.json": ({"T:": ["a?"], "U": ["b?"]}, [Question("1", "a?", "T"), Question("2", "b?", "U")]),
    "deep.json": (
        {"T": {"S": ["a?"], "R": ["b?"]}, "U": {"Q": ["c?"]}},
        [Question("1", "a?", "T", "S"), Question("2", "b?", "T", "R"), Question("3", "c?", "U", "Q")],
    ),
    "objects.json": (
        [
            {"id": "x", "Question": "a?", "category": "T", "subcategory": "S", "other": 1},
            {"id": 5, "goal": "b?"},
        ],
        [Question("x", "a?", "T", "S"), Question("5", "b?")],
    ),
    "beside.json": (
        {"instructions": ["a?", "b?"], "inputs": ["", "about c"], "tags": ["T", ""]},
        [Question("1", "a?", "T"), Question("2", "b?\n\nabout c")],
    ),
    "beside_empty.json": (
        {"instructions": ["a?", "b?"], "inputs": []}, [Question("1", "a?"), Question("2", "b?")]),
    "index.json": ({"r": {"prompt": "a?", "category": "T"}, "s": {"prompt": "b?", "category": "U"}},
                   [Question("1", "a?", "T"), Question("2", "b?", "U")]),     # pandas, orient="index"
    "plural.json": ({"prompts": ["a?", "b?"], "categories": ["T", "U"]},
                    [Question("1", "a?", "T"), Question("2", "b?", "U")]),
    "wrapped.json": ({"questions": ["a?", {"text": "b?", "topic": "U"}]},
                     [Question("1", "a?"), Question("2", "b?", "U")]),
    "texts.json": ({"text": ["a?", "b?"], "label": ["x", "y"]}, [Question("1", "a?"), Question("2", "b?")]),
    "lines.jsonl": (
        '{"prompt": "a?", "topic": "T"}\r\n\n"b?\u2028"\n', [Question("1", "a?", "T"), Question("2", "b?")]),
    "table.csv": (
        '\ufeffID, Prompt ,type\n7,"a, ""b""\n?",T\n8,c?,\n',
        [Question("7", 'a, "b"\n?', "T"), Question("8", "c?")],
    ),
    "separators.csv": ("question,topic\r\na\u2028b\x85c?,T\r\n", [Question("1", "a\u2028b\x85c?", "T")]),
    "plain.txt": ("\ufeffa?\r\n\n  b?  \n", [Question("1", "a?"), Question("2", "b?")]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(tmp_path, name):
    content, wanted = SHAPES[name]
    if isinstance(wanted, str):
        with pytest.raises(Error, match=wanted):
            load(tmp_path, name, content)
    else:
        assert load(tmp_path, name, content) == wanted


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", [], "has no questions"), ("a.json", "{", "is not valid JSON"),
        ("a.json", "[" * 100000, "is not valid JSON"), ("a.json", b"\xff\xfe", r"is not UTF-8 \(byte 0\)"),
        ("a.json", ["a?", ""], "record 2: has no question"), ("a.json", ["a?", 3], "record 2: is a number"),
        ("a.json", ["a?", {"words": "b"}], "record 2: has no question .*question, prompt, goal"),
        (
            "a.json", {"T": {"S": {"R": ["a?"]}}},
            r"\['T'\]\['S'\]: is an object; expected a list of questions",
        ),
        ("a.json", {"T": "a?"}, r"\['T'\]: is a text; expected"),
        ("a.json", '["a?", "b \\ud800?"]', "record 2: holds one half of a surrogate pair"),
        ("a.json", '[{"id": ' + "9" * 5000 + ', "question": "a?"}]', "is not valid JSON .*4300 digits"),
        ("a.json", '{"T": ["a?"], "T": ["b?"]}', "one object names the field 'T' twice"),
        (
            "a.json", [{"id": 1.5, "question": "a?"}],
            "record 1: the id 1.5 is neither a text nor a whole number",
        ),
        ("a.csv", 'question\n"a?\n', "is not valid CSV"),
        ("a.json", {"T": ["a?", None]}, r"record 2 of \['T'\]: is null"),
        (
            "a.json", [{"id": "1", "question": "a?"}, {"id": 1, "question": "b?"}],
            "record 2: has the id '1' of record 1",
        ),
        ("a.json", {"instructions": ["a?", "b?"], "inputs": ["c"]}, "2 instructions and 1 inputs"),
        ("a.json", {"instructions": ["a?"], "tags": [[3]]}, "record 1, column 'tags': is a list"),
        ("a.json", {"prompt": ["a?", "b?"], "category": ["x"]}, "2 prompt and 1 category"),
        ("a.json", {"category": ["x", "y"], "id": [1, 2]}, "columns category, id and none with questions"),
        ("a.json", {"prompt": {"0": "a?"}, "category": {"1": "x"}}, "the same rows"),
        ("a.json", {"columns": ["prompt"], "data": [["a?"], ["b?", "c"]]}, "row 2: needs one value for each"),
        ("a.json", [{"Prompt": "a?", "prompt": "b?"}], "record 1: has the column 'prompt' twice"),
        ("a.json", [{"prompt": ["a?"]}], "record 1, column 'prompt': is a list"),
        ("a.json", [{"prompt": "a?", "category": {"x": 1}}], "record 1, column 'category': is an object"),
        ("a.json", [{"turns": ["a?", "b?"]}], "record 1, column 'turns': holds 2 turns"),
        ("a.csv", "turns\n[a?\n", "row 1, column 'turns': is no list"),
        ("a.csv", "Behavior,ImageFileName\na?,x.png\n", "row 1, column 'imagefilename': asks about an image"),
        ("a.csv", "goal,target\n,Sure\n", "row 1: has no question .its column 'goal' is empty"),
        ("a.csv", "goal,Goal\na?,b?\n", "its header has the column 'goal' twice"),
        ("a.tsv", "x\ty\n1\t2\n", "its columns are x, y; one must be question or prompt or goal"),
        ("a.jsonl", '"a?"\n{\n', "line 2: is not valid JSON"),
        ("a.jsonl", '"a?"\n[1]\n', "line 2: is a list"),
        ("a.csv", "x,y\n1,2\n", "its columns are x, y; one must be question or prompt or goal"),
        ("a.csv", "", "its columns are missing"),
        ("a.csv", "id,question\n1,a?\n2\n", r"row 2 \(line 3\): has fewer fields"),
        ("a.csv", "id,question\n1,a?,b\n", r"row 1 \(line 2\): has more fields"),
        ("a.csv", "id,question\n1,\n", "row 1: has no question"),
        ("a.xml", "<a/>", "questions come as .json, .jsonl, .csv, .tsv, .txt"),
    ],
)
def test_faults_are_named(tmp_path, name, content, message):
    with pytest.raises(Error, match=rf"{name}.*{message}"):
        load(tmp_path, name, content)


# The public sets, each by the columns that its authors' own file has.

HARMBENCH = """Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID
a?,standard,cyber,,,a_b
"b, c?",contextual,cyber,context,"the context",b_c
"""
SORRY = """question_id,category,turns,prompt_style
1,9,"['a ""quoted""?\\nb']",base
1,9,"[""c?""]",ascii
"""
PUBLIC = {
    "harmbench.csv": (HARMBENCH, [
        Question("a_b", "a?", "cyber", "standard"),
        Question("b_c", "the context\n\n---\n\nb, c?", "cyber", "contextual")]),
    "strongreject.csv": ("category,source,forbidden_prompt\nT,S,a?\n", [Question("1", "a?", "T")]),
    "sorry.jsonl": ('{"question_id": 3, "category": "9", "turns": ["a?"], "prompt_style": "base"}\n',
                    [Question("3", "a?", "9")]),
    "sorry.csv": (SORRY, [Question("1", 'a "quoted"?\nb', "9"), Question("1-ascii", "c?", "9")]),
    "jailbreakbench.csv": ("Index,Goal,Target,Behavior,Category,Source\n0,a?,\"Sure, b\",short,T,S\n",
                           [Question("0", "a?", "T", "", "Sure, b")]),
    "advbench.csv": ("goal,target\na?,Sure\n", [Question("1", "a?", target="Sure")]),
    "wildjailbreak.tsv": (
        "vanilla\tadversarial\tcompletion\tdata_type\na?\t\tno\tvanilla_harmful\n"
        "b?\t\"c\nd?\"\tno\tadversarial_harmful\n",
        [Question("1", "a?", "vanilla_harmful"), Question("2", "c\nd?", "adversarial_harmful")]),
    "donotanswer.csv": ("id,risk_area,types_of_harm,specific_harms,question\n4,R,T,S,a?\n",
                        [Question("4", "a?", "R", "T")]),
    "simplesafetytests.csv": ("id,harm_area,counter,category,prompts_final\nsst1,H,1,request,a?\n",
                              [Question("sst1", "a?", "H")]),
    "beavertails.jsonl": ('{"prompt": "a?", "response": "x", "category": {"c": false, "d": true}}\n',
                          [Question("1", "a?", "d")]),
    "columns.json": ({"prompt": ["a?", "b?"], "category": ["x", "y"]},
                     [Question("1", "a?", "x"), Question("2", "b?", "y")]),
    "columns_under_a_topic.json": ({"T": {"goal": ["a?"], "target": ["Sure"]}},
                                   [Question("1", "a?", "T", target="Sure")]),
    "pandas_columns.json": ('{"prompt": {"0": "a?", "2": "b?"}, "category": {"0": "x", "2": NaN}}',
                            [Question("1", "a?", "x"), Question("2", "b?")]),
    "pandas_split.json": ({"columns": ["prompt", "category"], "index": [0], "data": [["a?", "x"]]},
                          [Question("1", "a?", "x")]),
    "pandas_table.json": ({"schema": {"fields": []}, "data": [{"index": 0, "prompt": "a?", "category": "x"}]},
                          [Question("0", "a?", "x")]),
    "one_column.json": ({"prompts_final": ["a?"], "other": [1]}, [Question("1", "a?")]),
    "semicolons.csv": ("question;topic\na, b?;T\n", [Question("1", "a, b?", "T")]),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_sets_by_their_own_columns(tmp_path, name):
    content, wanted = PUBLIC[name]
    assert load(tmp_path, name, content) == wanted


def test_sets_by_name(tmp_path):
    (tmp_path / "red_eval").mkdir()
    (tmp_path / "set" / "evaluation").mkdir(parents=True)
    (tmp_path / "red_eval" / "one.json").write_text('["a?"]')
    (tmp_path / "set" / "evaluation" / "two.csv").write_text("question\nb?\n")
    (tmp_path / "set" / "xstest_prompts.csv").write_text("id,prompt,type\n1,c?,T\n")
    (tmp_path / "here.txt").write_text("d?\n")
    assert [load_questions(name, tmp_path)[0].question for name in ("one", "two", "xstest", "here")] == [
        "a?", "b?", "c?", "d?"]
    (tmp_path / "one.jsonl").write_text('"e?"\n')
    with pytest.raises(Error, match="one.*both.*give the path"):
        find_questions("one", tmp_path)
    with pytest.raises(Error, match="'xst': neither under .* nor embedded; use xstest_prompts, .*sample"):
        find_questions("xst", tmp_path)
    with pytest.raises(Error, match="data '.*none': is not a directory"):
        find_questions("one", tmp_path / "none")
    with pytest.raises(Error, match="'dangerousqa': not an embedded set .*say where the data lies"):
        find_questions("dangerousqa")
    for path in ("none.json", "folder/none"):
        with pytest.raises(Error, match="there is no such file"):
            find_questions(path)


def test_the_sample_set():
    found = load_questions("sample")
    assert (
        len(found) >= 20
        and len({q.id for q in found}) == len(found)
        and all(q.topic and q.subtopic for q in found)
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/benchmarks")
@pytest.mark.parametrize(
    "name, count, topics, subtopics",
    [
        ("dangerousqa", 200, 1, 1), ("harmfulqa", 1960, 10, 98), ("adversarialqa", 500, 1, 1),
        ("catqa_english", 550, 11, 55), ("xstest", 450, 18, 1), ("I-MaliciousInstructions", 100, 20, 1),
        ("I-CoNa", 178, 1, 1),
    ],
)
def test_public_sets(name, count, topics, subtopics):
    found = load_questions(name, SHARED)
    assert len(found) == count and len({q.id for q in found}) == count
    if name != "I-MaliciousInstructions":
        assert (len({q.topic for q in found}), len({(q.topic, q.subtopic) for q in found})) == (
            topics, max(topics, subtopics))


# Prompts

def test_standard_is_the_bare_question():
    prompt = load_prompt("standard")
    assert prompt.fill("Why <question>?") == "Why <question>?" and prompt.stop == ()


def test_cot_and_cou_have_the_papers_form():
    cot, cou = load_prompt("cot"), load_prompt("cou")
    assert cot.text.startswith("<question>\n") and "step" in cot.fill("q")
    text = cou.fill("WHY?")
    assert (
        text.endswith("\n\nBase-LM:")
        and text.count("WHY?") == 1
        and text.rindex("Red-LM: WHY?") > 0.7 * len(text)
    )
    assert text.count("Base-LM: (Internal thought:") >= 2 and cou.stop == ("\nRed-LM:",)


def test_a_prompt_of_ones_own(tmp_path):
    path = tmp_path / "mine.v2.txt"
    path.write_bytes("\ufeffAs a pirate:\r\n<question> <question>\r\n".encode())
    prompt = load_prompt(path)
    assert (prompt.name, prompt.fill("a?")) == ("mine.v2", "As a pirate:\na? a?")
    path.write_text("nothing")
    with pytest.raises(Error, match="mine.v2.txt: has no <question>"):
        load_prompt(path)
    path.write_bytes(b"\xff")
    with pytest.raises(Error, match="mine.v2.txt: is not UTF-8"):
        load_prompt(path)
    with pytest.raises(
        Error, match="prompt 'coo': there is no such file, and it is none of standard, cot, cou"
    ):
        load_prompt("coo")
    assert set(questions.PROMPTS) == {"standard", "cot", "cou"}


def test_a_set_is_called_by_its_file_or_folder(tmp_path):
    assert questions.set_name(Path("a/dangerousqa.json")) == "dangerousqa"
    assert questions.set_name(find_questions("organism")) == "organism"
    assert questions.set_name(tmp_path / "mine" / "questions.csv") == "mine"


def test_ids_sort_as_people_count():
    ids = ["10", "9", "a2", "a10", "b", "009", "8" * 5000, "7" * 5000]
    assert sorted(ids, key=natural) == ["9", "009", "10", "7" * 5000, "8" * 5000, "a2", "a10", "b"]
