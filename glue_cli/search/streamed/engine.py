"""What streamed blends share: the experts' files, the memory for a block, and copies of the model for the forwards."""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from glue_cli.foundation.errors import ResourceError, SpecError
from glue_cli.foundation.memory import free_memory, share_arena
from glue_cli.foundation.ranks import Ranks
from glue_cli.foundation.units import mebibytes, size
from glue_cli.search.bank.layout import blended_entries
from glue_cli.search.bank.renamed_experts import RenamedExperts
from glue_cli.search.bound_models import MakeTensors, set_tensors
from glue_cli.search.points import AnyPass, Move, Pass, Point, count_rows, each_alone
from glue_cli.search.streamed.absent import AbsentTensorError
from glue_cli.search.streamed.blender import Blender, Blending, Finish
from glue_cli.search.streamed.block_model import BlockModel
from glue_cli.search.streamed.blocks import SPLITS, Split, narrow_names, split_model
from glue_cli.search.streamed.held import Held
from glue_cli.search.streamed.layout import Layout
from glue_cli.search.streamed.lockstep import Lockstep, Runner
from glue_cli.search.streamed.reader import Reader
from glue_cli.search.streamed.runs import Forward, count_points, cut, needed_for
from glue_cli.search.streamed.shards import ShardedBlender, Shards, shard_bytes

# Of experts that are held in memory, blends may take this share of what they take, or what a pass needs.
_SHARE_OF_HELD = 1 / 16


class SharedBufferError(Exception):
    """Forwards that take turns have written to buffers that they share."""

    def __init__(self, names: set[str]) -> None:
        super().__init__(names)
        self.names = names


