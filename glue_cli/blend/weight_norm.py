"""Weight norm in checkpoints: whether the weights that a blend computes are the mean of the experts'. Needs no torch.

A module with weight norm computes W = g v / |v|, row by row, from lengths g and directions v, which are blended apart.
Where the directions differ much, or v has another length in an expert, which does not change it, W is another weight.
"""

import math
import re
from collections.abc import Collection, Iterator, Sequence

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.numbers import read_numbers

_LENGTHS = re.compile(r"(weight\w*_g|parametrizations\.\w+\.original0)$")
_TENSORS, _ROWS, _NUMBERS = 16, 2, 4096  # that are looked at, at most: of all, of each, and of its rows together
_FAR = 0.1  # of a row's length


def weights_off_the_mean(experts: Sequence[Checkpoint], apart: Collection[str]) -> list[str]:
    """Return a sentence on weights under weight norm that come out far from the experts' mean; none if all are near.

    Args:
        apart: names of tensors that are not blended.
    """
    pairs = [pair for pair in _pairs(experts[0]) if not {*pair} & {*apart}] if len(experts) > 1 else []
    some = pairs[:: -(-len(pairs) // _TENSORS)] if pairs else []
    off = {directions: _distance(experts, lengths, directions) for lengths, directions in some}
    if not off or (largest := max(off.values())) <= _FAR:
        return []
    worst = max(off, key=lambda name: off[name])
    return [
        f"weight norm keeps lengths and directions apart, and so does the blend: the weights of '{worst}' come out "
        f"{largest:.0%} off the mean of the experts'; remove weight norm from the experts before they are mixed: "
        "torch.nn.utils.parametrize.remove_parametrizations, or remove_weight_norm"
    ]


def _pairs(expert: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield the names of lengths g and directions v."""
    for name, entry in expert.entries.items():
        if _LENGTHS.search(name):
            other = f"{name[:-1]}v" if name.endswith("_g") else f"{name[:-1]}1"
            directions = expert.entries.get(other)
            if directions and entry.shape[:1] == directions.shape[:1] == (entry.n_elements,):  # a length a row
                yield name, other


def _distance(experts: Sequence[Checkpoint], lengths: str, directions: str) -> float:
    """Return how far a blend's rows are from the mean of the experts' rows, as a share of these, the farthest."""
    n_rows, *rest = experts[0].entries[directions].shape
    width = math.prod(rest)
    n_rows = min(n_rows, _ROWS, max(1, _NUMBERS // max(1, width)))
    g = [read_numbers(expert, lengths, n_rows) for expert in experts]
    v = [read_numbers(expert, directions, n_rows * width) for expert in experts]
    if not width or any(len(one) != n_rows for one in g) or any(len(one) != n_rows * width for one in v):
        return 0.0
    return max(
        _distance_of_row([one[row] for one in g], [one[row * width : (row + 1) * width] for one in v])
        for row in range(n_rows)
    )


def _distance_of_row(lengths: Sequence[float], directions: Sequence[Sequence[float]]) -> float:
    norms = [math.hypot(*direction) for direction in directions]
    if not all(0 < norm < math.inf for norm in norms):
        return 0.0
    scales = [length / norm for length, norm in zip(lengths, norms, strict=True)]
    mean = [
        math.fsum(map(math.prod, zip(scales, column, strict=True))) / len(norms)
        for column in zip(*directions, strict=True)
    ]
    direction = [math.fsum(column) / len(norms) for column in zip(*directions, strict=True)]
    scale = math.fsum(lengths) / len(norms) / (math.hypot(*direction) or 1.0)
    return math.dist(mean, [scale * number for number in direction]) / (math.hypot(*mean) or 1.0)
