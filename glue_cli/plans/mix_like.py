"""The recipe in a blend's metadata, from which a plan can make the blend again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glue_cli.blend.adapters.adapter import is_adapter, read_adapter
from glue_cli.blend.recipe import find_expert
from glue_cli.blend.rules import Groups
from glue_cli.blend.tensor_rules import NO_RULES, TensorRules
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.hub import fetch
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError, UsageError
from glue_cli.plans.mix_records import Writing

if TYPE_CHECKING:  # importing pydantic takes longer than making a small blend
    from glue_cli.results.blend import BlendMetadata, RecordedRecipe


_FROM = "from:"


@dataclass(frozen=True)
class Like:
    """A blend to make again.

    Attributes:
        blend: its header.
        said: what its metadata say of how it was made.
        experts: what to make it from, in the order of its recipe.
        rules: the recorded rules for its tensors, with these experts' paths.
        notes: what the user is told, one sentence each.
    """

    blend: Checkpoint
    said: "BlendMetadata"
    experts: tuple[Path, ...]
    rules: TensorRules
    notes: tuple[str, ...] = ()

    @property
    def overrides(self) -> list[str]:
        """The spec's settings, as `KEY=VALUE`, that BatchNorm statistics were taken with; empty if none were taken."""
        refreshed = self.said.recipe.refreshed
        if refreshed is None:
            return []
        return [
            f"seed={self.said.seed}",
            f"mix.batch_size={refreshed.batch_size}",
            f"precision={refreshed.precision}",
        ]


def record_of(experts: Sequence[Checkpoint], rules: TensorRules, groups: Groups, writing: Writing) -> dict[str, Any]:
    """Return what a blend's metadata will say of how its tensors were made; defaults are left out.

    Experts that rules name are recorded by their numbers, since their files may have other names next time.
    """
    said = {key: value for key, value in asdict(rules).items() if value != getattr(NO_RULES, key)}
    if rules.copy_from is not None:
        said["copy_from"] = find_expert(experts, rules.copy_from, "--copy-from")
    said.pop("batchnorm", None)  # known only once statistics have been taken anew
    for key, policy in (("head_policy", rules.head_policy or ""), ("batchnorm", rules.batchnorm)):
        if policy.startswith(_FROM):
            number = find_expert(experts, policy.removeprefix(_FROM), f"--{key.replace('_', '-')} from:")
            said[key] = f"{_FROM}{number}"
    record = {
        "rules": said,
        "groups": groups if isinstance(groups, str) else dict(groups),
        "dtype": writing.dtype,
        "max_shard_bytes": writing.max_shard_bytes,
    }
    return {key: value for key, value in record.items() if value}


def read_like(path: Path, experts: Sequence[Path], output: Path, remembered: Mapping[str, str] | None = None) -> Like:
    """Read the recipe of a blend, and put the experts in its order.

    Args:
        experts: what to make it from again, in any order.
        output: where the new blend goes; remembered: digests, see `in_recorded_order`.
    Raises:
        UsageError: `path` does not exist, or the number of experts differs.
        CheckpointError: it is damaged, lacks a recipe or the experts' sha256, or was made from other experts.
    """
    from pydantic import ValidationError

    from glue_cli.plans.like_order import in_recorded_order
    from glue_cli.results.blend import BlendMetadata

    blend = read_adapter(path).checkpoint if is_adapter(path) else read_checkpoint(path)
    try:
        said = BlendMetadata.model_validate(blend.glue)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'glue'}: {fault['msg']}" for fault in error.errors()]
        raise CheckpointError(
            f"the metadata of '{path}' are not enough to make it again",
            items=faults,
            hint="name a blend that glue mix wrote, of this version or a later one, and without --no-hash",
        ) from None
    if len(experts) != len(said.experts):
        raise UsageError(
            f"--like {path}: it was made from {len(said.experts)} experts, and {len(experts)} are given",
            hint=f"name each once, in any order: {', '.join(expert.name for expert in said.experts)}",
        )
    given = [fetch(expert) for expert in experts]
    ordered = in_recorded_order(path, given, said.experts, output, remembered or {})
    notes = (
        (f"the experts are taken in the blend's order: {', '.join(map(str, ordered))}",) if ordered != given else ()
    )
    return Like(blend, said, tuple(ordered), _rules_for(ordered, said.recipe), notes)


def _rules_for(experts: Sequence[Path], recipe: "RecordedRecipe") -> TensorRules:
    """Return recorded rules with the experts' paths in place of their numbers."""
    said = recipe.rules
    batchnorm = "refresh" if recipe.refreshed else NO_RULES.batchnorm

    def policy(written: str | None) -> str | None:
        if written is None or not written.startswith(_FROM):
            return written
        return f"{_FROM}{_path_of(experts, written.removeprefix(_FROM))}"

    return TensorRules(
        tuple(said.include),
        tuple(said.exclude),
        None if said.copy_from is None else _path_of(experts, str(said.copy_from)),
        said.head,
        policy(said.head_policy),
        tuple(said.classes),
        policy(said.batchnorm) or batchnorm,
    )


def _path_of(experts: Sequence[Path], number: str) -> str:
    if not number.isdecimal() or int(number) >= len(experts):
        raise CheckpointError(f"the recipe names expert {number}, of {len(experts)}", hint="it was changed by hand")
    return str(experts[int(number)])
