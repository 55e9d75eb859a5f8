"""glue mix"""

import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from glue_cli.blend.tensor_rules import BATCHNORM_POLICIES, HEAD_POLICIES, TensorRules
from glue_cli.cli import completion
from glue_cli.cli.mix_dry_run import planned
from glue_cli.cli.options import WeightsOption
from glue_cli.cli.session import Session, check_name, with_session
from glue_cli.cli.signals import holding_signals
from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.memory import MEMORY_BYTES
from glue_cli.methods import METHODS, SEARCHES
from glue_cli.spec.budget import parse_budget

if TYPE_CHECKING:
    from glue_cli.plans.mix_like import Like
    from glue_cli.plans.mix_records import Coefficients, Search, Writing

_SEARCH = f"Search, by {', '.join(SEARCHES)}"
_TENSORS = "Heads, single tensors and adapters"
_MEMORY = f"{MEMORY_BYTES >> 20}MiB"

_OF_RECIPE = ("mix", "objective", "precision", "seed")  # the keys of the spec that --like leaves unread

Number = TypeVar("Number", int, float)


@with_session()
def mix(
    session: Session,
    experts: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="EXPERT",
            help="Checkpoints: .safetensors or .pt files, indexes, Hugging Face folders, LoRA adapters.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME",
            help=f"How alpha is chosen: {', '.join(METHODS)}.",
            autocompletion=completion.one_of(METHODS),
        ),
    ] = None,
    alpha: Annotated[
        str | None, typer.Option("--alpha", metavar="A,B,...", help="Given coefficients, in place of a method.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            metavar="BLEND",
            help="Make this blend again from its experts, by the recipe in its metadata: the same bytes.",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option("--sizes", metavar="N,M,...", help="Training examples of each expert, for data-size."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="NAME",
            help="Dtype of the blend: same, float32, bfloat16, float16, float64.",
            autocompletion=completion.dtypes,
        ),
    ] = "same",
    max_shard_size: Annotated[
        str | None,
        typer.Option("--max-shard-size", metavar="SIZE", help="Split a larger blend into files of this size."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="What the buffers may take, beyond the model and its activations: while the blend is written, "
            f"{_MEMORY} by default, and in a search, as much as is free.",
        ),
    ] = None,
    no_hash: Annotated[bool, typer.Option("--no-hash", metavar="", help="Do not take the experts' sha256.")] = False,
    no_card: Annotated[
        bool, typer.Option("--no-card", metavar="", help="Write no model card into the blend's folder.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="N|TIME|Nex",
            help="What it may spend: 300 forwards, 2m, 1e6ex. Without one, greedy tries all experts, "
            "and the others go on until the validation loss is level, or for mix.steps.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            metavar="",
            help="Afterwards, find the loss without each expert.",
            rich_help_panel=_SEARCH,
        ),
    ] = False,
    bank: Annotated[
        str,
        typer.Option(
            "--bank",
            metavar="auto|device|blocks|sharded|host|disk|streamed|factors|dense",
            autocompletion=completion.banks,
            help="Where the experts are kept: auto takes device memory, with whole blends or a block of them at a "
            "time (blocks), that of all processes together (sharded), or host memory where they fit, and else streams "
            "them from disk block by block; of adapters, the factors if the model allows it, else dense updates.",
            rich_help_panel=_SEARCH,
        ),
    ] = "auto",
    batchnorm: Annotated[
        str,
        typer.Option(
            "--batchnorm",
            metavar="POLICY",
            autocompletion=completion.policies(BATCHNORM_POLICIES),
            help=f"BatchNorm's statistics, {', '.join(BATCHNORM_POLICIES)}: refresh takes them from the target's "
            "data, auto where that does better.",
            rich_help_panel=_TENSORS,
        ),
    ] = "auto",
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="PATTERN",
            help="The tensors of the head, such as 'fc.*'.",
            rich_help_panel=_TENSORS,
        ),
    ] = None,
    head_policy: Annotated[
        str | None,
        typer.Option(
            "--head-policy",
            metavar="POLICY",
            autocompletion=completion.policies(HEAD_POLICIES),
            help=f"What becomes of it, {', '.join(HEAD_POLICIES)}: align matches its rows by class name.",
            rich_help_panel=_TENSORS,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="A,B,...",
            help="The target's class names, for align and reset; all that the experts know by default.",
            rich_help_panel=_TENSORS,
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include", metavar="PATTERN", help="Blend only these tensors; may be repeated.", rich_help_panel=_TENSORS
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="PATTERN",
            help="Do not blend these tensors; may be repeated.",
            rich_help_panel=_TENSORS,
        ),
    ] = None,
    copy_from: Annotated[
        str | None,
        typer.Option(
            "--copy-from",
            metavar="EXPERT",
            help="Whose tensors are taken where they are not blended.",
            rich_help_panel=_TENSORS,
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="PATH",
            help="Merge LoRA adapters into this model; without it, the blend is an adapter.",
            rich_help_panel=_TENSORS,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="The blended model.")] = Path(
        "prior.safetensors"
    ),
    weights: WeightsOption = None,
) -> None:
    """Choose coefficients for the experts and blend them into one model, the prior.

    uniform, data-size and --alpha need the experts alone, the other methods also a spec and its data.
    """
    from glue_cli.cli.show_mix import show_mix  # imported here to keep --version and --help fast
    from glue_cli.plans.mix import plan_mix
    from glue_cli.plans.mix_like import read_like
    from glue_cli.plans.mix_records import ALL_BANKS, Search
    from glue_cli.workflows.mix.hashes import hashing_experts

    overrides = {f"mix.budget={budget}": "--budget"} if budget is not None else {}
    rules = TensorRules(
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        copy_from=copy_from,
        head=head,
        head_policy=head_policy,
        classes=tuple(name.strip() for name in classes.split(",")) if classes else (),
        batchnorm=batchnorm,
    )
    writing, repeated = _writing(dtype, max_shard_size, memory, not no_hash, not no_card), None
    if like is not None:
        numbers = {"--method": method, "--alpha": alpha, "--sizes": sizes, "--budget": budget, "--weights": weights}
        _check_alone(numbers, session, rules, writing, Search(bank, explain))
        repeated = read_like(like, experts or [], output, session.remembered_digests())
        experts = list(repeated.experts)
        coefficients, rules, writing, overrides = _repeating(repeated, writing)
    else:
        coefficients = _coefficients(method, alpha, sizes)
    is_shared = coefficients.needs_data or rules.batchnorm == "refresh"
    if not (session.is_first or is_shared):
        return  # the first process of a job does what no other can help it with
    check_name("--bank", bank, ALL_BANKS)
    _check_search_options(budget, explain, coefficients.is_search)
    if bank != "auto" and not coefficients.needs_data:
        methods = " or ".join(name for name, method in METHODS.items() if method.needs_data)
        raise UsageError("--bank is for methods that run the experts", hint=f"--method {methods}")
    asks_for_spec = "spec" in session.typed or session.set_
    spec = session.read_spec(overrides) if is_shared or asks_for_spec else None
    with redirect_stdout(sys.stderr):  # a user's module is imported here, and may print
        plan = plan_mix(
            experts or [],
            session.outputs(output),
            coefficients,
            rules=rules,
            base=base,
            weights=weights,
            writing=writing,
            search=Search(bank, explain, None if memory is None else writing.memory_bytes),
            spec=spec if is_shared else None,
            seed=repeated.said.seed if repeated else spec.seed if spec else session.seed or 0,
            like=repeated,
        )
    if session.dry_run:
        session.finish_dry_run("mix", planned(plan))
        return
    with session.running(shared=is_shared) as run:
        if not session.is_first:
            with holding_signals():
                from glue_cli.workflows.mix.mix import help_mix
            if not session.is_finished(plan.destination.result, dict, run):
                help_mix(plan, run)
            return
        # meanwhile torch is imported, which takes a second
        with holding_signals(), hashing_experts(plan, run) as hashes:
            from glue_cli.workflows.mix.metadata import described_in_full
            from glue_cli.workflows.mix.mix import mix as work
        is_finished = session.is_finished(plan.destination.result, lambda: described_in_full(plan, hashes, run), run)
        result = None if is_finished else work(plan, run, hashes)
    if result is None:
        session.finish_again("glue.mix/1", plan.destination.result)
        return
    prior = shlex.quote(result.output)
    hint = f"glue finetune {prior}, or glue evaluate {prior}"
    if plan.adapters and not plan.adapters.merges:
        hint = f"glue evaluate {prior} measures it beside its base; with --base BASE the blend is a whole model"
    elif plan.destination.is_folder and (plan.tensors.tokens or plan.tensors.head_classes):  # which are no expert's
        hint = f"glue evaluate {prior} --set model.args.path={prior}"
    session.finish(result, show_mix, hint)


