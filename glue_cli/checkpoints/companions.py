"""What a model's folder holds besides the weights that are read from it. Needs no torch."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from glue_cli.checkpoints.links import check_links

CARD = "README.md"

# Files by which libraries recognise a model or a part of one; glue reads the folder for the first list, and the file
# itself for the second.
_PART = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_DIFFUSERS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npz", ".npy")
# Names of weights that are copies of the model: in shards, in another dtype, for another program.
_COPIES = (
    *("model.*", "model-*-of-*", "pytorch_model.*", "pytorch_model-*", "diffusion_pytorch_model.*"),
    *("diffusion_pytorch_model-*", "open_clip_model.*", "open_clip_pytorch_model.*", "consolidated.*"),
)
_OTHER_FORMATS = (
    *("*.onnx", "*.onnx_data", "*.gguf", "*.ot", "*.msgpack", "*.h5", "*.tflite", "*.mlmodel", "openvino_*"),
    "*.index.json",
)
# Files left over from training, and metrics that were measured on one expert and not on the blend.
_LEFTOVERS = (
    *("optimizer*", "scheduler.*", "rng_state*", "scaler.pt", "trainer_state.json", "training_args.*"),
    *("random_states_*.pkl", "custom_checkpoint_*.pkl", "sampler*.bin", "dl_state_dict*.bin"),  # of accelerate
    *("scheduler_[0-9]*.bin", "events.out.*", "*_results.json", "*_results.csv"),
)
_FOLDERS = (
    *(".*", "__pycache__", "onnx", "openvino", "coreml", "gguf", "original", "runs", "logs", "wandb", "eval"),
    *("checkpoint-*", "global_step*"),
)


@dataclass(frozen=True)
class FolderContent:
    """What a model's folder holds besides its weights.

    Attributes:
        companions: what a model needs besides weights: configurations, tokenizers, code.
        parts: the paths to give to `read_checkpoint` for modules that a library keeps in subfolders, by the
            subfolder's path within the folder.
        others: further weights files, whose purpose glue does not know.
    """

    companions: tuple[Path, ...]
    parts: dict[str, Path]
    others: tuple[Path, ...]


def look_into(folder: Path, *, apart: Collection[Path] = ()) -> FolderContent:
    """Sort the content of a model's folder, without copies in other formats, leftovers of training, and the card.

    Args:
        apart: folders within it that do not belong to the model, such as the output.
    Raises:
        CheckpointError: a link leads out of the folder.
    """
    companions: list[Path] = []
    others: list[Path] = []
    parts: dict[str, Path] = {}
    for place in _folders(folder, {path.resolve() for path in apart}):
        files = [path for path in sorted(place.iterdir()) if path.is_file()]
        names = {path.name for path in files}
        if place != folder and (weights := _weights_of_part(place, names)):
            parts[str(place.relative_to(folder))] = weights
        for path in files:
            if _is_passed_over(path, is_top=place == folder):
                continue
            (others if path.suffix in _WEIGHTS else companions).append(path)
    check_links(folder, [*companions, *others, *parts.values()])
    return FolderContent(tuple(companions), parts, tuple(others))


def files_to_copy(folder: Path, *, apart: Collection[Path] = ()) -> tuple[Path, ...]:
    """Return all files to copy along with one model's weights, including the weights of its parts.

    Raises:
        CheckpointError: as `look_into`.
    """
    content = look_into(folder, apart=apart)
    weights = [path for name in content.parts for path in sorted((folder / name).iterdir()) if _is_of_part(path)]
    check_links(folder, weights)
    return (*content.companions, *content.others, *weights)


def _folders(folder: Path, apart: Collection[Path]) -> Iterator[Path]:
    """Yield a folder and all folders within it, also linked ones, each once."""
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


def is_leftover(name: str) -> bool:
    """Tell whether a file is left over from training, as an optimiser's state is, or holds measured metrics."""
    return _is_like(name, _LEFTOVERS)


def _is_passed_over(path: Path, *, is_top: bool) -> bool:
    name = path.name
    if name.startswith(".") or is_leftover(name):
        return True
    if is_top and (name == CARD or name.startswith("adapter_")):
        return True
    return _is_copy(path) or _is_like(name, _OTHER_FORMATS)


def _is_like(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
