"""What processes of a job exchange: in processes that torchrun starts."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from in_threads import by_several

from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.ranks import Place, Ranks, is_lost, place_of, speaks
from glue_cli.foundation.stopping import Lost

TIMEOUT_S = 200  # generous: the machine may be busy
VARIABLES = {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "here", "MASTER_PORT": "1"}


def test_torchrun_says_where_a_process_stands():
    local = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert place_of({**VARIABLES, **local}) == Place(5, 8, 1, 4, is_launched=True)
    assert place_of(VARIABLES) == Place(5, 8, 0, 1, is_launched=True)
    for missing in VARIABLES:
        rest = {name: value for name, value in VARIABLES.items() if name != missing}
        assert place_of(rest) == Place() and not place_of(rest).is_launched


@pytest.mark.parametrize("n", [0, 1, 2, 5, 8, 13])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_unit_of_work_is_somebodys(n, size):
    shares = [Ranks(Place(rank, size)).share(n) for rank in range(size)]
    assert [number for share in shares for number in share] == [*range(n)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_exchanged():
    ranks, tensors = Ranks(), [torch.ones(2), torch.zeros(0)]
    ranks.start("cpu")
    assert all(found is tensor for found, tensor in zip(ranks.gather(tensors), tensors, strict=True))
    assert ranks.from_first(lambda: "made") == "made"
    assert ranks.is_first and speaks({})


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
        (ValueError("Connection closed by peer"), False),
    ],
)
def test_an_exchange_without_another_side_is_told_from_other_errors(error, lost):
    assert is_lost(error) is lost


EXCHANGES = """
import json, os, signal, sys
import torch
from glue_cli.foundation.ranks import Ranks, place_of, speaks
from glue_cli.foundation.stopping import Lost, Stop

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which the launcher ends the others once one has ended
stop = Stop()
ranks = Ranks(place_of(os.environ), stop)
ranks.start("cpu")
rank = ranks.place.rank
tensors = [
    torch.full((rank, 2), rank, dtype=torch.bfloat16),
    torch.tensor([float("nan"), -0.0, 1e-300 * rank], dtype=torch.float64),
    torch.tensor(rank),
    torch.arange(3)[::2] + rank,
]
found = {"rank": rank, "lists": []}
for own in (tensors, tensors[: rank + 1], []):
    gathered = ranks.gather(own)
    found["lists"].append([[str(t.dtype), list(t.shape), str(t.tolist())] for t in gathered])
found["told"] = ranks.from_first(lambda: {"by": rank, "text": "\\u00e9" * 3000, "none": None})
held = {"n": float("inf"), "tensors": [torch.eye(60, dtype=torch.float64)[:rank + 1], torch.zeros(0, 3), {"no": 1}]}
held = ranks.from_one(2, lambda: held)
sizes = [list(t.shape) for t in held["tensors"][:2]]
found["held"] = [held["n"], sizes, held["tensors"][0].diag().sum().item(), held["tensors"][2]]
found["stopped"] = [ranks.stopped_by]
if rank == 1:
    with stop.deferred():
        stop.ask(signal.SIGUSR1)
ranks.gather([])
found["stopped"].append(ranks.stopped_by)
found["speaks"] = speaks(os.environ)
with open(f"{rank}.json", "w") as file:
    json.dump(found, file)
ranks.gather([])
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    while True:
        ranks.gather([torch.zeros(1000)])
except Lost:
    with open(f"{rank}.lost", "w"):
        pass
"""


def test_what_processes_exchange(tmp_path):
    (tmp_path / "exchanges.py").write_text(EXCHANGES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "exchanges.py"]
    done = subprocess.run(launcher, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    whole, some, none = found[0]["lists"]
    assert whole == [
        part
        for rank in range(3)
        for part in (
            ["torch.bfloat16", [rank, 2], str([[float(rank)] * 2] * rank)],
            ["torch.float64", [3], str([float("nan"), -0.0, 1e-300 * rank])],
            ["torch.int64", [], str(rank)],
            ["torch.int64", [2], str([rank, 2 + rank])],
        )
    ]
    assert some == [whole[0], *whole[4:6], *whole[8:11]] and none == []
    for one in found:
        assert one["lists"] == found[0]["lists"]
        assert one["told"] == {"by": 0, "text": "\u00e9" * 3000, "none": None}
        assert one["held"] == [float("inf"), [[3, 60], [0, 3]], 3.0, {"no": 1}]
        assert one["stopped"] == [None, signal.SIGUSR1]  # which one of them has heard of
    assert sum(one["speaks"] for one in found) == 1
    assert done.returncode != 0 and sorted(path.name for path in tmp_path.glob("*.lost")) == ["0.lost", "2.lost"]
    assert Lost().exit_code == 75


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": "x"}, "RANK is 'x', wanted a number"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'"),
        ({"MASTER_PORT": "ib0"}, "MASTER_PORT is 'ib0'"),
        ({"WORLD_SIZE": "0"}, "no process 5 of 0"),
        ({"RANK": "8"}, "no process 8 of 8"),
    ],
)
def test_places_that_cannot_be_are_told(changed, message):
    with pytest.raises(UsageError, match=message) as caught:
        place_of({**VARIABLES, **changed})
    assert "unset RANK" in caught.value.hint and speaks({**VARIABLES, **changed})


def test_processes_that_were_given_different_things_are_all_told_which():
    def work(ranks):
        given = {"expert 0": "abc", "data": [1, ranks.place.rank // 2], "of the last": 1}
        if ranks.place.rank == 3:
            del given["of the last"]
        with pytest.raises(UsageError, match="not given the same") as caught:
            ranks.check_alike(given)
        ranks.check_alike({"expert 0": "abc"})
        return caught.value.items

    assert by_several(4, work) == [("data", "of the last")] * 4
    Ranks().check_alike({"anything": object()})  # alone, nothing is looked at
