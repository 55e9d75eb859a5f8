"""Whether experts come from one start, as far as the cosines between their weights tell.

Experts that were trained from one start have weights with large cosines between them. Those of experts that were
initialised independently, or whose hidden units are in another order, have none, and their mean is no useful model.

Measured (cosine of two experts' weights, smallest of one tensor; 3 to 15 pairs each, all of full training):
digits, CNN, one random start .77 to .88, .63; traffic signs, CNN, one random start .82 to .84, .66; reviews, text
network, one random start .87 to .88, .80; digits, each expert from a start of its own -.005 to .014, -.006; digits,
hidden units of one start permuted -.001 to .016, -.007.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glue_cli.blend.recipe import Recipe
from glue_cli.checkpoints.files import open_file, read_into
from glue_cli.checkpoints.header import DTYPE_BYTES, FLOAT_DTYPES, Checkpoint, short_names
from glue_cli.checkpoints.tensors import TORCH_DTYPES, bytes_of
from glue_cli.foundation.units import listed

# Two experts, or one of their tensors, are related from this cosine on; see above: far from .02 and from .63.
RELATED = 0.2
# A tensor, or a sample, of fewer elements says nothing: the cosine of two random ones scatters by more than .06.
FEWEST_ELEMENTS = 256
_MATRICES, _ELEMENTS = 16, 16_384  # of a sample: so many of all matrices, and elements of each


def cosines_of(gram: Tensor) -> Tensor:
    """Return the cosines between vectors from their inner products [K, K]; NaN for a vector that is zero."""
    norms = gram.diagonal().sqrt()
    return (gram / (norms[:, None] * norms)).clamp(-1, 1)


def largest_family(cosines: Tensor) -> list[int]:
    """Return the most experts of which each is related to the first of them, from all cosines [K, K]."""
    families = [[k for k, related in enumerate(row) if related] for row in (cosines >= RELATED).tolist()]
    return max(families, key=len)


def unrelated_experts(experts: Sequence[Checkpoint], recipe: Recipe) -> list[str]:
    """Return a sentence on experts whose weights have nothing in common, by a sample of them; empty if none is known.

    Cost: reads at most 262,144 numbers of each expert.
    Raises:
        CheckpointError: a file cannot be read, or changed since its header was read.
    """
    names = _matrices(experts, recipe)
    rows = torch.stack([_sample(expert, names) for expert in experts])
    cosines = cosines_of(rows @ rows.T)
    if rows.shape[1] < FEWEST_ELEMENTS or not bool(cosines.isfinite().all()) or bool((cosines >= RELATED).all()):
        return []
    family, shown = largest_family(cosines), short_names([expert.path for expert in experts])
    odd = [shown[k] for k in range(len(experts)) if k not in family] if len(family) > 1 else shown
    least = round(cosines.min().item(), 2) + 0.0  # no -0.00
    which = f"{listed(odd)} and the other experts" if len(family) > 1 else listed(odd)
    return [
        f"the weights of {which} are unrelated (cosine {least:.2f}, from one start about 0.6 and more): their mean is "
        "hardly a useful model; glue check says more"
    ]


def _matrices(experts: Sequence[Checkpoint], recipe: Recipe) -> list[str]:
    """Return some of the blended matrices that all experts have, from all over the first one's files."""
    first = experts[0].entries
    names = [
        name
        for name, entry in sorted(first.items(), key=lambda item: (item[1].file, item[1].offset))
        if len(entry.shape) > 1
        and recipe.is_blended(name)
        and all(
            (other := expert.entries.get(name)) and other.dtype in FLOAT_DTYPES and other.shape == entry.shape
            for expert in experts
        )
    ]
    return [names[i * len(names) // _MATRICES] for i in range(_MATRICES)] if len(names) > _MATRICES else names


def _sample(expert: Checkpoint, names: Sequence[str]) -> Tensor:
    """Return what lies in the middle of these tensors, one after the other, [n] in float64."""
    parts = [torch.empty(0, dtype=torch.float64)]
    for name in names:
        entry = expert.entries[name]
        part = torch.empty(min(entry.n_elements, _ELEMENTS), dtype=TORCH_DTYPES[entry.dtype])
        start = (entry.n_elements - len(part)) // 2
        with open_file(expert, entry.file) as descriptor:
            read_into(
                descriptor, bytes_of(part), entry.offset + start * DTYPE_BYTES[entry.dtype], expert.files[entry.file]
            )
        parts.append(part.double())
    return torch.cat(parts)
