"""A row of large.py: the peak memory of a search whose experts are in memory, beyond the experts themselves.

Four experts of 0.23 billion parameters in bfloat16. What does not depend on the model, such as libraries, is the peak
of the same search over tiny experts.
"""

import sys
from pathlib import Path
from typing import Any

from llama import Shape, write_experts, write_spec, write_texts
from measure import run, show

SHAPE = Shape(hidden=1024, inner=2816, layers=15, heads=16, key_heads=4)
TINY = Shape(hidden=64, inner=128, layers=2, heads=4, key_heads=2, vocabulary=2000)
N_EXPERTS = 4
WANTED = {"fp32": 8, "bf16": 4}  # bytes a parameter at most


def measure(folder: Path, shape: Shape) -> dict[str, Any]:
    """Measure with `SHAPE`, whatever the other rows' shape is."""
    log, peaks = folder / "log.txt", dict[str, dict[str, float]]()
    for name, size in (("tiny", TINY), ("experts", SHAPE)):
        world = folder / "memory" / name
        experts = write_experts(world, size, N_EXPERTS)
        write_texts(world / "texts", 64, 16)
        write_spec(world / "glue.yaml", experts[0], world / "texts", n_train=16, n_val=8, batch_size=4)
        search = [sys.executable, "-m", "glue_cli", "mix", "--method", "spsa", *map(str, experts), "--budget", "20"]
        search += ["--spec", str(world / "glue.yaml"), "--bank", "device", "--no-hash", "--force"]
        peaks[name] = {
            precision: run([*search, "--precision", precision, "-o", str(world / "prior")], log).peak_mib
            for precision in WANTED
        }
    in_experts = N_EXPERTS * 2 * SHAPE.n_parameters / (1 << 20)
    beyond = {
        precision: (peaks["experts"][precision] - peaks["tiny"][precision] - in_experts)
        * (1 << 20)
        / SHAPE.n_parameters
        for precision in WANTED
    }
    rows = [
        [
            p,
            f"{peaks['experts'][p]:.0f}",
            f"{peaks['tiny'][p]:.0f}",
            f"{in_experts:.0f}",
            f"{beyond[p]:.1f}",
            f"{WANTED[p]}",
        ]
        for p in WANTED
    ]
    title = f"A search over four experts of {SHAPE.n_parameters / 1e9:.2f} billion parameters, bfloat16, in memory"
    columns = ["", "peak MiB", "of tiny ones", "experts", "bytes a parameter beyond", "at most"]
    show(title, columns, rows)
    return {"parameters": SHAPE.n_parameters, "peak_mib": peaks, "experts_mib": in_experts, "beyond_bytes": beyond}
