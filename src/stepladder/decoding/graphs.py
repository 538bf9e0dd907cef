"""Passes captured in CUDA graphs, so that a pass costs one launch instead of hundreds.

A graph stands for one shape: so many rows, so wide, reading so far at most. Rows and widths are rounded up and the
rest is padding, which writes nothing that is read. What follows from lengths is computed on the device; a graph is
captured when its shape is first needed, or by ``LanguageModel.warm``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LOG = logging.getLogger("stepladder.decoding")

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 25)
"""Widths that graphs are made for: up to the longest draft, the token before it, and a few that a row has missed."""

ROWS = (1, 2, 4, 8)

SHORTEST_REACH, REACH_FACTOR = 1024, 4
"""Graphs are made for rows of so many positions, and so many times more each."""


def above(number: int, steps: Sequence[int]) -> int:
    """The least step that is no less than a number; a multiple of the last one where it is more than all."""
    for step in steps:
        if number <= step:
            return step
    return -(-number // steps[-1]) * steps[-1]


def reach_for(length: int, context: int) -> int:
    """Positions that a graph has to reach for rows of a length."""
    reach = SHORTEST_REACH
    while reach < length:
        reach *= REACH_FACTOR
    return min(reach, context)


@contextmanager
def _unwaiting() -> Iterator[None]:
    """Whatever makes the host wait raises RuntimeError here: a capture that it breaks could not be cleared away.

    In every thread of the process: nothing else may use the device meanwhile.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this mode does not see everything that waits
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Captured:
    """``compute`` over tensors that keep their place: filled, replayed, read.

    ``compute`` takes the inputs and gives one tensor; it must read nothing back to the host. Inputs are copied in
    without waiting; whoever reads the result waits. Where ``capture`` is False it is called anew each time.
    """

    def __init__(
        self, compute: Callable[..., Tensor], inputs: Sequence[Tensor], *, pool: Any = None, capture: bool
    ) -> None:
        self._compute = compute
        self.inputs = list(inputs)
        self._graph: Any = None
        self.result: Tensor
        if not capture:
            return
        device = inputs[0].device
        side: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            compute(*self.inputs)
            with _unwaiting():
                compute(*self.inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may take memory meanwhile, which would break a capture that minds them.
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            self.result = compute(*self.inputs)
        self._graph = graph

    def fill(self, index: int, numbers: Sequence[int] | Sequence[float]) -> None:
        """Put numbers into an input; nobody waits for them to get there."""
        place = self.inputs[index]
        told = torch.tensor(numbers, dtype=place.dtype)
        place.copy_(told.pin_memory() if place.device.type == "cuda" else told, non_blocking=True)

    def seconds(self, times: int = 5) -> float | None:
        """Median seconds of a run by the device's own clock, the host left aside; None where nothing is captured."""
        if self._graph is None:
            return None
        spans: list[list[Any]] = [
            [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            for _ in range(times + 1)
        ]
        for begin, end in spans:
            begin.record()
            self._graph.replay()
            end.record()
        spans[-1][-1].synchronize()
        taken: list[float] = sorted(begin.elapsed_time(end) for begin, end in spans[1:])
        return taken[times // 2] / 1e3

    def run(self) -> Tensor:
        """The result for what stands in the inputs; overwritten by the next run of any graph of its pool."""
        if self._graph is None:
            self.result = self._compute(*self.inputs)
        else:
            self._graph.replay()
        return self.result


class Graphs:
    """Graphs of a function by shape, made when first needed; ``reason`` says why there are none, where that is so."""

    def __init__(self, device: torch.device, name: str) -> None:
        self._name = name
        self._captures = device.type == "cuda"
        self._pool: Any = torch.cuda.graph_pool_handle() if self._captures else None
        self._made: dict[tuple[Any, ...], Captured] = {}
        self.reason: str | None = None if self._captures else f"{device.type} has no CUDA graphs"

    def get(self, key: tuple[Any, ...], compute: Callable[..., Tensor], inputs: Callable[[], list[Tensor]]) -> Captured:
        """What is captured for a shape. Where that cannot be, it is run without, and ``reason`` says why."""
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._capture(key, compute, inputs())
        return found

    def __len__(self) -> int:
        return len(self._made)

    def _capture(self, key: tuple[Any, ...], compute: Callable[..., Tensor], inputs: list[Tensor]) -> Captured:
        if self._captures:
            try:
                with torch.inference_mode():
                    return Captured(compute, inputs, pool=self._pool, capture=True)
            except RuntimeError as error:  # of CUDA, for whatever a model's code does; memory that is out included
                self._captures = False
                self.reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                LOG.warning("model '%s' runs without CUDA graphs: %s (shape %s)", self._name, self.reason, key)
        return Captured(compute, inputs, capture=False)
