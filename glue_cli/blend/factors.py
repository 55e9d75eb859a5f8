"""Recognise the factors of adapters, and of pruned weights, by their names. Needs no torch.

An adapter's update is a product of its factors, whichever tool trained it, and a pruned weight one of its values and a
mask. The product of two experts' mean factors is not the mean of their products, and may be far from it.
"""

import re
from collections.abc import Collection, Sequence

from glue_cli.blend.misfit import Misfit
from glue_cli.checkpoints.files import same_bytes
from glue_cli.checkpoints.header import Checkpoint

# How each tool names factors. A part of a name begins after a dot or an underscore.
_FACTORS = (
    r"lora_(?:embeddings?_|kernel_)?[ab]",  # PEFT, loralib, MLX, torchtune, Keras
    r"lora_(?:down|up|mid)",  # kohya, LyCORIS
    r"lora\d*(?:_linear_layer)?\.(?:down|up)",  # diffusers, XLabs
    r"(?:lora_\w*)?adapter\.linear_(?:in|out)",  # NeMo, Megatron Bridge
    r"lora_magnitude_vector|dora_scale",  # DoRA, whose magnitudes scale the direction of a sum with the product
    r"hada_[wt][12](?:_[ab])?",  # LoHa: products of products
    r"lokr_[wt][12](?:_[ab])?",  # LoKr: Kronecker products
    r"oft_(?:blocks|diag|r)|boft_[rs]",  # OFT, whose rotations are not linear in these
    r"p?vera_lambda_[bd]|randlora_(?:lambda|gamma)",
    r"(?:gra|de|tiny)lora_[abv]|(?:adamss|hira|lily|peanut)_[ab]|glora_[abc]",  # of PEFT, under names of their own
    r"deft_[pr]|frod_lambda_\w+|hra_u|psoft_r|osf_svd_params|miss_block$|road_theta$|vblora_logits_[ab]|unilora_theta_d",
)
_FACTOR = re.compile(rf"(?:^|[._])(?:{'|'.join(_FACTORS)})(?=[._]|$)", re.IGNORECASE)
_PEFT = re.compile(r"\.lora_(?:embedding_)?[AB](?:\.|$)")
_MASK = "_mask"  # of torch.nn.utils.prune, beside the values, _orig
_GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha")  # in one module; each alone is ambiguous


def factor_misfits(experts: Sequence[Checkpoint], *, apart: Collection[str] = ()) -> list[Misfit]:
    """Return a misfit for each expert that has the factors of an adapter among the tensors that are blended.

    Args:
        apart: tensors that are not blended.
    """
    misfits = []
    for expert in experts:
        factors = [name for name in find_factors(expert) if name not in apart]
        if factors:
            hint = "merge each adapter into its base with the tool that trained it, or convert it for PEFT"
            if all(_PEFT.search(name) for name in factors):
                hint = "name the adapter's folder, with its adapter_config.json"
            message = (
                f"'{expert.path}' holds the factors of an adapter, whose means are not the mean of their products"
            )
            misfits.append(Misfit("adapters", message, tuple(factors), hint))
    return misfits


def mask_misfits(experts: Sequence[Checkpoint], *, apart: Collection[str] = ()) -> list[Misfit]:
    """Return a misfit if the experts were pruned by torch, with masks that differ.

    Args:
        apart: tensors that are not blended.
    """
    first, *others = experts
    masks = [
        name
        for name in first.entries
        if name.endswith(_MASK) and f"{name.removesuffix(_MASK)}_orig" in first.entries and name not in apart
    ]
    differing = [
        name
        for name in masks
        if not all(
            name in other.entries and same_bytes(first, first.entries[name], other, other.entries[name])
            for other in others
        )
    ]
    if not differing:
        return []
    message = "the experts were pruned with different masks, whose means are no masks"
    hint = "make the pruning permanent in each: torch.nn.utils.prune.remove(module, 'weight'), and save it again"
    return [Misfit("pruning", message, tuple(f"'{name}'" for name in differing), hint)]


def find_factors(checkpoint: Checkpoint) -> list[str]:
    """Return the tensors whose names are those of an adapter's factors."""
    modules = {name.removesuffix(_GLORA[0]) for name in checkpoint.entries if name.endswith(f".{_GLORA[0]}")}
    glora = {f"{m}{part}" for m in modules for part in _GLORA if all(f"{m}{p}" in checkpoint.entries for p in _GLORA)}
    return [name for name in checkpoint.entries if name in glora or _FACTOR.search(name)]
