"""A row of large.py: steps of a search whose experts are streamed from a cold disk, then evaluating and writing.

A step of Gauss-Newton makes five forwards of four texts of 16 tokens. Beside it: reading all four files once, and the
same forwards with the blends in memory, timed on models of one and of three layers, from which those of the whole one
follow: each further layer takes the same time.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from llama import Shape
from measure import run, show

STEPS = 2


def measure(folder: Path, shape: Shape) -> dict[str, Any]:
    from large import drop_from_cache

    log, found = folder / "log.txt", folder / "steps.json"
    drop_from_cache(folder)
    steps = run([sys.executable, __file__, str(folder), str(found)], log)
    figures: dict[str, Any] = {"parameters": shape.n_parameters, **json.loads(found.read_text())}
    figures["peak_gib"] = {"steps": steps.peak_mib / 1024}
    figures["wall_s"] = {}
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
    bound = max(figures["read_s"], figures["forwards_s"])
    figures["step_of_bound"] = min(figures["step_s"]) / bound
    show(
        f"Four experts of {shape.n_parameters / 1e9:.2f} billion parameters, bfloat16, cold",
        ["", "wall s", "peak GiB"],
        [
            ["a step, the faster of two", f"{min(figures['step_s']):.1f}", f"{figures['peak_gib']['steps']:.2f}"],
            ["reading the files once", f"{figures['read_s']:.1f}", ""],
            ["its five forwards in memory", f"{figures['forwards_s']:.1f}", ""],
            *([name, f"{figures['wall_s'][name]:.1f}", f"{figures['peak_gib'][name]:.2f}"] for name in commands),
        ],
    )
    return figures


def time_steps(folder: Path) -> dict[str, Any]:
    """Time steps with streamed experts, and what bounds them."""
    import torch
    from large import drop_from_cache

    from glue_cli.blend.recipe import PLAIN
    from glue_cli.checkpoints.read import read_checkpoint
    from glue_cli.models import build_model
    from glue_cli.models.weights import check_fits_model
    from glue_cli.running.device import Compute
    from glue_cli.search.bank.load import usable_memory
    from glue_cli.search.bank.renamed_experts import rename_experts
    from glue_cli.search.streamed.blends import StreamedBlends
    from glue_cli.search.streamed.engine import Engine
    from glue_cli.spec.yaml_file import read_spec

    spec = read_spec(folder / "glue.yaml", [])
    checkpoints = [read_checkpoint(folder / f"expert-{k}") for k in range(4)]
    model = build_model(spec.model.arch, spec.model_args, seed=0, weightless=True).eval().requires_grad_(False)
    experts = rename_experts(checkpoints, PLAIN, check_fits_model(model, checkpoints[0], spec))
    device = torch.device("cpu")
    engine = Engine(
        model, experts, (), device, n_groups=1, channels_last=False, memory_bytes=min(6 << 30, usable_memory(device))
    )
    blends = StreamedBlends(model, engine, Compute(device), seed=0)
    tokens = torch.randint(1, 1000, (4, 16), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, tokens
    alpha = torch.full((1, 4), 0.25, dtype=torch.float64)
    step_s, waited_s = [], []
    for step in range(STEPS):
        began, waited = time.perf_counter(), engine.waited_s
        for _ in blends.towards(alpha, torch.arange(4), 0.1, batch, step):
            pass
        step_s.append(time.perf_counter() - began)
        waited_s.append(engine.waited_s - waited)
    engine.close()
    drop_from_cache(folder)
    return {
        "step_s": step_s,
        "waited_s": waited_s,
        "read_s": time_reading(checkpoints),
        "forwards_s": time_forwards(spec, batch),
    }


def time_reading(checkpoints: Any) -> float:
    """Return the seconds of reading every file once, 64 MiB at a time, four files at once."""
    from concurrent.futures import ThreadPoolExecutor

    def read(checkpoint: Any) -> None:
        buffer = bytearray(64 << 20)
        with open(checkpoint.files[0], "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    began = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, checkpoints))
    return time.perf_counter() - began


def time_forwards(spec: Any, batch: Any) -> float:
    """Return the seconds of five forwards of the whole model in memory, from those of one and of three layers."""
    import torch

    from glue_cli.models import build_model
    from glue_cli.running.forward import outputs_of

    seconds = {}
    config = json.loads((Path(spec.model_args["path"]) / "config.json").read_text())
    for layers in (1, 3):
        args = {**spec.model_args, "num_hidden_layers": layers}
        model = build_model(spec.model.arch, args, seed=0).eval()
        runs = []
        with torch.no_grad():
            for _ in range(3):
                began = time.perf_counter()
                outputs_of(model, batch[0])
                runs.append(time.perf_counter() - began)
        seconds[layers] = min(runs)
    by_layer = (seconds[3] - seconds[1]) / 2
    return 5 * (seconds[1] + by_layer * (config["num_hidden_layers"] - 1))


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(time_steps(Path(sys.argv[1]))))
