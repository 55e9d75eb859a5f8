"""The model card of a blend."""

import re

import pytest
import yaml

from glue_cli.results.card import About, make_card

GLUE = {
    "glue": "1.0",
    "method": "spsa",
    "alpha": [0.25, 0.75],
    "experts": [{"name": "a", "sha256": "0" * 64}, {"name": "b", "sha256": "1" * 64}],
    "seed": 3,
    "settings": {"z": 1, "a": 2},
    "measured": {
        "objective": "loss",
        "val": 0.51239,
        "val_uniform": 0.75,
        "data": {"format": "jsonl", "target": {"val": 1200}},
    },
    "recipe": {},
}
MERGE = About("transformers", "merge", ("org/one", "org/two"), "BertModel")


def front_matter(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def test_what_the_hub_reads():
    assert front_matter(make_card(GLUE, MERGE)) == {
        "base_model": ["org/one", "org/two"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["glue", "merge"],
    }
    assert front_matter(make_card(GLUE, About(None, "merge"))) == {"tags": ["glue", "merge"]}
    assert front_matter(make_card(GLUE, About("peft", "adapter", ("on/off",))))["base_model"] == ["on/off"]


def test_what_people_read():
    card = make_card(GLUE, MERGE)
    assert f"| `b` | 0.7500 | `{'1' * 64}` |" in card
    assert "by `--method spsa`, with the seed 3" in card
    assert "the loss on the target's validation data (jsonl, 1,200 examples): the blend has 0.5124" in card
    assert "with equal coefficients it has 0.75" in card and "glue mix --like" in card
    assert "BertModel.from_pretrained" in card and card.index('"a": 2') < card.index('"z": 1')


def test_given_coefficients_by_group_without_hashes():
    experts = [{**expert, "sha256": None} for expert in GLUE["experts"]]
    glue = {**GLUE, "method": "alpha", "experts": experts, "groups": {"low": [0, 1], "high": [0.5, 0.5]}}
    card = make_card({key: value for key, value in glue.items() if key != "measured"}, About(None, "merge"))
    assert "| expert | alpha low | alpha high |\n| --- | ---: | ---: |\n| `a` | 0.0000 | 0.5000 |\n" in card
    assert "were given" in card and "--like" not in card and "validation" not in card and "python" not in card


@pytest.mark.parametrize("name", ["a|b", "`code`", "<script>", "[link](http://x)", "two\nlines", "\x1b[2J"])
def test_a_name_stays_in_its_cell(name):
    card = make_card({**GLUE, "experts": [{"name": name, "sha256": None}, GLUE["experts"][1]]}, MERGE)
    (row,) = [line for line in card.splitlines() if line.startswith("| `") and "0.2500" in line]
    assert row.count("|") == 3 and row.count("`") == 2
    assert not any(character in row for character in "<>[]\x1b")


def test_the_same_blend_has_the_same_card():
    assert make_card(GLUE, MERGE) == make_card(dict(reversed(GLUE.items())), MERGE)
