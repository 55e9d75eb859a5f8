"""Coefficients by proxy accuracy, configuration 2 of the paper's section 5."""

from collections.abc import Sequence

from glue_cli.blend.coefficients import proportional


def proxy(accuracies: Sequence[float]) -> list[float]:
    """Return alpha_k = acc_k / sum_j acc_j, [K]; uniform when every accuracy is 0.

    Args:
        accuracies: each expert's accuracy on held-out data of the target domain, [K].
    """
    return proportional(accuracies)
