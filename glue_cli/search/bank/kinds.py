"""Where a bank of experts can be kept. Needs no torch."""

from typing import Literal, get_args

BankKind = Literal["device", "host", "disk"]
KINDS: tuple[BankKind, ...] = get_args(BankKind)
