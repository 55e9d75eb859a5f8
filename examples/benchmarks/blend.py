"""Blend checkpoints file to file: glue against mergekit-pytorch and the usual Python sum, as whole processes.

    python examples/benchmarks/blend.py [--runs 5] [--folder runs/benchmarks] [--parts warm cold ...]

Each part of the results is measured by itself; everything in a part runs in turn, and medians are printed:

- warm: 8 float32 checkpoints of 400 MB in the system's cache; mergekit is installed into an environment of its own
- cold: 3 bfloat16 checkpoints of 2 GB that are not in the cache, with sha256 and without
- growth: 8 and 32 of the checkpoints of 400 MB
- shapes: the memory for a tensor of 4 GB and for 100,000 small ones
- disk: the time on a disk that is slowed on purpose

Needs 32 GB of disk.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import Finished, compare, machine, show, spread, write

RESULT = Path(__file__).parent / "results" / "blend.json"
N_TENSORS, SIDE = 24, 2048  # 24 matrices of 2048 x 2048, 403 MB

GLUE = [sys.executable, "-m", "glue_cli", "mix", "--method", "uniform", "--force", "--quiet"]

MAKE = """
import sys, torch
from pathlib import Path
from glue_cli.checkpoints.tensors import write_checkpoint
folder, count, n, side = Path(sys.argv[1]), *map(int, sys.argv[2:])
for k in range(count):
    path = folder / f"expert-{k:02d}.safetensors"
    if not path.exists():
        draws = torch.Generator().manual_seed(k)
        write_checkpoint(path, {f"layers.{i}.weight": torch.randn(side, side, generator=draws) for i in range(n)}, {})
"""

N_COLD = 3
MAKE_COLD = """
import sys, torch
from pathlib import Path
from glue_cli.checkpoints.tensors import write_checkpoint
for k in range(int(sys.argv[2])):
    path = Path(sys.argv[1]) / f"cold-{k}.safetensors"
    if not path.exists():
        draws = torch.Generator().manual_seed(k)
        shape = 4096, 4096
        tensors = {f"layers.{i}.weight": torch.randn(shape, generator=draws).bfloat16() for i in range(60)}
        write_checkpoint(path, tensors, {})
"""

# One tensor of 4 GB, or 100,000 of 64 bytes, in the usual order or in any: zeros but for each tensor's first number,
# which differs between experts. The large files take no room.
MAKE_SHAPES = """
import random, struct, sys
from pathlib import Path
from glue_cli.checkpoints.safetensors_file import header_of, metadata_of, lay_out
folder, order, count, n, side = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
for k in range(count):
    path = folder / f"{n}-of-{side}-{order}-{k:02d}.safetensors"
    entries = lay_out((f"layers.{i // 10}.{i % 10}.weight", "F32", (side, side)) for i in range(n))
    if order == "shuffled":
        places = random.Random(k).sample([entry.offset for entry in entries], n)
        entries = [entry._replace(offset=offset) for entry, offset in zip(entries, places, strict=True)]
    header = header_of(entries, metadata_of({}))
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + n * side * side * 4)
        for entry in entries:
            file.seek(len(header) + entry.offset)
            file.write(struct.pack("<f", k + 1))
"""

# A disk on which every read takes 5 ms and 1 s for 500 MB, whoever else reads; writes down how long all reads took.
SLOWED = """
import sys, time
from pathlib import Path
import glue_cli.blend.to_files as blend
from glue_cli.cli.app import main
read, waited = blend.read_into, []
def slowly(descriptor, buffer, offset, path):
    waited.append(0.005 + len(buffer) / 500e6)
    time.sleep(waited[-1])
    read(descriptor, buffer, offset, path)
blend.read_into = slowly
code = main(sys.argv[2:])
Path(sys.argv[1]).write_text(str(sum(waited)))
sys.exit(code)
"""

PYTHON_SUM = """
import sys
from safetensors.torch import load_file, save_file
*experts, output = sys.argv[1:]
total = {}
for expert in experts:
    for name, tensor in load_file(expert).items():
        total[name] = total[name].add_(tensor, alpha=1 / len(experts)) if name in total else tensor / len(experts)
