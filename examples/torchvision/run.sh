#!/bin/sh
# A MobileNetV2 of torchvision and a ViT of timm, from state dicts that other code saved, mixed and finetuned.
# Two minutes on two cores; everything goes to runs/torchvision.
set -eu
cd "$(dirname "$0")/../.."
command -v glue >/dev/null || { sh examples/install.sh vision,timm; PATH=$PWD/.venv/bin:$PATH; }
here=$PWD/examples/torchvision

rm -rf runs/torchvision
mkdir -p runs/torchvision
python "$here/prepare.py" examples/digits runs/torchvision/images
cd runs/torchvision

for model in mobilenet_v2 vit; do
    export GLUE_SPEC="$here/$model.yaml"
    mkdir $model
    python "$here/train_elsewhere.py" $model images/elsewhere $model
    for expert in 0 1; do
        glue train-expert --expert $expert -o $model/expert-$expert.safetensors -q >>log.txt
    done
    experts="$model/expert-0.safetensors $model/expert-1.safetensors $model/elsewhere.pth"
    for method in uniform spsa; do
        glue mix --method $method $experts -o $model/$method.safetensors -q >>log.txt
        glue finetune $model/$method.safetensors -o $model/$method-finetuned.safetensors -q >>log.txt
    done
    glue finetune --from-scratch -o $model/pretrained-finetuned.safetensors -q >>log.txt
    glue evaluate $experts $model/uniform.safetensors $model/spsa.safetensors $model/*-finetuned.safetensors -q
done
