#!/bin/sh
# Runs one row of the paper's section 5 with plain glue commands: sh examples/paper/run.sh ROW [SEED...]
#
# ROW is a folder beside this script; seeds default to 0 1 2. Results go to runs/ROW/seed-S. What is already there is
# not done again, so a run that was cut goes on. DATA_ROOT=FOLDER says where the data set lies, if not where
# the row's glue.yaml looks for it.
set -eu
row=$1
shift
spec=$(cd "$(dirname "$0")" && pwd)/$row/glue.yaml
for seed in ${*:-0 1 2}; do
    out=runs/$row/seed-$seed
    mkdir -p "$out/experts"
    shared="--spec $spec --seed $seed${DATA_ROOT:+ --set data.root=$DATA_ROOT}"
    for expert in 0 1 2 3 4; do
        to=$out/experts/expert-00$expert.safetensors
        [ -e "$to" ] || glue train-expert --expert $expert $shared -o "$to"
    done
    [ -e "$out/experts.json" ] || glue evaluate "$out"/experts/*.safetensors $shared -o "$out/experts.json"
    for method in data-size proxy fullgrad spsa; do
        # The search runs in float32: differences of the loss at mu 0.01 drown in bfloat16's rounding.
        [ -e "$out/$method.safetensors" ] || glue mix --method $method "$out"/experts/*.safetensors $shared \
            --precision fp32 --history "$out/$method-mix.jsonl" -o "$out/$method.safetensors" --json --force \
            >"$out/$method-mix.json"
        [ -e "$out/$method-finetuned.safetensors" ] || glue finetune "$out/$method.safetensors" $shared --track test \
            -o "$out/$method-finetuned.safetensors" --json >"$out/$method-finetune.json"
    done
    [ -e "$out/scratch-finetuned.safetensors" ] || glue finetune --from-scratch $shared --track test \
        -o "$out/scratch-finetuned.safetensors" --json >"$out/scratch-finetune.json"
    glue evaluate "$out"/experts/*.safetensors "$out"/*.safetensors $shared
done
