"""Low-rank adapters as PEFT writes them: read their headers, and check which can be mixed. Needs no torch."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glue_cli.blend.compatibility import find_differences
from glue_cli.blend.misfit import Misfit
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, TensorEntry
from glue_cli.checkpoints.links import check_links
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.spelling import without_wrappers
from glue_cli.foundation.errors import CheckpointError, UsageError
from glue_cli.foundation.regular_files import read_text

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_WEIGHTS = (WEIGHTS, "adapter_model.bin")
_PREFIX = "base_model.model."

_FACTOR = re.compile(r"(?P<module>.+)\.(lora_(?P<plain>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))")
# Parts of a tensor's name that PEFT's wrappers add to the model's own module names.
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save)(?=\.)")

# Settings of adapters whose weight is not simply W + s B A; some of them add tensors, others do not.
_VARIANTS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
# Initialisations that leave the base unchanged; pissa, olora, corda, loftq and lora_ga subtract from the base.
_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva", "mica")

_ONLY_PLAIN = "glue mixes adapters whose update is s B A; merge this one into its base, and mix full checkpoints"
_SAME_PLAIN = "mix adapters with the same modules_to_save and bias"
_WRONG_CONFIG = "check that this is the file that PEFT saved"


@dataclass(frozen=True, slots=True)
class Update:
    """The update of one module's weight, scale * b @ a.

    Attributes:
        module: its name in the model, such as "bert.encoder.layer.0.attention.self.query".
        a: [rank, n_in]; of an embedding [rank, vocabulary], of a convolution [rank, n_in, *kernel].
        b: [n_out, rank]; of a convolution [n_out, rank, 1, ...].
    """

    module: str
    a: TensorEntry
    b: TensorEntry
    scale: float
    is_embedding: bool

    @property
    def weight(self) -> str:
        return f"{self.module}.weight"

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def outer_shape(self) -> tuple[int, ...]:
        """The shape of the updated weight in a torch layer; GPT-2's `Conv1D` stores the transpose."""
        n_out, inputs = self.b.shape[0], self.a.shape[1:]
        return (*inputs, n_out) if self.is_embedding else (n_out, *inputs)


@dataclass(frozen=True)
class Adapter:
    """One PEFT adapter.

    Attributes:
        path: its folder.
        checkpoint: the header of its weights.
        config: its `adapter_config.json`.
        updates: the updates, by module name.
        plain: the tensors that are not factors (heads in `modules_to_save`, biases), by the model's names; the
            entries keep the names in the file.
    """

    path: Path
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    updates: Mapping[str, Update]
    plain: Checkpoint


def is_adapter(path: Path) -> bool:
    """Tell whether `path` is an adapter's folder, or the weights file in one."""
    config = path.with_name(CONFIG) if path.name in _WEIGHTS else path / CONFIG
    return os.path.isfile(config)  # Path.is_file raises for too long a name


def read_adapter(path: Path) -> Adapter:
    """Read an adapter's configuration and header.

    Raises:
        UsageError: there is nothing at `path`.
        CheckpointError: it is damaged, or not the plain kind of LoRA whose update is s B A.
    """
    if not path.exists():
        raise UsageError(f"no adapter at '{path}'", hint="check the path")
    folder = path if path.is_dir() else path.parent
    config = _read_config(folder / CONFIG)
    weights = next((path for name in _WEIGHTS if (path := folder / name).exists()), None)
    if weights is None:
        raise CheckpointError(f"the folder '{folder}' holds no {WEIGHTS}", hint="name the folder of a PEFT adapter")
    check_links(folder, [folder / CONFIG, weights])
    checkpoint = _without_wrappers(read_checkpoint(weights))
    pairs: dict[str, dict[str, TensorEntry]] = {}
    plain: dict[str, TensorEntry] = {}
    unknown = []
    for name, entry in checkpoint.entries.items():
        inner = name.removeprefix(_PREFIX)
        match = _FACTOR.fullmatch(inner)
        if match and ".base_layer" not in inner:
            pairs.setdefault(match["module"], {})[match["plain"] or match["embedding"]] = entry
        elif ".lora_" in inner or ".token_adapter." in inner:
            unknown.append(name)
        elif ".original_module." not in inner:  # the base's module, which `modules_to_save` replaces
            own_name = _WRAPPERS.sub("", inner)
            if own_name == inner or own_name not in plain:
                plain[own_name] = entry
    if unknown:
        message = f"'{folder}' has tensors that are no plain LoRA factors"
        raise CheckpointError(message, items=unknown, hint=_ONLY_PLAIN)
    updates = {module: _update(folder, module, pair, config) for module, pair in sorted(pairs.items())}
    if not updates:
        raise CheckpointError(f"'{folder}' has no LoRA factors", hint="name the folder of a PEFT adapter")
    return Adapter(folder, checkpoint, config, updates, replace(checkpoint, path=folder, entries=plain))


