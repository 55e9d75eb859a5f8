"""The device and the precision that a model computes with."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from glue_cli.foundation.errors import PrecisionError, ResourceError
from glue_cli.running.timing import Precision

# What torch says of an operation that it does not have in bfloat16; oneDNN's has no LSTM in it without AVX-512.
_UNSUPPORTED = re.compile(r"primitive|bfloat16|dtype|data type", re.IGNORECASE)


@dataclass(frozen=True)
class Compute:
    """The device, precision and memory format of one run."""

    device: torch.device
    precision: Precision = "fp32"
    channels_last: bool = False

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run matrix products and convolutions in the precision; parameters stay float32.

        Raises:
            PrecisionError: the model has an operation that there is not in bfloat16 on this device.
        """
        is_narrow = self.precision == "bf16"
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=is_narrow):
                yield
        except RuntimeError as error:
            if not (is_narrow and _UNSUPPORTED.search(str(error))):
                raise
            said = str(error).splitlines()[0]
            raise PrecisionError(
                f"the model does not run in bfloat16 on this device: {said}", hint="--precision fp32"
            ) from error

    @property
    def recorded(self) -> dict[str, Any]:
        """What results and checkpoints record; on one machine, it and the seed determine every byte of the output."""
        return {"precision": self.precision, "threads": torch.get_num_threads()}

    def to_device(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and convert it to the memory format; parameters without values stay without."""
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(self.device))  # type: ignore[no-untyped-call]
        return model


def find_device(name: str) -> torch.device:
    """Return the device called `auto`, `cpu`, `cuda` or `cuda:I`; auto is a GPU, or the CPU without one.

    Without a number it is torch's current GPU: the first, unless `Ranks.start` has given this process another.

    Raises:
        ResourceError: there is no such GPU.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if n_gpus else "cpu"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if (device.index or 0) >= n_gpus:
        raise ResourceError(f"no device '{name}': torch sees {n_gpus} CUDA devices", hint="use --device cpu")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def make_repeatable(device: torch.device) -> None:
    """Set torch's global flags so that equal runs on a GPU give equal bytes, as far as torch can guarantee that.

    A command calls this once, before its model runs; on a CPU nothing has to be set.
    """
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        # float32 is chosen to resolve small differences of the loss, which TF32's 10 bits would hide.
        torch.backends.cudnn.allow_tf32 = False


def likes_channels_last(model: nn.Module) -> bool:
    """Tell whether channels_last is the faster memory format for a model: if it has two convolutions or more.

    A single convolution is a transformer's patch embedding, for which the conversion costs more time than it saves.
    """
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1
