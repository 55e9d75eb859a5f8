"""Same inputs and seed: the same bytes from any folder, with any hash seed; and what depends on the surroundings."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from fake_objective import Bowl
from safetensors import safe_open
from small_runs import RUNS, found, make_small_world, unchanging

from glue_cli.methods import METHODS, SEARCHES
from glue_cli.spec.schema import MixSpec

NAMES = ["mix", "mix, shards", "mix, spsa", "train-expert", "finetune", "evaluate"]
IN_TURN = """
import os, sys, torch
from glue_cli.cli.app import main
for folder, n_threads, arguments in {runs!r}:
    os.chdir(folder)
    sys.path[0] = folder
    torch.set_num_threads(n_threads)
    assert main(arguments.split() + ["-q"]) == 0, arguments
"""


def outputs_of(folder, hash_seed, threads_of_plain):
    """Run the commands in one process, each in a new copy of a small world; return what they wrote, by command."""
    runs = []
    for name in NAMES:
        make_small_world(folder / name)
        n_threads = threads_of_plain if name in ("mix", "mix, shards") else 1
        runs.append((str(folder / name), n_threads, RUNS[name].arguments))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN.format(runs=runs)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {name: unchanging(found(folder / name, RUNS[name])) for name in NAMES}


def test_no_byte_depends_on_the_folder_or_the_hash_seed_and_no_plain_blend_on_the_threads(tmp_path):
    one = outputs_of(tmp_path / "one", "0", 1)
    other = outputs_of(tmp_path / "elsewhere" / "and deeper", "12345", 2)
    assert one == other and all(one.values())
    shutil.rmtree(tmp_path / "elsewhere")
    for name in NAMES[:-1]:
        file = "new/x-00001-of-00004.safetensors" if name == "mix, shards" else "new/x.safetensors"
        with safe_open(tmp_path / "one" / name / file, "pt") as tensors:
            recorded = json.loads(tensors.metadata().get("glue", "{}"))
        recorded |= recorded.get("settings", {})
        assert recorded.get("threads") == (None if name.startswith("mix") and "spsa" not in name else 1), name


@pytest.mark.parametrize("method", SEARCHES)
def test_the_order_of_the_experts_changes_a_searched_alpha_a_little(method):
    """Random draws belong to the places of the experts; README, Limits."""
    target, order = [0.1, 0.4, 0.2, 0.3], [2, 0, 3, 1]
    settings = MixSpec.model_validate({"steps": 100, "lr": 0.05} if method != "greedy" else {})
    search = METHODS[method].load()
    straight = search(Bowl(target, noise=0.1), settings, seed=0).alpha[0]
    shuffled = search(Bowl([target[k] for k in order], noise=0.1), settings, seed=0).alpha[0]
    most = 0.08 if method == "cmaes" else 0.01
    assert all(abs(shuffled[place] - straight[k]) <= most for place, k in enumerate(order))
