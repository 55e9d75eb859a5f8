"""What a run was made from, beside its settings: so that one that is resumed knows a finished output as its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.run_state import fingerprint_of_files, fingerprint_of_tensors
from glue_cli.data.loader import Examples
from glue_cli.spec.schema import Spec


def inputs_of(spec: Spec, start: Checkpoint | None = None, **data: Examples) -> dict[str, Any]:
    """Return fingerprints of all that a run reads, for its output's metadata.

    Args:
        start: the checkpoint that is trained on; None where the experts' start is.
        data: the examples by split.
    """
    files = start.files if start else _start_of_experts(spec)
    begun = {"start": fingerprint_of_files(files)} if files else {}
    examples = {split: fingerprint_of_tensors(each.dataset.tensors()) for split, each in data.items()}
    return {"precision": spec.precision, **code_of(spec), **begun, **examples}


def code_of(spec: Spec) -> dict[str, str]:
    """Return a fingerprint of the user's modules that the spec names; empty if there are none."""
    files = [file for file in spec.code_files if file.is_file()]
    return {"code": fingerprint_of_files(files)} if files else {}


def _start_of_experts(spec: Spec) -> Sequence[Path]:
    """Return the files of the checkpoint that `experts.init` names, if it names one."""
    if spec.experts is None or spec.experts.init in ("shared", "independent"):
        return ()
    return read_checkpoint(spec.path(spec.experts.init)).files
