"""Coefficients on the simplex. Needs no torch."""

import math
from collections.abc import Sequence

from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.units import counted

SUM_TOLERANCE = 1e-6


def check_alpha(alpha: Sequence[float], n_experts: int) -> None:
    """Check that the given coefficients are K nonnegative numbers that sum to 1 within 1e-6.

    Raises:
        UsageError: they are not.
    """
    if len(alpha) != n_experts:
        raise UsageError(
            f"--alpha has {counted(len(alpha), 'coefficient')} for {counted(n_experts, 'expert')}",
            hint="give one coefficient an expert, in the experts' order",
        )
    wrong = [str(a) for a in alpha if not math.isfinite(a) or a < 0]
    if wrong:
        raise UsageError(f"--alpha: {wrong[0]} is not a coefficient", hint="coefficients are 0 or more")
    total = sum(alpha)
    if abs(total - 1) > SUM_TOLERANCE:
        hint = None
        if 0 < total < math.inf:
            hint = "these do: --alpha " + ",".join(f"{a / total:.9g}" for a in alpha)
        raise UsageError(f"--alpha sums to {total:.9g}, not to 1", hint=hint)


def proportional(weights: Sequence[float]) -> list[float]:
    """Return alpha_k = w_k / sum_j w_j; uniform when all weights are 0."""
    total = math.fsum(weights)
    if total == 0:
        return [1 / len(weights)] * len(weights)
    return [weight / total for weight in weights]