def _check_alone(
    numbers: Mapping[str, str | None], session: Session, rules: TensorRules, writing: "Writing", search: "Search"
) -> None:
    """Reject options that could contradict the recipe of the blend given with --like."""
    from glue_cli.plans.mix_records import NO_EXTRAS, Writing

    others = {
        "--seed": "seed" in session.typed,
        "--precision": session.precision is not None,
        "--dtype, --max-shard-size and --no-hash": writing
        != Writing(memory_bytes=writing.memory_bytes, card=writing.card),
        "--bank and --explain": search != NO_EXTRAS,
        **{f"--{f.name.replace('_', '-')}": getattr(rules, f.name) != f.default for f in fields(rules)},
        **{f"--set {item}": re.split("[.=]", item)[0].strip() in _OF_RECIPE for item in session.set_ or ()},
    }
    beside = [option for option, given in {**numbers, **others}.items() if given]
    if beside:
        raise UsageError(f"--like has its recipe from the blend, beside {beside[0]}", hint="leave one of the two out")


def _repeating(like: "Like", asked: "Writing") -> tuple["Coefficients", TensorRules, "Writing", dict[str, str]]:
    """Return the coefficients, rules and output format a blend was made with, and settings to override in the spec.

    Args:
        asked: supplies the memory to use, whether to hash, and whether to write a card.
    """
    from glue_cli.plans.mix_records import GIVEN, Coefficients

    recipe = like.said.recipe
    writing = replace(asked, dtype=recipe.dtype, max_shard_bytes=recipe.max_shard_bytes)
    return Coefficients(GIVEN, tuple(like.said.alpha)), like.rules, writing, dict.fromkeys(like.overrides, "--like")


