"""What BatchNorm's running statistics are called in a state dict. Needs no torch."""

COUNTER = "num_batches_tracked"
STATISTICS = ("running_mean", "running_var", COUNTER)


def is_statistic(name: str) -> bool:
    """Tell whether a tensor of this name is one of BatchNorm's running statistics."""
    return name.rpartition(".")[2] in STATISTICS
