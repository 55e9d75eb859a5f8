"""Recognise quantised experts before any weight is read: they store codes, and a mean of codes is meaningless.

Needs no torch.
"""

import re
from collections.abc import Collection, Iterator, Sequence

from glue_cli.blend.misfit import Misfit
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, TensorEntry
from glue_cli.checkpoints.json_files import read_object

_CODES = ("I8", "U8", "I32")  # the dtypes that store codes of 8, 4 and fewer bits
# Last parts of the names of tensors that only quantised layers have: scales, zeros and the codes themselves.
_PARTS = re.compile(
    r"(?:^|\.)(?:SCB|weight_format|absmax|nested_absmax|quant_map|nested_quant_map|quant_state\.\w+"  # bitsandbytes
    r"|qweight|qzeros|g_idx"  # GPTQ, AWQ
    r"|_weight_(?:qdata|scale|zero_point)|weight\._(?:data|scale|shift)"  # torchao, quanto
    r"|W_q|Qidxs|trellis"  # HQQ, QuIP#, EXL3
    r"|weight_(?:scale|scale_inv|packed|shape|zero_point)|input_scale"  # compressed-tensors, fp8 of several tools
    r"|\w+_blocks|_packed_params(?:\._packed_params)?)$"  # MXFP4; torch.ao
)
_WEIGHT = re.compile(r"(?:^|[._])(?:w|weight|kernel)$")
_DEQUANTISE = (
    "load it in its library, dequantise it (transformers: model.dequantize()), save it in float16"
    " or bfloat16, and {0} that; or {0} the checkpoint that it was made from"
)
_BASE = (
    "name the base that it was made from, or this one dequantised in its library (transformers: model.dequantize())"
    " and saved in bfloat16; without --base the blend is an adapter, which PEFT loads beside this base too"
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
            misfits.append(_misfit(expert, entries, "quantised numbers have no mean", _DEQUANTISE.format("blend")))
    return misfits


def library_of(base: Checkpoint) -> str | None:
    """Return the library or method that has quantised a base, as its configuration names it.

    Returns:
        None if the base has no quantised tensors, or nothing beside it says how to load them.
    """
    return _method(base) if any(_quantised_tensors(base)) else None


def quantised_base_misfits(base: Checkpoint) -> list[Misfit]:
    """Return a misfit if the base of adapters has quantised tensors: no update can be added to codes."""
    entries = list(_quantised_tensors(base))
    return [_misfit(base, entries, "adapters need a base of floating-point weights", _BASE)] if entries else []


def quantised_model_misfits(checkpoint: Checkpoint) -> list[Misfit]:
    """Return a misfit if a checkpoint has quantised tensors, with which no model runs but its library's."""
    entries = list(_quantised_tensors(checkpoint))
    return [_misfit(checkpoint, entries, "its model needs weights", _DEQUANTISE.format("use"))] if entries else []


def _misfit(checkpoint: Checkpoint, entries: Sequence[TensorEntry], why: str, hint: str) -> Misfit:
    method = _method(checkpoint) or ""
    message = f"'{checkpoint.path}' is quantised{method and f' ({method})'}, and {why}"
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
    if not entry.shape or entry.dtype in FLOAT_DTYPES:
        return False
    return bool(_PARTS.search(entry.name) or (entry.dtype in _CODES and _WEIGHT.search(entry.name)))


def _method(expert: Checkpoint) -> str | None:
    config = read_object(expert.model_folder / "config.json") if expert.model_folder else {}
    said = config.get("quantization_config")
    method = said.get("quant_method") if isinstance(said, dict) else None
    return method if isinstance(method, str) else None
