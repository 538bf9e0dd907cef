"""Keys and values of every slot, in memory that is taken once and written by position."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from stepladder.decoding.attention import Layout
from stepladder.errors import EngineError

TRASH = 1
"""Positions beyond the capacity that padding of the masked layout is written to; none of them is ever read."""


class PositionLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer: ``keys`` and ``values``, each (slots, key-value heads, capacity + TRASH, head width).

    It satisfies the interface by which transformers' models know a cache; lengths are the business of the layout.
    """

    is_compileable = True

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the memory was taken when the layer was made."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Refused: a layer does not know where to write; ``KeyValueCache.update`` does."""
        raise EngineError(
            "this model writes to its cache past Cache.update; it cannot be run with rollback by position"
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys, offset) as if the cache were empty: no mask of transformers' own is used."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """0: positions are always given."""
        return 0

    def get_max_length(self) -> int:
        """Positions that can be held."""
        return int(self.keys.shape[2]) - TRASH

    get_max_cache_shape = get_max_length  # its name before transformers 5.2x


class KeyValueCache(Cache):  # type: ignore[misc]
    """What a model's ``past_key_values`` is: one ``PositionLayer`` per layer, and the layout of the pass on its way.

    Rolling back means writing at a lower position: what stands at or after a row's end is never read.
    """

    layers: list[PositionLayer]

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        heads: int,
        capacity: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (slots, heads, capacity + TRASH, width)
        super().__init__(layers=[PositionLayer(shape, dtype, device) for _ in range(layers)])
        self.capacity = capacity
        self.layout: Layout | None = None
        """How the pass on its way lies in memory; set by LanguageModel before each pass."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the pass's keys and values, each (batch, heads, columns, width), and give the layer's whole memory.

        Raises EngineError for shapes that the cache was not made for.
        """
        if self.layout is None:
            raise EngineError("the cache was used outside LanguageModel.forward")
        layer = self.layers[layer_idx]
        if key_states.shape[1::2] != layer.keys.shape[1::2] or value_states.shape[1::2] != layer.values.shape[1::2]:
            raise EngineError(
                f"layer {layer_idx} makes keys of {tuple(key_states.shape[1::2])} and values of "
                f"{tuple(value_states.shape[1::2])} (heads, width), but its cache holds {tuple(layer.keys.shape[1::2])}"
            )
        self.layout.write(layer.keys, key_states)
        self.layout.write(layer.values, value_states)
        return layer.keys, layer.values

    def bytes(self) -> int:
        """Memory taken."""
        return sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in self.layers)

    def poison(self, slot: int, start: int) -> None:
        """Overwrite what a row holds from ``start`` on with NaN; for tests of what is read."""
        for layer in self.layers:
            layer.keys[slot, :, start:] = torch.nan
            layer.values[slot, :, start:] = torch.nan
