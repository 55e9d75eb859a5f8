"""One blend in memory as its file will be."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from glue_cli.foundation.ranks import Ranks
from glue_cli.running.batchnorm import keep_own_counters, statistics_of
from glue_cli.running.forward import Batch, Inputs, outputs_of
from glue_cli.running.refreshing import refresh_from_few
from glue_cli.search.bank.matrix import ExpertBank
from glue_cli.search.blend_rows import BlendRows
from glue_cli.search.bound_models import MakeTensors, make_nothing, set_tensors


class WrittenInMemory:
    """A blend whose tensors all lie in memory; see `WrittenBlend`.

    Args:
        rows: where the blend is made, in the first row.
        dtypes: the dtype in which each tensor is written, by name; float32 by default.
        make_tensors: makes the tensors that depend on alpha but are not blended.
    """

    def __init__(
        self,
        rows: BlendRows,
        bank: ExpertBank,
        *,
        dtypes: Mapping[str, torch.dtype],
        make_tensors: MakeTensors = make_nothing,
    ) -> None:
        self._rows, self._bank, self._dtypes, self._make_tensors = rows, bank, dtypes, make_tensors

    @torch.no_grad()
    def load(self, alpha: Tensor) -> None:
        """As `WrittenBlend.load`."""
        self._bank.blend(alpha[None], self._rows.take(1))
        self._round()
        made = {name: self._as_written(name, tensor) for name, tensor in self._make_tensors(alpha).items()}
        set_tensors(self._model, made)

    @torch.no_grad()
    def refresh(self, batches: Iterable[Batch], ranks: Ranks) -> None:
        """As `WrittenBlend.refresh`."""
        refresh_from_few(self._model, batches, lambda model, batch: outputs_of(model, batch[0]), ranks)
        self._round()

    def outputs(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """As `WrittenBlend.outputs`."""
        for inputs, targets in batches:
            yield self._outputs(inputs), targets

    def statistics(self) -> dict[str, Tensor]:
        """As `WrittenBlend.statistics`."""
        return {name: tensor.detach().cpu().clone() for name, tensor in statistics_of(self._model).items()}

    @property
    def _model(self) -> nn.Module:
        """The model whose tensors are the blend's."""
        return self._rows.model("written", 0, keep_own_counters)

    @torch.no_grad()  # not on the generator, which would then hold its last outputs while the next are made
    def _outputs(self, inputs: Inputs) -> Tensor:
        return outputs_of(self._model, inputs)

    def _round(self) -> None:
        row = self._rows.take(1)[0]
        for name, span in self._bank.spans.items():
            span.round(row, self._dtypes.get(name, torch.float32))

    def _as_written(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtypes.get(name, torch.float32)).to(tensor.dtype)
