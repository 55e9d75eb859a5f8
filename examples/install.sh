#!/bin/sh
# Installs glue into .venv at the top of this checkout, with the extras that are named: sh examples/install.sh [EXTRA].
#
# torch: a torch that python3 already has, or one that you put into .venv yourself, is used as it is. Otherwise
# torch==2.13.0 is installed as PyPI has it; on Linux that build brings CUDA. To choose another build, CPU or CUDA,
# make .venv first and install torch into it as https://pytorch.org/get-started says. What an extra brings never
# replaces it: pip then looks for releases that fit, or says that there are none.
set -eu
cd "$(dirname "$0")/.."
extra=${1:-}
if [ ! -x .venv/bin/python ]; then
    if python3 -c 'import torch' 2>/dev/null; then
        python3 -m venv --system-site-packages .venv
    else
        python3 -m venv .venv
    fi
fi
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    .venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
fi
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
.venv/bin/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >"$constraints"
.venv/bin/pip install --quiet --disable-pip-version-check --constraint "$constraints" --editable ".${extra:+[$extra]}"
