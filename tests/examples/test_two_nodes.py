"""The Slurm script for two nodes, run on two nodes: network namespaces of this machine with a cable between them.

Each node has an address, a host name and an /etc/hosts of its own, as it has in a cluster.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.models.cnn import cnn

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "cluster" / "slurm" / "two-nodes.sbatch"
ADDRESSES = {"n1": "10.213.7.1", "n2": "10.213.7.2"}
SPEC = f"""
model: {{arch: cnn, args: {{in_channels: 1, width: 4}}}}
data: {{format: safetensors, root: '{EXAMPLES / "digits"}', target: {{train: 100, val: 50}}}}
mix: {{budget: 20}}
precision: fp32
"""
# What the cluster has: names of nodes, a command that runs something on every node, torch's launcher.
COMMANDS = {
    "scontrol": '[ "$1" != show ] || printf "n1\\nn2\\n"',
    "srun": """while [ "${1#-}" != "$1" ]; do shift; done
on n1 "$@" & one=$!
on n2 "$@" & other=$!
wait $one; code=$?
wait $other || code=$?
exit $code""",
    "on": """node=$1; shift
exec ip netns exec "$NODES-$node" unshare --uts --mount sh -c \\
    'mount --bind hosts /etc/hosts; hostname "$0"; exec "$@"' "$node" "$@\"""",
    "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
    "glue": f'exec "{sys.executable}" -m glue_cli "$@"',
}


def has_namespaces():
    """Tell whether this machine allows network namespaces: it takes root, and the programs of iproute2."""
    if not shutil.which("ip") or not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True).returncode == 0


@pytest.fixture
def nodes():
    """Two namespaces, each with one end of a cable; returns what their names begin with."""
    prefix = f"glue{os.getpid()}"
    one, other = (f"{prefix}-{node}" for node in ADDRESSES)

    def ip(*words, check=True):
        subprocess.run(["ip", *words], check=check, capture_output=True)

    try:
        for name in (one, other):
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", one, "type", "veth", "peer", "name", "cable", "netns", other)
        for name, address in zip((one, other), ADDRESSES.values(), strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield prefix
    finally:
        for name in (one, other):
            ip("netns", "delete", name, check=False)


@pytest.mark.skipif(not has_namespaces(), reason="this machine allows no network namespaces")
def test_two_nodes_find_the_alpha_of_one(nodes, tmp_path):
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    (tmp_path / "glue.yaml").write_text(SPEC)
    (tmp_path / "hosts").write_text("".join(f"{address} {node}\n" for node, address in ADDRESSES.items()))
    job = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "NODES": nodes}
    path = f"{commands}:{os.environ['PATH']}"

    def run(*command):
        found = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, **job, "SLURM_SUBMIT_DIR": str(tmp_path), "PATH": path},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout

    experts = list(make_experts(tmp_path / "experts"))
    alone = json.loads(run("glue", "mix", "--method", "spsa", *experts, "-o", "alone.safetensors", "--json"))
    run("bash", str(SCRIPT))
    found = read_checkpoint(tmp_path / "prior.safetensors").glue
    assert found["alpha"] == pytest.approx(alone["alpha"], abs=1e-6)


def make_experts(folder):
    """Save two experts near each other, and yield their paths."""
    folder.mkdir()
    start = cnn(in_channels=1, width=4).state_dict()
    for k in range(2):
        near = {name: t + 0.1 * torch.randn_like(t) if t.dim() > 1 else t for name, t in start.items()}
        save_file(near, folder / f"expert-00{k}.safetensors")
        yield str(folder / f"expert-00{k}.safetensors")
