"""One split of a data set in memory, whatever format it came from."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glue_cli.running.losses import IGNORED


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length, such as the token ids of texts.

    Attributes:
        values: whole numbers; each row is a slice of them, int32 [n].
        starts, lengths: the start and length of each row, int64 [N].
        padding: the value that fills short rows in a batch.
        types: which text of a pair each value belongs to, as the model's tokenizer numbers them, int32 [n]; None if
            there is nothing to tell.
    """

    values: Tensor
    starts: Tensor
    lengths: Tensor
    padding: int = 0
    types: Tensor | None = None

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]], padding: int = 0) -> "Ragged":
        """Return rows of whole numbers, which are read once."""
        values, lengths = array("i"), list[int]()
        for row in rows:
            values.extend(row)
            lengths.append(len(row))
        sizes = torch.tensor(lengths, dtype=torch.int64)
        held = torch.frombuffer(values or array("i", [0]), dtype=torch.int32)
        return cls(held, sizes.cumsum(0) - sizes, sizes, padding)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, indices: Tensor) -> "Ragged":
        """Return the rows at `indices`, int64 [n], in that order; the values are not copied."""
        return replace(self, starts=self.starts[indices], lengths=self.lengths[indices])

    def joined(self, other: "Ragged") -> "Ragged":
        """Return these rows followed by the other's."""
        values, lengths = torch.cat([self.values, other.values]), torch.cat([self.lengths, other.lengths])
        starts = torch.cat([self.starts, other.starts + len(self.values)])
        types = None
        if self.types is not None or other.types is not None:
            each = (rows.types if rows.types is not None else torch.zeros_like(rows.values) for rows in (self, other))
            types = torch.cat([*each])
        return replace(self, values=values, starts=starts, lengths=lengths, types=types)

    def following(self) -> "Ragged":
        """Return the targets of a language model: each row without its first value, with `IGNORED` at its end."""
        return replace(self, starts=self.starts + 1, lengths=self.lengths - 1, padding=IGNORED, types=None)

    def tensors(self) -> list[Tensor]:
        """Return all tensors that hold the rows."""
        return [self.values, self.starts, self.lengths, *([] if self.types is None else [self.types])]

    def padded(self, width: int) -> Tensor:
        """Return the rows as int64 [N, width]; no row may be longer."""
        return self._padded(self.values, width, self.padding)

    def padded_types(self, width: int) -> Tensor | None:
        """Return the types as int64 [N, width], with zeros behind each row; None if there are none."""
        return None if self.types is None else self._padded(self.types, width, 0)

    def _padded(self, values: Tensor, width: int, padding: int) -> Tensor:
        columns = torch.arange(width)
        positions = (self.starts[:, None] + columns).clamp_(max=len(values) - 1)
        return torch.where(columns < self.lengths[:, None], values[positions].long(), padding)


@dataclass(frozen=True)
class Dataset:
    """Examples and their targets.

    Attributes:
        inputs: images, uint8 [N, C, H, W]; other inputs, float32 or int64 [N, ...]; or texts as token ids.
        targets: labels, int64 [N]; targets of a regression, float32 [N, ...]; or tokens: those that follow the
            inputs', or of texts of their own.
        class_names: one name per class, in the order of the labels; None if there are none.
        has_decoder: whether the targets are tokens of texts of their own, which the model's decoder writes.
    """

    inputs: Tensor | Ragged
    targets: Tensor | Ragged
    class_names: tuple[str, ...] | None = None
    has_decoder: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def has_images(self) -> bool:
        """Whether the inputs are uint8 images, which are normalised as images."""
        return isinstance(self.inputs, Tensor) and self.inputs.dtype == torch.uint8

    @property
    def labels(self) -> Tensor | None:
        """The targets if they are labels, int64 [N]."""
        is_labels = isinstance(self.targets, Tensor) and self.targets.dtype == torch.int64
        return self.targets if is_labels else None  # type: ignore[return-value]

    @property
    def shape(self) -> list[int]:
        """The shape of one example; for texts, the length of the longest."""
        return list(self.inputs.shape[1:]) if isinstance(self.inputs, Tensor) else [int(self.inputs.lengths.max())]

    def to(self, device: torch.device) -> "Dataset":
        """Return the data set on a device; texts stay on the CPU, because they are padded there."""
        if isinstance(self.inputs, Ragged) or isinstance(self.targets, Ragged):
            return self
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def joins(self, other: "Dataset") -> bool:
        """Tell whether these examples and the other's have the same shape."""
        pairs = ((self.inputs, other.inputs), (self.targets, other.targets))
        return all(_row_shape(one) == _row_shape(two) for one, two in pairs)

    def joined(self, other: "Dataset") -> "Dataset":
        """Return these examples followed by the other's, which must be of the same kind."""
        inputs, targets = _joined(self.inputs, other.inputs), _joined(self.targets, other.targets)
        return replace(self, inputs=inputs, targets=targets)

    def tensors(self) -> list[Tensor]:
        """Return all tensors that hold the examples and their targets."""
        parts = (self.inputs, self.targets)
        return [t for part in parts for t in (part.tensors() if isinstance(part, Ragged) else (part,))]

    def subset(self, indices: Tensor) -> "Dataset":
        """Return the examples at `indices`, int64 [n], in that order."""
        return replace(self, inputs=self.inputs[indices], targets=self.targets[indices])


def _row_shape(rows: Tensor | Ragged) -> torch.Size | None:
    return None if isinstance(rows, Ragged) else rows.shape[1:]


def _joined(first: Tensor | Ragged, second: Tensor | Ragged) -> Tensor | Ragged:
    if isinstance(first, Ragged):
        assert isinstance(second, Ragged)
        return first.joined(second)
    assert isinstance(second, Tensor)
    return torch.cat([first, second])


@dataclass(frozen=True)
class Texts:
    """Texts before they are turned into tokens; targets as in `Dataset`, or None.

    Attributes:
        pairs: the second text of each example; None for single texts.
    """

    texts: Sequence[str]
    targets: Tensor | None
    class_names: tuple[str, ...] | None = None
    pairs: Sequence[str] | None = None


@dataclass(frozen=True)
class Replies:
    """What a language model is asked and what it replies, before it is turned into tokens.

    Attributes:
        examples: prompts and their completions; or conversations, each of messages with `role` and `content`, as the
            chat templates of models take them.
        tools: those that each conversation may use; empty if none has any.
    """

    examples: Sequence[Any]
    are_conversations: bool
    tools: Sequence[Sequence[Any]] = ()
