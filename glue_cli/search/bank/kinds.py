"""Where the experts of a search can be kept: in a bank, or in their files, read block by block. Needs no torch."""

from typing import Literal, get_args

BankKind = Literal["device", "host", "disk", "streamed"]
KINDS: tuple[BankKind, ...] = get_args(BankKind)