save_file(total, output)
"""


def main() -> None:
    parts: dict[str, Callable[[Path, int], dict[str, Any]]] = {
        "warm": measure_warm,
        "cold": measure_cold,
        "growth": measure_growth,
        "shapes": measure_shapes,
        "disk": measure_slow_disk,
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for part in arguments.parts:
        found[part] = {"machine": machine(), "runs": arguments.runs, **parts[part](folder, arguments.runs)}
        write(RESULT, found)


def make_experts(folder: Path, count: int) -> list[str]:
    """Return float32 checkpoints of 403 MB, which are made where they are missing."""
    subprocess.run([sys.executable, "-c", MAKE, str(folder), str(count), str(N_TENSORS), str(SIDE)], check=True)
    return [str(folder / f"expert-{k:02d}.safetensors") for k in range(count)]


def measure_warm(folder: Path, n_runs: int) -> dict[str, Any]:
    """Measure a blend beside mergekit's, with everything in the system's cache."""
    experts, mergekit = make_experts(folder, 8), install_mergekit(folder)
    blends = compare(blend_commands(folder, experts, mergekit), n_runs, folder / "log.txt")
    rows = summarise(blends)
    show(
        f"8 float32 checkpoints of {4 * N_TENSORS * SIDE**2 / 1e6:.0f} MB, {n_runs} runs, medians",
        ["", "wall s", "of mergekit", "beyond import torch", "peak MiB", "above import torch"],
        [
            [name, *(f"{x:.0f}" if key.endswith("mib") else f"{x:.2f}" for key, x in r.items())]
            for name, r in rows.items()
        ],
    )
    return {"mergekit": version_of(mergekit), "rows": rows, "spreads": spreads_of(blends)}


def measure_cold(folder: Path, n_runs: int) -> dict[str, Any]:
    """Measure what sha256 cost where the experts have to come from the disk."""
    subprocess.run([sys.executable, "-c", MAKE_COLD, str(folder), str(N_COLD)], check=True)
    experts = [str(folder / f"cold-{k}.safetensors") for k in range(N_COLD)]
    glue = [*GLUE, *experts, "-o", str(folder / "blend.safetensors")]
    commands = {"glue, no hashes": [*glue, "--no-hash"], "glue": forgetting(folder, glue)}
    blends = compare(commands, n_runs, folder / "log.txt", before=lambda: forget(experts))
    pairs = zip(blends["glue"], blends["glue, no hashes"], strict=True)
    ratio = spread([with_hashes.wall_s / without.wall_s for with_hashes, without in pairs])
    spreads = spreads_of(blends)
    show(
        f"{N_COLD} bfloat16 checkpoints of {Path(experts[0]).stat().st_size / 1e9:.1f} GB, cold, medians of {n_runs}",
        ["", "wall s", "peak MiB"],
        [[n, *(f"{found[key]['median']:.2f}" for key in ("wall_s", "peak_mib"))] for n, found in spreads.items()],
    )
    print(f"with sha256 {ratio['median']:.2f} times as long, {ratio['min']:.2f} to {ratio['max']:.2f}")
    return {"spreads": spreads, "with_hashes_of_without": ratio}


def measure_growth(folder: Path, n_runs: int) -> dict[str, Any]:
    """Measure how time and memory grow with the number of experts."""
    experts = make_experts(folder, 32)
    glue = [*GLUE, "-o", str(folder / "blend.safetensors")]
    growth = {"K = 8": forgetting(folder, [*glue, *experts[:8]]), "K = 32": forgetting(folder, [*glue, *experts])}
    spreads = spreads_of(compare(growth, n_runs, folder / "log.txt"))
    show(
        f"Growth with the number of experts, medians of {n_runs}",
        ["", "wall s", "peak MiB"],
        [[n, f"{s['wall_s']['median']:.2f}", f"{s['peak_mib']['median']:.0f}"] for n, s in spreads.items()],
    )
    return {"spreads": spreads}


def spreads_of(blends: Mapping[str, Sequence[Finished]]) -> dict[str, Any]:
    return {
        name: {"wall_s": spread([r.wall_s for r in runs]), "peak_mib": spread([r.peak_mib for r in runs])}
        for name, runs in blends.items()
    }


def forget(files: Sequence[str]) -> None:
    """Drop files from the system's cache."""
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_shapes(folder: Path, n_runs: int) -> dict[str, Any]:
    """Measure the memory for extreme shapes, above that of a bare `import torch`."""
    commands = {"import torch": [sys.executable, "-c", "import torch"]}
    for name, order, count, n, side in (
        ("2 x one tensor of 4 GB", "sorted", 2, 1, 32_768),
        ("2 x 100,000 tensors", "sorted", 2, 100_000, 4),
        ("32 x 100,000 tensors", "sorted", 32, 100_000, 4),
        ("8 x 100,000 tensors in 8 orders", "shuffled", 8, 100_000, 4),
    ):
        sizes = (str(number) for number in (count, n, side))
        subprocess.run([sys.executable, "-c", MAKE_SHAPES, str(folder), order, *sizes], check=True)
        experts = [str(folder / f"{n}-of-{side}-{order}-{k:02d}.safetensors") for k in range(count)]
        commands[name] = [*GLUE, *experts, "-o", str(folder / "shapes.safetensors")]
    found = compare(commands, n_runs, folder / "log.txt")
    base = found.pop("import torch")
    rows = {
        name: {
            "wall_s": spread([r.wall_s for r in runs]),
            "above_import_torch_mib": spread([r.peak_mib - b.peak_mib for r, b in zip(runs, base, strict=True)]),
        }
        for name, runs in found.items()
    }
    show(
        f"Memory for extreme shapes, --memory 192MiB, medians of {n_runs}",
        ["", "wall s", "MiB above import torch"],
        [
            [name, f"{row['wall_s']['median']:.1f}", f"{row['above_import_torch_mib']['median']:.0f}"]
            for name, row in rows.items()
        ],
    )
    return {"spreads": rows}


