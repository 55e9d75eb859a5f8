"""Models of any size: what searching, evaluating and writing them takes, beside this machine's disk and memory.

    python examples/benchmarks/large.py --folder /data/large [--row fits|memory|streamed] [--keep]

Makes four experts of three billion parameters in bfloat16, 24 GB, in the folder, and removes them afterwards. Each row
of the table is measured by a file of its own, named in `ROWS`; each command is a process of its own, whose peak is its
largest resident set. Files are cold: dropped from the page cache before each command.
"""

import argparse
import json
import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from llama import Shape, write_experts, write_spec, write_texts
from measure import machine, write

RESULTS = Path(__file__).parent / "results" / "large.json"
# A row's name -> the module beside this file that measures it, by `measure(folder, shape) -> figures`.
ROWS = {"fits": "large_fits", "memory": "large_memory", "streamed": "large_streamed"}
SHAPE = Shape(hidden=3072, inner=8192, layers=28, heads=24, key_heads=8)
N_EXPERTS = 4


def make_world(folder: Path, shape: Shape) -> None:
    """Write the experts, texts of 16 tokens, and a spec, unless they are there."""
    if not (folder / "glue.yaml").exists():
        experts = write_experts(folder, shape, N_EXPERTS)
        write_texts(folder / "texts", 64, 16)
        write_spec(folder / "glue.yaml", experts[0], folder / "texts", n_train=16, n_val=8, batch_size=4)


def drop_from_cache(folder: Path) -> None:
    """Let the page cache forget the experts."""
    os.sync()
    for path in folder.glob("expert-*/*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="with room for 31 GB")
    parser.add_argument("--row", choices=ROWS, action="append", help="by default all")
    parser.add_argument("--layers", type=int, default=SHAPE.layers, help="fewer make a smaller model")
    parser.add_argument("--keep", action="store_true", help="leave the experts there")
    options = parser.parse_args()
    shape = Shape(SHAPE.hidden, SHAPE.inner, options.layers, SHAPE.heads, SHAPE.key_heads)
    options.folder.mkdir(parents=True, exist_ok=True)
    make_world(options.folder, shape)
    known: dict[str, Any] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    for row in options.row or ROWS:
        figures = import_module(ROWS[row]).measure(options.folder, shape)
        known[row] = {"machine": machine(), **figures}
        write(RESULTS, {"rows": known})
    if not options.keep:
        for k in range(N_EXPERTS):
            shutil.rmtree(options.folder / f"expert-{k}")
        (options.folder / "glue.yaml").unlink()


if __name__ == "__main__":
    main()