def _without_wrappers(checkpoint: Checkpoint) -> Checkpoint:
    """Remove from an adapter's names the parts that wrappers such as torch.compile add, which PEFT does not know."""
    named = {without_wrappers(name): entry for name, entry in checkpoint.entries.items()}
    if len(named) < len(checkpoint.entries):
        return checkpoint
    return replace(checkpoint, entries={name: entry._replace(name=name) for name, entry in named.items()})


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_text(path))
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"'{path}' is no JSON", hint=_WRONG_CONFIG) from None
    if not isinstance(config, dict):
        raise CheckpointError(f"'{path}' is no JSON object", hint=_WRONG_CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"'{path}' is of the type '{kind}', not LORA", hint=_ONLY_PLAIN)
    variants = [f"{key}: {json.dumps(config[key])}" for key in _VARIANTS if config.get(key)]
    if variants:
        raise CheckpointError(f"'{path}' asks for more than plain LoRA", items=variants, hint=_ONLY_PLAIN)
    start = config.get("init_lora_weights", True)
    if start not in _INITIALISATIONS:
        hint = "save it as plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        raise CheckpointError(f"'{path}': the initialisation '{start}' has changed the base", hint=hint)
    return config


def _update(folder: Path, module: str, pair: Mapping[str, TensorEntry], config: Mapping[str, Any]) -> Update:
    if len(pair) != 2:
        (factor,) = pair.values()
        message = f"'{folder}': '{factor.name}' is there without the other factor of its module"
        raise CheckpointError(message, hint="copy or download the adapter again")
    a, b = pair["A"], pair["B"]
    try:
        rank = _setting(config, "rank_pattern", module, "r")
        alpha = _setting(config, "alpha_pattern", module, "lora_alpha")
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, ValueError, re.error) as error:
        message = f"'{folder / CONFIG}' has no rank and alpha for '{module}': {error!r}"
        raise CheckpointError(message, hint=_WRONG_CONFIG) from None
    fits = len(a.shape) == len(b.shape) >= 2 and a.shape[0] == b.shape[1] == rank and set(b.shape[2:]) <= {1}
    if not fits or not {a.dtype, b.dtype} <= set(FLOAT_DTYPES):
        items = [f"'{factor.name}' is {factor.dtype} {list(factor.shape)}" for factor in (a, b)]
        message = f"'{folder}': these are no factors of rank {rank}, of a matrix or an ungrouped convolution"
        raise CheckpointError(message, items=items)
    return Update(module, a, b, scale, is_embedding="lora_embedding_" in a.name)


def _setting(config: Mapping[str, Any], pattern: str, module: str, default: str) -> Any:
    """Return a module's value of a setting: that of the first pattern that fits the end of its name, else the default.

    The patterns are regular expressions, matched as PEFT does.
    """
    own = config.get(pattern) or {}
    return next((value for key, value in own.items() if re.match(rf"(.*\.)?({key})$", module)), config[default])


def adapter_misfits(adapters: Sequence[Adapter]) -> list[Misfit]:
    """Return where adapters differ: in their base, in plain tensors, in the shapes of the weights that they update."""
    misfits = []
    bases = {adapter.path: adapter.config.get("base_model_name_or_path") or "" for adapter in adapters}
    if len({base.rstrip("/") for base in bases.values()}) > 1:
        hint = f"mix adapters of one base; if it is one base under two names, write the same name in each {CONFIG}"
        named = tuple(f"{path}: '{base}'" for path, base in bases.items())
        misfits.append(Misfit("bases", "the adapters were trained on different bases", named, hint))
    differences = find_differences([adapter.plain for adapter in adapters])
    if differences:
        message, hint = "the adapters differ in their tensors that are not LoRA factors", _SAME_PLAIN
        misfits.append(Misfit("tensors", message, tuple(difference.text for difference in differences), hint))
    firsts: dict[str, tuple[Adapter, Update]] = {}
    items = []
    for adapter in adapters:
        for update in adapter.updates.values():
            first, wanted = firsts.setdefault(update.module, (adapter, update))
            if (update.outer_shape, update.is_embedding) != (wanted.outer_shape, wanted.is_embedding):
                here, there = list(update.outer_shape), list(wanted.outer_shape)
                items.append(f"{adapter.path}: '{update.module}' is {here}, in {first.path} it is {there}")
    if items:
        misfits.append(Misfit("updates", "the adapters update weights of different shapes", tuple(items)))
    return misfits
