"""The text of a new spec: what was recognised becomes keys, the rest commented lines with the choices."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from glue_cli.data import FORMATS
from glue_cli.data.recognise.found_data import FoundData
from glue_cli.foundation.units import counted
from glue_cli.models import architecture_forms
from glue_cli.models.recognise.configuration import named_from
from glue_cli.models.recognise.recognised import Recognised
from glue_cli.plans.init import InitPlan
from glue_cli.spec.schema import FinetuneSpec, MixSpec, TrainSpec
from glue_cli.workflows.init.agreement import chosen_size

_SHOWN_CLASSES = 10


@dataclass(frozen=True)
class SpecText:
    """A spec's text, and the keys that it leaves open."""

    text: str
    open: tuple[str, ...]


def spec_text(plan: InitPlan, model: Recognised | None, data: FoundData | None, doubts: Sequence[str]) -> SpecText:
    """Return the spec for the recognised experts and data.

    Args:
        doubts: what the user has to check, one line for each.
    """
    left_open = [*([] if model else ["model.arch"]), *_open_data(model, data)]
    lines = [
        f"# yaml-language-server: $schema=./{plan.schema_file.name}",
        f"# Written by glue init for {counted(len(plan.paths), 'expert')}, of which the first is {plan.paths[0]}.",
        "# Behind a # stand defaults, and the choices that are left to you.",
        *(f"# CHECK {doubt}" for doubt in doubts),
        "",
        *_model_lines(model),
        "",
        *_data_lines(plan, model, data),
        "",
        *_other_lines(model, data, len(plan.paths)),
    ]
    text = "".join(" ".join(line.splitlines()) + "\n" for line in lines)  # a file name may contain a line break
    return SpecText(text, tuple(left_open))


def _model_lines(model: Recognised | None) -> Iterator[str]:
    if model:
        yield f"model:  # {model.source}"
        yield f"  arch: {_flow(model.arch)}"
        if model.args:
            yield f"  args: {_flow(dict(model.args))}"
        return
    yield "# CHOOSE the architecture, which nothing in the experts tells, and uncomment it with its section."
    yield "# model:"
    for form in architecture_forms():
        yield f"#   arch: {form}"
    yield "#   args: {num_classes: 10}  # what the architecture takes"


def _data_lines(plan: InitPlan, model: Recognised | None, data: FoundData | None) -> Iterator[str]:
    root = _flow(named_from(plan.data / (data.within if data else ""), plan.output.parent))
    if data is None:
        yield f"# CHOOSE the format, which nothing in {root} tells, and uncomment it with its section."
        yield "# data:"
        yield f"#   format: {' | '.join(FORMATS)}"
        yield f"#   root: {root}"
        return
    yield f"data:{_about(data)}"
    yield f"  format: {data.format}"
    yield f"  root: {root}"
    for key, value in (("splits", data.splits), ("columns", data.columns)):
        if value:
            yield f"  {key}: {_flow(dict(value))}"
    if data.lacks_train:
        yield "  # CHOOSE splits: {train: NAME}  # add the train split to the splits"
    for choice in data.choices:
        yield f"  # CHOOSE {choice}"
    yield from _image_lines(model, data)
    yield "  # target: {train: 1000, val: 100}  # how many examples to use; all, and a tenth of them for validation"


def _image_lines(model: Recognised | None, data: FoundData) -> Iterator[str]:
    if not data.sizes:
        return
    if size := chosen_size(model, data):
        yield f"  image_size: {size}  # the model's; the images are {_sizes(data)}"
    elif _needs_size(model, data):
        yield f"  # CHOOSE image_size: 32 | 64 | 128 | 224  # pixels; the images are {_sizes(data)}"
    for key, numbers in (("mean", model.mean if model else None), ("std", model.std if model else None)):
        if numbers:
            yield f"  {key}: {_flow(list(numbers))}  # as the experts' images were prepared"


def _open_data(model: Recognised | None, data: FoundData | None) -> list[str]:
    if data is None:
        return ["data.format"]
    keys = (["data.splits"] if data.lacks_train else []) + (["data.columns"] if data.choices else [])
    return keys + (["data.image_size"] if _needs_size(model, data) else [])


def _needs_size(model: Recognised | None, data: FoundData) -> bool:
    """Tell whether images differ in size and nothing says which size to resize them to."""
    return len(data.sizes) > 1 and chosen_size(model, data) is None


def _other_lines(model: Recognised | None, data: FoundData | None, n_experts: int) -> Iterator[str]:
    mix, train, finetune = MixSpec.model_validate({}), TrainSpec(), FinetuneSpec.model_validate({})
    numbers = data.targets == "numbers" if data else bool(model and model.n_numbers)
    yield f"loss: {'mse' if numbers else 'cross_entropy'}  # or {'cross_entropy' if numbers else 'mse'}"
    yield "# objective: loss  # what mix searches for; or accuracy, f1, python:MODULE:FUNCTION"
    yield f"# mix: {{preset: {mix.preset}, batch_size: {mix.batch_size}}}  # budget: 300, 2000ex or 60s ends a search"
    yield f"# finetune: {{epochs: {finetune.epochs}, batch_size: {finetune.batch_size}, lr: {_flow(finetune.lr)}}}"
    yield f"# train: {{epochs: {train.epochs}, batch_size: {train.batch_size}, lr: {_flow(train.lr)}}}  # of experts"
    yield f"# experts: {{count: {n_experts}, size: 1000, dirichlet: 1.0, init: shared}}  # for glue train-expert alone"
    yield "# precision: auto  # or fp32, bf16"
    yield "seed: 0"


def _about(data: FoundData) -> str:
    counts = [f"{n:,} {split}" for split, n in data.counts.items()]
    facts = [f"examples: {', '.join(counts)}"] if counts else []
    if data.n_classes:
        names = ", ".join(json.dumps(name, ensure_ascii=False)[1:-1] for name in data.class_names[:_SHOWN_CLASSES])
        more = ", ..." if len(data.class_names) > _SHOWN_CLASSES else ""
        facts.append(counted(data.n_classes, "class") + (f" ({names}{more})" if names else ""))
    if len(data.sizes) == 1:
        facts.append(f"images of {_sizes(data)}")
    return f"  # {'; '.join(facts)}" if facts else ""


def _sizes(data: FoundData) -> str:
    least, most = min(data.sizes), max(data.sizes)
    shown = f"{least[0]}x{least[1]}"
    return shown if least == most else f"{shown} to {most[0]}x{most[1]} pixels high and wide"


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)  # JSON is YAML too
    text = yaml.safe_dump([value], default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    return text.strip()[1:-1]
