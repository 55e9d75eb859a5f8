#!/bin/sh
# Experts whose heads differ, brought to one head by class name. Half a minute; everything goes to runs/heads.
set -eu
cd "$(dirname "$0")/../.."
command -v glue >/dev/null || { sh examples/install.sh; PATH=$PWD/.venv/bin:$PATH; }
export GLUE_SPEC="$PWD/examples/heads/glue.yaml"
base_spec=$PWD/examples/heads/base.yaml

rm -rf runs/heads
mkdir -p runs/heads
python examples/heads/split_digits.py examples/digits runs/heads/data
cd runs/heads
data=$PWD/data
low=experts/low.safetensors
high=experts/high.safetensors

glue finetune --from-scratch --spec "$base_spec" -o base.safetensors -q >log.txt
glue train-expert --expert 0 -o $low -q >>log.txt
glue train-expert --expert 1 -o $high -q >>log.txt

echo "Each expert on the classes that it knows: 0 to 5, and 3 to 9"
glue evaluate $low -q --set model.args.num_classes=6 --set "data.root=$data/low"
glue evaluate $high -q --set model.args.num_classes=7 --set "data.root=$data/high"

echo "The uniform blend of the rest, with the head of high as it is, on the classes 3 to 9"
glue mix --method uniform $low $high --head 'head.*' --head-policy from:high -o from-high.safetensors -q >>log.txt
glue evaluate from-high.safetensors -q --set model.args.num_classes=7 --set "data.root=$data/high"

echo "One head for all ten classes, before any training on them and after"
for method in uniform spsa; do
    glue mix --method $method $low $high --head 'head.*' --head-policy align --batchnorm refresh \
        -o $method.safetensors -q >>log.txt
    glue finetune $method.safetensors -o $method-finetuned.safetensors -q >>log.txt
done
glue mix --method uniform $low $high --head 'head.*' --head-policy reset --batchnorm refresh \
    -o reset.safetensors -q >>log.txt
glue finetune reset.safetensors -o reset-finetuned.safetensors -q >>log.txt
glue finetune --from-scratch -o base-finetuned.safetensors -q >>log.txt
glue evaluate reset.safetensors uniform.safetensors spsa.safetensors --by-class -q
glue evaluate *-finetuned.safetensors -q
