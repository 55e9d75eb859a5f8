"""Where a model's tensors come from in a checkpoint, which may name and cut them in another way than the model."""

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
        names: the checkpoint's tensors that it is made of.
        make: makes it of them, given in that order; None for a single one that is taken as it is. Linear, so that the
            blend of what is made is what is made of the blend; not differentiable.
    """

    names: tuple[str, ...]
    make: Callable[[Sequence[Tensor]], Tensor] | None = None

    def take(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the model's tensor, from the checkpoint's by their names."""
        parts = [tensors[name] for name in self.names]
        return self.make(parts) if self.make else parts[0]

    def entry(self, checkpoint: Checkpoint) -> TensorEntry | None:
        """Return the dtype and shape of what `take` gives, at the place of its first part, from the header alone.

        Returns:
            None where the parts do not go together.
        """
        parts = [checkpoint.entries[name] for name in self.names]
        if self.make is None:
            return parts[0]
        try:
            made = self.make([torch.empty(e.shape, dtype=TORCH_DTYPES[e.dtype], device="meta") for e in parts])
        except Exception:  # a library's own code, on parts that it was not written for
            return None
        return parts[0]._replace(dtype=FILE_DTYPES[made.dtype], shape=tuple(made.shape))


@dataclass(frozen=True)
class Naming:
    """Which of a checkpoint's tensors are which of a model's.

    Attributes:
        sources: by the model's names; names that are tied to one tensor may have the same source.
        unused: the checkpoint's tensors that the model has no use for.
    """

    sources: Mapping[str, Source]
    unused: tuple[str, ...]

    def distinct(self) -> Iterator[tuple[str, Source]]:
        """Yield each of the model's tensors once: of names that are tied to one tensor, the first."""
        seen = set()
        for name, source in self.sources.items():
            if source not in seen:
                yield name, source
            seen.add(source)

    def in_memory(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return by the model's names what can be had of some of the checkpoint's tensors."""
        return {
            name: source.take(tensors)
            for name, source in self.distinct()
            if all(part in tensors for part in source.names)
        }

    def on_disk(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return by the checkpoint's names those of the model's tensors that it has as they are."""
        return {
            source.names[0]: tensors[name]
            for name, source in self.distinct()
            if name in tensors and source.make is None
        }

    def respelled(self, spelling: Mapping[str, str]) -> "Naming":
        """Return the naming for a checkpoint in which the tensors are called as `spelling` says."""
        sources = {
            name: replace(source, names=tuple(spelling[part] for part in source.names))
            for name, source in self.sources.items()
        }
        return Naming(sources, tuple(spelling[name] for name in self.unused))