def _coefficients(method: str | None, alpha: str | None, sizes: str | None) -> "Coefficients":
    from glue_cli.plans.mix_records import GIVEN, Coefficients

    if (method is None) == (alpha is None):
        raise UsageError(
            "wanted either --method or --alpha, or --like", hint="glue mix --method spsa experts/*.safetensors"
        )
    if method is not None:
        check_name("--method", method, list(METHODS))
    if sizes is not None and method != "data-size":
        raise UsageError("--sizes is for --method data-size only", hint="leave --sizes out")
    return Coefficients(
        method or GIVEN,
        _numbers("--alpha", alpha, float) if alpha is not None else None,
        _numbers("--sizes", sizes, int) if sizes is not None else None,
    )


def _writing(dtype: str, max_shard_size: str | None, memory: str | None, hashing: bool, card: bool) -> "Writing":
    from glue_cli.plans.mix_records import OUTPUT_DTYPES, Writing

    check_name("--dtype", dtype, ["same", *OUTPUT_DTYPES])
    return Writing(
        None if dtype == "same" else dtype,
        _bytes("--max-shard-size", max_shard_size) if max_shard_size is not None else None,
        _bytes("--memory", _MEMORY if memory is None else memory),
        hashing,
        card,
    )


def _check_search_options(budget: str | None, explain: bool, is_search: bool) -> None:
    if budget is not None:
        try:
            parse_budget(budget)
        except ValueError as error:
            raise UsageError(f"--budget: {error}", hint="for example --budget 300") from None
    for option, given in (("--budget", budget is not None), ("--explain", explain)):
        if given and not is_search:
            raise UsageError(f"{option} is for a search", hint=f"--method {' or '.join(SEARCHES)}")


def _numbers(option: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        wanted, example = ("whole numbers", "2000,500") if kind is int else ("numbers", "0.2,0.8")
        raise UsageError(
            f"{option} '{text}': wanted {wanted} with commas between", hint=f"for example {option} {example}"
        ) from None


def _bytes(option: str, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMG]i?B|B)", text)
    if not match or float(match[1]) == 0:
        raise UsageError(f"{option} {text}: not a size", hint=f"for example {option} {_MEMORY}, or 1GB")
    unit = match[2]
    power = " kMG".index(unit[0]) if len(unit) > 1 else 0
    return int(float(match[1]) * (1024 if "i" in unit else 1000) ** power)
