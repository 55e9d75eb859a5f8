"""Which forwards go through the model together, and the passes that make their blends."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor, nn

from glue_cli.search.points import AnyPass, Move, Point

# Forwards at most that go through the model together; each holds its activations between two blocks.
MOST_TOGETHER = 16

Forward = Callable[[nn.Module], Tensor]
SomePass = TypeVar("SomePass", bound=AnyPass)


def count_points(forwards: Sequence[tuple[Point, Forward]]) -> int:
    """Return how many blends forwards run."""
    return len({id(point) for point, _ in forwards})


def cut(forwards: Sequence[tuple[Point, Forward]], n_points: int) -> list[Sequence[tuple[Point, Forward]]]:
    """Cut forwards, in their order, into runs of at most n blends each, with n at least 1."""
    starts, seen = [0], set[int]()
    for number, (point, _) in enumerate(forwards):
        if id(point) not in seen and len(seen) == n_points:
            starts.append(number)
            seen.clear()
        seen.add(id(point))
    return [forwards[start:stop] for start, stop in zip(starts, [*starts[1:], len(forwards)], strict=True)]


def needed_for(forwards: Sequence[tuple[Point, Forward]], passes: Sequence[SomePass]) -> list[SomePass]:
    """Return those passes that make the forwards' blends, and the first where one of these is moved from its blend."""
    wanted = {id(point) for point, _ in forwards}
    found = [each for each in passes if any(id(point) in wanted for point in each.points)]
    if any(isinstance(each, Move) for each in found) and found[0] is not passes[0]:
        found.insert(0, passes[0])
    return found
