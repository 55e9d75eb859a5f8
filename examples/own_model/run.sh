#!/bin/sh
# Three experts of a model that glue does not know, mixed and finetuned. Half a minute; everything goes to
# runs/own_model.
set -eu
cd "$(dirname "$0")/../.."
command -v glue >/dev/null || { sh examples/install.sh; PATH=$PWD/.venv/bin:$PATH; }
export GLUE_SPEC="$PWD/examples/own_model/glue.yaml"

rm -rf runs/own_model
mkdir -p runs/own_model
cd runs/own_model

for expert in 0 1 2; do
    glue train-expert --expert $expert -q >>log.txt
done
for method in uniform spsa; do
    glue mix --method $method experts/*.safetensors -o $method.safetensors -q >>log.txt
    glue finetune $method.safetensors -o $method-finetuned.safetensors -q >>log.txt
done
glue finetune --from-scratch -o scratch-finetuned.safetensors -q >>log.txt
glue evaluate experts/*.safetensors uniform.safetensors spsa.safetensors *-finetuned.safetensors -q
