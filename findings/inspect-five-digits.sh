#!/usr/bin/env bash
# inspect_ai 0.3.285: match(numeric=True) compares numbers to five significant digits.
#
# The scorer takes the number out of the answer and rounds it and the target to five digits before it
# compares them. So 1,234,567 is a correct answer where 1,234,599 was wanted. Up to 99,999 the comparison is
# exact for whole numbers; beyond, the first five digits decide.
#
# Surprise: without numeric=True the same answer is incorrect; the option that people turn on to ignore
# dollar signs and commas also makes wrong sums correct.
# For evaluation: scores of arithmetic and of benchmarks with large whole numbers come out too high, and
# identifiers or dates written as one number (20240131) match their neighbours.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q inspect_ai==0.3.285
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
from importlib.metadata import version

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Target, match
from inspect_ai.solver import TaskState

print("inspect_ai", version("inspect_ai"))


def grade(answer, target, numeric):
    state = TaskState(model="none/none", sample_id=1, epoch=1, input="?", messages=[],
                      output=ModelOutput.from_content("none/none", answer))
    return asyncio.run(match(numeric=numeric)(state, Target(target))).value


seen = []
for answer, target in [("The total is $1,234,567", "1234599"), ("It was 20240131", "20240128"),
                       ("It is 100001", "100000"), ("It is 99999", "99998")]:
    seen.append((grade(answer, target, True), grade(answer, target, False)))
    print(f"seen: answer {answer!r}, target {target}: {seen[-1][0]} with numeric=True, {seen[-1][1]} without")
print("one would expect: I (incorrect) throughout")
assert seen == [("C", "I"), ("C", "I"), ("C", "I"), ("I", "I")], "large numbers are compared differently now"
PYTHON
