#!/bin/sh
# Installs glue with its test tools into .venv, then checks style and types and runs the tests.
# GLUE_TEST_DATA may name a folder with larger data sets; without it, the tests that need them say that they skip.
set -eu
cd "$(dirname "$0")/.."
sh examples/install.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/pytest -q -rs "$@"
