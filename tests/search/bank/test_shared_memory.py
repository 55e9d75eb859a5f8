import os
import subprocess
import sys

import pytest
import torch
from in_threads import by_several
from small_nets import conv_net, make_experts

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.search.bank import load
from glue_cli.search.bank.load import load_bank
from glue_cli.search.bank.shared_memory import shared_matrix

CPU = torch.device("cpu")
TWO_PROCESSES = """
import os, torch
from glue_cli.foundation.ranks import Ranks, place_of
from glue_cli.search.bank.shared_memory import shared_matrix
ranks = Ranks(place_of(os.environ))
ranks.start("cpu")
matrix = shared_matrix((2, 5000), torch.bfloat16, ranks)
assert (matrix == 0).all()
ranks.gather([])
matrix[ranks.place.rank] = ranks.place.rank + 1
ranks.gather([])
assert (matrix == torch.tensor([[1.0], [2.0]])).all()
ranks.gather([])
print("seen", flush=True)
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no memory without a name")
def test_two_processes_see_what_the_other_writes(tmp_path):
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "two.py"]
    done = subprocess.run(launcher, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout.count("seen")) == (0, 2), done.stderr


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no memory without a name")
def test_nothing_stays_when_the_matrices_are_gone():
    before = len(os.listdir("/proc/self/fd"))
    matrices = by_several(3, lambda ranks: shared_matrix((4, 7), torch.float32, ranks))
    matrices[1][2, 3] = 5
    assert [matrix[2, 3] for matrix in matrices] == [5, 5, 5]
    assert len({matrix.data_ptr() for matrix in matrices}) == 3
    del matrices
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("fault", ["no memory", "may not be opened"])
def test_a_bank_of_its_own_where_none_can_be_shared(tmp_path, monkeypatch, fault):
    """And the rows are the same either way, each read by one process where they are shared."""
    model, experts = make_experts(conv_net)
    for k, expert in enumerate(experts):
        write_checkpoint(tmp_path / f"{k}", expert, {})
    checkpoints = [read_checkpoint(tmp_path / f"{k}") for k in range(3)]
    read = []
    read_row = load._read_row
    monkeypatch.setattr(load, "_read_row", lambda experts, k, *others: (read.append(k), read_row(experts, k, *others)))

    def blend(ranks):
        bank = load_bank(checkpoints, device=CPU, ranks=ranks)
        out = torch.empty(1, bank.n_columns)
        bank.blend(torch.tensor([[[0.2, 0.3, 0.5]]], dtype=torch.float64), out)
        return out

    (wanted,) = by_several(1, blend)
    read.clear()
    assert all(torch.equal(found, wanted) for found in by_several(2, blend))
    assert sorted(read) == [0, 1, 2]
    read.clear()
    if fault == "no memory":
        monkeypatch.setattr(os, "posix_fallocate", lambda *arguments: (_ for _ in ()).throw(OSError))
    else:
        monkeypatch.setattr(os, "open", lambda *arguments, real=os.open: _refused(real, *arguments))
    assert all(torch.equal(found, wanted) for found in by_several(2, blend))
    assert sorted(read) == [0, 0, 1, 1, 2, 2]


def _refused(real, path, *arguments):
    if str(path).startswith("/proc/"):
        raise PermissionError
    return real(path, *arguments)
