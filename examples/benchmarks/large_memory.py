"""A row of large.py: the peak memory of a search whose experts are in memory, beyond the experts themselves.

Four experts in bfloat16, of 0.09 and of 0.23 billion parameters with the same vocabulary: what the larger ones take
beyond the smaller ones depends on the model's size; libraries, and the outputs of the forwards, take as much for both.
"""

import sys
from pathlib import Path
from typing import Any

from llama import Shape, write_experts, write_spec, write_texts
from measure import run, show

SHAPE = Shape(hidden=1024, inner=2816, layers=15, heads=16, key_heads=4)
SMALLER = Shape(hidden=768, inner=2048, layers=7, heads=12, key_heads=4)  # large enough that blends are compiled
N_EXPERTS = 4
WANTED = {"fp32": 8, "bf16": 4}  # bytes a parameter at most
BANKS = ("blocks", "device")  # a block of the blends at a time, and whole ones


def measure(folder: Path, shape: Shape) -> dict[str, Any]:
    """Measure with `SHAPE`, whatever the other rows' shape is."""
    log, peaks = folder / "log.txt", dict[str, dict[str, dict[str, float]]]()
    for name, size in (("smaller", SMALLER), ("experts", SHAPE)):
        world = folder / "memory" / name
        experts = write_experts(world, size, N_EXPERTS)
        write_texts(world / "texts", 64, 16)
        write_spec(world / "glue.yaml", experts[0], world / "texts", n_train=16, n_val=8, batch_size=4)
        search = [sys.executable, "-m", "glue_cli", "mix", "--method", "spsa", *map(str, experts), "--budget", "20"]
        search += ["--spec", str(world / "glue.yaml"), "--no-hash", "--force", "-o", str(world / "prior")]
        peaks[name] = {
            bank: {p: run([*search, "--bank", bank, "--precision", p], log).peak_mib for p in WANTED} for bank in BANKS
        }
    n_more = SHAPE.n_parameters - SMALLER.n_parameters
    beyond = {
        bank: {
            p: (peaks["experts"][bank][p] - peaks["smaller"][bank][p]) * (1 << 20) / n_more - 2 * N_EXPERTS
            for p in WANTED
        }
        for bank in BANKS
    }
    rows = [
        [f"{bank}, {p}", *(f"{peaks[name][bank][p]:.0f}" for name in ("experts", "smaller")), f"{beyond[bank][p]:.1f}"]
        + [f"{WANTED[p]}"]
        for bank in BANKS
        for p in WANTED
    ]
    title = f"A search over four experts of {SHAPE.n_parameters / 1e9:.2f} billion parameters, bfloat16, in memory"
    columns = ["", "peak MiB", "of smaller ones", "bytes a parameter beyond the experts", "at most"]
    show(title, columns, rows)
    n_parameters = {"smaller": SMALLER.n_parameters, "experts": SHAPE.n_parameters}
    return {"parameters": n_parameters, "peak_mib": peaks, "beyond_bytes": beyond}
