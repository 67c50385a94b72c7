"""The README's commands on the embedded model, in a network namespace that has no interface."""
import os
import re
import subprocess
from pathlib import Path

import pytest

from redlite.cli import redeval, safealign
from redlite.judges import formats
from redlite.text import chat

ROOT = Path(__file__).parents[2]
# Of commands; train-judge comes before train.
NAMES = "|".join(sorted({**redeval.COMMANDS, **safealign.COMMANDS}, reverse=True))
README = (ROOT / "README.md").read_text()
# A command of the README that needs nothing but the checkout, and what makes it short here.
COMMANDS = {"bin/redeval": "--limit 3 --max-new-tokens 40", "bin/safealign": "--dry-run",
            "bin/safealign prove": "", "bin/collect": "--limit 1 --conversations 1 --max-new-tokens 40"}


@pytest.fixture(scope="module")
def closed():
    """The words before a command that run it without a network."""
    words = ["unshare", "--user", "--map-root-user", "--net"]
    try:
        works = subprocess.run([*words, "true"], capture_output=True).returncode == 0
    except OSError:
        works = False
    if not works:
        pytest.skip("network namespaces are not allowed here")
    return words


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_network(closed, command, tmp_path):
    assert re.search(rf"(^|&& ){re.escape(command)}( *#.*)?$", README,
                     re.MULTILINE), "the README has this command no more"
    program, *rest = command.split()
    done = subprocess.run([*closed, str(ROOT / program), *rest, *COMMANDS[command].split()], cwd=tmp_path,
                          capture_output=True, text=True, timeout=240,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]


def test_the_readme_names_what_there_is():
    """Every file that the README points to exists, and every option that it shows is one of its command's."""
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / path).exists(), path
    shown = {tuple(m)
             for m in re.findall(rf"^bin/(\w+) *((?:{NAMES})?)(?: |$)", README, re.MULTILINE)}
    for program, command in shown:
        help_text = subprocess.run([str(ROOT / "bin" / program), *([command] if command else []), "--help"],
                                   capture_output=True, text=True).stdout
        for line in re.findall(rf"^bin/{program} *{command} .*$", README, re.MULTILINE):
            if not command and re.match(rf"bin/\w+ ({NAMES})\b", line):
                continue
            for option in re.findall(r" (--[a-z-]+)", line.split("#")[0]):
                assert option in help_text, (line, option)


@pytest.mark.parametrize("command", ["run", "bench", "scorecard"])
def test_the_help_has_groups_and_lists_the_names_that_are_chosen_from(command):
    """Only -h stands outside the groups; the chat formats, the judges' formats and the prompts are named."""
    parser = redeval.COMMANDS[command][0](command)
    groups = {group.title: [a.dest for a in group._group_actions] for group in parser._action_groups}
    assert groups["options"] == ["help"]
    assert groups["gates"] == ["gate", "gate_by", "max_unlabelled"]
    assert "output_dir" in groups["what is written"] and groups["network"] == ["offline"]
    text = "".join(parser.format_help().split())
    names = [*chat.FORMATS, *formats.FORMATS, *({"run": ["standard", "cot", "cou"]}.get(command, []))]
    assert [name for name in names if name not in text] == []
