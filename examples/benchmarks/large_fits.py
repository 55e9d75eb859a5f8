"""A row of large.py: blends by block, of experts held in memory and streamed, beside whole ones, with a warm cache.

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
BANKS = ("device", "blocks", "streamed")
SHAPE = Shape(hidden=2048, inner=5632, layers=4, heads=16, key_heads=4)


def measure(folder: Path, shape: Shape) -> dict[str, Any]:
    """Measure with `SHAPE`, whatever the other rows' shape is."""
    folder, log = folder / "fits", folder / "log.txt"
    experts = write_experts(folder, SHAPE, 4)
    write_texts(folder / "texts", 64, 16)
    write_spec(folder / "glue.yaml", experts[0], folder / "texts", n_train=16, n_val=8, batch_size=4)
    found: dict[str, Any] = {"parameters": SHAPE.n_parameters, "steps": {}}
    for precision in ("fp32", "bf16"):
        for bank in BANKS:
            run([sys.executable, __file__, str(folder), precision, bank, str(folder / "steps.json")], log)
            found["steps"][f"{bank}, {precision}"] = json.loads((folder / "steps.json").read_text())
    sums = {bank: found["steps"][f"{bank}, fp32"]["sums"] for bank in BANKS}
    found["same_outputs"] = {bank: each == sums["device"] for bank, each in sums.items()}
    alphas = {}
    for bank in BANKS:
        options = ["--budget", "20", "--bank", bank, "--precision", "fp32", "--no-hash", "--force", "--json"]
        command = [sys.executable, "-m", "glue_cli", "mix", "--method", "spsa", *map(str, experts), *options]
        answer = folder / f"{bank}.json"
        run([*command, "--spec", str(folder / "glue.yaml"), "-o", str(folder / "prior")], answer)
        alphas[bank] = next(line for line in answer.read_text().splitlines() if line.startswith("{"))
        answer.unlink()
    found["alpha"] = {bank: json.loads(line)["alpha"] for bank, line in alphas.items()}
    found["same_alpha"] = {bank: alpha == found["alpha"]["device"] for bank, alpha in found["alpha"].items()}
    fastest = {name: min(steps["step_s"]) for name, steps in found["steps"].items()}
    found["of_whole_blends"] = {
        bank: {p: fastest[f"{bank}, {p}"] / fastest[f"device, {p}"] for p in ("fp32", "bf16")} for bank in BANKS
    }
    rows = [
        [f"{bank}, {p}", f"{fastest[f'{bank}, {p}']:.2f}", f"{ratio:.2f}"]
        for bank, ratios in found["of_whole_blends"].items()
        for p, ratio in ratios.items()
    ]
    title = f"A step over four experts of {SHAPE.n_parameters / 1e9:.2f} billion parameters, bfloat16, warm"
    show(title, ["", "s", "of whole blends"], rows)
    return found


def time_steps(folder: Path, precision: Any, kept: str) -> dict[str, Any]:
    """Time steps after a first one, and sum up their outputs."""
    import torch
    from large_blends import read_world, resident_blends, streamed_blends

    world = read_world(folder)
    blends: Any
    if kept == "device":
        blends = resident_blends(world, precision)
    else:
        blends = streamed_blends(world, precision, 4 << 30, is_held=kept == "blocks")
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
