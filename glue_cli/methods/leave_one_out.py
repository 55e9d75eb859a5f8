"""What each expert is worth to a blend: the loss without it."""

from typing import Any

from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.methods.domains import Simplex
from glue_cli.methods.staged.guard import paired_difference
from glue_cli.search.protocol import Objective


def leave_one_out(objective: Objective, alpha: Tensor, statistics: Statistics = "averaged") -> list[dict[str, Any]]:
    """Return for each expert how much the validation loss rises when its weight is given to the others.

    Args:
        alpha: [G, K], a point of the domain; statistics: the BatchNorm statistics of the blend.
    Returns:
        `loss`, `difference` from that of the blend, paired example by example, and its `standard_error`, None if
        there is a single term. All three are None for an expert that has all of a group's weight.
    Cost: a validation for the blend, and one for each expert that takes part.
    """
    domain = Simplex(*alpha.shape)
    whole = objective.written_terms(alpha, statistics)
    effects: list[dict[str, Any]] = []
    for k in range(alpha.shape[1]):
        rest = domain.without(alpha, k)
        if rest is None:
            effects.append({"loss": None, "difference": None, "standard_error": None})
            continue
        terms = objective.written_terms(rest, statistics) if (alpha[:, k] > 0).any() else whole
        difference, error = paired_difference(terms, whole)
        effects.append({"loss": terms.mean().item(), "difference": difference, "standard_error": error})
    return effects
