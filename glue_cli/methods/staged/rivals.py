"""The plain blends that the guard compares the end of a search with."""

import math
from collections.abc import Sequence

import torch

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.methods.domains import Simplex
from glue_cli.methods.staged.guard import Candidate
from glue_cli.methods.staged.screening import Start
from glue_cli.methods.steps.questions import Probes, probe
from glue_cli.results.mix import UNIFORM
from glue_cli.search.protocol import Objective


def rivals_of(
    objective: Objective,
    start: Start,
    looked_at: Sequence[Start] | None,
    *,
    one_alpha: Candidate | None,
    runner_up: Candidate | None,
) -> list[Candidate]:
    """Return the uniform blend and the best expert with each kind of statistics, and what the search came through.

    Those with the statistics of the end come first.

    Args:
        start: where the search began that has come to the end.
        looked_at: the starts, the best first, whose experts count as the best; None for a look at all experts.
        one_alpha: the end of the descent before that by groups, if there was one; runner_up: what came second.
    """
    domain, rivals = Simplex.of(objective), []
    for kind in sorted(objective.kinds, key=lambda kind: kind != start.statistics):
        rivals.append(Candidate(UNIFORM, domain.uniform(), kind))
        expert = _best_expert(objective, kind) if looked_at is None else _first_expert(looked_at, kind)
        if expert is not None:
            rivals.append(Candidate(f"expert {expert}", domain.corner(expert), kind))
    began = Candidate(start.name, start.alpha, start.statistics)
    return [one for one in (rivals[0], one_alpha, *rivals[1:], runner_up, began) if one]


def _first_expert(starts: Sequence[Start], kind: Statistics) -> int | None:
    """Return the expert that the best of the starts goes towards; None if none of them does."""
    return next((start.expert for start in starts if start.expert is not None and start.statistics == kind), None)


def _best_expert(objective: Objective, kind: Statistics) -> int:
    """Return the expert with the least loss on a minibatch."""
    domain = Simplex.of(objective)
    corners = torch.stack([domain.corner(k) for k in range(domain.n_experts)])
    losses = probe(objective.with_statistics(kind), Probes(corners, n_at_once=2), 0)
    return int(losses.nan_to_num(math.inf).argmin())
