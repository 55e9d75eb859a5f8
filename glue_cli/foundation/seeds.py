"""Independent random streams from one seed, so that no draw depends on draws made for another purpose."""

import hashlib
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, such as `("share", 3)`; the same on every machine."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw the global generators' numbers from a seed, and leave the generators as they were."""
    before = generator_states(device)
    try:
        seed_generators(seed)
        yield
    finally:
        restore_generators(before, device)


def seed_generators(seed: int) -> None:
    """Seed the global generators: torch's, Python's and, if it is in use, numpy's."""
    torch.manual_seed(seed)
    seed_others(seed)


def seed_others(seed: int) -> None:
    """Seed the global generators of Python and numpy."""
    random.seed(seed)
    if numpy := _numpy_random():
        numpy.seed(seed % 2**32)


def generator_states(device: torch.device) -> Sequence[Any]:
    """Return the states of the global generators, for `restore_generators`."""
    numpy = _numpy_random()
    of_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), of_gpu, random.getstate(), numpy.get_state() if numpy else None


def restore_generators(states: Sequence[Any], device: torch.device) -> None:
    """Let the global generators go on from where they were."""
    of_cpu, of_gpu, of_python, of_numpy = states
    torch.set_rng_state(of_cpu)
    if of_gpu is not None:
        torch.cuda.set_rng_state(of_gpu, device)
    random.setstate(of_python)
    if of_numpy is not None:
        _numpy_random().set_state(of_numpy)


def _numpy_random() -> Any:
    """Return numpy's module of global draws; None where nothing has imported numpy, which is optional."""
    return getattr(sys.modules.get("numpy"), "random", None)
