"""How the processes of a job train one model: each with all of it, or with a part where all of it does not fit."""

import torch
from torch import nn

from glue_cli.blend.submodules import find_members
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.foundation.units import size
from glue_cli.running.device import Compute, find_device
from glue_cli.running.parallel import share_batchnorm, spread
from glue_cli.running.sharding import BYTES_A_PARAMETER, shard
from glue_cli.search.bank.load import usable_memory


def must_shard(model: nn.Module, run: Run) -> bool:
    """Tell whether a training does not fit into the memory of one process of the job; all of them say the same."""
    ranks, device = run.ranks, find_device(run.device)
    if ranks.size == 1:
        return False
    n_sharing = ranks.place.n_sharing(device)
    needed = BYTES_A_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
    least = min(int(found) for found in ranks.gather([torch.tensor(usable_memory(device) // n_sharing)]))
    if needed <= least:
        return False
    text = f"training takes {size(needed)}, and a process has {size(least)}: each of {ranks.size} holds a part"
    run.progress(Noted(text))
    return True


def spread_training(model: nn.Module, compute: Compute, run: Run, *, is_sharded: bool) -> nn.Module:
    """Move a model to the device, and return what makes the forward passes of its training.

    Args:
        model: in host memory; changed in place.
        is_sharded: what `must_shard` has said.
    """
    if not is_sharded:
        return spread(compute.to_device(model), run.ranks)
    names = [name for name, _ in model.named_parameters()]
    share_batchnorm(model)
    shard(model, find_members(names), compute.device, run.ranks)
    return model
