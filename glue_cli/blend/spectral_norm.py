"""Spectral norm's vectors in checkpoints: whether their mean still belongs to the blended weight. Needs no torch.

A module with spectral norm divides its weight by u^T W v, with singular vectors u and v of length 1 that it keeps as
buffers and only updates in training mode. Their signs and directions are each expert's own; the mean of vectors that
point apart is short, so that the blended weight comes out too large.
"""

import math
import re
from collections.abc import Collection, Sequence

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.numbers import read_numbers

_NEW = re.compile(r"(?<![^.])parametrizations\.\w+\.\d+\._[uv]$")
_OLD = re.compile(r"^(?P<weight>.+)_[uv]$")
_SHORT = 0.99  # a mean of this length makes weights 2 % too large


def short_vectors(experts: Sequence[Checkpoint], apart: Collection[str]) -> list[str]:
    """Return a sentence on vectors of spectral norm whose mean is too short; none if all point the same way.

    Args:
        apart: names of tensors that are not blended.
    """
    first = experts[0].entries
    names = [name for name in first if name not in apart and _is_vector(name, first.keys())]
    lengths = {name: _length_of_mean(experts, name) for name in names}
    if not lengths or (shortest := min(lengths.values())) >= _SHORT:
        return []
    worst = min(lengths, key=lambda name: lengths[name])
    what = f"the experts' vectors of spectral norm point apart: the mean of '{worst}' has a length of {shortest:.2f}"
    return [f"{what} where it should have 1, so that the blend's weights come out too large until it is finetuned"]


def _is_vector(name: str, names: Collection[str]) -> bool:
    found = _OLD.match(name)
    return bool(_NEW.search(name)) or bool(found and f"{found['weight']}_orig" in names)


def _length_of_mean(experts: Sequence[Checkpoint], name: str) -> float:
    """Return the length of the mean of an expert's vectors; 1 if there is none that can be read."""
    n = experts[0].entries[name].n_elements if len(experts[0].entries[name].shape) == 1 else 0
    vectors = [vector for expert in experts if (vector := read_numbers(expert, name, n))]
    if len(vectors) < len(experts) or len({len(vector) for vector in vectors}) != 1:
        return 1.0
    return math.hypot(*(math.fsum(numbers) / len(numbers) for numbers in zip(*vectors, strict=True)))
