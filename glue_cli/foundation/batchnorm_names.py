"""The names of BatchNorm's running statistics in a state dict, and the kinds that a blend has. Needs no torch."""

from typing import Literal

COUNTER = "num_batches_tracked"
VARIANCE = "running_var"
STATISTICS = ("running_mean", VARIANCE, COUNTER)
# A blend's: the experts' own, blended like its weights, or those of the blend itself, taken anew on the target's data.
Statistics = Literal["averaged", "refreshed"]


def is_statistic(name: str) -> bool:
    """Tell whether a tensor of this name is one of BatchNorm's running statistics."""
    return name.rpartition(".")[2] in STATISTICS


def is_variance(name: str) -> bool:
    """Tell whether a tensor of this name is a running variance."""
    return name.rpartition(".")[2] == VARIANCE
