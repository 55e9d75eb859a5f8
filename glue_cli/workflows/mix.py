"""Blend the experts with the coefficients that the plan's method chooses, and write the prior."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from glue_cli import __version__
from glue_cli.core.blend import blend_files
from glue_cli.core.checkpoint import Checkpoint
from glue_cli.core.device import find_device
from glue_cli.workflows.choose import choose_alpha
from glue_cli.workflows.history import writing_history
from glue_cli.workflows.plan import MixPlan, Run


def mix(plan: MixPlan, run: Run) -> dict[str, Any]:
    """Choose alpha by the plan's method and write the blend; return what `--json` prints.

    Raises:
        CheckpointError: an expert is damaged, or does not fit the spec's model.
        SpecError, DataError: the spec, the model and the data do not fit each other.
        NumericalError: a loss is not finite.
        ResourceError: the output cannot be written, or the device is not there.
    """
    began = time.perf_counter()
    find_device(run.device)  # a missing GPU shows before the data are read
    with writing_history(run.history, command="mix", method=plan.method) as write:
        chosen = choose_alpha(plan, run, write)

    def describe(hashes: Sequence[str | None]) -> dict[str, Any]:
        return {
            "glue": __version__,
            "kind": "prior",
            **_shared_by_all(plan.experts),
            "method": plan.method,
            "alpha": chosen.alpha,
            "experts": [
                {"name": expert.path.name, "sha256": digest, "examples": expert.glue.get("examples")}
                for expert, digest in zip(plan.experts, hashes, strict=True)
            ],
            "seed": plan.seed,
            "settings": chosen.settings,
        }

    hashes = blend_files(
        plan.experts,
        chosen.alpha,
        plan.destination,
        describe,
        memory_bytes=plan.memory_bytes,
        hashing=plan.hashing,
        progress=run.progress,
    )
    sizes = plan.sizes or [expert.glue.get("examples") for expert in plan.experts]
    return {
        "schema": "glue.mix/1",
        "method": plan.method,
        "alpha": chosen.alpha,
        "experts": [
            {"path": str(expert.path), "sha256": digest, "examples": size}
            for expert, digest, size in zip(plan.experts, hashes, sizes, strict=True)
        ],
        "output": str(plan.destination.result),
        "loss": chosen.loss,
        "cost": {**asdict(chosen.cost), "wall_s": time.perf_counter() - began, "peak_bytes": _peak_bytes(run)},
        **chosen.details,
    }


def _shared_by_all(experts: Sequence[Checkpoint]) -> dict[str, Any]:
    """Return what all experts say of themselves alike: their model and class names."""
    shared = {}
    for key in ("model", "class_names"):
        said = [expert.glue.get(key) for expert in experts]
        if said[0] is not None and all(value == said[0] for value in said):
            shared[key] = said[0]
    return shared


def _peak_bytes(run: Run) -> int:
    """Return the most memory that the run has held: on the GPU where it used one, else the process's resident set."""
    if torch.cuda.is_available() and run.device != "cpu":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
