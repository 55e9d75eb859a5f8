"""The uniform blend, the baseline that everyone asks for."""


def uniform(n_experts: int) -> list[float]:
    """Return alpha_k = 1 / K, [K]."""
    return [1 / n_experts] * n_experts
