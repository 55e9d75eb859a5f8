"""Forward passes on a GPU, replayed as CUDA graphs: for small nets, launching kernels takes longer than running them.

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

# A pass is captured the second time it runs: by then the libraries are set up, and it is likely to run again.
_CAPTURED_AT = 2
# The most that a replay's outputs may differ from those of the pass, relative to their norm.
_TOLERANCE = 1e-2

# A function that runs and captures a pass. It returns a function that runs the pass again, and the outputs, which each
# run overwrites.
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


class GraphedForwards:
    """`outputs_of` that replays recurring passes as CUDA graphs.

    The tensors of the models have to stay at the same addresses; their values may change. A pass is identified by the
    model and the shapes of its inputs. Passes with gradients are never captured. As soon as one pass cannot be
    captured, or its replay gives other outputs, no further pass is captured.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture, self._is_capturable = capture, True
        self._passes: WeakKeyDictionary[nn.Module, defaultdict[object, _Pass]] = WeakKeyDictionary()

    def __call__(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the model's outputs [N, ...], which later passes do not overwrite; raises what `outputs_of` does."""
        if torch.is_grad_enabled():
            return outputs_of(model, inputs)
        this = self._passes.setdefault(model, defaultdict(_Pass))[_shapes(inputs)]
        if this.graph is not None:
            return this.graph(inputs)
        outputs = outputs_of(model, inputs)
        this.n_times += 1
        if this.n_times == _CAPTURED_AT and self._is_capturable:
            this.graph = self._graph(model, inputs, outputs)
            self._is_capturable = this.graph is not None
        return outputs

    def _graph(self, model: nn.Module, inputs: Inputs, outputs: Tensor) -> "_Graph | None":
        """Capture the pass as a graph; return None if that fails or the graph gives other outputs for these inputs."""
        held = {name: x.clone() for name, x in inputs.items()} if isinstance(inputs, Mapping) else inputs.clone()
        try:
            graph = _Graph(held, *self._capture(lambda: outputs_of(model, held)))
        except RuntimeError:  # raised by CUDA for whatever it cannot capture
            return None
        difference = (graph(inputs).double() - outputs.double()).norm()
        return graph if difference <= _TOLERANCE * outputs.double().norm() else None


@dataclass
class _Pass:
    n_times: int = 0
    graph: "_Graph | None" = None


@dataclass(frozen=True)
class _Graph:
    """A captured pass, which reads `held` and writes `outputs`; it holds no reference to the model."""

    held: Inputs
    replay: Callable[[], None]
    outputs: Tensor

    def __call__(self, inputs: Inputs) -> Tensor:
        for held, tensor in zip(_tensors(self.held), _tensors(inputs), strict=True):
            held.copy_(tensor)
        self.replay()
        return self.outputs.clone()  # the graphs share their memory


class CudaCapture:
    """Captures passes on one GPU; all graphs share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, forward: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Capture a pass; see `Capture`.

        Raises:
            RuntimeError: the pass waits for the GPU, or does something else that cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(current):  # restored if the capture fails
            self._stream.wait_stream(current)
            try:
                with torch.cuda.stream(self._stream), _refusing_to_wait():
                    forward()
            finally:
                current.wait_stream(self._stream)  # it may still be reading inputs that the caller frees
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                outputs = forward()
        return graph.replay, outputs


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Raise an error if the pass would wait for the GPU; during a capture, that would corrupt torch's allocator."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode")  # torch warns: a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _tensors(inputs: Inputs) -> Sequence[Tensor]:
    return list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]


def _shapes(inputs: Inputs) -> object:
    names = tuple(inputs) if isinstance(inputs, Mapping) else None
    return names, tuple((tensor.shape, tensor.dtype) for tensor in _tensors(inputs))
