"""The tensors of a model, by their names in its state dict."""

from torch import Tensor, nn

from glue_cli.foundation.errors import SpecError

_EXTRA_STATE = "_extra_state"  # torch's name for what a module keeps beside its tensors


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state dict without what is no tensor, such as a module's extra state that is a dict."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def left_out(model: nn.Module) -> list[str]:
    """Return the names of what a model's state dict holds besides tensors, which a file of tensors cannot."""
    others = {name: value for name, value in model.state_dict().items() if not isinstance(value, Tensor)}
    return [name for name, value in others.items() if value is not None and not _is_empty(value)]


def _is_empty(value: object) -> bool:
    return isinstance(value, dict | bytes) and not value


def check_names(model: nn.Module) -> None:
    """Check that the model's state dict calls its tensors as its modules do, which hold those of a blend.

    Raises:
        SpecError: hooks of the model give them other names.
    """
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    own = {name for name, _ in named}
    if renamed := [name for name in tensors_of(model) if name not in own and not name.endswith(_EXTRA_STATE)]:
        raise SpecError(
            f"the model's state dict has '{renamed[0]}', which no module of the model has: a hook renames it",
            hint="a search fills the modules themselves: let the state dict have their names, in the experts too",
        )
