"""A mixing step by two processes on one thread each, against one of them alone.

    torchrun --standalone --nproc-per-node 2 examples/benchmarks/ranks.py [--rounds 5] [--precision fp32] [--net NAME]

Alone and together take turns within the same two processes, so that a drifting machine hits both alike; ratios are
those of neighbouring rounds, and those of the fastest of each, which a busy machine disturbs least. A step of
Gauss-Newton towards K = 5 experts has five forwards on 64 examples, one of SPSA two. What the machine allows at most
is measured as well: both processes do a whole step at once, on their own. Also timed are the terms that a model for
many GPUs is made of: a forward, a blend of two, and an exchange.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as glue does, and before torch is imported
import torch
from measure import machine, show, spread, write
from step import BATCH, NETS, RESULTS, set_up
from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.ranks import Place, Ranks, place_of
from glue_cli.running.timing import Precision
from glue_cli.search.leading import LedObjective, answers_of, dismiss, follow
from glue_cli.search.objective import BlendObjective
from glue_cli.search.sharing import Sharing

CPU = torch.device("cpu")
K = 5
UNIFORM = torch.full((1, K), 1 / K, dtype=torch.float64)
N_EXCHANGES = 50
N_SLICES, N_CLASSES = 64, 10  # of the model
WITH_BATCHNORM = ("ResNet", "MobileNet")

Step = Callable[[BlendObjective | LedObjective], object]
STEPS: dict[str, tuple[Statistics, Step]] = {
    "Gauss-Newton": ("averaged", lambda objective: objective.quadratic(UNIFORM, torch.arange(1, K), 0.03, 0)),
    "SPSA": ("averaged", lambda objective: objective.probe_losses(torch.stack([UNIFORM, UNIFORM]), 0)),
    "Gauss-Newton, BatchNorm by batch": (
        "refreshed",
        lambda objective: objective.quadratic(UNIFORM, torch.arange(1, K), 0.03, 0),
    ),
    "SPSA, BatchNorm by batch": (
        "refreshed",
        lambda objective: objective.probe_losses(torch.stack([UNIFORM, UNIFORM]), 0),
    ),
}


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure_net(net: str, precision: Precision, ranks: Ranks, n_rounds: int) -> list[dict[str, Any]]:
    """Time every kind of step of a net, alone and together; the first process returns a row for each."""
    alone = set_up(net, precision, CPU, K, Sharing(Ranks(Place(is_launched=True)), is_cut=True))
    shared = set_up(net, precision, CPU, K, Sharing(ranks, is_cut=True))
    rows = []
    for name, (kind, step) in STEPS.items():
        if kind == "refreshed" and not net.startswith(WITH_BATCHNORM):
            continue
        by_one = partial(step, alone.objective.with_statistics(kind))
        found: dict[str, list[float]] = {"alone": [], "together": [], "apart": []}
        for number in range(n_rounds + 1):
            if ranks.is_first:
                by_all = partial(step, led(shared.objective, ranks, kind))
                times = {"alone": seconds(by_one), "together": seconds(by_all)}
                dismiss(ranks)
            else:
                follow(ranks, answers_of(shared.objective))
            apart = seconds_apart(by_one, ranks)
            if ranks.is_first and number:  # the first round sets up
                for key, value in (*times.items(), ("apart", apart)):
                    found[key].append(value)
        if ranks.is_first:
            ratios = [one / both for one, both in zip(found["alone"], found["together"], strict=True)]
            ceilings = [ranks.size * one / apart for one, apart in zip(found["alone"], found["apart"], strict=True)]
            milliseconds = {f"{key}_ms": spread([1000 * t for t in times]) for key, times in found.items()}
            rows.append(
                {
                    "net": net,
                    "step": name,
                    "precision": precision,
                    "ratio": spread(ratios),
                    "ratio_of_fastest": min(found["alone"]) / min(found["together"]),
                    "ceiling": spread(ceilings),
                    **milliseconds,
                }
            )
    return rows


def led(objective: BlendObjective, ranks: Ranks, kind: Statistics) -> LedObjective:
    return LedObjective(objective, ranks, "averaged").with_statistics(kind)


def seconds_apart(work: Callable[[], object], ranks: Ranks) -> float:
    """Return how long the slowest process takes for the work, while each does all of it and none waits for another."""
    ranks.gather([])
    return max(float(time) for time in ranks.gather([torch.tensor(seconds(work))]))


def measure_terms(net: str, precision: Precision) -> dict[str, Any]:
    """Time a forward on a minibatch, and a blend of two, in this process alone."""
    setting = set_up(net, precision, CPU, K)
    out = torch.empty(2, setting.bank.n_columns)
    alphas = torch.stack([UNIFORM, UNIFORM])
    works: dict[str, Callable[[], object]] = {
        "forward_ms": setting.forward,
        "blend_of_two_ms": lambda: setting.bank.blend(alphas, out),
    }
    found = {name: min(seconds(work) for _ in range(3)) for name, work in works.items()}
    return {"net": net, "columns": setting.bank.n_columns, **{name: 1000 * s for name, s in found.items()}}


def measure_exchange(ranks: Ranks) -> float:
    """Return the milliseconds of a question and its answer without any work: 64 examples' terms of five blends."""
    found: list[Tensor] = [torch.zeros(64) for _ in range(K)]
    times = []
    for _ in range(N_EXCHANGES):
        began = time.perf_counter()
        if ranks.is_first:
            ranks.tell({"question": "quadratic", "arguments": [["float64", UNIFORM.tolist()]]})
        else:
            ranks.hear()
        ranks.gather(found)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def modelled(terms: dict[str, Any], exchange_ms: float, n: int) -> dict[str, Any]:
    """Return what a step of Gauss-Newton on 64 slices of 64 examples would take n processes: a model, not measured.

    Every process makes all blends, and its share of the forwards. An exchange goes round a ring: n - 1 times what it
    takes between two. Each process gets the slopes and roots of all: 8 + 4 C bytes an example and expert, C classes.
    """
    forwards_ms = K * N_SLICES * terms["forward_ms"]
    blends_ms = (K + K) / (K + 2) * terms["blend_of_two_ms"]  # rows read and written, against those of a blend of two
    alone_ms, step_ms = blends_ms + forwards_ms, blends_ms + forwards_ms / n + exchange_ms * (n - 1)
    return {
        "net": terms["net"],
        "processes": n,
        "step_s": step_ms / 1000,
        "times_faster": alone_ms / step_ms,
        "exchanged_mb": (K - 1) * N_SLICES * BATCH * (8 + 4 * N_CLASSES) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--net", action="append", choices=list(NETS), help="one of them (repeatable); all by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ranks = Ranks(place_of(os.environ))
    ranks.start("cpu")
    exchange_ms = measure_exchange(ranks)
    rows = []
    for net in arguments.net or NETS:
        rows += measure_net(net, arguments.precision, ranks, arguments.rounds)
    if ranks.size > 1:
        torch.distributed.destroy_process_group()
    if not ranks.is_first:
        return
    terms = [measure_terms(net, arguments.precision) for net in arguments.net or NETS]
    on = f"{ranks.size} processes on a thread each, {arguments.precision}"
    show(
        f"A step by {on}; an exchange takes {exchange_ms:.2f} ms",
        ["net", "step", "alone ms", "together ms", "times faster", "least", "most", "of the fastest", "ceiling"],
        [
            [
                row["net"],
                row["step"],
                *(f"{row[key]['median']:.1f}" for key in ("alone_ms", "together_ms")),
                *(f"{row['ratio'][key]:.2f}" for key in ("median", "min", "max")),
                *(f"{row['ratio_of_fastest']:.2f}", f"{row['ceiling']['median']:.2f}"),
            ]
            for row in rows
        ],
    )
    model = [modelled(one, exchange_ms, n) for one in terms for n in (8, 64)]
    show(
        f"A model, not measured: Gauss-Newton on {N_SLICES * BATCH} examples",
        ["net", "processes", "step s", "times faster", "exchanged MB"],
        [
            [
                row["net"],
                str(row["processes"]),
                *(f"{row[key]:.2f}" for key in ("step_s", "times_faster", "exchanged_mb")),
            ]
            for row in model
        ],
    )
    result = {"machine": machine(), "processes": ranks.size, "exchange_ms": exchange_ms, "steps": rows, "terms": terms}
    result["model"] = model
    write(RESULTS / "ranks.json", result)


if __name__ == "__main__":
    main()
