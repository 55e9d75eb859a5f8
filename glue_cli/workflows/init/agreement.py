"""What a user has to check before using the recognised experts and data together. Needs no torch."""

from collections.abc import Sequence

from glue_cli.checkpoints.classes import is_numbering, listed
from glue_cli.data.recognise.found_data import FoundData
from glue_cli.foundation.units import counted
from glue_cli.models.recognise.recognised import Recognised
from glue_cli.models.tasks import classifies


def find_doubts(model: Recognised | None, data: FoundData | None, class_names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return a line for each thing that could not be determined, or on which model and data disagree.

    Args:
        class_names: of the experts; none if they do not name their classes.
    """
    doubts = [*(model.doubts if model else ()), *(data.doubts if data else ())]
    if model and data and model.n_numbers and data.targets == "labels":
        doubts.append(
            "data: they have labels, and the experts predict numbers: read these as data.columns: {target: NAME}, "
            "with format: huggingface and loss: mse"
        )
    elif model and data and model.n_outputs and data.n_classes and model.n_outputs != data.n_classes:
        doubts.append(
            f"data: they have {data.n_classes} classes, and the experts' head {model.n_outputs} outputs"
            + (": glue mix --head has policies for that" if data.n_classes > model.n_outputs else "")
        )
    target = data.columns.get("target", ()) if data and data.targets == "numbers" else ()
    n_numbers = 1 if isinstance(target, str) else len(target)
    if model and model.n_outputs and n_numbers and n_numbers != model.n_outputs:
        numbers = counted(n_numbers, "number")
        doubts.append(f"data: they have {numbers} to predict, and the experts' head {model.n_outputs} outputs")
    if model and data and data.targets == "tokens" and classifies(model.arch):
        if not any("no label was found" in doubt for doubt in doubts):
            doubts.append("data: they have no labels, which a classifier needs: name their column in data.columns")
    of_library = model is not None and model.arch.startswith("transformers:")
    if data and of_library and not class_names and data.class_names and not is_numbering(data.class_names):
        order = listed(data.class_names)
        doubts.append(
            f"data: the experts do not name their classes, which are taken to be {order}, in this order; "
            "id2label in config.json, or whole numbers as labels, say another"
        )
    return tuple(doubts)


def chosen_size(model: Recognised | None, data: FoundData) -> int | None:
    """Return the model's image size if the images have to be resized to it; None if not."""
    if data.format not in ("image-folder", "huggingface") or model is None or model.image_size is None:
        return None
    is_theirs = data.sizes <= {(model.image_size, model.image_size)}
    return None if is_theirs else model.image_size
