"""Print the reference of glue: every command, argument and option, and every key of glue.yaml.

It is made from the code, and kept in reference.md beside this file:

    python examples/reference.py > examples/reference.md
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from glue_cli.cli.app import app
from glue_cli.plans.init import spec_schema

_INTRODUCTION = """\
# Reference

Every command, option and default, and every key of `glue.yaml`. Made from the code: `python examples/reference.py >
examples/reference.md`; a test tells when it is out of date. What they are for is in the [README](../README.md).
"""
_SHARED = "Shared options"
_ROOT = "Spec"  # the section of the whole file


def main() -> None:
    print("\n".join(_lines()))


def _lines() -> Iterator[str]:
    program: Any = typer.main.get_command(app)  # a group of commands
    yield _INTRODUCTION
    yield "## Commands\n"
    yield "`glue --version` prints the version. `-h` or `--help` explains any command.\n"
    shared: dict[str, Any] = {}
    for name, command in program.commands.items():
        options = [parameter for parameter in command.params if parameter.name != "help"]
        own = [parameter for parameter in options if getattr(parameter, "rich_help_panel", None) != _SHARED]
        used = {parameter.opts[0]: parameter for parameter in options if parameter not in own}
        shared |= used
        yield f"### glue {name}\n"
        yield f"{' '.join(command.help.split())}\n"
        yield from _option_table(own)
        yield f"Shared options: {', '.join(f'`{option}`' for option in used)}.\n"
    yield "### Shared options\n"
    yield from _option_table(shared.values())
    yield "## The spec, glue.yaml\n"
    yield "`--set mix.lr=0.05` overrides any key. A key may be left out unless it is required.\n"
    schema = spec_schema()
    sections = {_ROOT: schema, **schema["$defs"]}
    for title, section in _sections_in_order(schema):
        yield f"### {title}\n"
        yield from _key_table(section, sections)


def _option_table(parameters: Any) -> Iterator[str]:
    yield "| option | value | default | variable | meaning |"
    yield "|---|---|---|---|---|"
    for parameter in parameters:
        is_argument = parameter.param_type_name == "argument"
        names = [parameter.metavar] if is_argument else [*parameter.opts, *parameter.secondary_opts]
        value = "" if is_argument or getattr(parameter, "is_flag", False) else parameter.metavar or ""
        variable = f"`{parameter.envvar}`" if getattr(parameter, "envvar", None) else ""
        cells = (", ".join(f"`{name}`" for name in names), _code(value), _default_of(parameter), variable)
        yield _row(*cells, " ".join((parameter.help or "").split()))
    yield ""


def _default_of(parameter: Any) -> str:
    if parameter.default is None or parameter.default is False or callable(parameter.default):
        return "required" if parameter.required else ""
    return _code(str(parameter.default))


def _sections_in_order(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each section once, under the dotted key by which it is reached first, the whole file first of all."""
    yield "The whole file", schema
    waiting, known = [("", schema)], set()
    while waiting:
        above, section = waiting.pop(0)
        for key, value in section["properties"].items():
            for name in _references_in(value):
                if name not in known:
                    known.add(name)
                    found = schema["$defs"][name]
                    dotted = f"{above}{key}" + ("[]" if "items" in value else "")
                    yield f"`{dotted}`", found
                    waiting.append((f"{dotted}.", found))


def _references_in(value: Mapping[str, Any]) -> Iterator[str]:
    for part in (value, value.get("items", {}), *value.get("anyOf", ())):
        if "$ref" in part:
            yield part["$ref"].rpartition("/")[2]


def _key_table(section: Mapping[str, Any], sections: Mapping[str, Any]) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for key, value in section["properties"].items():
        is_section = any(True for _ in _references_in(value))
        default = "" if is_section or value.get("default") is None else _code(json.dumps(value["default"]))
        required = "required" if key in section.get("required", ()) else default
        yield _row(f"`{key}`", "a section, below" if is_section else _type_of(value), required, value["description"])
    yield ""


def _type_of(value: Mapping[str, Any]) -> str:
    """Return the values that a key takes, in words."""
    if "anyOf" in value:
        kinds = [_type_of(part) for part in value["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in value:
        return ", ".join(f"`{word}`" for word in value["enum"])
    if "pattern" in value:
        return f"`{value['description']}`"
    kind = value.get("type", "any")
    if kind == "array":
        return f"list of: {_type_of(value.get('items', {}))}"
    words = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "mapping"}
    return words.get(kind, kind) + "".join(_limits_of(value))


def _limits_of(value: Mapping[str, Any]) -> Iterator[str]:
    for key, words in {"minimum": "from", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}.items():
        if key in value:
            yield f" {words} {value[key]}"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    main()
