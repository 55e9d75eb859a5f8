"""The state of torch's global random generators, which dropout, for example, draws from."""

import torch

from glue_cli.foundation.state import State


def random_state(device: torch.device) -> State:
    """Return the state of the CPU's generator and, if the device is a GPU, of the GPU's generator; uint8 tensors."""
    state: State = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random(device: torch.device, state: State) -> None:
    """Restore what `random_state` has returned, so that torch repeats the draws that followed."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
