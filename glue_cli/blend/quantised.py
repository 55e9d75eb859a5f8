"""Recognise quantised experts before any weight is read: they store codes, and a mean of codes is meaningless.

Needs no torch.
"""

import re
from collections.abc import Collection, Iterator, Sequence

from glue_cli.blend.misfit import Misfit
from glue_cli.checkpoints.header import Checkpoint, TensorEntry
from glue_cli.checkpoints.json_files import read_object

_CODES = ("I8", "U8", "I32")  # the dtypes that store codes of 8, 4 and fewer bits
# Last parts of the names of tensors that only quantised layers have: scales, zeros and the codes themselves.
_PARTS = re.compile(
    r"(?:^|\.)(?:SCB|weight_format|absmax|nested_absmax|quant_map|nested_quant_map|quant_state\.\w+"  # bitsandbytes
    r"|qweight|qzeros|g_idx"  # GPTQ, AWQ
    r"|weight_(?:scale|scale_inv|packed|shape|zero_point)|input_scale"  # compressed-tensors, fp8 of several tools
    r"|\w+_blocks|_packed_params(?:\._packed_params)?)$"  # MXFP4; torch.ao
)
_WEIGHT = re.compile(r"(?:^|[._])(?:w|weight|kernel)$")
_DEQUANTISE = (
    "load it in its library, dequantise it (transformers: model.dequantize()), save it in float16"
    " or bfloat16, and blend that; or blend the checkpoint that it was made from"
)

_BASE = (
    "load it in its library, dequantise it (transformers: model.dequantize()), save it in bfloat16, and name that:"
    " beside it the adapters stay in factors; or name the base that it was made from"
)


def quantised_misfits(experts: Sequence[Checkpoint], *, apart: Collection[str] = ()) -> list[Misfit]:
    """Return a misfit for each expert that has quantised tensors among those that are blended.

    Args:
        apart: tensors that are not blended.
    """
    misfits = []
    for expert in experts:
        entries = [entry for entry in _quantised_tensors(expert) if entry.name not in apart]
        if entries:
            misfits.append(_misfit(expert, entries, "quantised numbers have no mean", _DEQUANTISE))
    return misfits


def quantised_base_misfits(base: Checkpoint) -> list[Misfit]:
    """Return a misfit if the base of adapters has quantised tensors: no update can be added to codes."""
    entries = list(_quantised_tensors(base))
    return [_misfit(base, entries, "adapters need a base of floating-point weights", _BASE)] if entries else []


def _misfit(checkpoint: Checkpoint, entries: Sequence[TensorEntry], why: str, hint: str) -> Misfit:
    message = f"'{checkpoint.path}' is quantised{_method_of(checkpoint)}, and {why}"
    items = tuple(f"'{entry.name}' is {entry.dtype} {list(entry.shape)}" for entry in entries)
    return Misfit("quantisation", message, items, hint)


def _quantised_tensors(expert: Checkpoint) -> Iterator[TensorEntry]:
    """Yield an expert's codes and, if it has any, the tensors that belong to them."""
    codes = [entry for entry in expert.entries.values() if _is_code(entry)]
    if codes:
        yield from codes
        known = {entry.name for entry in codes}
        yield from (e for e in expert.entries.values() if _PARTS.search(e.name) and e.name not in known)


def _is_code(entry: TensorEntry) -> bool:
    if entry.dtype.startswith("F8"):
        return True
    return (
        entry.dtype in _CODES
        and len(entry.shape) > 0
        and bool(_WEIGHT.search(entry.name) or _PARTS.search(entry.name))
    )


def _method_of(expert: Checkpoint) -> str:
    """Return the quantisation method that a model's configuration names, in parentheses; empty if it names none."""
    config = read_object(expert.model_folder / "config.json") if expert.model_folder else {}
    said = config.get("quantization_config")
    method = said.get("quant_method") if isinstance(said, dict) else None
    return f" ({method})" if isinstance(method, str) else ""
