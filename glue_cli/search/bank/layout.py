"""How the tensors of experts lie in the rows of a bank; only headers are needed."""

from collections.abc import Collection, Iterable, Sequence

import torch

from glue_cli.blend.recipe import Recipe
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, TensorEntry
from glue_cli.checkpoints.tensors import TORCH_DTYPES
from glue_cli.foundation.errors import CheckpointError
from glue_cli.search.bank.matrix import Span

# In memory, every tensor starts at a multiple of this many elements: 64 bytes in float32, for aligned loads.
ALIGN = 16


def blended_entries(expert: Checkpoint, recipe: Recipe) -> Iterable[TensorEntry]:
    """Yield the tensors that are blended, in the order of the expert's files."""
    for entry in sorted(expert.entries.values(), key=lambda entry: (entry.file, entry.offset)):
        if entry.dtype in FLOAT_DTYPES and entry.n_elements and recipe.is_blended(entry.name):
            yield entry


def group_tensors(
    experts: Sequence[Checkpoint], recipe: Recipe, among: Collection[str] | None = None
) -> dict[tuple[int, tuple[str, ...]], list[str]]:
    """Group the blended tensors, or those among these names, by their coefficients and by the experts' dtypes [K]."""
    groups: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for entry in blended_entries(experts[0], recipe):
        if among is not None and entry.name not in among:
            continue
        dtypes = tuple(expert.entries[entry.name].dtype for expert in experts)
        groups.setdefault((recipe.group_of.get(entry.name, 0), dtypes), []).append(entry.name)
    if not groups:
        raise CheckpointError(
            f"'{experts[0].path}' has no floating-point tensors to blend",
            hint="look at --include, --exclude and --head: glue show lists the tensors",
        )
    return groups


def stored_dtype(experts: Sequence[Checkpoint], name: str) -> torch.dtype:
    """Return the dtype of a tensor in memory: bfloat16 or float16 if all experts have it, else float32."""
    dtypes = {expert.entries[name].dtype for expert in experts if name in expert.entries}
    return TORCH_DTYPES[dtypes.pop()] if dtypes in ({"BF16"}, {"F16"}) else torch.float32


def _stored_bytes(experts: Sequence[Checkpoint], name: str) -> int:
    return experts[0].entries[name].n_elements * stored_dtype(experts, name).itemsize


def bank_bytes(experts: Sequence[Checkpoint], recipe: Recipe) -> int:
    """Return what the experts' blended tensors take in memory; of experts that differ, as if all had the first's."""
    return len(experts) * sum(_stored_bytes(experts, entry.name) for entry in blended_entries(experts[0], recipe))


def spans_of(names: Sequence[str], expert: Checkpoint, *, channels_last: bool, aligned: bool) -> dict[str, Span]:
    """Return where each tensor lies in a row that holds them one after another."""
    spans, position = {}, 0
    for name in names:
        entry = expert.entries[name]
        spans[name] = Span(position, entry.shape, channels_last and len(entry.shape) == 4)
        position += entry.n_elements + (-entry.n_elements % ALIGN if aligned else 0)
    return spans
