"""Where a model's tensors come from in a checkpoint, which may name and split them differently from the model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glue_cli.checkpoints.header import Checkpoint, TensorEntry
from glue_cli.checkpoints.tensors import FILE_DTYPES, TORCH_DTYPES


@dataclass(frozen=True)
class Source:
    """Where one of a model's tensors comes from.

    Attributes:
        names: the checkpoint's tensors that the model's tensor is made from.
        make: makes the model's tensor from them, in that order; None for a single one that is taken unchanged. It is
            linear, so blending before or after it gives the same result. It is not differentiable.
    """

    names: tuple[str, ...]
    make: Callable[[Sequence[Tensor]], Tensor] | None = None

    def take(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Make the model's tensor from the checkpoint's tensors, given by name."""
        parts = [tensors[name] for name in self.names]
        return self.make(parts) if self.make else parts[0]

    def entry(self, checkpoint: Checkpoint) -> TensorEntry | None:
        """Return the dtype and shape that `take` gives, with the file offset of its first part; reads no tensors.

        Returns:
            None if the parts do not fit together.
        """
        parts = [checkpoint.entries[name] for name in self.names]
        if self.make is None:
            return parts[0]
        try:
            made = self.make([torch.empty(e.shape, dtype=TORCH_DTYPES[e.dtype], device="meta") for e in parts])
        except Exception:  # a library's code, which may get parts that it does not expect
            return None
        return parts[0]._replace(dtype=FILE_DTYPES[made.dtype], shape=tuple(made.shape))


@dataclass(frozen=True)
class Naming:
    """Which of a checkpoint's tensors each of a model's tensors comes from.

    Attributes:
        sources: by the model's names; tied names may have the same source.
        unused: the checkpoint's tensors that the model does not use.
    """

    sources: Mapping[str, Source]
    unused: tuple[str, ...]

    def distinct(self) -> Iterator[tuple[str, Source]]:
        """Yield each of the model's tensors once; tied tensors under their first name."""
        seen = set()
        for name, source in self.sources.items():
            if source not in seen:
                yield name, source
            seen.add(source)

    def in_memory(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return, by the model's names, every tensor that can be made from these tensors of the checkpoint."""
        return {
            name: source.take(tensors)
            for name, source in self.distinct()
            if all(part in tensors for part in source.names)
        }

    def on_disk(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return, by the checkpoint's names, those of the model's tensors that the checkpoint stores unchanged."""
        return {
            source.names[0]: tensors[name]
            for name, source in self.distinct()
            if name in tensors and source.make is None
        }

    def respelled(self, spelling: Mapping[str, str]) -> "Naming":
        """Return the naming for a checkpoint whose tensors are renamed by `spelling`."""
        sources = {
            name: replace(source, names=tuple(spelling[part] for part in source.names))
            for name, source in self.sources.items()
        }
        return Naming(sources, tuple(spelling[name] for name in self.unused))
