"""Where the experts of a search can be kept. Needs no torch.

In a bank: in the device's memory, the host's, or on disk. Or used block by block, without a whole blend in memory:
blocks, which are all in the device's memory; sharded, which is some columns of each block in the memory of each of
several processes; or streamed from their files.
"""

from typing import Literal, get_args

BankKind = Literal["device", "blocks", "sharded", "host", "disk", "streamed"]
KINDS: tuple[BankKind, ...] = get_args(BankKind)
