"""What a model's folder holds beside the weights that are read of it. Needs no torch."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from glue_cli.checkpoints.links import check_links

CARD = "README.md"

# Weights by which libraries know a folder as a model's, or as a part's: a folder, or the file in it.
_PART = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_DIFFUSERS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npz", ".npy")
# How weights are called that are the model once more: in shards, in another dtype, for another program.
_COPIES = (
    *("model.*", "model-*-of-*", "pytorch_model.*", "pytorch_model-*", "diffusion_pytorch_model.*"),
    *("diffusion_pytorch_model-*", "consolidated.*"),
)
_OTHER_FORMATS = (
    *("*.onnx", "*.onnx_data", "*.gguf", "*.ot", "*.msgpack", "*.h5", "*.tflite", "*.mlmodel", "openvino_*"),
    "*.index.json",
)
# What training leaves behind, and figures that were measured on one expert and not on the blend.
_LEFTOVERS = (
    *("optimizer*", "scheduler.*", "rng_state*", "scaler.pt", "trainer_state.json", "training_args.*"),
    *("events.out.*", "*_results.json", "*_results.csv"),
)
_FOLDERS = (
    *(".*", "__pycache__", "onnx", "openvino", "coreml", "gguf", "original", "runs", "logs", "wandb", "eval"),
    *("checkpoint-*", "global_step*"),
)


@dataclass(frozen=True)
class FolderContent:
    """What lies beside a model's weights.

    Attributes:
        companions: what a folder needs besides weights to be a model: configurations, tokenizers, code.
        parts: the weights of modules that a library keeps in subfolders, by the subfolder's name in the folder: what
            `read_checkpoint` is given.
        others: further files of weights, of which glue does not know what reads them.
    """

    companions: tuple[Path, ...]
    parts: dict[str, Path]
    others: tuple[Path, ...]


def look_into(folder: Path, *, apart: Collection[Path] = ()) -> FolderContent:
    """Sort what a model's folder holds; copies in other formats, leftovers of training and the card are passed over.

    Args:
        apart: folders that are none of the model's, such as the output, should they lie within.
    Raises:
        CheckpointError: something is a link that leads out of the folder.
    """
    companions: list[Path] = []
    others: list[Path] = []
    parts: dict[str, Path] = {}
    for place in _folders(folder, {path.resolve() for path in apart}):
        files = [path for path in sorted(place.iterdir()) if path.is_file()]
        names = {path.name for path in files}
        if place != folder and (found := _weights_of_part(place, names)):
            parts[str(place.relative_to(folder))] = found
        for path in files:
            if _is_passed_over(path, is_top=place == folder):
                continue
            (others if path.suffix in _WEIGHTS else companions).append(path)
    check_links(folder, [*companions, *others, *parts.values()])
    return FolderContent(tuple(companions), parts, tuple(others))


def files_to_copy(folder: Path, *, apart: Collection[Path] = ()) -> tuple[Path, ...]:
    """Return all that goes along with one model's weights, the weights of its parts included.

    Raises:
        CheckpointError: as `look_into`.
    """
    content = look_into(folder, apart=apart)
    weights = [path for name in content.parts for path in sorted((folder / name).iterdir()) if _is_of_part(path)]
    check_links(folder, weights)
    return (*content.companions, *content.others, *weights)


def _folders(folder: Path, apart: Collection[Path]) -> Iterator[Path]:
    """Yield a folder and those within, links to folders included, each once."""
    seen, waiting = set(apart), [folder]
    while waiting:
        place = waiting.pop()
        if (real := place.resolve()) in seen:
            continue
        seen.add(real)
        if place.is_symlink() and place != folder:
            check_links(folder, [place])
        yield place
        inner = [path for path in place.iterdir() if path.is_dir() and not _is_like(path.name, _FOLDERS)]
        waiting += sorted(inner, reverse=True)


def _weights_of_part(place: Path, names: Collection[str]) -> Path | None:
    if any(name in names for name in _PART):
        return place
    return next((place / name for name in reversed(_DIFFUSERS) if name in names), None)


def _is_of_part(path: Path) -> bool:
    return path.is_file() and (path.name.endswith(".index.json") or _is_copy(path))


def _is_copy(path: Path) -> bool:
    return path.suffix in _WEIGHTS and _is_like(path.name, _COPIES)


def _is_passed_over(path: Path, *, is_top: bool) -> bool:
    name = path.name
    if name.startswith(".") or _is_like(name, _LEFTOVERS):
        return True
    if is_top and (name == CARD or name.startswith("adapter_")):
        return True
    return _is_copy(path) or _is_like(name, _OTHER_FORMATS)


def _is_like(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
