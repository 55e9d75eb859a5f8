"""The spec's schema as JSON schema, with which editors complete and check `glue.yaml`."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from glue_cli.foundation.user_code import PREFIX
from glue_cli.spec.meanings import MEANINGS
from glue_cli.spec.schema import DataSpec, Spec

Schema = dict[str, Any]


class _Plain(GenerateJsonSchema):
    """Omits the titles of keys, which would only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema(known_names: Mapping[str, Collection[str]]) -> Schema:
    """Return the JSON schema of the spec, draft 2020-12, made from `Spec` itself.

    The schema checks less than `read_spec`: it lacks rules that involve several keys.

    Args:
        known_names: as for `glue_cli.spec.yaml_file.read_spec`.
    """
    schema = Spec.model_json_schema(schema_generator=_Plain)
    sections: dict[str, Schema] = {Spec.__name__: schema, **schema["$defs"]}
    for section in dict.fromkeys(_sections()):
        _fill_from_presets(section, sections[section.__name__])
        for name, property_ in sections[section.__name__]["properties"].items():
            property_["description"] = MEANINGS[section.__name__][name]
            if name in known_names:
                property_ |= {"anyOf": _one_of(known_names[name])}
                del property_["type"]
    data = sections[DataSpec.__name__]
    data |= {"if": {"properties": {"format": {"pattern": f"^{PREFIX}"}}}, "else": {"required": ["root"]}}
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": "glue.yaml"}


def _sections(section: type[BaseModel] = Spec) -> Iterator[type[BaseModel]]:
    """Yield the classes of a section and of all sections in it."""
    yield section
    for field in section.model_fields.values():
        parts = (field.annotation, *getattr(field.annotation, "__args__", ()))
        for part in parts:
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _sections(part)


def _fill_from_presets(section: type[BaseModel], schema: Schema) -> None:
    """Add the defaults of keys that a section fills in itself, for example from its preset."""
    try:
        by_default = section.model_validate({}).model_dump()
    except ValidationError:  # a section with required keys
        return
    schema.pop("required", None)
    for name, property_ in schema["properties"].items():
        if "$ref" not in property_:
            property_["default"] = by_default[name]


def _one_of(forms: Collection[str]) -> list[Schema]:
    """Return the schema of the plain names, and one for each prefix of the forms with a colon."""
    names = [form for form in forms if ":" not in form]
    prefixes = [form.partition(":")[0] for form in forms if ":" in form]
    return [
        {"enum": names},
        *(
            {"type": "string", "pattern": f"^{re.escape(prefix)}:.", "description": f"{prefix}:..."}
            for prefix in prefixes
        ),
    ]
