"""Compare the configurations of experts in model folders in what changes how the weights are used. Needs no torch.

Networks of equal shapes may still differ, in the number of heads, the base of the rotary positions or the activation.
The mean of their weights then belongs to no network at all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from glue_cli.blend.misfit import Misfit
from glue_cli.blend.tied import heads_are_copies
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.json_files import read_object
from glue_cli.foundation.imports import import_beside_torchvision
from glue_cli.foundation.json_text import brief_json
from glue_cli.foundation.units import listed

# Keys, by their last part, that do not change what the weights compute.
_IGNORED = (
    *("_*", "architectures", "auto_map", "transformers_version", "tokenizer_class", "unsloth_*"),  # of the files
    *("dtype", "torch_dtype", "use_bfloat16", "fp16", "bf16", "fp32", "quantization_config"),  # the tensors show these
    *("vocab_size", "*token_id*", "prefix"),  # the vocabularies are compared instead
    *("id2label", "label2id", "num_labels", "num_classes", "label_names", "label_descriptions"),  # the class names
    *("finetuning_task", "task_specific_params", "*loss*", "gradient_checkpointing"),  # of training
    *("*drop*", "initializer_*", "init_std", "mask_time_*", "mask_feature_*", "apply_spec_augment", "router_jitter_*"),
    *("use_cache", "return_dict*", "use_return_dict", "torchscript", "pretraining_tp"),  # of running
    *("output_attentions", "output_hidden_states", "output_scores", "output_past", "output_loading_info"),
    *("output_router_logits", "output_auxiliary_logits", "output_segmentation", "output_a3_attentions"),
    *("*attn_implementation", "use_flash_attn*", "use_flash_attention*", "use_memory_efficient_attention"),
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beam*", "temperature", "top_k", "top_p"),
    *("typical_p", "*_penalty", "*no_repeat_ngram_size", "bad_words_ids", "*suppress_tokens", "forced_*"),
    *("num_return_sequences", "remove_invalid_values"),  # the keys up to here are about generating text
)
# Those of other libraries: where the weights come from, what follows from them, and how images are prepared, which is
# compared elsewhere.
_IGNORED_BY = {
    "timm": (
        *("pretrained_cfg", "num_features", "in_chans", "init_*", "grad_checkpointing", "first_conv", "classifier"),
        *("input_size", "test_*", "pool_size", "crop_*", "mean", "std", "interpolation", "fixed_input_size"),
        *("url", "license", "labels", "tag", "hf_hub_*", "origin_*", "paper_*", "timm_version", "custom_load"),
    ),
    "open_clip": (
        "preprocess_cfg",
        "*_model_pretrained",
        "init_*",
        "ls_init_value",
        "hf_tokenizer_name",
        "*_checkpointing",
    ),
    "diffusers": ("force_upcast", "optimization_step"),
}
# These do, though they are called as some that do not: ESM's scales embeddings, masks or none.
_NOT_IGNORED = ("token_dropout", "normalize_router_prob_before_dropping", "drop_vision_last_layer", "_class_name")
# Those of single models: dory divides by it in forward.
_NOT_IGNORED_BY = {"dory": ("initializer_range",)}
# What outputs stand for: it matters between experts, and a spec's model may be given another.
_PROBLEM = "problem_type"
# Keys whose differences are reported but harmless: longer texts or larger images than trained on, other padding.
_NOTED = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "model_max_length",
    "pad_token_id",
    "sample_size",
    _PROBLEM,
)
_FILES = ("config.json", "open_clip_config.json")
# By library, the key that only its configurations have. Its own keys all matter, unless they are named above.
_OF_LIBRARIES = {
    "transformers": "model_type",
    "timm": "architecture",
    "diffusers": "_class_name",
    "open_clip": "model_cfg",
}
# What decides in timm and open_clip though one leaves it out, as both do with most defaults.
_DECIDING = ("quick_gelu", "act_layer", "act_kwargs", "norm_layer", "no_ln_pre", "pool_type", "class_token")
_ALIASES = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "swish": "silu"}  # other names, same function
_LONGEST_TEXT = "max_position_embeddings"
_SCALED = ("dynamic", "longrope", "su", "yarn")  # rotary positions that follow from the longest text
_TIED = "tie_word_embeddings"  # no effect if every head in a file is a copy of the embedding


@dataclass(frozen=True)
class Difference:
    """A key, with dots between its parts, in which two configurations differ, and its values.

    Attributes:
        is_sure: whether both have the key, or one has what decides; null counts as a value, since it may mean no
            window or no cap.
        scales_positions: whether it is a longest text that the rotary positions are scaled by.
    """

    key: str
    value: object
    other: object
    is_sure: bool
    scales_positions: bool = False

    @property
    def is_grave(self) -> bool:
        """Whether it changes what the weights compute: the values do differ, and the key matters."""
        return self.is_sure and (self.scales_positions or not _is_like(self.key, _NOTED))


def configuration_misfits(experts: Sequence[Checkpoint]) -> tuple[list[Misfit], list[str]]:
    """Compare the experts' configurations in all that changes what the weights compute.

    Configurations are compared as they are written and, if they differ, as the library reads them, which fills in
    defaults and knows old spellings of keys.

    Returns:
        a misfit that lists every difference that matters, if there are any; and sentences on the others.
    """
    folders = [expert.model_folder for expert in experts if expert.model_folder]
    items: list[str] = []
    notes: list[str] = []
    for name in _FILES:
        paths = [folder / name for folder in folders]
        known = [(path, config) for path in paths if (config := read_object(path))]
        odd = [path for path in paths if known and path.exists() and path not in dict(known)]
        notes += [f"{path} is no configuration that can be read, and is not compared" for path in odd]
        for path, config in known[1:]:
            first, wanted = known[0]
            grave, told = _told_apart(differences_of_use(config, wanted, experts), _library_of(config, wanted))
            items += [
                f"{path}: {d.key} is {brief_json(d.value)}, in {first} it is {brief_json(d.other)}" for d in grave
            ]
            for meaning, light in told.items():
                said = listed([f"{d.key} ({brief_json(d.value)}, not {brief_json(d.other)})" for d in light])
                notes.append(f"{path} differs from {first} in {said}, {meaning}")
    if not items:
        return [], notes
    hint = "blend models of one configuration; where a value is only written otherwise, mend that file"
    message = "the experts' configurations differ in what their weights compute"
    return [Misfit("configurations", message, tuple(items), hint)], notes


def _told_apart(
    differences: Sequence[Difference], library: str | None
) -> tuple[list[Difference], dict[str, list[Difference]]]:
    """Return the differences that change what the weights compute, and the others by what glue can say of them."""
    grave = [d for d in differences if library and (d.is_grave or _is_another_problem(d))]
    told: dict[str, list[Difference]] = {}
    for difference in differences:
        if difference not in grave:
            is_noted = _is_like(difference.key, _NOTED)
            meaning = (
                "which glue takes to be harmless" if is_noted else "and glue cannot tell whether they compute the same"
            )
            told.setdefault(meaning, []).append(difference)
    return grave, told


def _is_another_problem(difference: Difference) -> bool:
    """Tell whether outputs stand for something else; null is what a model says that was not trained yet."""
    return difference.key == _PROBLEM and None not in (difference.value, difference.other)


def differences_of_use(
    config: Mapping[str, Any], other: Mapping[str, Any], checkpoints: Sequence[Checkpoint]
) -> list[Difference]:
    """As `compare_configurations`, without what makes no difference to the weights in these checkpoints."""
    differences = compare_configurations(config, other)
    return [d for d in differences if not (d.key.endswith(_TIED) and heads_are_copies(checkpoints))]


def compare_configurations(config: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """Return where two configurations differ, leaving out keys that do not change what the weights compute."""
    differences = list(_differences(config, other))
    if differences and (as_read := _as_read(config)) and (other_as_read := _as_read(other)):
        differences = list(_differences(as_read, other_as_read))
    return differences


def _differences(
    config: Mapping[str, Any], other: Mapping[str, Any], above: str = "", *, library: str | None = None
) -> Iterator[Difference]:
    library = library or _library_of(config, other)
    ignored = (*_IGNORED, *_IGNORED_BY.get(library or "", ()))
    config, other = _normalised(config), _normalised(other)
    for key in dict.fromkeys((*config, *other)):
        counting = (*_NOTED, *_NOT_IGNORED, *_NOT_IGNORED_BY.get(str(config.get("model_type")), ()))
        if _is_like(key, ignored) and not _is_like(key, counting):
            continue
        value, wanted = config.get(key), other.get(key)
        if isinstance(value, dict) and isinstance(wanted, dict):
            yield from _differences(value, wanted, f"{above}{key}.", library=library)
        elif value != wanted and not (_is_like(key, _NOTED) and None in (value, wanted)):
            are_scaled = key == _LONGEST_TEXT and (_scales_positions(config) or _scales_positions(other))
            is_deciding = library in ("timm", "open_clip") and _is_like(key, _DECIDING) and bool(value or wanted)
            is_sure = (key in config and key in other) or is_deciding
            yield Difference(f"{above}{key}", value, wanted, is_sure, are_scaled)


def _scales_positions(config: Mapping[str, Any]) -> bool:
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or rope.get("rope_type") not in _SCALED:
        return False
    says_all = None not in (rope.get("factor"), rope.get("original_max_position_embeddings"))
    return rope["rope_type"] == "dynamic" or not says_all


def _normalised(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in one spelling: rotary positions as in transformers 5, one name for each function."""
    said = dict(config)
    if "architecture" in said and isinstance(arguments := said.get("model_args"), dict):
        said |= arguments  # as timm does
        del said["model_args"]
    if not {"rope_parameters", "rope_type"} & said.keys() and {"rope_theta", "rope_scaling"} & said.keys():
        theta, scaling = said.pop("rope_theta", None), said.pop("rope_scaling", None)
        rope = dict(scaling) if isinstance(scaling, dict) else {}
        rope["rope_type"] = rope.pop("type", rope.get("rope_type", "default"))
        said["rope_parameters"] = rope | ({} if theta is None else {"rope_theta": theta})
    if said.get("use_sliding_window") is False:  # of Qwen, whose window then has no effect
        said = {key: value for key, value in said.items() if key not in ("sliding_window", "max_window_layers")}
    width, n_heads, of_head = (said.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim"))
    if isinstance(n_heads, int) and isinstance(of_head, int) and n_heads * of_head == width:
        del said["head_dim"]  # this is the default
    return {key: _ALIASES.get(value, value) if isinstance(value, str) else value for key, value in said.items()}


def _as_read(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return a configuration as transformers reads it; None if it cannot, or is not installed."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return None
    try:
        transformers: Any = import_beside_torchvision("transformers")
        transformers.logging.set_verbosity_error()
        said = {key: value for key, value in config.items() if key != "model_type"}
        settings: Mapping[str, Any] = transformers.AutoConfig.for_model(kind, **said).to_dict()
    except Exception:  # the library may raise anything; the written values are then used
        return None
    return settings


def _library_of(config: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return the library that wrote the configurations; None if they may be just notes on a training."""
    if "model_type" in config or "model_type" in other:  # older versions did not always write it
        return "transformers"
    return next((library for library, key in _OF_LIBRARIES.items() if key in config and key in other), None)


def _is_like(key: str, patterns: Iterable[str]) -> bool:
    name = str(key).rpartition(".")[2]
    return any(fnmatchcase(name, pattern) for pattern in patterns)
