"""Which blends are made together and how, so that every provider gives the same bits for the same alphas."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from glue_cli.running.timing import Precision
from glue_cli.search.bank.matrix import AnyTile, ExpertBank
from glue_cli.search.pieces import WHOLE, Piece

# Limit on the memory of blends that are made together, or two; those towards experts are above it made one at a time.
_PASS_BYTES = 64 << 20
# Of a larger model, as few blends are in memory at once as its precision needs; smaller ones are cheap to hold.
_LARGE_COLUMNS = 1 << 26


def uniform_alpha(n_groups: int, n_experts: int) -> Tensor:
    """Return the uniform blend's alpha [G, K], float64."""
    return torch.full((n_groups, n_experts), 1 / n_experts, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Point:
    """A blend that is run: its alpha [G, K], and the row that it is made in."""

    alpha: Tensor
    row: int


@dataclass(frozen=True, eq=False)
class Load:
    """Blends for alphas [m, G, K], made in the first rows in one pass over the experts."""

    alphas: Tensor

    @cached_property
    def points(self) -> list[Point]:
        return [Point(alpha, row) for row, alpha in enumerate(self.alphas)]

    def on(self, device: torch.device) -> "Fill":
        """Return what writes a tile of the blends to rows [m, d] on this device."""
        coefficients = self.alphas.to(device, torch.float32)
        return lambda tile, theta, rows: tile.blend(coefficients, rows)


@dataclass(frozen=True, eq=False)
class Move:
    """The blend in the first row, moved by `radius` towards one expert in a group, or in all; made in the second."""

    end: Tensor
    group: int | None
    expert: int
    radius: float

    @cached_property
    def points(self) -> list[Point]:
        return [Point(self.end, 1)]

    def on(self, device: torch.device) -> "Fill":
        """Return what writes a tile of the blend to a row [1, d], given the blend that it is moved from, [d]."""
        return lambda tile, theta, rows: tile.move(theta, self.group, self.expert, self.radius, rows[0])


@dataclass(frozen=True, eq=False)
class Alone:
    """One blend of another pass, made by itself in the first row, with the bits that it has in that pass.

    A matrix product rounds otherwise where it makes one row than where it makes several.

    Attributes:
        made_in: that pass; point: the blend in it.
        base: the alpha [G, K] of the blend that a `Move` starts from, which is a `Load` of its own.
    """

    made_in: Load | Move
    point: Point
    base: Tensor

    @cached_property
    def points(self) -> list[Point]:
        return [Point(self.point.alpha, 0)]

    def on(self, device: torch.device) -> "Fill":
        """Return what writes a tile of the blend to a row [1, d] on this device."""
        if isinstance(self.made_in, Load):
            coefficients, row = self.made_in.alphas.to(device, torch.float32), self.point.row
            return lambda tile, theta, rows: tile.blend_one(coefficients, row, rows)
        start, move = Load(self.base[None]).on(device), self.made_in.on(device)

        def fill(tile: AnyTile, theta: Tensor, rows: Tensor) -> None:
            start(tile, theta, rows)
            move(tile, rows[0], rows)

        return fill


Pass = Load | Move
AnyPass = Pass | Alone
Fill = Callable[[AnyTile, Tensor, Tensor], None]


def in_chunks(passes: Sequence[AnyPass], n_rows: int) -> list[list[tuple[AnyPass, int]]]:
    """Distribute passes over chunks of which each fits into `n_rows`, at least those of the largest pass.

    Returns:
        each chunk's passes, with their first rows. The blend that others are moved from stays in the first row of all.
    """
    n_kept = 1 if any(isinstance(each, Move) for each in passes) else 0
    chunks, first = [list[tuple[AnyPass, int]]()], 0
    for each in passes:
        if first + len(each.points) > n_rows:
            chunks.append([])
            first = n_kept
        chunks[-1].append((each, first))
        first += len(each.points)
    return chunks


def make_blends(bank: ExpertBank, passes: Sequence[tuple[AnyPass, int]], rows: Tensor) -> None:
    """Write the blends of a bank's tensors to rows [m, d], in one pass over the experts.

    Args:
        passes: each with the first of its rows; those that move a blend take it from the first row of all.
    """
    fills = [(each.on(bank.device), rows[first : first + len(each.points)]) for each, first in passes]

    def make_tile(tile: AnyTile) -> None:
        for fill, own in fills:
            fill(tile, rows[0], own)

    bank.each_tile(make_tile)


def chosen(passes: Sequence[Pass], only: slice, *, n_always: int = 0) -> list[tuple[Pass, list[Point]]]:
    """Return the passes that some wanted points are made in, each with these points.

    Args:
        only: which of the points are wanted, after the first `n_always`, which always are.
    """
    points = [point for each in passes for point in each.points]
    wanted = {id(point) for point in (*points[:n_always], *points[n_always:][only])}
    found = [(each, [point for point in each.points if id(point) in wanted]) for each in passes]
    return [(each, kept) for each, kept in found if kept]


def each_alone(passes: Sequence[Pass]) -> dict[int, Alone]:
    """Return what makes each of the passes' blends by itself, by the point's identity.

    Args:
        passes: the first makes what others start from.
    """
    base = passes[0].points[0].alpha
    return {id(point): Alone(each, point, base) for each in passes for point in each.points}


def count_rows(passes: Sequence[AnyPass]) -> int:
    """Return how many rows passes need."""
    return 1 + max(point.row for each in passes for point in each.points)


def n_at_once(m: int, n_columns: int, precision: Precision) -> int:
    """Return how many of m blends are in memory at once, at most: of large models two in float32, one in bfloat16."""
    if n_columns <= _LARGE_COLUMNS:
        return m
    return min(m, 1 if precision == "bf16" else 2)


def bytes_at_once(n_blends: int, n_asked: int, n_columns: int) -> int:
    """Return how many bytes the blends of d columns take that a search in float32 has in memory at once, at most.

    Args:
        n_blends: as many there are, of a large model two.
        n_asked: as many there are of a small model, made together if they fit the memory for that.
    """
    row_bytes = 4 * n_columns
    return max(row_bytes * n_at_once(n_blends, n_columns, "fp32"), min(_PASS_BYTES, row_bytes * n_asked))


def passes_at(alphas: Tensor, n_columns: int, *, pieces: Sequence[Piece] = WHOLE) -> list[Pass]:
    """Return the passes that make the blends for alphas [m, G, K] of d columns.

    As many are made together as 64 MiB have room for, or two. Blends of large models are made one by one, to hold one
    at a time; so are blends of which other processes may make some: how a matrix product rounds depends on how many it
    makes.
    """
    are_together = pieces is WHOLE and n_columns <= _LARGE_COLUMNS
    n_together = max(2, _PASS_BYTES // (4 * max(1, n_columns))) if are_together else 1
    return [Load(part) for part in torch.split(alphas, n_together)]


def passes_towards(
    alpha: Tensor, coordinates: Tensor, radius: float | Tensor, n_columns: int, precision: Precision, *, is_tied: bool
) -> list[Pass]:
    """Return the passes that make the blend for alpha [G, K], then those moved towards single experts.

    Args:
        coordinates, radius, is_tied: as for `Blends.towards`.
    """
    ends = towards_experts(alpha, coordinates, radius, is_tied=is_tied)
    if 4 * n_columns * (1 + len(ends)) <= _PASS_BYTES:
        return [Load(torch.cat([alpha[None], ends]))]
    if n_at_once(2, n_columns, precision) == 1:
        return [Load(point[None]) for point in (alpha, *ends)]
    return [Load(alpha[None]), *_moves(ends, coordinates.tolist(), _each(radius, coordinates).tolist(), is_tied)]


def _moves(ends: Tensor, coordinates: Sequence[int], radii: Sequence[float], is_tied: bool) -> Iterator[Move]:
    n_experts = ends.shape[-1]
    for end, coordinate, radius in zip(ends, coordinates, radii, strict=True):
        group, expert = (None, coordinate) if is_tied else divmod(coordinate, n_experts)
        yield Move(end, group, expert, radius)


def towards_experts(alpha: Tensor, coordinates: Tensor, radius: float | Tensor, *, is_tied: bool = False) -> Tensor:
    """Return alpha [G, K] moved by `radius` towards each of the experts at `coordinates` [n] separately: [n, G, K].

    If the groups are tied, all of them move, and coordinates are numbers of experts.
    """
    n_experts = alpha.shape[1]
    radii = _each(radius, coordinates)
    if is_tied:
        return alpha.lerp(torch.eye(n_experts, dtype=alpha.dtype)[coordinates][:, None], radii[:, None, None])
    ends = alpha.repeat(len(coordinates), 1, 1)
    places = torch.arange(len(coordinates)), coordinates // n_experts
    ends[places] *= 1 - radii[:, None]
    ends[*places, coordinates % n_experts] += radii
    return ends


def _each(radius: float | Tensor, coordinates: Tensor) -> Tensor:
    """Return the radius of each coordinate, float64 [n]."""
    return torch.as_tensor(radius, dtype=torch.float64).expand(len(coordinates))
