"""Forward passes of small nets on a GPU, replayed as CUDA graphs: their kernels take less time than launching them.

Source: torch's notes on CUDA semantics, "CUDA Graphs".
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from glue_cli.running.forward import Inputs, outputs_of

# A pass is captured when it comes for the second time: then the libraries are set up, and it is likely to come again.
_CAPTURED_AT = 2
# A replay may differ from the pass that it repeats by so much, relative to the norm of its outputs.
_TOLERANCE = 1e-2

# Runs and captures a pass; what it returns runs it again, into the same outputs.
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


class GraphedForwards:
    """`outputs_of` for models whose tensors keep their places, whatever values they get: passes that recur are graphs.

    A pass is a model and the shapes of its inputs. One that is to have gradients is run as ever. Once a pass cannot be
    captured, or comes out otherwise when it is replayed, none is captured any more.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture, self._is_capturable = capture, True
        self._passes: WeakKeyDictionary[nn.Module, defaultdict[object, _Pass]] = WeakKeyDictionary()

    def __call__(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the model's outputs [N, ...], which are the caller's own; raises what `outputs_of` does."""
        if torch.is_grad_enabled():
            return outputs_of(model, inputs)
        known = self._passes.setdefault(model, defaultdict(_Pass))[_shapes(inputs)]
        if known.graph is not None:
            return known.graph(inputs)
        outputs = outputs_of(model, inputs)
        known.n_times += 1
        if known.n_times == _CAPTURED_AT and self._is_capturable:
            known.graph = self._graph(model, inputs, outputs)
            self._is_capturable = known.graph is not None
        return outputs

    def _graph(self, model: nn.Module, inputs: Inputs, outputs: Tensor) -> "_Graph | None":
        """Return a graph that gives these outputs for these inputs, if there is one."""
        held = {name: x.clone() for name, x in inputs.items()} if isinstance(inputs, Mapping) else inputs.clone()
        try:
            graph = _Graph(held, *self._capture(lambda: outputs_of(model, held)))
        except RuntimeError:  # CUDA's word for whatever it cannot capture
            return None
        difference = (graph(inputs).double() - outputs.double()).norm()
        return graph if difference <= _TOLERANCE * outputs.double().norm() else None


@dataclass
class _Pass:
    n_times: int = 0
    graph: "_Graph | None" = None


@dataclass(frozen=True)
class _Graph:
    """A captured pass, from the inputs held to its outputs; it keeps no model alive."""

    held: Inputs
    replay: Callable[[], None]
    outputs: Tensor

    def __call__(self, inputs: Inputs) -> Tensor:
        for held, tensor in zip(_tensors(self.held), _tensors(inputs), strict=True):
            held.copy_(tensor)
        self.replay()
        return self.outputs.clone()  # the graphs share their memory


class CudaCapture:
    """Captures passes on one GPU, in memory that all of them share."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, forward: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Capture a pass; see `Capture`.

        Raises:
            RuntimeError: the pass waits for the GPU, or does something else that no graph can hold.
        """
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(current):  # to which a capture that fails must return
            self._stream.wait_stream(current)
            try:
                with torch.cuda.stream(self._stream), _refusing_to_wait():
                    forward()
            finally:
                current.wait_stream(self._stream)  # which may still read inputs that the caller lets go
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                outputs = forward()
        return graph.replay, outputs


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Raise where a pass would wait for the GPU: found in a capture, that would leave torch's allocator astray."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode")  # which torch calls a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _tensors(inputs: Inputs) -> Sequence[Tensor]:
    return list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]


def _shapes(inputs: Inputs) -> object:
    names = tuple(inputs) if isinstance(inputs, Mapping) else None
    return names, tuple((tensor.shape, tensor.dtype) for tensor in _tensors(inputs))
