"""A blend's model card: `README.md` with the front matter that the Hugging Face Hub reads.

All of it follows from the blend's metadata and its experts' configurations, so the same blend has the same card.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glue_cli.foundation.printable import printable, shown


@dataclass(frozen=True)
class About:
    """What a card says beside the metadata.

    Attributes:
        library: the Hub's name of the library that loads the blend; None where that is not known.
        relation: what the blend is to its base models, in the Hub's words: merge, adapter, finetune.
        base_models: their names on the Hub, as far as they say them.
        architecture: the class of transformers that loads it; None where that is not known.
    """

    library: str | None
    relation: str
    base_models: tuple[str, ...] = ()
    architecture: str | None = None


def make_card(glue: Mapping[str, Any], about: About) -> str:
    """Return the text of a model card, in Markdown.

    Args:
        glue: the blend's metadata.
    """
    parts = [
        _front_matter(about),
        f"# A blend of {len(glue['experts'])} {'adapters' if about.library == 'peft' else 'models'}",
        _what_it_is(glue, about),
        _table(glue),
        _how_it_was_chosen(glue),
        _how_to_load(about),
        _recipe(glue),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(about: About) -> str:
    """Return the lines that the Hub reads; names of models have a slash, so YAML takes them for text."""
    lines = ["---"]
    if about.base_models:
        lines += ["base_model:", *(f"- {name}" for name in about.base_models)]
        lines.append(f"base_model_relation: {about.relation}")
    if about.library:
        lines.append(f"library_name: {about.library}")
    tags = ["glue", "merge", *(["lora"] if about.library == "peft" else [])]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _what_it_is(glue: Mapping[str, Any], about: About) -> str:
    made = f"glue {glue['glue']} made it"
    if about.relation == "merge":
        return f"Each weight of this model is the mean of the weights below, with the coefficients alpha; {made}."
    what = "This adapter's update of each weight is" if about.library == "peft" else "Added to the base model is"
    return f"{what} the mean of the updates of the adapters below, with the coefficients alpha; {made}."


def _table(glue: Mapping[str, Any]) -> str:
    """Return the experts with their coefficients, a column a group where there are several."""
    groups: Mapping[str, Sequence[float]] = glue.get("groups") or {"": glue["alpha"]}
    heads = ["expert", *(f"alpha {_cell(name)}".strip() for name in groups), "sha256 of its weights"]
    rows = [
        [f"`{_cell(expert['name'])}`", *(f"{alpha[k]:.4f}" for alpha in groups.values()), f"`{expert['sha256']}`"]
        for k, expert in enumerate(glue["experts"])
    ]
    if not all(expert["sha256"] for expert in glue["experts"]):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    rule = ["---", *("---:" for _ in groups), "---"][: len(heads)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def _how_it_was_chosen(glue: Mapping[str, Any]) -> str:
    method, measured = glue["method"], glue.get("measured")
    if method == "alpha":
        return "The coefficients were given."
    chosen = f"The coefficients were chosen by `--method {method}`, with the seed {glue['seed']}."
    if not measured or measured.get("val") is None:
        return chosen
    uniform = measured.get("val_uniform")
    beside = "" if uniform is None else f"; with equal coefficients it has {uniform:.4g}"
    what = f"the {measured['objective']} on the target's validation data ({_data(measured['data'])})"
    return f"{chosen} They were measured by {what}: the blend has {measured['val']:.4g}{beside}."


def _data(data: Mapping[str, Any]) -> str:
    """Return what a spec says of its data, in words."""
    n_examples = (data.get("target") or {}).get("val")
    return (
        f"{_cell(data['format'])}, {n_examples:,} examples" if isinstance(n_examples, int) else _cell(data["format"])
    )


def _how_to_load(about: About) -> str:
    """Return a few lines of Python; nothing where the library is not known."""
    if about.library == "sentence-transformers":
        lines = ["from sentence_transformers import SentenceTransformer", 'model = SentenceTransformer("THIS FOLDER")']
    elif about.library == "peft":
        lines = ["from peft import PeftModel", 'model = PeftModel.from_pretrained(base_model, "THIS FOLDER")']
    elif about.library == "transformers" and about.architecture:
        name = about.architecture
        lines = [f"from transformers import {name}", f'model = {name}.from_pretrained("THIS FOLDER")']
    else:
        return ""
    return "\n".join(["## How to load it", "", "```python", *lines, "```"])


def _recipe(glue: Mapping[str, Any]) -> str:
    """Return the recipe, and the command that makes the blend again."""
    keys = ("method", "seed", "settings", "recipe")
    text = json.dumps({key: glue[key] for key in keys if key in glue}, indent=2, sort_keys=True)
    lines = ["## The recipe", ""]
    if all(expert["sha256"] for expert in glue["experts"]):
        lines += ["The same bytes again: `glue mix --like THIS-FOLDER EXPERT...`, with the experts in this order.", ""]
    return "\n".join([*lines, "```json", text, "```"])


def _cell(text: object) -> str:
    """Return a name as a table of Markdown can hold it."""
    return re.sub(r"[|`<>\[\]]", "_", printable(shown(text)))
