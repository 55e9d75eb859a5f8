"""Coefficients by data size, configuration 1 of the paper's section 5; FedAvg's weights."""

from collections.abc import Sequence

from glue_cli.blend.coefficients import proportional


def data_size(sizes: Sequence[int]) -> list[float]:
    """Return alpha_k = |D_k| / sum_j |D_j|, [K].

    Args:
        sizes: the experts' numbers of training examples, [K].
    """
    return proportional(sizes)
