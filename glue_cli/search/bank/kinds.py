"""Where the experts of a search can be kept. Needs no torch.

In a bank: in the device's memory, the host's, or on disk. Or used block by block: streamed from their files, or
sharded, which is some columns of each block in the memory of each of several processes.
"""

from typing import Literal, get_args

BankKind = Literal["device", "sharded", "host", "disk", "streamed"]
KINDS: tuple[BankKind, ...] = get_args(BankKind)
