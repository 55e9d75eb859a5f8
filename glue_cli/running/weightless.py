"""Models whose parameters have no values: what is built only to be filled from experts need not be in memory twice."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from glue_cli.foundation.errors import SpecError

_PLAIN = (Tensor, nn.Parameter)  # others, such as quantised ones, are loaded in ways of their own


def build_weightless(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model whose parameters are on the meta device; its buffers have their values.

    A model that looks at its parameters while it is built, or makes a buffer from them, is built with all its values;
    so is one that draws what no file holds, since parameters without values draw no numbers before it.
    """
    state = torch.get_rng_state()
    try:
        with _parameters_on_meta():
            model = build()
            is_drawn = _has_drawn(state) and _draws_what_no_file_holds(model, build)
        if not is_drawn and not any(buffer.is_meta for buffer in model.buffers()):
            return model
    except Exception:  # the user's code, which may do anything with its parameters; building again says what is wrong
        pass
    torch.set_rng_state(state)
    return build()


def _has_drawn(before: Tensor) -> bool:
    return not torch.equal(before, torch.get_rng_state())


def _draws_what_no_file_holds(model: nn.Module, build: Callable[[], nn.Module]) -> bool:
    """Tell whether another model that is built after other draws has other tensors that are in no state dict.

    Cost: builds one more, whose parameters have no values either.
    """
    found = _in_no_file(model)
    if not found:
        return False
    with _other_seeds():
        again = _in_no_file(build())
    return found.keys() != again.keys() or not all(_are_same(found[name], again[name]) for name in found)


@contextmanager
def _other_seeds() -> Iterator[None]:
    """Let what is built in this block draw other numbers even if it seeds the generator itself."""
    seed_with = torch.manual_seed
    torch.manual_seed = torch.random.manual_seed = lambda seed: seed_with(int(seed) + 1)
    try:
        yield
    finally:
        torch.manual_seed = torch.random.manual_seed = seed_with


def _in_no_file(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model's modules that no checkpoint holds: buffers of that kind, and plain attributes."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        unsaved = {name: module._buffers.get(name) for name in module._non_persistent_buffers_set}
        tensors = {name: value for name, value in (vars(module) | unsaved).items() if type(value) is Tensor}
        found |= {f"{path}.{name}": tensor for name, tensor in tensors.items() if not tensor.is_meta}
    return found


def _are_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give some of a model's tensors values, converted to the model's dtypes; tied parameters stay tied.

    Raises:
        SpecError: a hook of the model wants a whole state dict, and some of these are not plain tensors.
    """
    give_memory(model, tensors.keys())
    try:
        model.load_state_dict(tensors, strict=False)
    except Exception as error:  # of a hook of the user's, which may want all of them
        own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        own |= dict(model.named_buffers(remove_duplicate=False))
        for name, tensor in tensors.items():
            if name not in own or type(own[name]) not in _PLAIN or own[name].shape != tensor.shape:
                raise SpecError(
                    f"the model does not load a part of its tensors: {type(error).__name__}: {error}",
                    hint="a search fills them part by part: let hooks that load a state dict take what is there",
                ) from error
            with torch.no_grad():
                own[name].copy_(tensor)


def without_values(model: nn.Module) -> set[str]:
    """Return the names of the parameters that have no values."""
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.is_meta}


def give_memory(model: nn.Module, names: Collection[str]) -> None:
    """Let the parameters with these names have memory, with any values; those that have some keep theirs."""
    by_name = dict(model.named_parameters(remove_duplicate=False))
    empty = {id(by_name[name]): by_name[name] for name in names if name in by_name and by_name[name].is_meta}
    real = {
        key: nn.Parameter(torch.empty_like(parameter, device="cpu"), requires_grad=parameter.requires_grad)
        for key, parameter in empty.items()
    }
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if id(parameter) in real:
                setattr(module, leaf, real[id(parameter)])


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Let every parameter that a module gets in this block be on the meta device, so that its memory is freed."""
    register = nn.Module.register_parameter
    known: WeakValueDictionary[int, Tensor] = WeakValueDictionary()  # parameters seen, by their identity
    on_meta: dict[int, nn.Parameter] = {}

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is None or param.is_meta or is_lazy(param):
            return register(module, name, param)
        if known.get(id(param)) is not param:  # a parameter that is registered twice stays one
            known[id(param)] = param
            on_meta[id(param)] = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
            on_meta[id(param)].__dict__.update(param.__dict__)
        return register(module, name, on_meta[id(param)])

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
