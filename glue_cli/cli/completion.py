"""Shell completion for the values of options. Never imports torch."""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Literal, get_args, get_origin

from typer import _completion_shared

_WORDS, _CURSOR = "COMP_WORDS", "COMP_CWORD"  # set by bash: the words so far, and the number of the word to complete
_KEY = "_GLUE_COMPLETE_KEY"  # the key of `--set KEY=VALUE`, if bash has split it off the value


def mend_zsh() -> None:
    """Let the script for zsh complete at the first TAB of a session.

    zsh loads it then, and typer's only defines and registers a function; see "Autoloaded files" in zshcompsys.
    """
    scripts = getattr(_completion_shared, "_completion_scripts", {})
    registers = "compdef %(complete_func)s %(prog_name)s"
    if registers in scripts.get("zsh", ""):
        asks = f'[[ $funcstack[1] == _%(prog_name)s ]] && %(complete_func)s "$@" || {registers}'
        scripts["zsh"] = scripts["zsh"].replace(registers, asks)


def one_of(names: Iterable[str]) -> Callable[[], list[str]]:
    """Return a completion that offers fixed names."""
    offered = list(names)
    return lambda: offered


def policies(names: Iterable[str]) -> Callable[[], list[str]]:
    """Return a completion that offers policies; for a policy that names an expert, the part before the name."""
    return one_of(name.removesuffix("EXPERT") for name in names)


def metrics() -> list[str]:
    from glue_cli.running.metrics import METRICS

    return sorted({name for known in METRICS.values() for name in known})


def bars() -> list[str]:
    from glue_cli.running.metrics import BARS

    return _assignments(BARS)


def ceilings() -> list[str]:
    from glue_cli.running.metrics import CEILINGS

    return _assignments(CEILINGS)


def _assignments(figures: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the figures of all losses, each once and followed by an equals sign."""
    return [f"{name}=" for name in dict.fromkeys(name for known in figures.values() for name in known)]


def banks() -> list[str]:
    from glue_cli.plans.mix_records import ALL_BANKS

    return list(ALL_BANKS)


def dtypes() -> list[str]:
    from glue_cli.plans.mix_records import OUTPUT_DTYPES

    return ["same", *OUTPUT_DTYPES]


def settings(incomplete: str) -> list[str]:
    """Return the keys of the spec, or after a key's equals sign the values that the key may have."""
    key, equals, _ = incomplete.partition("=")
    if cut_off := os.environ.get(_KEY):
        return _values_of(cut_off)
    return [f"{key}={value}" for value in _values_of(key)] if equals else [f"{name}=" for name, _ in _keys()]


def join_assignment(environ: MutableMapping[str, str]) -> None:
    """Join the word `KEY=VALUE` after `--set` again: bash splits words at equals signs and completes only the last."""
    if environ.get("_GLUE_COMPLETE") != "complete_bash":
        return
    try:
        words, cursor = shlex.split(environ[_WORDS]), int(environ[_CURSOR])
    except (KeyError, ValueError):  # typer handles this, and quotes that are not closed
        return
    words += [""] * (cursor + 1 - len(words))
    equals = cursor if words[cursor] == "=" else cursor - 1
    if equals >= 2 and words[equals] == "=" and words[equals - 2] == "--set":
        environ[_KEY] = words[equals - 1]
        value = words[cursor] if cursor > equals else ""
        environ[_WORDS] = shlex.join([*words[: equals - 1], value])
        environ[_CURSOR] = str(equals - 1)


def _keys(section: Any = None, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the type of every value in the spec, except inside free-form arguments."""
    from pydantic import BaseModel

    from glue_cli.spec.schema import Spec

    for name, field in (section or Spec).model_fields.items():
        kinds = [kind for kind in _parts(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if kinds and get_origin(field.annotation) is not list:
            yield from _keys(kinds[0], f"{before}{name}.")
        else:
            yield f"{before}{name}", field.annotation


def _values_of(key: str) -> list[str]:
    """Return the values that a key of the spec may have, if they are names."""
    from glue_cli.data import FORMATS
    from glue_cli.models import ARCHITECTURES, LIBRARIES
    from glue_cli.spec.goal import GOALS
    from glue_cli.spec.schema import INITS

    own: dict[str, Sequence[str]] = {
        "model.arch": [*ARCHITECTURES, *(f"{library}:" for library in LIBRARIES)],
        "data.format": [name for name in FORMATS if ":" not in name],
        "objective": GOALS,
        "experts.init": INITS,
    }
    if key in own:
        return list(own[key])
    kinds = _parts(dict(_keys()).get(key))
    names = [name for kind in kinds if get_origin(kind) is Literal for name in get_args(kind)]
    return names + (["true", "false"] if bool in kinds else [])


def _parts(annotation: Any) -> Sequence[Any]:
    """Return the types that an annotation such as `str | None` allows."""
    return (annotation,) if get_origin(annotation) is Literal else (annotation, *get_args(annotation))
