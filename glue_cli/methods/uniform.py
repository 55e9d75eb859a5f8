"""The uniform blend, the usual baseline."""

from glue_cli.blend.coefficients import proportional


def uniform(n_experts: int) -> list[float]:
    """Return alpha_k = 1 / K, [K]."""
    return proportional([1] * n_experts)
