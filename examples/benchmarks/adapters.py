"""A search's step over 8 LoRA adapters in factors, against PEFT's own model with one of them, and dense updates.

    python examples/benchmarks/adapters.py [--runs 5] [--folder FOLDER] [--sizes 0.25 1] [--precisions bf16 fp32]

Makes random language models in Llama's shape, in bfloat16, and adapters of rank 16 for all their linear layers. A step
is 9 forwards of 8 texts of 128 tokens, the mean of the adapters and a point towards each; 3 of them are timed. Every
row is a process of its own, whose peak is counted from after the imports.

The peak in factors is to be at most 1.15 of the base's file, and the factors of all adapters, and activations. These
are what two forwards of PEFT's model in the same precision add to what its process holds: tensors, what the library of
products keeps, and what is freed and not given back. PEFT's model is read from its file as it is used. The dense
updates are measured for the model of 0.25 billion parameters alone. Rows that are not measured stay in the results as
they are; with --runs 0 the memory alone is measured, by two forwards.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

from measure import machine, show, write

RESULT = Path(__file__).parent / "results" / "adapters.json"
K, RANK, TEXTS, TOKENS = 8, 16, 8, 128
BASES = 1.15  # that the peak may hold
TIMED = 3  # of a step's forwards: each takes as long as any other
PRECISIONS = ["bf16", "fp32"]
SHAPES = {  # billions of parameters -> Llama's shape
    "0.25": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 14, "num_attention_heads": 16},
    "1": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 17, "num_attention_heads": 32},
}
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--row", nargs=2, metavar=("WHAT", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        what, precision = arguments.row
        measure = {"peft": peft_forwards, "make": make}.get(what, glue_step)
        print(json.dumps(measure(arguments.folder, what, precision, arguments.runs)))
        return
    rows: dict[str, dict[str, Any]] = {}
    for size in arguments.sizes:
        folder = arguments.folder.resolve() / size
        if not (folder / str(K - 1)).exists():
            row(folder, "make", "bf16", 0)
        for precision in arguments.precisions:
            peft = rows[f"{size}, {precision}: PEFT with one"] = row(folder, "peft", precision, arguments.runs)
            record(arguments.runs, rows)
            for what in ["factors", "dense"] if size == "0.25" else ["factors"]:
                found = row(folder, what, precision, arguments.runs)
                if arguments.runs:
                    found["of_forwards"] = found["step_s"] / ((K + 1) * peft["forward_s"])
                found["bound_mb"] = BASES * found["base_mb"] + found["factors_mb"] + peft["activations_mb"]
                rows[f"{size}, {precision}: glue, {what}"] = found
                record(arguments.runs, rows)
    columns = ("base_mb", "factors_mb", "activations_mb", "bound_mb", "held_mb", "peak_mb")
    times = ("forward_s", "step_s", "of_forwards")
    show(
        f"{K} adapters of rank {RANK}, medians of {arguments.runs}; MB above the imports",
        ["", "base", "factors", "activations", "bound", "held", "peak", "forward s", "step s", f"of {K + 1} forwards"],
        [
            [
                name,
                *(f"{found[key]:.0f}" if key in found else "" for key in columns),
                *(f"{found[key]:.2f}" if key in found else "" for key in times),
            ]
            for name, found in rows.items()
        ],
    )


def record(n_runs: int, rows: dict[str, dict[str, Any]]) -> None:
    """Put rows into the results, with the runs that their times are medians of; without runs, earlier times stay."""
    kept: dict[str, dict[str, Any]] = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else {}
    runs = {"runs": n_runs} if n_runs else {}
    new = {name: {**kept.get(name, {}), **found, **runs} for name, found in rows.items()}
    write(RESULT, {"machine": machine(), "rows": {**kept, **new}})


def row(folder: Path, what: str, precision: str, n_runs: int) -> dict[str, Any]:
    """Return what a process of its own measures."""
    command = [sys.executable, __file__, "--folder", str(folder), "--runs", str(n_runs), "--row", what, precision]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    return found


def make(folder: Path, what: str, precision: str, n_runs: int) -> dict[str, Any]:
    """Write a random base and its adapters."""
    import torch

    transformers, peft = libraries()

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = transformers.LlamaConfig(vocab_size=32_000, tie_word_embeddings=False, **SHAPES[folder.name])
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    for k in range(K):
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LAYERS))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
        adapted.save_pretrained(folder / str(k))
        model = adapted.unload()
    return {}


def peft_forwards(folder: Path, what: str, precision: str, n_runs: int) -> dict[str, Any]:
    """Measure forwards of PEFT's model with one adapter, in its own way: all in one dtype."""
    import torch

    transformers, peft = libraries()
    before = highest_mb()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    base = transformers.LlamaForCausalLM.from_pretrained(folder / "base", dtype=dtype)
    model = peft.PeftModel.from_pretrained(base, folder / "0")
    model = model.to(dtype).eval()

    def forward() -> None:
        model(input_ids=texts(), use_cache=False)

    with torch.no_grad():
        with Watched() as memory:
            forward()
            forward()
        found = {
            "peak_mb": highest_mb() - before,
            "base_mb": megabytes(folder / "base"),
            "activations_mb": memory.added_mb,
        }
        return {**found, "forward_s": timed(forward, n_runs)} if n_runs else found


