"""The JSON schema of the spec: it takes what the spec takes, and refuses what a schema can tell is wrong."""

from pathlib import Path

import pytest
import yaml

from glue_cli.plans.init import spec_schema
from glue_cli.spec.meanings import MEANINGS
from glue_cli.spec.schema import PRESETS, Spec
from glue_cli.spec.yaml_file import read_spec

jsonschema = pytest.importorskip("jsonschema")

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))
SPECS = [path for path in EXAMPLES if "model" in (yaml.safe_load(path.read_text()) or {})]
LEAST = {"model": {"arch": "cnn"}, "data": {"format": "safetensors", "root": "data"}}


@pytest.fixture(scope="module")
def validator():
    schema = spec_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def with_key(dotted, value):
    """Return the least spec with one key more."""
    *sections, key = dotted.split(".")
    spec = {name: dict(section) for name, section in LEAST.items()}
    at = spec
    for section in sections:
        at = at.setdefault(section, {})
    at[key] = value
    return spec


@pytest.mark.parametrize("path", SPECS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_it_takes_the_specs_of_the_examples(validator, path):
    read_spec(path)
    validator.validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.arch", "timm:resnet18"),
        ("model.arch", "python:net:build"),
        ("model.args", {"anything": [1, {"at": "all"}]}),
        ("objective", "f1"),
        ("objective", "python:mine:score"),
        ("mix.preset", "paper"),
        ("mix.budget", 300),
        ("mix.budget", "30s"),
        ("mix.lr", 1),
        ("mix.groups", {"low": "layer1.*", "high": ["layer2.*", "fc.*"]}),
        ("data.columns", {"text": "sentence", "inputs": ["a", "b"]}),
        ("data.splits", {"test": "valid"}),
        ("experts", {"count": 2, "size": 10}),
    ],
)
def test_it_takes_what_the_spec_takes(validator, key, value):
    Spec.model_validate(with_key(key, value))
    validator.validate(with_key(key, value))


def test_a_function_of_the_users_needs_no_root(validator):
    assert validator.is_valid({**LEAST, "data": {"format": "python:mine:read"}})
    assert not validator.is_valid({**LEAST, "data": {"format": "jsonl"}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.arch", "resnet21"),
        ("model.arch", "timm:"),
        ("model.arch", 20),
        ("data.format", "imagefolder"),
        ("data.columns", {"label": 3}),
        ("data.splits", {"valid": "val"}),
        ("mix.learning_rate", 0.1),
        ("mix.lr", 0),
        ("mix.steps", "300"),
        ("mix.betas", [0.9]),
        ("mix.preset", "papers"),
        ("loss", "mae"),
        ("objective", "f2"),
        ("seed", -1),
        ("modle", {}),
    ],
)
def test_it_refuses_what_is_plainly_wrong(validator, key, value):
    assert validator.is_valid(LEAST)
    assert not validator.is_valid(with_key(key, value))


def test_it_needs_a_model_and_data_and_nothing_else(validator):
    assert not validator.is_valid({"model": LEAST["model"]})
    assert not validator.is_valid({"data": LEAST["data"]})
    assert validator.schema["required"] == ["model", "data"]


def test_defaults_are_those_of_an_empty_section(validator):
    properties = validator.schema["$defs"]["MixSpec"]["properties"]
    assert properties["steps"]["default"] == PRESETS["default"]["steps"]
    assert properties["lr"]["default"] == PRESETS["default"]["lr"]
    assert "required" not in validator.schema["$defs"]["MixSpec"]


def test_every_key_says_what_it_means():
    """And nothing is said of keys that there are not."""
    schema = spec_schema()
    sections = {"Spec": schema, **schema["$defs"]}
    assert {name: set(section["properties"]) for name, section in sections.items()} == {
        name: set(keys) for name, keys in MEANINGS.items()
    }
    described = [key["description"] for section in sections.values() for key in section["properties"].values()]
    assert all(text.endswith(".") for text in described)