class Engine:
    """Runs forwards of blends block by block, within a limit on the memory of its buffers.

    The model is split into as many blocks as its forward allows. Where a forward uses a tensor outside the block that
    it belongs to, which fails, the model is split into fewer blocks, and the forward is made again.

    Args:
        model: the architecture; tensors that depend on alpha have no values.
        made: the names of the tensors that are made for each alpha, not blended.
        memory_bytes: what the buffers may take: the experts' slices of two blocks, or of one where two do not fit, and
            the blends of one; or those of all blocks. And for each blend that runs, its tensors that are in no block.
        is_held: whether the experts' slices of all blocks stay in memory.
        shared_by: the processes that hold the experts together, each some columns of every block; they all make the
            same calls, with the same passes and the same memory. None to read the experts block by block.
    Attributes:
        n_columns: d, as in a bank of the whole model; device: of the forwards.
    """

    def __init__(
        self,
        model: nn.Module,
        experts: RenamedExperts,
        made: Collection[str],
        device: torch.device,
        *,
        n_groups: int,
        channels_last: bool,
        memory_bytes: int,
        is_held: bool = False,
        shared_by: Ranks | None = None,
    ) -> None:
        share_arena()  # each forward runs in a thread of its own
        self.model, self.n_groups, self.n_experts = model, n_groups, len(experts.headers)
        self._experts, self._made, self.device = experts, set(made), device
        self._channels_last, self._memory_bytes, self._shared_by = channels_last, memory_bytes, shared_by
        self.is_held = is_held
        self._copies = (
            1 if shared_by is None else 3
        )  # of a row: itself, this process's columns of it, and all as gathered
        self._blended = [entry.name for entry in blended_entries(experts.headers[0], experts.recipe)]
        in_files = sum(expert.n_bytes for expert in experts.originals)
        buffers = min(memory_bytes, in_files)  # at most
        self._is_past_cache = in_files + buffers > free_memory(
            torch.device("cpu")
        )  # else the next pass finds it cached
        self._splits = list(SPLITS)
        self._blender: Blender | None = None
        self._models: dict[Hashable, list[BlockModel]] = {}
        self._scratch = set[str]()  # buffers that forwards write to, so that each model needs its own
        if shared_by is not None:  # processes cannot begin again together when one of them notices
            self._scratch |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
        self._use(self._splits.pop(0))
        self.n_columns = sum(layout.n_columns for layout in self._layouts.values())

    @property
    def waited_s(self) -> float:
        """How many seconds were spent waiting for the disk."""
        return self._blender.reader.waited_s if self._blender else 0.0

    def run(
        self,
        passes: Sequence[Pass],
        forwards: Sequence[tuple[Point, Forward]],
        kind: Hashable,
        prepare: Callable[[nn.Module], None],
        make_tensors: MakeTensors,
        *,
        is_narrow: bool = False,
        finish: Finish | None = None,
        fixed: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the outputs of forwards, each of one of the passes' blends, in their order.

        Args:
            kind: of the models that run; `prepare` makes a new one into one of this kind.
            is_narrow: whether the forwards run in bfloat16.
            finish: changes the rows of each block after they were blended.
            fixed: tensors, by name, that take the place of blended ones.
        Raises:
            CheckpointError: an expert's file is gone, has changed, or has NaN or infinity.
            ResourceError: a block does not fit the memory.
            SpecError: the model cannot be run in this way at all.
        Cost: one pass over the experts; one for every few blends where the tensors outside blocks take much memory.
        """
        if not (forwards or self._shared_by):
            return
        n_yielded = 0
        while True:
            try:
                outputs = self._attempt(passes, forwards, kind, prepare, make_tensors, is_narrow, finish, fixed or {})
                for number, found in enumerate(outputs):
                    if number == n_yielded:
                        n_yielded += 1
                        yield found
                    del found
                return
            except SharedBufferError as error:
                self._scratch |= error.names
                self._models.clear()
            except AbsentTensorError as error:
                if not self._splits:
                    raise SpecError(f"the model cannot be run by block: {error}", hint="--bank device") from error
                self._use(self._splits.pop(0), because=str(error))

    def is_needed(self, jobs: Sequence[object]) -> bool:
        """Tell whether this process has forwards to make, or another one that holds the experts with it."""
        if self._shared_by is None:
            return bool(jobs)
        return any(found.item() for found in self._shared_by.gather([torch.tensor(bool(jobs))]))

    def open(self) -> None:
        """Take the memory of the buffers, and read what stays in it; the first pass would do so too."""
        self._require_blender()

    def close(self) -> None:
        """Give the memory back."""
        if self._blender:
            self._blender.reader.close()
        self._blender = None
        self._models.clear()

    def _attempt(
        self,
        passes: Sequence[Pass],
        forwards: Sequence[tuple[Point, Forward]],
        kind: Hashable,
        prepare: Callable[[nn.Module], None],
        make_tensors: MakeTensors,
        is_narrow: bool,
        finish: Finish | None,
        fixed: Mapping[str, Tensor],
    ) -> Iterator[Tensor]:
        if self._shared_by is None:  # else others may need them
            passes = needed_for(forwards, passes)
        is_narrow = is_narrow and self._is_apart and not any(isinstance(each, Move) for each in passes)
        row_bytes = self._copies * max(layout.row_bytes(narrow=is_narrow) for layout in self._layouts.values())
        kept_bytes = self._kept_bytes(narrow=is_narrow)
        made: Sequence[AnyPass] = passes
        if count_rows(passes) * row_bytes + kept_bytes > self._left:
            alone = each_alone(passes)
            made = list(alone.values())
            forwards = [(alone[id(point)].points[0], forward) for point, forward in forwards]
        n_least = count_rows(made)
        runs = cut(forwards, (self._left - n_least * row_bytes) // kept_bytes) if kept_bytes else [forwards]
        n_runs, n_points = self._most(len(runs), max(count_points(part) for part in runs))
        runs += [[]] * (n_runs - len(runs))
        for_rows = self._left - kept_bytes * n_points
        n_rows = min(for_rows // row_bytes, max(self._enough // row_bytes, n_least))
        for part in runs:
            blending = Blending(made if self._shared_by else needed_for(part, made), n_rows, is_narrow, finish)
            models = self._take_models(kind, len(part), prepare)
            yield from self._run_together(blending, part, models, make_tensors, fixed)

    def _most(self, *numbers: int) -> list[int]:
        """Return the most that any of the processes which hold the experts together has of each number."""
        if self._shared_by is None:
            return [*numbers]
        return torch.stack(self._shared_by.gather([torch.tensor(numbers)])).amax(0).tolist()

    def _run_together(
        self,
        blending: Blending,
        forwards: Sequence[tuple[Point, Forward]],
        models: Sequence[BlockModel],
        make_tensors: MakeTensors,
        fixed: Mapping[str, Tensor],
    ) -> Iterator[Tensor]:
        """Yield the outputs of forwards that go through the model in lockstep, each with a model of its own."""
        blender = self._require_blender()
        blender.reader.begin()
        kept = self._keep(blending, {id(point) for point, _ in forwards})
        runners = []
        for (point, forward), model in zip(forwards, models, strict=False):
            model.fix(fixed)
            set_tensors(model.module, make_tensors(point.alpha))
            if self._split.kept.places:
                model.bind(self._split.kept, kept[id(point)])
            runners.append(Runner(point, model, partial(forward, model.module)))
        versions = self._versions()
        for outputs in Lockstep(self._layouts, blender).run(blending, runners, self.device):
            if changed := {name for name, version in self._versions().items() if version != versions[name]}:
                raise SharedBufferError(changed)
            yield outputs
            del outputs
        for runner in runners:
            runner.model.unbind(self._split.kept)

    def _use(self, how: str, because: str = "") -> None:
        """Split the model, and plan the memory of its blocks.

        Raises:
            ResourceError: a block does not fit.
        """
        self.close()
        self._split: Split = split_model(self.model, self._blended, how)
        self._is_apart = how == SPLITS[0]  # else some weights are used outside their layers, maybe not in bfloat16
        blocks = [*([self._split.kept] if self._split.kept.places else []), *self._split.blocks]
        narrow = narrow_names(self.model, self._blended)
        self._layouts = {
            block.module: Layout(
                block, self._experts, narrow, channels_last=self._channels_last, past_cache=self._is_past_cache
            )
            for block in blocks
        }
        row = max(layout.row_bytes(narrow=False) for layout in self._layouts.values())
        if self._shared_by is not None:
            self._left = self._enough = self._plan_shards(row, self._shared_by)
        elif self.is_held:
            self._left, self._enough = self._plan_held(row)
        else:
            self._left = self._enough = self._plan_reading(row, because)

    def _plan_reading(self, row: int, because: str) -> int:
        """Plan the memory of experts that are read block by block; return what is left for blends.

        Raises:
            ResourceError: a block does not fit; `because` is why there are no smaller ones.
        """
        largest = max(layout.n_bytes for layout in self._layouts.values())
        blend = row + self._kept_bytes(narrow=False)
        self._is_ahead = 2 * largest + blend <= self._memory_bytes
        left = self._memory_bytes - (2 if self._is_ahead else 1) * largest
        if left < blend:
            module = max(self._layouts.values(), key=lambda layout: layout.n_bytes).block.module
            what = f"experts' '{module}' takes" if module else "tensors of the experts that are in no block take"
            reason = f": its forward cannot be made in smaller parts ({because})" if because else ""
            least, enough = (mebibytes(n * largest + blend) for n in (1, 2))
            raise ResourceError(
                f"the {what} {size(largest)}, and the blend {size(blend)}, which do not fit into "
                f"{size(self._memory_bytes)}{reason}",
                hint=f"--memory {least} at least, or {enough} to read ahead",  # forwards may need larger blocks
            )
        return left

    def _plan_held(self, row_bytes: int) -> tuple[int, int]:
        """Plan the memory of experts that are held; return what is left for blends, and what is enough for rows.

        Raises:
            ResourceError: they do not fit.
        """
        held = sum(layout.n_bytes for layout in self._layouts.values())
        left, blend = self._memory_bytes - held, row_bytes + self._kept_bytes(narrow=False)
        if left < blend:
            raise ResourceError(
                f"the experts take {size(held)}, and a block's blend {size(blend)}, which do not fit into "
                f"{size(self._memory_bytes)}",
                hint="--bank streamed",
            )
        return left, int(_SHARE_OF_HELD * held)

    def _plan_shards(self, row_bytes: int, ranks: Ranks) -> int:
        """Plan the memory of experts that several processes hold; return what is left for blends.

        Raises:
            ResourceError: this process's share does not fit.
        """
        held = shard_bytes(list(self._layouts.values()), ranks)
        left, blend = self._memory_bytes - held, self._copies * row_bytes + self._kept_bytes(narrow=False)
        if left < blend:
            raise ResourceError(
                f"each of {ranks.size} processes holds {size(held)} of the experts and {size(blend)} "
                f"for a block's blend, which do not fit into {size(self._memory_bytes)}",
                hint="more processes, or --bank streamed",
            )
        return left

    def _require_blender(self) -> Blender:
        if self._blender is None and self._shared_by is not None:
            numbers = {"n_groups": self.n_groups, "whole_columns": self.n_columns}
            shards = Shards(list(self._layouts.values()), self.device, self._shared_by, **numbers)
            self._blender = ShardedBlender(shards, self.device, **numbers)
        if self._blender is None:
            layouts = list(self._layouts.values())
            held = Held(layouts, self.device) if self.is_held else None
            source = held or Reader(layouts, self.device, ahead=self._is_ahead)
            self._blender = Blender(source, self.device, n_groups=self.n_groups, whole_columns=self.n_columns)
        return self._blender

    def _take_models(self, kind: Hashable, n: int, prepare: Callable[[nn.Module], None]) -> list[BlockModel]:
        models = self._models.setdefault(kind, [])
        while len(models) < n:
            model = BlockModel(self.model, self._made | self._scratch, self._split, self.device)
            prepare(model.module)
            models.append(model)
        return models

    def _versions(self) -> dict[str, int]:
        """Return how often each buffer that the models share was changed in place."""
        buffers = self.model.named_buffers(remove_duplicate=False)
        return {name: buffer._version for name, buffer in buffers if name not in self._scratch}

    def _kept_bytes(self, *, narrow: bool) -> int:
        """Return how many bytes a blend's tensors take that belong to no block."""
        return self._layouts[""].row_bytes(narrow=narrow) if self._split.kept.places else 0

    def _keep(self, blending: Blending, wanted: Collection[int]) -> dict[int, dict[str, Tensor]]:
        """Return the wanted points' tensors that belong to no block, by the point's identity."""
        kept: dict[int, dict[str, Tensor]] = {}
        if self._split.kept.places:
            for made in self._require_blender().make(self._layouts[""], blending):
                for point, row in made.points:
                    if id(point) in wanted:
                        kept[id(point)] = {name: tensor.clone() for name, tensor in made.tensors(row).items()}
        return kept
