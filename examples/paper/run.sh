#!/bin/sh
# Runs a row of the paper's section 5 with plain glue commands: sh examples/paper/run.sh ROW [SEED...]
#
# ROW is a folder beside this script; the seeds are 0, 1 and 2 unless given. Every step writes to runs/ROW/seed-S, and
# one whose result is there is not done again, so a run that was cut goes on. A seed's figures end in RESULTS, by
# default the folder results beside this script, and a seed that is there already is passed over: RESULTS=FOLDER runs
# it anew. DATA_ROOT=FOLDER says where the data set lies, if not where the row's glue.yaml looks for it.
set -eu
row=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
results=${RESULTS:-$here/results}
export GLUE_SPEC="$here/$row/glue.yaml"

# step NAME COMMAND...: a glue command whose result is kept; a run before this one may have made it.
step() {
    result=$out/$1.json
    shift
    [ -s "$result" ] && return
    glue "$@" --json --force ${DATA_ROOT:+--set "data.root=$DATA_ROOT"} >"$result.part"
    mv "$result.part" "$result"
}

# mix NAME OPTION...: in float32, our choice, since at mu 0.01 differences of the loss drown in bfloat16's rounding.
mix() {
    name=$1
    shift
    step "$name-mix" mix "$out"/experts/*.safetensors "$@" --precision fp32 \
        --history "$out/$name-mix.jsonl" -o "$out/$name.safetensors"
    priors="$priors $out/$name.safetensors"
}

# said NAME KEY: a figure of a mix's result, or several with commas between.
said() {
    python -c 'import json, sys; print(str(json.load(open(sys.argv[1]))[sys.argv[2]]).strip("[]").replace(" ", ""))' \
        "$out/$1-mix.json" "$2"
}

# With n directions a step, by as many steps as with one direction, and by as many forwards; none stops early.
mix_by_several_directions() {
    steps=$(said spsa steps)
    for n in 2 4; do
        more="--method spsa --set mix.n_directions=$n --set mix.patience=$steps"
        mix spsa-n$n $more --set mix.steps="$steps"
        mix spsa-n$n-same-forwards $more --set mix.steps=$((steps / n))
    done
}

run_seed() {
    out=runs/$row/seed-$1
    priors=
    export GLUE_SEED="$1"
    mkdir -p "$out/experts"
    for k in 0 1 2 3 4; do
        expert=$out/experts/expert-00$k.safetensors
        [ -e "$expert" ] || step expert-00$k train-expert --expert $k -o "$expert"
    done
    step experts evaluate "$out"/experts/*.safetensors

    for method in uniform data-size proxy fullgrad spsa; do
        mix $method --method $method
    done
    mix spsa-default --method spsa --set 'mix={preset: default}'
    if [ "$row" = cifar10-resnet20 ]; then
        mix_by_several_directions
    fi
    if [ "$row" != imagenette-vit8 ]; then # which has no BatchNorm
        for method in uniform data-size proxy fullgrad spsa spsa-default; do
            mix $method-refreshed --alpha "$(said $method alpha)" --batchnorm refresh
        done
    fi
    step priors evaluate $priors

    for method in data-size proxy fullgrad spsa spsa-default; do # uniform is data-size: the experts are of one size
        step $method-finetune finetune "$out/$method.safetensors" --track test -o "$out/$method-finetuned.safetensors"
    done
    step scratch-finetune finetune --from-scratch --track test -o "$out/scratch-finetuned.safetensors"

    glue report "$out"/* -o "$out/report" --force --quiet >/dev/null
    python "$here/gather.py" "$out/report/report.json" "$results/$row-$1.json"
}

[ $# -gt 0 ] || set -- 0 1 2
for seed; do
    if [ -e "$results/$row-$seed.json" ]; then
        echo "seed $seed is in $results already" >&2
    else
        run_seed "$seed"
    fi
done
glue report "$results/$row"-*.json -o "runs/$row/report" --force
