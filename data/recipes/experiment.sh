#!/bin/sh
# The paper's experiment on a model of yours, stage by stage; run it again and it goes on where it stopped.
#
#   data/recipes/experiment.sh MODEL HARMFUL QUESTIONS BENCHMARKS OUT
#
# MODEL       a Hugging Face directory or a .gguf file
# HARMFUL     harmful questions to train on, as for `redeval run --questions`; none of those in QUESTIONS
# QUESTIONS   what the attack success rate is measured on
# BENCHMARKS  a folder for `redeval bench --data`
# OUT         a folder for all that is made
#
# The model answers HARMFUL plainly. What it refuses there, it learns to refuse under `play`, an attack that
# RED-EVAL does not use, so that `cou` stays unseen. Questions that only look harmful keep it helpful: it is told
# that they are harmless, and where it answers then, it learns to answer so without being told.
#
# Settings, with their defaults:
#   EVALUATE=""   more options of redeval, such as "--quantize int8"
#   TRAIN=""      more options of safealign, such as "--lora 16 --dtype bfloat16 --steps 16 --batch-size 8"
#   STRATEGY=A    B collects harmful answers under `play` too, and pushes them away after A
#   TOKENS=128    longest answer that is measured
#   HARMLESS=lookalikes.json   questions that look harmful and are not; TOLD=harmless.txt, how they are put
#   TASKS=xstest,hhh,truthfulqa,mmlu   LIMIT=100
set -eu
here=$(cd "$(dirname -- "$0")" && pwd)
if [ "$#" != 5 ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0" >&2
    exit 2
fi
model=$1 harmful=$2 questions=$3 benchmarks=$4 out=$5
[ -x "$here/../../bin/redeval" ] && PATH=$here/../../bin:$PATH # a checkout's own
mkdir -p "$out"

# Exit code 1 says that some answers have no label: the figures say so too, and the experiment goes on.
labelled() { redeval "$@" || [ "$?" = 1 ]; }
asked() { labelled "$@" ${EVALUATE:-}; }

measured() { # MODEL NAME
    asked run --model "$1" --questions "$questions" --prompt standard cot cou --judge linear --judge rules \
        --max-new-tokens "${TOKENS:-128}" --output-dir "$out/redeval-$2"
    asked bench --model "$1" --data "$benchmarks" --tasks "${TASKS:-xstest,hhh,truthfulqa,mmlu}" \
        --limit "${LIMIT:-100}" --output-dir "$out/bench-$2"
}

own_answers() { # QUESTIONS PROMPT NAME LABEL
    asked run --model "$model" --questions "$1" --prompt "$2" --judge linear --judge rules --max-new-tokens 512 \
        --output-dir "$out/own-$3"
    labelled export "$out/own-$3" --format conversations --plain ${4:+--label "$4"} --output "$out/$3.jsonl"
}

measured "$model" before
own_answers "$harmful" standard blue unharmful
own_answers "${HARMLESS:-$here/lookalikes.json}" "${TOLD:-$here/harmless.txt}" helpful harmful # an answer, no refusal
set -- --blue "$out/blue.jsonl" --helpful "$out/helpful.jsonl"
if [ "${STRATEGY:-A}" = B ]; then
    own_answers "$harmful" play red harmful
    set -- "$@" --red "$out/red.jsonl" --strategy B --save-a
fi
safealign --model "$model" "$@" --prompt play --plain-helpful ${TRAIN:-} --output-dir "$out/safe"
[ "${STRATEGY:-A}" = B ] && measured "$out/safe/after-A" after-A
measured "$out/safe" after
redeval compare "$out/redeval-before" "$out/redeval-after" --output "$out/redeval.html"
redeval compare "$out/bench-before" "$out/bench-after" --output "$out/bench.html"
redeval table "$out"/redeval-before "$out"/bench-before "$out"/redeval-after* "$out"/bench-after*
