"""The blocks of a model: the parts whose tensors are in memory only while they run."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from glue_cli.blend.submodules import find_members
from glue_cli.search.bound_models import tied_names

# How a model is split, the first that its forward allows: everything into blocks; only the members of repeated
# submodules; nothing.
SPLITS = ("modules", "members", "none")

# Layers that autocast runs in bfloat16; not what is derived from them, which may do anything with its weight.
_ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# They look at the weights of their layers before these run, and compute in other ways where they are not there.
_LOOKING_AHEAD = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


@dataclass(frozen=True)
class Block:
    """A submodule that runs as a whole.

    Attributes:
        module: its name.
        places: where its blended tensors are: by the name of a place in the model, the name of the tensor, which
            differs where tensors are tied.
    """

    module: str
    places: Mapping[str, str]

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.places.values()))


@dataclass(frozen=True)
class Split:
    """A model's blocks in their order, and the place of each blended tensor outside them."""

    blocks: tuple[Block, ...]
    kept: Block


def split_model(model: nn.Module, blended: Collection[str], how: str) -> Split:
    """Split a model into blocks.

    Args:
        blended: the names of the tensors that depend on alpha; of tied ones, the first.
        how: a name of `SPLITS`.
    """
    tied = tied_names(model)
    first = {alias: name for name in blended for alias in tied.get(name, ())} | {name: name for name in blended}
    places = [name for name in _places(model) if name in first]
    modules = [] if how == "none" else list(_running(model, "", {*find_members(places)}, how == "modules"))
    blocks, taken = [], set[str]()
    for module in modules:
        inside = {name: first[name] for name in places if name.startswith(f"{module}.")}
        if inside:
            blocks.append(Block(module, inside))
            taken |= inside.keys()
    return Split(tuple(blocks), Block("", {name: first[name] for name in places if name not in taken}))


def narrow_names(model: nn.Module, blended: Collection[str]) -> set[str]:
    """Return the names of tensors that autocast rounds to bfloat16 wherever they are used.

    They are weights and biases of linear and convolutional layers, and nothing else.
    """
    tied = tied_names(model)
    return {name for name in blended if all(_is_rounded(model, place) for place in (name, *tied.get(name, ())))}


def _is_rounded(model: nn.Module, place: str) -> bool:
    path, _, leaf = place.rpartition(".")
    parent = model.get_submodule(path.rpartition(".")[0])
    is_read_by_parent = isinstance(parent, nn.TransformerEncoderLayer)  # which multiplies without autocast
    return leaf in ("weight", "bias") and type(model.get_submodule(path)) in _ROUNDED and not is_read_by_parent


def _places(model: nn.Module) -> Iterator[str]:
    for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        yield from (name for name, _ in tensors)


def _running(module: nn.Module, path: str, members: Collection[str], also_others: bool) -> Iterator[str]:
    """Yield the names of the modules that become blocks: members, and of the others those without submodules."""
    children = [(f"{path}.{name}".lstrip("."), child) for name, child in module.named_children()]
    is_whole = path in members or (also_others and not children) or isinstance(module, _LOOKING_AHEAD)
    if path and is_whole and type(module).forward is not nn.Module.forward:  # else a mere list, which never runs
        yield path
        return
    inner = {name for name, _ in children} if path in members else members
    for name, child in children:
        yield from _running(child, name, inner, also_others)
