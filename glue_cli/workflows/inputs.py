"""What a run was made from, beside its settings: so that one that is resumed knows a finished output as its own."""

from typing import Any

from torch import nn

from glue_cli.checkpoints.run_state import fingerprint_of_files, fingerprint_of_tensors
from glue_cli.data.identity import identity_of
from glue_cli.data.loader import Examples
from glue_cli.models.tensors import tensors_of
from glue_cli.spec.schema import Spec


def inputs_of(spec: Spec, start: nn.Module | None = None, **data: Examples) -> dict[str, Any]:
    """Return fingerprints of all that a run reads, for its output's metadata.

    Args:
        start: the model before it is trained; None where none is.
        data: the examples by split.
    """
    begun = {"start": fingerprint_of_tensors(tensors_of(start).values())} if start else {}
    examples = {split: identity_of(each) for split, each in data.items()}
    return {"precision": spec.precision, **code_of(spec), **begun, **examples}


def code_of(spec: Spec) -> dict[str, str]:
    """Return a fingerprint of the user's modules that the spec needs; empty if there are none."""
    files = spec.code_files
    return {"code": fingerprint_of_files(files)} if files else {}
