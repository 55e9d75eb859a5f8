#!/bin/sh
# What the row cifar10-resnet20 depends on, one setting changed at a time: sh examples/paper/ablation.sh [SEED]
#
# Each variant trains its experts, blends them uniformly and by SPSA, finetunes both for five epochs, and is judged by the
# validation data alone. DATA_ROOT=FOLDER says where CIFAR-10 lies. Steps already done are not done again; the table is
# printed, and written to results/ablation-SEED.json.
set -eu
seed=${1:-0}
here=$(cd "$(dirname "$0")" && pwd)
export GLUE_SPEC="$here/cifar10-resnet20/glue.yaml" GLUE_SEED="$seed"
runs=runs/ablation/seed-$seed

# step RESULT COMMAND...: a glue command whose result is kept; a run before this one may have made it.
step() {
    result=$1.json
    shift
    [ -s "$result" ] && return
    glue "$@" --json --force --quiet ${DATA_ROOT:+--set "data.root=$DATA_ROOT"} >"$result.part"
    mv "$result.part" "$result"
}

# experts NAME COUNT OPTION...: experts of one kind; what they are trained by does not depend on how many there are.
experts() {
    folder=$runs/experts/$1
    count=$2
    shift 2
    mkdir -p "$folder"
    k=0
    while [ $k -lt "$count" ]; do
        step "$folder/$k" train-expert --expert $k --set experts.count=10 "$@" -o "$folder/$k.safetensors"
        k=$((k + 1))
    done
}

# start NAME OPTION...: a blend of the variant's experts, its figures, and what finetuning makes of it.
start() {
    name=$out/$1
    shift
    step "$name-mix" mix $chosen "$@" --precision fp32 --history "$name.jsonl" -o "$name.safetensors"
    step "$name-val" evaluate "$name.safetensors" --split val
    step "$name-finetune" finetune "$name.safetensors" --set finetune.epochs=5 -o "$name-finetuned.safetensors"
}

# both VARIANT EXPERT...: the uniform blend, and SPSA's.
both() {
    out=$runs/$1
    shift
    chosen=$*
    mkdir -p "$out"
    step "$out/experts-val" evaluate $chosen --split val
    start uniform --method uniform
    start spsa --method spsa
}

experts concentration-1 10
shares=$runs/experts/concentration-1
both concentration-1 "$shares"/[0-4].safetensors
start spsa-250-steps --method spsa --set mix.steps=250
start spsa-4000-steps --method spsa --set mix.steps=4000 --set mix.patience=80
start spsa-mu-0.001 --method spsa --set mix.mu=0.001
start spsa-mu-0.1 --method spsa --set mix.mu=0.1
start spsa-default --method spsa --set 'mix={preset: default}'
both k-2 "$shares"/[01].safetensors
both k-10 "$shares"/[0-9].safetensors
for concentration in 0.3 3; do
    experts concentration-$concentration 5 --set experts.dirichlet=$concentration
    both concentration-$concentration "$runs/experts/concentration-$concentration"/[0-4].safetensors
done
experts independent 5 --set experts.init=independent
both independent "$runs/experts/independent"/[0-4].safetensors
python "$here/ablation.py" "$runs" "$here/results/ablation-$seed.json"
