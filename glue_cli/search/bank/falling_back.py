"""Load a bank elsewhere if the memory runs out after all: other programs may have taken it since it was measured.

Of several processes, all fall back together, even if the memory runs out for one of them alone.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch

from glue_cli.foundation.errors import ResourceError
from glue_cli.foundation.memory import is_out_of_memory
from glue_cli.foundation.progress import Noted, Progress
from glue_cli.foundation.ranks import GaveUpError, Ranks
from glue_cli.search.bank.kinds import BankKind

_Loaded = TypeVar("_Loaded")
_WHERE = {
    "device": "the device's memory",
    "blocks": "the device's memory, by block",
    "sharded": "the processes' memory",
    "host": "the host's memory",
    "disk": "disk",
    "streamed": "streaming",
}


def in_turn(kind: BankKind, *, needs_gradient: bool, n_processes: int = 1) -> list[BankKind]:
    """Return a kind of bank and those that take less memory, in the order in which they are tried."""
    least: BankKind = "disk" if needs_gradient else "streamed"
    by_block: list[BankKind] = ["sharded" if n_processes > 1 else "blocks"] if not needs_gradient else []
    kinds: list[BankKind] = ["device", *by_block, "host", least]
    return kinds[kinds.index(kind) :] if kind in kinds else [kind]


def load_first(
    kinds: Sequence[BankKind], load: Callable[[BankKind], _Loaded], progress: Progress, ranks: Ranks | None = None
) -> _Loaded:
    """Load the first of these kinds of bank for which the memory does not run out, in any process.

    Raises:
        Exception: the last kind's, for want of memory; any other of `load` at once.
    """
    ranks = ranks or Ranks()
    for kind, later in pairwise(kinds):
        is_short = False
        try:
            return _load_with_all(kind, load, ranks)
        except GaveUpError:
            pass
        except Exception as error:
            is_short = is_out_of_memory(error) or isinstance(error, ResourceError)
            if not is_short:
                raise
        # Behind the handler: the exception would keep what has been loaded so far alive.
        if is_short:
            ranks.give_up()
        torch.cuda.empty_cache()  # does nothing where CUDA is not in use
        text = f"bank: out of memory in {_WHERE[kind]}; trying {_WHERE[later]}"
        progress(Noted(text, warning=True))
    return load(kinds[-1])


def _load_with_all(kind: BankKind, load: Callable[[BankKind], _Loaded], ranks: Ranks) -> _Loaded:
    """Load a bank, and wait until all processes have loaded theirs."""
    loaded = load(kind)
    ranks.gather([])
    return loaded
