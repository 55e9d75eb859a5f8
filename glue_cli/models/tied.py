"""Tensors that a model has under several names, and checkpoints or adapters that have them apart."""

from collections.abc import Collection, Iterator, Sequence

from torch import nn

from glue_cli.checkpoints.files import same_bytes
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.naming import Naming, Source
from glue_cli.foundation.errors import CheckpointError


def check_tied(model: nn.Module, naming: Naming, checkpoint: Checkpoint) -> None:
    """Check that what the model ties is equal where a checkpoint has it more than once.

    transformers loads such a checkpoint as it is, and leaves the tensors apart.

    Raises:
        CheckpointError: two of them differ.
    Cost: reads them, up to the first difference.
    """
    for _, sources in _tied(model, naming):
        whole = [source.names[0] for source in sources if source.make is None]
        first, *others = [name for name in whole if name in checkpoint.entries] or [""]
        for other in others:
            if not same_bytes(checkpoint, checkpoint.entries[first], checkpoint, checkpoint.entries[other]):
                raise CheckpointError(
                    f"{checkpoint.path}: '{first}' and '{other}' differ, and the spec's model has one tensor for both",
                    hint="let the model have two; of transformers: --set model.args.tie_word_embeddings=false",
                )


def check_adapted_alike(model: nn.Module, naming: Naming, changed: Collection[str]) -> None:
    """Check that adapters change what the model ties under all its names or under none.

    PEFT adapts the layer that it is asked to, and leaves the others that share its tensor with the base's.

    Args:
        naming: of the adapted base's tensors, which are called as on disk in `changed`.
    Raises:
        CheckpointError: they change a part of them.
    """
    for names, sources in _tied(model, naming):
        adapted = [source for source in sources if not set(changed).isdisjoint(source.names)]
        if adapted and len(adapted) < len(names):
            raise CheckpointError(
                f"the adapters change '{adapted[0].names[0]}', which is one tensor in the model with another layer's:"
                f" {', '.join(names)}",
                hint="PEFT then has two: merge each adapter into its base by PEFT, and mix those",
            )


def _tied(model: nn.Module, naming: Naming) -> Iterator[tuple[Sequence[str], Sequence[Source]]]:
    """Yield the names that each tied tensor has in the model, and the different sources of these."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    for group in names.values():
        if len(group) > 1:
            found = (naming.sources[name] for name in group if name in naming.sources)
            yield group, [*{source.names: source for source in found}.values()]
