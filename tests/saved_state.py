"""A state as it comes back from files: tensors from safetensors, all else from JSON."""

import json

import torch
from safetensors.torch import load, save


def through_files(state):
    """Write a state to bytes, and read it again; fails where it holds what no file can."""
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    rest = {name: value for name, value in state.items() if name not in tensors}
    written = save({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()})
    return load(written) | json.loads(json.dumps(rest, allow_nan=False))
