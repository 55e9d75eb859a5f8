"""Read `glue.yaml`, with line numbers and overrides; all faults of the file are reported at once."""

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from glue_cli.foundation.errors import SpecError, UnfinishedSpecError, UsageError
from glue_cli.foundation.nearest import nearest
from glue_cli.foundation.printable import shown
from glue_cli.foundation.regular_files import read_text
from glue_cli.foundation.units import size
from glue_cli.spec.schema import Spec

KeyPath = tuple[str | int, ...]

# What was wanted, for errors of pydantic whose own message does not say it.
_WANTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
}


# A spec of a thousand experts has a tenth of each; with aliases, a few lines of YAML can make any number of values.
_MOST_CHARACTERS, _MOST_VALUES = 500_000, 100_000
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class _Fault(NamedTuple):
    """What is wrong with one key.

    Attributes:
        place: its line in the file, counted from 1, or the option that it came from, such as `--set`.
        text: the key, what is wrong with it, and what was wanted.
        leaves_open: whether the model or the data are still to be chosen.
    """

    place: int | str
    text: str
    leaves_open: bool = False


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, except that `1e-3` is a number, 0100 is not 64, and 1:30 is not 90."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F][0-9a-fA-F_]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_spec(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    typed: Mapping[str, str] | None = None,
    known_names: Mapping[str, Collection[str]] | None = None,
) -> Spec:
    """Read and validate the spec at `path`.

    Args:
        overrides: `key.path=value` items that replace values of the file; values are read as YAML.
        typed: the options or variables that stand for overrides, by the override; `--set` if not given.
        known_names: the values that a key may have, by the key's name (`arch`, `format`), in addition to the schema's
            rules; a value with a colon, such as `timm:NAME`, allows everything with the same prefix.
    Raises:
        SpecError: the file is not YAML, or its content is wrong; every fault is listed with its line.
        UnfinishedSpecError: among the faults, the model or the data are missing.
        UsageError: the file does not exist, or an override is wrong.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise UsageError(
            f"no spec at '{path}'",
            hint="write one with glue init EXPERT... --data FOLDER, or name one with --spec PATH or GLUE_SPEC",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"the spec '{path}' cannot be read: {error}", hint="--spec names a YAML file, in UTF-8"
        ) from None
    if len(text) > _MOST_CHARACTERS:
        raise SpecError(
            f"the spec '{path}' has {size(len(text))}, more than the {size(_MOST_CHARACTERS)} of any spec",
            hint="--spec names a glue.yaml, not data or a model",
        )
    lines: dict[KeyPath, int] = {}
    faults: list[_Fault] = []
    value = _parse(text, path, lines, faults)
    in_file = copy.deepcopy(value)
    options = [(typed or {}).get(override, "--set") for override in overrides]
    set_keys = {_apply(override, value, option): option for override, option in zip(overrides, options, strict=True)}
    spec: Spec | None = None
    try:
        spec = Spec.model_validate(value)
    except ValidationError as error:
        of_file = _faulty_keys(in_file)
        for detail in error.errors(include_url=False):
            blamed = {} if detail["loc"] in of_file else set_keys
            faults.append(_fault_of(detail, blamed, lines, text))
    for key_path, name in _named(value, known_names or {}):
        known = (known_names or {})[str(key_path[-1])]
        if not _is_known(name, known):
            unknown = f"{_dotted(key_path)}: '{name}' is not known; {nearest(name, known)}"
            faults.append(_Fault(_place_of(key_path, set_keys, lines), unknown))
    _refuse(faults, path)
    assert spec is not None
    return spec.located_in(path.parent)


def _refuse(faults: Sequence[_Fault], path: Path) -> None:
    """Raise an error for the faults of the command line or, if it has none, for those of the file, by line."""
    if given := [fault for fault in faults if isinstance(fault.place, str)]:
        options = list(dict.fromkeys(str(fault.place) for fault in given))
        raise UsageError(
            f"{' and '.join(options)} {'does' if len(options) == 1 else 'do'} not fit the spec",
            items=[f"{fault.place}: {fault.text}" for fault in given],
            hint="see the spec's keys in the README" if "--set" in options else "give another value, or none",
        )
    if faults:
        in_order = sorted(faults, key=lambda fault: int(fault.place))  # stable, so the order within a line stays
        items = [f"{path}:{fault.place}: {fault.text}" for fault in in_order]
        noun = "fault" if len(items) == 1 else "faults"
        kind = UnfinishedSpecError if any(fault.leaves_open for fault in faults) else SpecError
        raise kind(f"{len(items)} {noun} in the spec '{path}'", items=items, hint="mend the lines named above")


def _is_known(name: str, known: Collection[str]) -> bool:
    prefix, colon, rest = name.partition(":")
    return name in known or bool(rest) and any(form.startswith(prefix + colon) for form in known)


def _parse(text: str, path: Path, lines: dict[KeyPath, int], faults: list[_Fault]) -> dict[str, Any]:
    try:
        value = _load(text, lines, faults)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SpecError(
            f"{path}:{line}: not YAML: {error.problem or error.context}",
            hint="look at that line and the one above it for brackets, quotes, colons and indents",
        ) from None
    except yaml.YAMLError as error:  # a control character
        raise SpecError(f"{path}: not YAML: {error}", hint="remove that character, or save the file as text") from None
    except RecursionError:
        raise SpecError(f"{path}: nested too deep", hint="look for an alias inside its own anchor") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SpecError(
            f"{path}:1: wanted keys such as 'model:' and 'data:', found a {type(value).__name__}",
            hint="write a spec with glue init EXPERT... --data FOLDER",
        )
    return value


def _load(text: str, lines: dict[KeyPath, int], faults: list[_Fault]) -> Any:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        return None if root is None else _construct(loader, root, (), lines, faults)
    finally:
        loader.dispose()


def _construct(loader: _Loader, node: yaml.Node, at: KeyPath, lines: dict[KeyPath, int], faults: list[_Fault]) -> Any:
    lines.setdefault(at, node.start_mark.line + 1)
    if len(lines) > _MOST_VALUES:
        raise yaml.MarkedYAMLError(problem=f"more than {_MOST_VALUES:,} values", problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="wanted a word as key", problem_mark=key_node.start_mark)
            _check_text(key_node)
            key = key_node.value
            line = key_node.start_mark.line + 1
            if key in result:
                twice = f"{_dotted((*at, key))}: given twice, first on line {lines[(*at, key)]}"
                faults.append(_Fault(line, twice))
                continue
            lines[(*at, key)] = line
            result[key] = _construct(loader, value_node, (*at, key), lines, faults)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*at, i), lines, faults) for i, item in enumerate(node.value)]
    _check_text(node)
    try:
        return loader.construct_object(node)
    except (ValueError, LookupError, AttributeError):  # raised by PyYAML for an invalid date, `!!int x` or `!!bool x`
        problem = f"'{shown(node.value)}' is no {node.tag.rpartition(':')[2]}"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def _check_text(node: yaml.Node) -> None:
    """Reject characters that YAML can escape, but that file names and JSON cannot hold."""
    if _NO_TEXT.search(node.value):
        problem = f"{ascii(shown(node.value))} holds NUL or half a character"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _apply(override: str, value: dict[str, Any], option: str) -> KeyPath:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"--set {override}: wanted KEY=VALUE", hint="for example --set mix.lr=0.05")
    at: Any = value
    for part in parts[:-1]:
        if isinstance(at, list) and part.isdigit() and int(part) < len(at):
            at = at[int(part)]
        elif isinstance(at, dict) and isinstance(at.setdefault(part, {}), dict | list):
            at = at[part]
        else:
            raise UsageError(
                f"{option} {key}: '{part}' has no keys below it", hint=f"look at what the spec has as '{part}'"
            )
    faults: list[_Fault] = []
    try:
        parsed = _load(text, {}, faults)
    except (yaml.YAMLError, RecursionError):
        hint = "close its brackets and quotes, and quote it for the shell: --set 'mix.betas=[0.9, 0.99]'"
        raise UsageError(f"{option} {override}: '{text}' is not a YAML value", hint=hint) from None
    if faults:
        raise UsageError(f"{option} {override}: a key is given twice", hint="leave one of the two out")
    if not isinstance(at, dict):
        raise UsageError(f"{option} {key}: a list has no key '{parts[-1]}'", hint="set the whole list: KEY=[A, B]")
    at[parts[-1]] = parsed
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _place_of(at: KeyPath, set_keys: dict[KeyPath, str], lines: Mapping[KeyPath, int]) -> int | str:
    """Return the line of a key in the file, or the option that gave the key, or one of those below it."""
    for key, option in reversed(set_keys.items()):
        if at[: len(key)] == key or key[: len(at)] == at:
            return option
    while at not in lines and at:  # a missing key is reported on the line of its section
        at = at[:-1]
    return lines.get(at, 1)


def _faulty_keys(value: object) -> set[KeyPath]:
    """Return the keys that are wrong in what the file alone says."""
    try:
        Spec.model_validate(value)
    except ValidationError as error:
        return {detail["loc"] for detail in error.errors(include_url=False)}
    return set()


def _fault_of(detail: ErrorDetails, set_keys: dict[KeyPath, str], lines: Mapping[KeyPath, int], text: str) -> _Fault:
    loc, place = detail["loc"], _place_of(detail["loc"], set_keys, lines)
    leaves_open = detail["type"] == "missing" and loc[0] in ("model", "data")
    if leaves_open and len(loc) == 1 and (commented := _commented_line(str(loc[0]), text)):
        return _Fault(commented, f"{loc[0]}: missing; choose, and uncomment this section", leaves_open)
    return _Fault(place, _explain(detail), leaves_open)


def _commented_line(section: str, text: str) -> int | None:
    """Return the line on which a section stands commented out, as glue init writes one that is left open."""
    found = re.search(rf"^#\s*{section}:", text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else None


def _explain(detail: ErrorDetails) -> str:
    loc, given = detail["loc"], detail["input"]
    key = _dotted(loc)
    match detail["type"]:
        case "missing":
            return f"{key}: missing"
        case "extra_forbidden":
            return f"{key}: unknown key; {nearest(str(loc[-1]), _known_keys(loc[:-1]))}"
        case "too_short" | "too_long":
            limits = detail["ctx"]
            return f"{key}: wanted {limits.get('min_length', limits.get('max_length'))} items, found {given}"
        case "value_error":
            return f"{key}: {str(detail['msg']).removeprefix('Value error, ')}"
    wanted = _WANTED.get(detail["type"])
    if wanted is None:
        wanted = detail["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    said = "nothing" if given is None else shown(repr(given))
    if isinstance(given, bool) and detail["type"] == "string_type":
        said += " (YAML reads yes, no, on and off so; quote the word)"
    return f"{key}: wanted {wanted}, found {said}"


def _known_keys(at: KeyPath) -> list[str]:
    """Return the keys of the schema's section at `at`."""
    section: Any = Spec
    for part in at:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        inner = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        sections = [a for a in inner if issubclass(a, BaseModel)]
        if not sections:
            return []
        section = sections[0]
    return list(section.model_fields)


def _named(value: Any, known_names: Mapping[str, Collection[str]], at: KeyPath = ()) -> list[tuple[KeyPath, str]]:
    """Return all text values of keys in `known_names`, with their paths, except within free-form `args`."""
    named: list[tuple[KeyPath, str]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if key in known_names and isinstance(inner, str):
            named.append(((*at, key), inner))
        elif key != "args":
            named += _named(inner, known_names, (*at, key))
    return named


def _dotted(at: KeyPath) -> str:
    return ".".join(str(part) for part in at) or "the spec"
