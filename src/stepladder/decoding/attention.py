"""Attention over a cache written by position, in two layouts of a pass.

``Packed`` puts the tokens of all rows one behind another in a batch of one, so that nothing is padded, and reads of
each row exactly the positions it has: a row's arithmetic in attention does not depend on its companions, and what
stands behind its end is not read at all. Its shapes follow from host values, so every pass may have others.

``Masked`` is a rectangle (rows, width) over the first ``reach`` positions of the cache. Slots, positions and widths are
device tensors and no host value is read, so a CUDA graph can capture a pass and replay it for other rows and lengths.
What stands behind a row's end is multiplied by zero there: it must be finite.

Both fold the query heads that share a key-value head (grouped-query attention, Ainslie et al., 2023) into the query
axis, so that keys and values are neither repeated nor copied.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from stepladder.errors import EngineError

NAME = "stepladder"
"""Name under which transformers' models find ``attend``."""

REFUSED = ("softcap", "s_aux", "position_bias", "indices")
"""Arguments by which models ask for attention of another kind than this one."""


class Layout(Protocol):
    """How the tokens of one pass lie in the model's tensors and in the cache."""

    reach: int
    """Positions that a row of the cache may be read to."""

    def write(self, memory: torch.Tensor, states: torch.Tensor) -> None:
        """Put keys or values (batch, heads, columns, width) into memory (slots, heads, positions, width)."""
        ...

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
        """Query (batch, heads, columns, width) over the memory → (batch, columns, heads, width)."""
        ...


class Span(NamedTuple):
    """A row of a packed pass: positions start..end of a cache row, columns first..last of the pass, ends excluded."""

    slot: int
    start: int
    end: int
    first: int
    last: int


class Packed:
    """The exact layout: batch 1, rows of any width one behind another."""

    def __init__(self, spans: list[Span]) -> None:
        self.spans = spans
        self.reach = max(span.end for span in spans)
        self._masks: dict[tuple[Span, int], torch.Tensor] = {}

    def write(self, memory: torch.Tensor, states: torch.Tensor) -> None:
        """As in ``Layout``; batch is 1."""
        for slot, start, end, first, last in self.spans:
            memory[slot, :, start:end] = states[0, :, first:last]

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
        """As in ``Layout``; batch is 1."""
        _, heads, columns, _ = query.shape
        value_width = values.shape[3]
        result = query.new_empty((1, columns, heads, value_width))
        with _without_plans(query):
            self._attend_spans(query, keys, values, scale, result)
        return result

    def _attend_spans(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, result: torch.Tensor
    ) -> None:
        heads, width, (_, shared, _, value_width) = query.shape[1], query.shape[3], values.shape
        group = heads // shared
        for span in self.spans:
            slot, _, end, first, last = span
            count = last - first
            asked = query[0, :, first:last].reshape(1, shared, group * count, width)
            found = scaled_dot_product_attention(
                asked,
                keys[slot : slot + 1, :, :end],
                values[slot : slot + 1, :, :end],
                attn_mask=self._mask(span, group, query),
                scale=scale,
            )
            result[0, first:last] = found.reshape(heads, count, value_width).transpose(0, 1)

    def _mask(self, span: Span, group: int, query: torch.Tensor) -> torch.Tensor | None:
        """(group · width, end), added to scores; None for one column, which may look at all. Made once a pass."""
        count = span.last - span.first
        if count == 1:
            return None
        key = (span, group)
        if key not in self._masks:
            hidden = torch.full((count, span.end), -torch.inf, dtype=query.dtype, device=query.device)
            self._masks[key] = hidden.triu(span.start + 1).repeat(group, 1)
        return self._masks[key]


def _without_plans(query: torch.Tensor) -> AbstractContextManager[object]:
    """On a GPU without cuDNN's attention: it plans for every new length, which takes 60 ms and at times a second."""
    if not query.is_cuda:
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


class Masked:
    """The fixed layout: ``slots`` (rows,), ``positions`` (rows, width) and ``written`` (rows, width), all int64.

    ``positions`` are where the columns stand; ``written`` is the same but for padding, which is sent to a position that
    no row reads. ``reach`` is a multiple that the caller rounds lengths up to, ``group`` the query heads per key-value
    head, ``dtype`` that of the model. Where ``ordered`` the rows are slots 0..rows-1 and the cache is read in place;
    else the rows' share of it is gathered.
    """

    def __init__(
        self,
        slots: torch.Tensor,
        positions: torch.Tensor,
        written: torch.Tensor,
        *,
        reach: int,
        group: int,
        dtype: torch.dtype,
        ordered: bool = False,
    ) -> None:
        self.reach = reach
        self._slots = slots
        self._rows = slots[:, None]
        self._written = written
        self._ordered = ordered
        later = torch.arange(reach, device=slots.device) > positions[:, None, :, None]
        hidden = torch.zeros(later.shape, dtype=dtype, device=slots.device).masked_fill_(later, -torch.inf)
        self._mask = hidden.repeat(1, 1, group, 1)

    def write(self, memory: torch.Tensor, states: torch.Tensor) -> None:
        """As in ``Layout``."""
        memory[self._rows, :, self._written] = states.transpose(1, 2)

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
        """As in ``Layout``."""
        rows, heads, columns, width = query.shape
        shared = keys.shape[1]
        found = scaled_dot_product_attention(
            query.reshape(rows, shared, -1, width),
            self._read(keys),
            self._read(values),
            attn_mask=self._mask,
            scale=scale,
        )
        return found.reshape(rows, heads, columns, -1).transpose(1, 2)

    def _read(self, memory: torch.Tensor) -> torch.Tensor:
        bounded = memory[:, :, : self.reach]
        return bounded[: len(self._slots)] if self._ordered else bounded.index_select(0, self._slots)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' models call for attention; ``key`` and ``value`` are a layer's whole memory.

    Raises EngineError for a model that asks for what is not done here: masks of its own, a sliding window shorter than
    what is read, soft caps, sinks; and for one whose code does not hand the layout on.
    """
    name = type(module).__name__
    if layout is None:
        raise EngineError(f"{name} does not pass on the arguments of its attention; this model cannot be run here")
    refused = [word for word in REFUSED if kwargs.get(word) is not None]
    if attention_mask is not None or refused:
        raise EngineError(f"{name} asks for {', '.join(refused) or 'a mask of its own'}; this model cannot be run here")
    if sliding_window is not None and layout.reach > sliding_window:
        raise EngineError(
            f"{name} looks back {sliding_window} positions only, and {layout.reach} are in use: "
            f"set the stage's context to {sliding_window} or less"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layout.attend(query, key, value, scale), None


def register() -> None:
    """Tell transformers of ``attend``; doing it again changes nothing.

    Under a name that transformers' table of masks does not have, its models build none.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
