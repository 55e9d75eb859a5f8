"""Forward passes that wait for each other at every block of the model, each in a thread of its own.

Only one thread computes at a time: torch's own threads are not disturbed, and random numbers stay those of each pass.
"""

import contextvars
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from glue_cli.foundation.seeds import generator_states, restore_generators
from glue_cli.search.streamed.absent import AbsentTensorError
from glue_cli.search.streamed.blocks import Block

# What belongs to the process, and a pass may set for as long as some of its blocks run: how to read it, and to set it.
_SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], None]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
)

_STALLED_S = 60.0  # without computing, so that it waits for something


class Lane:
    """One forward pass; it runs until it needs a block, and goes on when it is told to.

    Args:
        forward: makes the pass; calls `wait_for` at the beginning of each block.
        device: whose random state is the pass's own, beside the CPU's.
    Attributes:
        waits_for: the block that the pass needs; None before it starts and after it ends.
    """

    def __init__(self, forward: Callable[["Lane"], Tensor], device: torch.device) -> None:
        self._forward, self._device = forward, device
        self.waits_for: Block | None = None
        self._outputs: Tensor | None = None
        self._error: BaseException | None = None
        self._go, self._paused, self._is_closed = threading.Semaphore(0), threading.Semaphore(0), False
        self._random_state = generator_states(device)
        self._switches = _switches()
        self._clock: int | None = None  # of the thread's own time
        run = contextvars.copy_context().run
        own = self._run, torch.get_num_threads()
        self._thread = threading.Thread(target=run, args=own, name="forward", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def go_on(self) -> None:
        """Let the pass run until it needs another block, or ends; raises what it raises."""
        self.waits_for = None
        before, states = _switches(), generator_states(self._device)
        restore_generators(self._random_state, self._device)
        _set_switches(self._switches)
        try:
            self._go.release()
            self._await_pause()
        finally:
            self._switches, self._random_state = _switches(), generator_states(self._device)
            _set_switches(before)
            restore_generators(states, self._device)
        if self._error is not None:
            raise self._error

    def take_outputs(self) -> Tensor | None:
        """Return what the pass returned, once; None until it ends."""
        outputs, self._outputs = self._outputs, None
        return outputs

    def wait_for(self, block: Block) -> None:
        """Pause the pass until it may use a block; called by the pass itself.

        Raises:
            AbsentTensorError: the pass runs the block in another thread, perhaps beside others.
        """
        if threading.current_thread() is not self._thread:
            raise AbsentTensorError(f"'{block.module}' runs in a thread of its own")
        if self._is_closed:  # and the model has caught what ended it
            raise _Closed
        self.waits_for = block
        self._paused.release()
        self._go.acquire()
        if self._is_closed:
            raise _Closed

    def end(self) -> None:
        """Let the pass end, wherever it is."""
        if not self.has_ended:
            self._is_closed = True
            self._go.release()

    def join(self) -> None:
        """Wait until the pass has ended."""
        self._thread.join()

    def _await_pause(self) -> None:
        """Wait until the pass needs a block or ends.

        Raises:
            AbsentTensorError: it has not computed for long, because it waits for a pass that has not ended.
        """
        ran, since = self._cpu_s(), time.monotonic()
        while not self._paused.acquire(timeout=_STALLED_S / 4):
            now = self._cpu_s()
            if now > ran + _STALLED_S / 1000 or math.isinf(now):
                ran, since = now, time.monotonic()
            elif time.monotonic() - since > _STALLED_S:
                raise AbsentTensorError("a forward waits for another one, which has not ended")

    def _cpu_s(self) -> float:
        """Return how many seconds the pass has computed; without end where the system does not tell."""
        try:
            return time.clock_gettime(self._clock) if self._clock is not None else math.inf
        except OSError:  # it has just ended
            return math.inf

    def _run(self, n_threads: int) -> None:
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())  # of a thread that is surely there
        self._go.acquire()
        try:
            if not self._is_closed:
                torch.set_num_threads(n_threads)  # MKL does not pass the number on to new threads
                self._outputs = self._forward(self)
        except _Closed:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._paused.release()


def _switches() -> list[Any]:
    return [read() for read, _ in _SWITCHES]


def _set_switches(values: Sequence[Any]) -> None:
    for (read, write), value in zip(_SWITCHES, values, strict=True):
        if read() != value:
            write(value)


class _Closed(BaseException):
    """Raised inside a pass that nobody waits for any more; no `except Exception` of a model stops it."""
