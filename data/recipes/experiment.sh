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
#   KIND=""       options of a second training, on harmless questions most of all, such as "--lora 16 --steps 20
#                 --adapter-only --mix helpful=7 blue=1 --answer-tokens 24"; the sum of both adapters, by
#                 WEIGHTS="0.8 0.2", is what is measured; TRAIN needs --lora and --adapter-only then
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

ends_unless() { [ "$1" = "$2" ] || exit "$2"; }

# Exit code 1 says that some answers have no label: the figures say so too, and the experiment goes on.
labelled() { redeval "$@" || ends_unless 1 "$?"; }
asked() { labelled "$@" ${EVALUATE:-}; }

measured() { # NAME MODEL [--adapter DIR]
    name=$1 && shift
    asked run --model "$@" --questions "$questions" --prompt standard cot cou --judge linear --judge rules \
        --max-new-tokens "${TOKENS:-128}" --output-dir "$out/redeval-$name"
    asked bench --model "$@" --data "$benchmarks" --tasks "${TASKS:-xstest,hhh,truthfulqa,mmlu}" \
        --limit "${LIMIT:-100}" --output-dir "$out/bench-$name"
}

measured_after() { # NAME DIR: a trained model, or with --adapter-only its adapter beside the model
    if [ -d "$2/adapter" ] && [ ! -e "$2/config.json" ]; then
        measured "$1" "$model" --adapter "$2/adapter"
    else
        measured "$1" "$2"
    fi
}

own_answers() { # QUESTIONS PROMPT NAME LABEL
    asked run --model "$model" --questions "$1" --prompt "$2" --judge linear --judge rules --max-new-tokens 512 \
        --output-dir "$out/own-$3"
    labelled export "$out/own-$3" --format conversations --plain ${4:+--label "$4"} --output "$out/$3.jsonl"
}

# Exit code 100 says that --until or --while of TRAIN or KIND failed: what was written is measured all the same.
trained() { # NAME, files and options
    name=$1 && shift
    safealign --model "$model" "$@" --prompt play --plain-helpful --output-dir "$out/$name" || ends_unless 100 "$?"
}

measured before "$model"
own_answers "$harmful" standard blue unharmful
own_answers "${HARMLESS:-$here/lookalikes.json}" "${TOLD:-$here/harmless.txt}" helpful harmful # an answer, no refusal
set -- --blue "$out/blue.jsonl" --helpful "$out/helpful.jsonl"
if [ "${STRATEGY:-A}" = B ]; then
    own_answers "$harmful" play red harmful
    trained safe "$@" --red "$out/red.jsonl" --strategy B --save-a ${TRAIN:-}
    [ ! -d "$out/safe/after-A" ] || measured_after after-A "$out/safe/after-A" # a gate may end it within A
else
    trained safe "$@" ${TRAIN:-}
fi
if [ -n "${KIND:-}" ]; then
    trained kind "$@" $KIND
    weights=${WEIGHTS:-0.8 0.2}
    safealign merge --adapters "$out/safe/adapter=${weights% *}" "$out/kind/adapter=${weights#* }" \
        --output-dir "$out/both"
    measured after "$model" --adapter "$out/both"
else
    measured_after after "$out/safe"
fi
redeval compare "$out/redeval-before" "$out/redeval-after" --output "$out/redeval.html"
redeval compare "$out/bench-before" "$out/bench-after" --output "$out/bench.html"
redeval table "$out"/redeval-before "$out"/bench-before "$out"/redeval-after* "$out"/bench-after*
