"""The random state that torch draws from where no generator is named, as dropout does."""

import torch

from glue_cli.foundation.state import State


def random_state(device: torch.device) -> State:
    """Return the state of the CPU's generator, and of the device's own if that is a GPU; uint8 tensors."""
    state: State = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random(device: torch.device, state: State) -> None:
    """Let torch draw next what it would have drawn next at that state."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