class Watched:
    """Watches how much memory of its own this process adds in a block; pages of files come and go as others need.

    Attributes:
        added_mb: the most that it had more than at the start.
    """

    added_mb = 0.0

    def __enter__(self) -> "Watched":
        self._held, self._over = status_mb("RssAnon"), Event()
        self._thread = Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.added_mb = max(self.added_mb, status_mb("RssAnon") - self._held)


def glue_step(folder: Path, what: str, precision: Any, n_runs: int) -> dict[str, Any]:
    """Measure the forwards of a step of glue's search."""
    import torch

    from glue_cli.blend.adapters.adapted_base import fit
    from glue_cli.blend.adapters.adapter import read_adapter
    from glue_cli.checkpoints.destination import Destination
    from glue_cli.checkpoints.read import read_checkpoint
    from glue_cli.foundation.run import Run
    from glue_cli.plans.mix_records import Adapters, Search
    from glue_cli.results.card import About
    from glue_cli.spec.schema import Spec
    from glue_cli.workflows.mix.adapter_experts import AdapterExperts

    _ = libraries().transformers.LlamaForCausalLM  # what is imported belongs to the start
    before = highest_mb()
    adapters = tuple(read_adapter(folder / str(k)) for k in range(K))
    adapted = fit(read_checkpoint(folder / "base"), adapters)
    nowhere = Destination(folder / "out", ((),), (folder / "out",))
    experts = AdapterExperts(
        Adapters(adapters, adapted, False), nowhere, About(None, "adapter"), search=Search(bank=what)
    )
    sections = {
        "model": {"arch": "transformers:AutoModelForCausalLM", "args": {"path": str(folder / "base")}},
        "data": {"format": "jsonl", "root": "."},
    }
    spec = Spec.model_validate(sections).located_in(folder)
    blends = experts.blends(spec, Run(device="cpu"), seed=0, n_blends=2).with_precision(precision)
    mean = torch.full((1, K), 1 / K, dtype=torch.float64)
    batch = {"input_ids": texts()}, texts()

    held = highest_mb()

    def part_of_step() -> None:
        outputs = blends.towards(mean, torch.arange(TIMED - 1), 0.1, batch, 0)
        deque(outputs, maxlen=0)  # as a search, which drops each in turn

    deque(blends.towards(mean, torch.arange(1), 0.1, batch, 0), maxlen=0)
    step_s = {"step_s": (K + 1) / TIMED * timed(part_of_step, n_runs)} if n_runs else {}
    factors_mb = sum(4 * (u.a.n_elements + u.b.n_elements) for a in adapters for u in a.updates.values()) / 1e6
    return {
        **step_s,
        "base_mb": megabytes(folder / "base"),
        "factors_mb": factors_mb,
        "held_mb": held - before,
        "peak_mb": highest_mb() - before,
    }


class Libraries(NamedTuple):
    transformers: Any
    peft: Any


def libraries() -> Libraries:
    """Import the libraries, also beside a torchvision that does not fit torch."""
    from glue_cli.foundation.imports import import_beside_torchvision

    return Libraries(import_beside_torchvision("transformers"), import_beside_torchvision("peft"))


def texts() -> Any:
    import torch

    return torch.randint(0, 32_000, (TEXTS, TOKENS), generator=torch.Generator().manual_seed(0))


def timed(work: Callable[[], object], n_runs: int) -> float:
    """Return the median time in seconds."""
    found = []
    for _ in range(n_runs):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def highest_mb() -> float:
    return status_mb("VmHWM")


def status_mb(name: str) -> float:
    """Return one of the sizes of this process's memory; man 5 proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024 / 1e6


def megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


if __name__ == "__main__":
    main()
