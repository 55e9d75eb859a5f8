"""The experts of large.py as blends: by block, streamed from their files or held, and whole ones in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from glue_cli.blend.recipe import PLAIN
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.naming import Naming
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.models import build_model
from glue_cli.models.weights import check_fits_model
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch
from glue_cli.running.timing import Precision
from glue_cli.search.bank.load import load_bank
from glue_cli.search.bank.renamed_experts import rename_experts
from glue_cli.search.blended import ResidentBlends
from glue_cli.search.streamed.blends import StreamedBlends
from glue_cli.search.streamed.engine import Engine
from glue_cli.spec.schema import Spec
from glue_cli.spec.yaml_file import read_spec

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """What a step needs: a model without values, the experts' files, and a minibatch of texts."""

    spec: Spec
    model: nn.Module
    checkpoints: Sequence[Checkpoint]
    naming: Naming
    batch: Batch


def read_world(folder: Path, texts: tuple[int, int] = (4, 16)) -> World:
    """Read the experts that `make_world` has made; the minibatch has so many texts of so many tokens."""
    spec = read_spec(folder / "glue.yaml", [])
    checkpoints = [read_checkpoint(folder / f"expert-{k}") for k in range(4)]
    model = build_model(spec.model.arch, spec.model_args, seed=0, weightless=True).eval().requires_grad_(False)
    tokens = torch.randint(1, 1000, texts, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, tokens
    return World(spec, model, checkpoints, check_fits_model(model, checkpoints[0], spec), batch)


def streamed_blends(world: World, precision: Precision, memory_bytes: int, *, is_held: bool = False) -> StreamedBlends:
    experts = rename_experts(world.checkpoints, PLAIN, world.naming)
    engine = Engine(
        world.model, experts, (), CPU, n_groups=1, channels_last=False, memory_bytes=memory_bytes, is_held=is_held
    )
    return StreamedBlends(world.model, engine, Compute(CPU, precision), seed=0)


def resident_blends(world: World, precision: Precision) -> ResidentBlends:
    bank = load_bank(world.checkpoints, device=CPU, naming=world.naming)
    return ResidentBlends(world.model, bank, Compute(CPU, precision), seed=0)
