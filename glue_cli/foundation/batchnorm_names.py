"""The names of BatchNorm's running statistics in a state dict. Needs no torch."""

COUNTER = "num_batches_tracked"
VARIANCE = "running_var"
STATISTICS = ("running_mean", VARIANCE, COUNTER)


def is_statistic(name: str) -> bool:
    """Tell whether a tensor of this name is one of BatchNorm's running statistics."""
    return name.rpartition(".")[2] in STATISTICS


def is_variance(name: str) -> bool:
    """Tell whether a tensor of this name is a running variance."""
    return name.rpartition(".")[2] == VARIANCE