def measure_slow_disk(folder: Path, n_runs: int) -> dict[str, Any]:
    """Measure how much of a slow disk's waiting is overlapped: with one reader after the other it would add up."""
    experts = make_experts(folder, 4)
    waited = folder / "waited.txt"
    command = [sys.executable, "-c", SLOWED, str(waited), *GLUE[3:], "--no-hash", *experts]
    command += ["-o", str(folder / "blend.safetensors")]
    start = [sys.executable, "-c", "import torch"]
    found = compare({"start": start, "slowed": command}, n_runs, folder / "log.txt")
    wall_s = spread([r.wall_s - b.wall_s for r, b in zip(found["slowed"], found["start"], strict=True)])
    waited_s = float(waited.read_text())
    show(
        f"4 checkpoints from a disk of 500 MB/s and 5 ms a read, medians of {n_runs}",
        ["beyond import torch s", "all reads together s"],
        [[f"{wall_s['median']:.2f}", f"{waited_s:.2f}"]],
    )
    return {"beyond_import_torch_s": wall_s, "all_reads_s": waited_s}


def blend_commands(folder: Path, experts: list[str], mergekit: Path) -> dict[str, list[str]]:
    """Return what is compared: each command blends the same experts with equal weights."""
    recipe = folder / "recipe.yaml"
    models = [{"model": expert, "parameters": {"weight": 1 / len(experts)}} for expert in experts]
    linear = {"merge_method": "linear", "parameters": {"normalize": False}, "dtype": "float32", "models": models}
    recipe.write_text(json.dumps(linear))
    out = str(folder / "blend.safetensors")
    remembering = ["env", f"XDG_CACHE_HOME={folder / 'remembered'}"]
    return {
        "import torch": [sys.executable, "-c", "import torch"],
        "glue, no hashes": [*GLUE, "--no-hash", *experts, "-o", out],
        "glue": forgetting(folder, [*GLUE, *experts, "-o", out]),
        "glue, hashes remembered": [*remembering, *GLUE, *experts, "-o", out],
        "mergekit-pytorch": [str(mergekit), str(recipe), str(folder / "mergekit")],
        "python sum": [sys.executable, "-c", PYTHON_SUM, *experts, str(folder / "sum.safetensors")],
    }


def forgetting(folder: Path, command: Sequence[str]) -> list[str]:
    """Return a command with an empty cache of digests."""
    return ["sh", "-c", 'rm -rf "$0"; XDG_CACHE_HOME="$0" exec "$@"', str(folder / "forgotten"), *command]


def version_of(mergekit: Path) -> str:
    code = "from importlib.metadata import version; print(version('mergekit'))"
    command = [str(mergekit.parent / "python"), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def install_mergekit(folder: Path) -> Path:
    """Return mergekit-pytorch, from an environment of its own with the torch that glue has."""
    environment = folder / "mergekit-env"
    program = environment / "bin" / "mergekit-pytorch"
    if not program.exists():
        import torch

        pin = f"torch=={torch.__version__.partition('+')[0]}"
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pip = [str(environment / "bin" / "pip"), "install", "--quiet"]
        subprocess.run([*pip, pin], check=True)
        subprocess.run([*pip, pin, "mergekit==0.1.5"], check=True)
    return program


def summarise(found: dict[str, list[Finished]]) -> dict[str, dict[str, float]]:
    """Return medians, and ratios to mergekit taken run by run."""
    base = found["import torch"]
    peer = found["mergekit-pytorch"]
    rows: dict[str, dict[str, float]] = {}
    for name, runs in found.items():
        ratio = statistics.median(r.wall_s / p.wall_s for r, p in zip(runs, peer, strict=True))
        beyond = statistics.median(
            (r.wall_s - b.wall_s) / (p.wall_s - b.wall_s) for r, p, b in zip(runs, peer, base, strict=True)
        )
        above = statistics.median(r.peak_mib - b.peak_mib for r, b in zip(runs, base, strict=True))
        rows[name] = {
            "wall_s": statistics.median(r.wall_s for r in runs),
            "of_mergekit": ratio,
            "beyond_import_torch_of_mergekit": beyond,
            "peak_mib": statistics.median(r.peak_mib for r in runs),
            "above_import_torch_mib": above,
        }
    return rows


if __name__ == "__main__":
    main()
