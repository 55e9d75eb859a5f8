"""A row of large.py: steps of a search whose experts are streamed from a cold disk, then evaluating and writing.

A step of Gauss-Newton makes five forwards of a minibatch of texts, in float32 and in bfloat16: of 1,024 tokens, and
of so few (64) that hardly anything hides the reading and blending. Beside it: reading all four files once, and, after
each step, the same forwards with the blends in memory, so that a machine that drifts hits both alike. These are timed
on models of one and of three layers, from which those of the whole one follow: each further layer takes the same time.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from llama import Shape
from measure import run, show

STEPS = 3
FORWARDS = 3  # of each model, after each step
MINIBATCHES = ((16, 64), (4, 16))  # texts and tokens of each


def measure(folder: Path, shape: Shape) -> dict[str, Any]:
    from large import drop_from_cache

    log, found = folder / "log.txt", folder / "steps.json"
    figures: dict[str, Any] = {"parameters": shape.n_parameters, "steps": {}, "wall_s": {}, "peak_gib": {}}
    for n_texts, n_tokens in MINIBATCHES:
        for precision in ("fp32", "bf16"):
            drop_from_cache(folder)
            run([sys.executable, __file__, str(folder), precision, str(n_texts), str(n_tokens), str(found)], log)
            figures["steps"][f"{precision}, {n_texts * n_tokens} tokens"] = json.loads(found.read_text())
    figures["read_s"] = min(steps["read_s"] for steps in figures["steps"].values())
    for steps in figures["steps"].values():
        bounds = [max(figures["read_s"], forwards) for forwards in steps["forwards_s"]]
        steps["of_bound"] = [step / bound for step, bound in zip(steps["step_s"], bounds, strict=True)]
    glue = [sys.executable, "-m", "glue_cli"]
    experts = [str(folder / f"expert-{k}") for k in range(4)]
    spec = ["--spec", str(folder / "glue.yaml")]
    blend = str(folder / "prior")
    commands = {
        "mix": [*glue, "mix", *experts, "--alpha", "0.4,0.3,0.2,0.1", "--no-hash", "-o", blend, "--force"],
        "evaluate": [*glue, "evaluate", blend, *spec, "--split", "val", "--precision", "fp32"],
    }
    for name, command in commands.items():
        drop_from_cache(folder)
        finished = run(command, log)
        figures["peak_gib"][name], figures["wall_s"][name] = finished.peak_mib / 1024, finished.wall_s
    rows = []
    for how, steps in figures["steps"].items():
        step, forwards, of_bound = (statistics.median(steps[key]) for key in ("step_s", "forwards_s", "of_bound"))
        rows.append([f"a step in {how}", f"{step:.1f}", f"{steps['peak_gib']:.2f}"])
        rows.append(["its five forwards in memory", f"{forwards:.1f}", ""])
        rows.append(["of the larger of reading and forwards", f"{of_bound:.2f} times", ""])
    rows.append(["reading the files once", f"{figures['read_s']:.1f}", ""])
    rows += [[name, f"{figures['wall_s'][name]:.1f}", f"{figures['peak_gib'][name]:.2f}"] for name in commands]
    title = f"Four experts of {shape.n_parameters / 1e9:.2f} billion parameters, bfloat16, cold"
    show(title, ["", "wall s", "peak GiB"], rows)
    return figures


def time_steps(folder: Path, precision: Any, texts: tuple[int, int]) -> dict[str, Any]:
    """Time steps with streamed experts, and what bounds them.

    Returns:
        the seconds of each step; of these, those of blending and of waiting for the disk; its CPU time; the seconds
        of the same forwards in memory, timed after it; and the process's largest resident set in the first step.
    """
    import torch
    from large import drop_from_cache
    from large_blends import read_world, streamed_blends

    from glue_cli.search.bank.load import usable_memory

    world = read_world(folder, texts)
    memory_bytes = min(6 << 30, usable_memory(torch.device("cpu")))
    blends = streamed_blends(world, precision, memory_bytes)
    alpha = torch.full((1, 4), 0.25, dtype=torch.float64)
    found: dict[str, list[float]] = {"step_s": [], "cpu_s": [], "blending_s": [], "waited_s": [], "forwards_s": []}
    peak_gib, forwards_s = 0.0, None
    for step in range(STEPS):
        waited, spent = blends.waited_s, time.process_time()
        with timed_blending() as blending:
            began = time.perf_counter()
            for _ in blends.towards(alpha, torch.arange(4), 0.1, world.batch, step):
                pass
            found["step_s"].append(time.perf_counter() - began)
        found["cpu_s"].append(time.process_time() - spent)
        found["blending_s"].append(sum(blending))
        found["waited_s"].append(blends.waited_s - waited)
        if forwards_s is None:  # their models would count
            peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
            forwards_s = forwards_in_memory(world.spec, world.batch, precision)
        found["forwards_s"].append(forwards_s())
    drop_from_cache(folder)
    return {
        **found,
        "peak_gib": peak_gib,
        "read_s": time_reading(world.checkpoints),
    }


@contextmanager
def timed_blending() -> Iterator[list[float]]:
    """Yield a list that gets the seconds of blending each block."""
    from glue_cli.search.points import make_blends
    from glue_cli.search.streamed import blender

    seconds: list[float] = []

    def timed(*arguments: Any) -> None:
        began = time.perf_counter()
        make_blends(*arguments)
        seconds.append(time.perf_counter() - began)

    with patch.object(blender, "make_blends", timed):
        yield seconds


def time_reading(checkpoints: Any) -> float:
    """Return the seconds of reading every file once, past the page cache, 64 MiB at a time, four files at once."""
    from concurrent.futures import ThreadPoolExecutor

    from glue_cli.checkpoints.files import open_file, read_pages
    from glue_cli.checkpoints.tensors import bytes_of
    from glue_cli.foundation.large_pages import empty_bytes

    def read(checkpoint: Any) -> None:
        part = 64 << 20
        buffer = empty_bytes(part)
        with open_file(checkpoint, 0) as descriptor:
            n_bytes = checkpoint.files[0].stat().st_size
            for start in range(0, n_bytes, part):
                n_needed = min(part, n_bytes - start)
                read_pages(descriptor, bytes_of(buffer), start, n_needed, checkpoint.files[0], past_cache=True)

    began = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, checkpoints))
    return time.perf_counter() - began


def forwards_in_memory(spec: Any, batch: Any, precision: Any) -> Callable[[], float]:
    """Return what times five forwards of the whole model in memory, by the mean of those of one and of three layers.

    In bfloat16, its weights are rounded once and for all.
    """
    import torch

    from glue_cli.models import build_model
    from glue_cli.running.device import Compute
    from glue_cli.running.forward import outputs_of

    config = json.loads((Path(spec.model_args["path"]) / "config.json").read_text())
    compute = Compute(torch.device("cpu"), precision)

    def make(layers: int) -> torch.nn.Module:
        model = build_model(spec.model.arch, {**spec.model_args, "num_hidden_layers": layers}, seed=0).eval()
        for module in model.modules():
            if precision == "bf16" and type(module) is torch.nn.Linear:
                module.to(torch.bfloat16)
        return model

    @torch.no_grad()
    def seconds(model: torch.nn.Module) -> float:
        began = time.perf_counter()
        with compute.autocast():
            outputs_of(model, batch[0])
        return time.perf_counter() - began

    small, large = make(1), make(3)
    seconds(small), seconds(large)  # the first are slower

    def timed() -> float:
        pairs = [(seconds(small), seconds(large)) for _ in range(FORWARDS)]
        one, three = (statistics.mean(times) for times in zip(*pairs, strict=True))
        return 5 * (one + (three - one) / 2 * (config["num_hidden_layers"] - 1))

    return timed


if __name__ == "__main__":
    _, where, precision, n_texts, n_tokens, output = sys.argv
    Path(output).write_text(json.dumps(time_steps(Path(where), precision, (int(n_texts), int(n_tokens)))))
