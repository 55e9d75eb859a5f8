"""glue check"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glue_cli.cli.next_command import mix_command
from glue_cli.cli.options import WeightsOption
from glue_cli.cli.output import print_warning
from glue_cli.cli.session import Session, with_session
from glue_cli.cli.show_check import show_check
from glue_cli.cli.signals import holding_signals
from glue_cli.foundation.errors import CheckpointError, UnfinishedSpecError

if TYPE_CHECKING:
    from glue_cli.results.check import CheckResult
    from glue_cli.spec.schema import Spec


@with_session(without=("history", "force", "dry_run", "resume", "save_every"))
def check(
    session: Session,
    experts: Annotated[
        list[Path],
        typer.Argument(
            metavar="EXPERT",
            help="Checkpoints: .safetensors or .pt files, indexes, Hugging Face folders, LoRA adapters.",
        ),
    ],
    weights: WeightsOption = None,
) -> None:
    """Say whether experts can be mixed, and whether they should be; with a spec, by losses on the target's data.

    Exits with 3 when they cannot, or when a mix would be of no use.
    """
    from glue_cli.plans.check import plan_check

    plan = plan_check(experts, weights=weights, spec=_spec_if_any(session))
    with session.running() as run:
        with holding_signals():
            from glue_cli.workflows.check.check import check as work

        result = work(plan, run)
    session.finish(result, show_check, _next(result, experts, session.spec))
    if result.verdict == "no":
        message = "these experts cannot be mixed" if result.differences else "a mix of these experts is of no use"
        raise CheckpointError(message, hint=next(iter(result.instead), None))


def _spec_if_any(session: Session) -> "Spec | None":
    """Return the spec; None without one, or where the one that just lies here is of no use, which is said."""
    from glue_cli.models.tasks import lacks_loss, no_loss_for

    if not session.has_spec:
        return None
    try:
        spec = session.read_spec()
        if session.spec is not None or not lacks_loss(spec.model.arch):
            return spec
        why = f"is left aside: {no_loss_for(spec.model.arch)}"
    except UnfinishedSpecError as error:
        if session.spec is not None:
            raise
        why = f"is unfinished, so the check goes without it: {'; '.join(error.items)}"
    if not session.quiet:
        print_warning(f"glue.yaml {why}")
    return None


def _next(result: "CheckResult", experts: list[Path], spec: Path | None) -> str | None:
    if result.verdict == "no":
        return None
    named = ["--spec", shlex.quote(str(spec))] if spec else []
    return mix_command(experts, *(["--batchnorm", "refresh"] if result.verdict == "refresh" else []), *named)
