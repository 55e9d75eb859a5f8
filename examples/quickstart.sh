#!/bin/sh
# glue's whole main job on real handwritten digits, in a minute or two on two cores beyond the installation.
# Everything it writes goes to .venv and runs/digits; each line that starts with glue can be typed by hand.
set -eu
cd "$(dirname "$0")/.."
sh examples/install.sh
PATH=$PWD/.venv/bin:$PATH
export GLUE_SPEC="$PWD/examples/digits/glue.yaml"
table=$PWD/examples/digits/table.py

rm -rf runs/digits
mkdir -p runs/digits
cd runs/digits

echo "Train five experts, each on its own skewed share of the digits"
for expert in 0 1 2 3 4; do
    glue train-expert --expert "$expert" -q >>log.txt
done

echo "Mix them by five methods, and finetune each prior on 300 digits of the target"
for method in uniform data-size proxy fullgrad spsa; do
    glue mix --method "$method" experts/*.safetensors -o "$method.safetensors" -q >>log.txt
    glue finetune "$method.safetensors" -o "$method-finetuned.safetensors" -q >>log.txt
done
glue finetune --from-scratch -o scratch-finetuned.safetensors -q >>log.txt

echo "Evaluate everything on the test split"
glue evaluate experts/*.safetensors ./*.safetensors --split test --json -q >evaluation.json
python "$table" evaluation.json
