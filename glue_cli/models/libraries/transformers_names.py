"""The names that transformers gives a model's tensors on disk and in memory, from the library's own conversion.

Since version 5 the two differ: ViT's `vit.encoder.layer.0.attention.attention.query` on disk is
`vit.layers.0.attention.q_proj` in memory, and the matrices of Mixtral's experts are a single tensor in memory. The
library converts in `from_pretrained` and `save_pretrained`, which also build a model or write a folder; glue calls the
functions inside them, which only convert.
"""

import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from glue_cli.checkpoints.naming import Naming, Source
from glue_cli.foundation.errors import SpecError
from glue_cli.models.tensors import tensors_of

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # the number of a layer or an expert: a whole part of a name


def is_of_transformers(model: nn.Module) -> bool:
    """Tell whether a model is one of transformers, without importing transformers."""
    models = sys.modules.get("transformers.modeling_utils")
    return models is not None and isinstance(model, models.PreTrainedModel)


def name_tensors(model: nn.Module, names: Iterable[str]) -> Naming:
    """Find a model's tensors among a checkpoint's names, as `from_pretrained` does.

    Raises:
        SpecError: this module does not support the installed version of transformers.
    """
    return _follow(model, names)[0]


def names_on_disk(
    model: nn.Module, tensors: Mapping[str, Tensor], start: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Return a model's tensors with the names and shapes that `save_pretrained` writes.

    Args:
        tensors: with the model's names.
        start: the names in the checkpoint that the model was loaded from; where the library knows several spellings,
            they decide which is written. None for a new model.
    Raises:
        SpecError: as `name_tensors` does.
    """
    own: Any = model
    kept: Collection[str] = ()
    if start is not None:
        naming, used = _follow(model, start)
        kept, own._weight_conversions = naming.sources, used  # from_pretrained leaves them there for save_pretrained
    left_out = {*own.all_tied_weights_keys} - {*kept} | {*(own._keys_to_ignore_on_save or ())}
    library = _library()
    written = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    return dict(library.revert(model, written))


@dataclass(frozen=True)
class _Library:
    """The functions and classes of transformers that this module uses; none of them is public."""

    conversions: Callable[..., Sequence[Any]]
    renaming: type[Any]
    converter: type[Any]
    rename: Callable[..., tuple[str, str | None]]
    order: Callable[[str], Any]
    revert: Callable[..., Mapping[str, Tensor]]


def _library() -> _Library:
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
            revert_weight_conversion,
        )
    except ImportError as error:
        raise _unknown_version() from error
    return _Library(
        get_model_conversion_mapping,
        WeightRenaming,
        WeightConverter,
        rename_source_key,
        dot_natural_key,
        revert_weight_conversion,
    )


def _unknown_version() -> SpecError:
    version = getattr(sys.modules.get("transformers"), "__version__", "?")
    return SpecError(
        f"glue does not know how transformers {version} names tensors", hint="pip install 'transformers>=5,<=5.24'"
    )


def _follow(model: Any, names: Iterable[str]) -> tuple[Naming, list[Any]]:
    """Return the naming, and the conversions of the library that it uses."""
    library = _library()
    try:
        conversions = library.conversions(model)
        renamings = [c for c in conversions if isinstance(c, library.renaming)]
        converters = [c for c in conversions if isinstance(c, library.converter)]
        wanted = tensors_of(model)
        sources: dict[str, Source] = {}
        unused: list[str] = []
        groups: dict[str, list[tuple[str, str]]] = {}  # a tensor made of parts -> the parts' names and patterns
        for name in sorted(names, key=library.order):
            new, pattern = library.rename(name, renamings, converters, model.base_model_prefix, wanted)
            if new not in wanted and name in wanted:  # the file has the names in memory
                new, pattern = name, None
            if new not in wanted or new in sources:
                unused.append(name)
            elif pattern is None:
                sources[new] = Source((name,))
            else:
                groups.setdefault(new, []).append((name, pattern))
    except (TypeError, AttributeError) as error:
        raise _unknown_version() from error
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    for first, parts in groups.items():
        if _is_whole(parts):
            sources |= _put_together(model, by_pattern[parts[0][1]], first, parts, wanted)
        else:
            unused += [name for name, _ in parts]
    ignored = _ignored(model)
    unused = [name for name in unused if not any(re.search(pattern, name) for pattern in ignored)]
    used = [c for c in conversions if getattr(c, "was_used", lambda: True)()]
    return Naming(sources, tuple(unused)), used


def _is_whole(parts: Sequence[tuple[str, str]]) -> bool:
    """Tell whether every pattern matches the same layers and experts.

    If two experts each lack a different matrix, the library would wrongly combine matrices of the two.
    """
    numbers: dict[str, list[list[str]]] = {}
    for name, pattern in parts:
        numbers.setdefault(pattern, []).append(_NUMBER.findall(name))
    first, *others = numbers.values()
    return all(other == first for other in others)


def _put_together(
    model: Any, converter: Any, first: str, parts: Sequence[tuple[str, str]], wanted: Collection[str]
) -> dict[str, Source]:
    """Return the sources of the one or more tensors that a converter makes from parts, by the model's names.

    Args:
        first: the model's name of the first of these tensors.
    """
    head, *others = converter.target_patterns
    targets = [first, *(first.replace(head, other) for other in others)]
    names = tuple(name for name, _ in parts)
    convert = partial(_convert, model, converter, first, parts)
    return {target: Source(names, partial(convert, target)) for target in targets if target in wanted}


def _convert(
    model: Any, converter: Any, first: str, parts: Sequence[tuple[str, str]], target: str, tensors: Sequence[Tensor]
) -> Tensor:
    own = deepcopy(converter)  # adding tensors changes it
    for (name, pattern), part in zip(parts, tensors, strict=True):
        own.add_tensor(first, name, pattern, part)
    made = own.convert(first, model=model, config=model.config)[target]
    tensor: Tensor = made[0] if isinstance(made, list) else made
    return tensor


def may_be_missing(model: nn.Module, name: str) -> bool:
    """Tell whether the library accepts, without a message, a checkpoint that lacks this tensor of the model."""
    own: Any = model
    return any(re.search(pattern, name) for pattern in own._keys_to_ignore_on_load_missing or ())


def _ignored(model: Any) -> list[str]:
    """Return patterns of the tensors in a checkpoint that the library ignores silently."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ())]
    buffers = [name for name, _ in model.named_buffers()]
    for buffer, pattern in (
        ("rotary_emb.inv_freq", r"rotary_emb\.inv_freq"),
        ("position_ids", r"(^|\.)position_ids$"),
    ):
        if any(name.endswith(buffer) for name in buffers):
            patterns.append(pattern)
    return patterns
