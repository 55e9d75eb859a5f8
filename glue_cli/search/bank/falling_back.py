"""Load a bank elsewhere if the memory runs out after all: other programs may have taken it since it was measured."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch

from glue_cli.foundation.memory import is_out_of_memory
from glue_cli.foundation.progress import Noted, Progress
from glue_cli.search.bank.kinds import BankKind

_Loaded = TypeVar("_Loaded")
_WHERE = {"device": "the device's memory", "host": "the host's memory", "disk": "disk", "streamed": "streaming"}


def in_turn(kind: BankKind, *, needs_gradient: bool) -> list[BankKind]:
    """Return a kind of bank and those that take less memory, in the order in which they are tried."""
    least: BankKind = "disk" if needs_gradient else "streamed"
    kinds: list[BankKind] = ["device", "host", least]
    return kinds[kinds.index(kind) :] if kind in kinds else [kind]


def load_first(kinds: Sequence[BankKind], load: Callable[[BankKind], _Loaded], progress: Progress) -> _Loaded:
    """Load the first of these kinds of bank for which the memory does not run out.

    Raises:
        Exception: the last kind's, for want of memory; any other of `load` at once.
    """
    for kind, later in pairwise(kinds):
        try:
            return load(kind)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Behind the handler: the exception would keep what has been loaded so far alive.
        torch.cuda.empty_cache()  # does nothing where CUDA is not in use
        text = f"bank: out of memory in {_WHERE[kind]}; trying {_WHERE[later]}"
        progress(Noted(text, warning=True))
    return load(kinds[-1])
