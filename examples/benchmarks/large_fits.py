"""A row of large.py: streamed experts beside the same in memory, where both are possible, with a warm cache.

Experts of a tenth of the parameters; three steps of Gauss-Newton each after a first one, and a whole search from the
command line.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from llama import Shape, write_experts, write_spec, write_texts
from measure import run, show

STEPS = 3
SHAPE = Shape(hidden=2048, inner=5632, layers=4, heads=16, key_heads=4)


def measure(folder: Path, shape: Shape) -> dict[str, Any]:
    """Measure with `SHAPE`, whatever the other rows' shape is."""
    folder, log = folder / "fits", folder / "log.txt"
    experts = write_experts(folder, SHAPE, 4)
    write_texts(folder / "texts", 64, 16)
    write_spec(folder / "glue.yaml", experts[0], folder / "texts", n_train=16, n_val=8, batch_size=4)
    found: dict[str, Any] = {"parameters": SHAPE.n_parameters, "steps": {}}
    for precision in ("fp32", "bf16"):
        for bank in ("device", "streamed"):
            run([sys.executable, __file__, str(folder), precision, bank, str(folder / "steps.json")], log)
            found["steps"][f"{bank}, {precision}"] = json.loads((folder / "steps.json").read_text())
    found["same_outputs"] = found["steps"]["streamed, fp32"]["sums"] == found["steps"]["device, fp32"]["sums"]
    alphas = {}
    for bank in ("device", "streamed"):
        options = ["--budget", "20", "--bank", bank, "--precision", "fp32", "--no-hash", "--force", "--json"]
        command = [sys.executable, "-m", "glue_cli", "mix", "--method", "spsa", *map(str, experts), *options]
        answer = folder / f"{bank}.json"
        run([*command, "--spec", str(folder / "glue.yaml"), "-o", str(folder / "prior")], answer)
        alphas[bank] = next(line for line in answer.read_text().splitlines() if line.startswith("{"))
        answer.unlink()
    found["alpha"] = {bank: json.loads(line)["alpha"] for bank, line in alphas.items()}
    found["same_alpha"] = found["alpha"]["device"] == found["alpha"]["streamed"]
    fastest = {name: min(steps["step_s"]) for name, steps in found["steps"].items()}
    found["streamed_of_resident"] = {p: fastest[f"streamed, {p}"] / fastest[f"device, {p}"] for p in ("fp32", "bf16")}
    rows = [
        [p, f"{fastest[f'device, {p}']:.2f}", f"{fastest[f'streamed, {p}']:.2f}", f"{ratio:.2f}"]
        for p, ratio in found["streamed_of_resident"].items()
    ]
    title = f"A step over four experts of {SHAPE.n_parameters / 1e9:.2f} billion parameters, bfloat16, warm"
    show(title, ["", "in memory, s", "streamed, s", "ratio"], rows)
    return found


def time_steps(folder: Path, precision: Any, kept: str) -> dict[str, Any]:
    """Time steps after a first one, and sum up their outputs."""
    import torch
    from large_blends import read_world, resident_blends, streamed_blends

    world = read_world(folder)
    blends = streamed_blends(world, precision, 4 << 30) if kept == "streamed" else resident_blends(world, precision)
    alpha = torch.full((1, 4), 0.25, dtype=torch.float64)
    seconds, sums = [], []
    for step in range(STEPS + 1):
        began = time.perf_counter()
        found = [outputs.double() for outputs in blends.towards(alpha, torch.arange(4), 0.1, world.batch, step)]
        seconds.append(time.perf_counter() - began)
        sums.append([outputs.sum().item() for outputs in found])
    return {"step_s": seconds[1:], "sums": sums}


if __name__ == "__main__":
    Path(sys.argv[4]).write_text(json.dumps(time_steps(Path(sys.argv[1]), sys.argv[2], sys.argv[3])))
