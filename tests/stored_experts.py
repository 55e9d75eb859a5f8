"""Experts of a small net in files, with the net that they are blended in."""

from small_nets import make_experts

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.running.weightless import build_weightless, fill


def stored_experts(folder, make, dtype=None):
    """Write experts to files; return the net, the files, and the net again without memory for its weights."""
    model, experts = make_experts(make)
    for k, expert in enumerate(experts):
        stored = {name: t.to(dtype) if dtype and t.is_floating_point() else t for name, t in expert.items()}
        write_checkpoint(folder / f"{k}.safetensors", stored, {})
    bare = build_weightless(make)
    fill(bare, {name: tensor for name, tensor in experts[0].items() if not tensor.is_floating_point()})
    checkpoints = [read_checkpoint(folder / f"{k}.safetensors") for k in range(len(experts))]
    return model, checkpoints, bare.eval().requires_grad_(False)
