# ruff: noqa: N803, PLR0917 - a kernel takes every pointer and size; what is fixed when it is compiled stands in capitals
"""Kernels for a few tokens at a time, whose time is that of reading the weights once. For Nvidia's GPUs, in Triton.

What they compute for a token does not depend on how many tokens are beside it: sums run in one order whatever the
width of a pass, its rows and the reach of its graph. So a token that is verified in a pass of eight has the same
logits, bit for bit, as one written alone, and greedy answers of chains are plain decoding's. The price is that products
are always laid out for 16 tokens; below that the tensor cores idle, which costs nothing while memory is the limit.

This module is imported only where there is a GPU: it needs ``triton``, which comes with PyTorch for CUDA.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stepladder.decoding.arithmetic import Heads, Places

NOTHING = tl.constexpr(-1.0e30)
"""Stands for a score that was not seen; finite, so that differences of two are numbers."""

TOKENS, MORE_TOKENS = 16, 32
"""Tokens that one product is laid out for: up to the first number, and above it."""

KEYS = 64
"""Positions of the cache that attention reads at a time …"""

CHUNK = 128
"""… and that one program reads in all, at least; ``CHUNKS`` of them hold the longest row."""

CHUNKS = 64


VARYING = ["tokens", "columns", "chunks", "tiles"]
"""Sizes that change from pass to pass: a kernel is not compiled anew for those that are 1 or multiples of 16."""


class Layout(NamedTuple):
    """How a product is laid out: outputs and inputs of a tile, parts of the sum, loads in flight, warps."""

    outputs: int
    inputs: int
    parts: int
    stages: int
    warps: int


@triton.jit(do_not_specialize=VARYING)
def _product(
    read,
    weight,
    made,
    tokens,
    outputs,
    inputs,
    part,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, INPUTS)
    begin = tl.program_id(2) * part
    end = tl.minimum(begin + part, inputs)
    there = token[:, None] < tokens
    reads = read + token[:, None] * inputs + column[None, :]
    weights = weight + tl.minimum(output, outputs - 1).to(tl.int64)[None, :] * inputs + column[:, None]
    total = tl.zeros((TOKENS, OUTPUTS), tl.float32)
    for at in range(begin, end, INPUTS):
        if EVEN:
            x = tl.load(reads + at, mask=there, other=0.0)
            w = tl.load(weights + at)
        else:
            within = at + column < end
            x = tl.load(reads + at, mask=there & within[None, :], other=0.0)
            w = tl.load(weights + at, mask=within[:, None], other=0.0)
        total = tl.dot(x, w, total, input_precision=PRECISION)
    place = (tl.program_id(2) * tokens + token[:, None]) * outputs + output[None, :]
    tl.store(made + place, total, mask=there & (output[None, :] < outputs))


@triton.jit(do_not_specialize=VARYING)
def _gated(
    read,
    gate,
    up,
    made,
    tokens,
    outputs,
    inputs,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, INPUTS)
    there = token[:, None] < tokens
    reads = read + token[:, None] * inputs + column[None, :]
    offsets = tl.minimum(output, outputs - 1).to(tl.int64)[None, :] * inputs + column[:, None]
    open_ = tl.zeros((TOKENS, OUTPUTS), tl.float32)
    total = tl.zeros((TOKENS, OUTPUTS), tl.float32)
    for at in range(0, inputs, INPUTS):
        if EVEN:
            x = tl.load(reads + at, mask=there, other=0.0)
            g = tl.load(gate + offsets + at)
            u = tl.load(up + offsets + at)
        else:
            within = at + column < inputs
            x = tl.load(reads + at, mask=there & within[None, :], other=0.0)
            g = tl.load(gate + offsets + at, mask=within[:, None], other=0.0)
            u = tl.load(up + offsets + at, mask=within[:, None], other=0.0)
        open_ = tl.dot(x, g, open_, input_precision=PRECISION)
        total = tl.dot(x, u, total, input_precision=PRECISION)
    result = open_ / (1.0 + tl.exp(-open_)) * total
    place = token[:, None] * outputs + output[None, :]
    tl.store(made + place, result.to(made.dtype.element_ty), mask=there & (output[None, :] < outputs))


@triton.jit(do_not_specialize=VARYING)
def _add_norm(
    hidden,
    parts,
    weight,
    summed,
    normed,
    tokens,
    size,
    eps,
    PARTS: tl.constexpr,
    SIZE: tl.constexpr,
):
    token = tl.program_id(0)
    column = tl.arange(0, SIZE)
    within = column < size
    value = tl.load(hidden + token * size + column, mask=within, other=0.0)
    if PARTS > 0:
        added = tl.zeros((SIZE,), tl.float32)
        for part in tl.static_range(PARTS):
            added += tl.load(parts + (part * tokens + token) * size + column, mask=within, other=0.0)
        value = (value.to(tl.float32) + added).to(hidden.dtype.element_ty)
        tl.store(summed + token * size + column, value, mask=within)
    value = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value) / size + eps)
    scaled = (value * scale).to(normed.dtype.element_ty).to(tl.float32)
    weighted = scaled * tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
    tl.store(normed + token * size + column, weighted.to(normed.dtype.element_ty), mask=within)


@triton.jit
def _head(parts, bias, norm, tokens, token, head, outputs, eps, column, within, BIAS: tl.constexpr, NORM: tl.constexpr,
          PARTS: tl.constexpr, WIDTH: tl.constexpr, KIND: tl.constexpr):  # fmt: skip
    """Columns of one head: the sum of its parts, its bias, its norm."""
    value = tl.zeros((column.shape[0],), tl.float32)
    for part in tl.static_range(PARTS):
        place = (part * tokens + token) * outputs + head * WIDTH + column
        value += tl.load(parts + place, mask=within, other=0.0)
    if BIAS:
        value += tl.load(bias + head * WIDTH + column, mask=within, other=0.0).to(tl.float32)
    if NORM:
        value = value.to(KIND).to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value) / WIDTH + eps)
        value = (value * scale).to(KIND).to(tl.float32)
        value *= tl.load(norm + column, mask=within, other=0.0).to(tl.float32)
    return value


@triton.jit(do_not_specialize=VARYING)
def _rotate(
    parts,
    bias,
    query_norm,
    key_norm,
    cos,
    sin,
    keys,
    values,
    query,
    slots,
    starts,
    widths,
    tokens,
    columns,
    eps,
    slot_stride,
    head_stride,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
    PARTS: tl.constexpr,
    QUERY: tl.constexpr,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
):
    token = tl.program_id(0)
    head = tl.program_id(1)
    row = token // columns
    place = tl.load(starts + row) + token % columns
    if token % columns >= tl.load(widths + row):
        if head < QUERY:  # what attention reads of padding means nothing, but it is a number
            column = tl.arange(0, 2 * HALF)
            blank = tl.zeros((2 * HALF,), query.dtype.element_ty)
            tl.store(query + (token * QUERY + head) * WIDTH + column, blank, mask=column < WIDTH)
        return
    outputs = (QUERY + 2 * SHARED) * WIDTH
    kind = query.dtype.element_ty
    memory = tl.load(slots + row).to(tl.int64) * slot_stride + place * WIDTH
    if head >= QUERY + SHARED:
        column = tl.arange(0, 2 * HALF)
        within = column < WIDTH
        value = _head(
            parts, bias, key_norm, tokens, token, head, outputs, eps, column, within, BIAS, False, PARTS, WIDTH, kind
        )
        where = values + memory + (head - QUERY - SHARED) * head_stride
        tl.store(where + column, value.to(kind), mask=within)
        return
    column = tl.arange(0, 2 * HALF)
    within = column < WIDTH
    norm = query_norm
    if head >= QUERY:
        norm = key_norm
    value = _head(parts, bias, norm, tokens, token, head, outputs, eps, column, within, BIAS, NORM, PARTS, WIDTH, kind)
    # The other half of the head, read anew: there is no shuffle of a vector in Triton.
    half = WIDTH // 2
    other = tl.where(column < half, column + half, column - half)
    turned = _head(parts, bias, norm, tokens, token, head, outputs, eps, other, within, BIAS, NORM, PARTS, WIDTH, kind)
    turned = tl.where(column < half, -turned, turned)
    angle = place * WIDTH + column
    c = tl.load(cos + angle, mask=within, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=within, other=0.0).to(tl.float32)
    result = (value * c + turned * s).to(kind)
    if head < QUERY:
        tl.store(query + (token * QUERY + head) * WIDTH + column, result, mask=within)
    else:
        tl.store(keys + memory + (head - QUERY) * head_stride + column, result, mask=within)


@triton.jit(do_not_specialize=VARYING)
def _attend(
    query,
    keys,
    values,
    slots,
    starts,
    widths,
    sums,
    peaks,
    masses,
    scale,
    columns,
    chunk,
    chunks,
    slot_stride,
    head_stride,
    tiles,
    SHARED: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ASKED: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    shared = tl.program_id(1)
    part = tl.program_id(2)
    width = tl.load(widths + row)
    start = tl.load(starts + row)
    end = start + width
    begin = part * chunk
    if width == 0:
        return
    if begin >= end:
        return
    asked = tile * ASKED + tl.arange(0, ASKED)
    column = asked // GROUP
    head = shared * GROUP + asked % GROUP
    real = column < width
    position = start + column
    token = row * columns + column
    depth = tl.arange(0, PADDED)
    within = depth < WIDTH
    q = tl.load(
        query + (token * (SHARED * GROUP) + head)[:, None] * WIDTH + depth[None, :],
        mask=real[:, None] & within[None, :],
        other=0.0,
    )
    memory = tl.load(slots + row).to(tl.int64) * slot_stride + shared.to(tl.int64) * head_stride
    peak = tl.full((ASKED,), NOTHING, tl.float32)
    mass = tl.zeros((ASKED,), tl.float32)
    total = tl.zeros((ASKED, PADDED), tl.float32)
    for at in range(begin, tl.minimum(begin + chunk, end), KEYS):
        place = at + tl.arange(0, KEYS)
        stands = place < end
        k = tl.load(
            keys + memory + place[None, :] * WIDTH + depth[:, None],
            mask=stands[None, :] & within[:, None],
            other=0.0,
        )
        score = tl.dot(q, k, input_precision=PRECISION) * scale
        seen = (place[None, :] <= position[:, None]) & (place[None, :] < begin + chunk)
        score = tl.where(seen, score, NOTHING)
        higher = tl.maximum(peak, tl.max(score, 1))
        weight = tl.where(seen, tl.exp(score - higher[:, None]), 0.0)
        fade = tl.exp(peak - higher)
        v = tl.load(
            values + memory + place[:, None] * WIDTH + depth[None, :],
            mask=stands[:, None] & within[None, :],
            other=0.0,
        )
        mass = mass * fade + tl.sum(weight, 1)
        total = tl.dot(weight.to(v.dtype), v, total * fade[:, None], input_precision=PRECISION)
        peak = higher
    where = (token * (SHARED * GROUP) + head) * chunks + part
    tl.store(peaks + where, peak, mask=real)
    tl.store(masses + where, mass, mask=real)
    tl.store(sums + where[:, None] * WIDTH + depth[None, :], total, mask=real[:, None] & within[None, :])


@triton.jit(do_not_specialize=VARYING)
def _joined(
    sums,
    peaks,
    masses,
    starts,
    widths,
    made,
    columns,
    chunk,
    chunks,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
):
    token = tl.program_id(0)
    head = tl.program_id(1)
    row = token // columns
    column = token % columns
    depth = tl.arange(0, PADDED)
    within = depth < WIDTH
    total = tl.zeros((PADDED,), tl.float32)
    mass = 0.0
    if column < tl.load(widths + row):
        peak = -1.0e30
        count = (tl.load(starts + row) + column) // chunk + 1
        base = (token * HEADS + head) * chunks
        for part in range(count):
            seen = tl.load(peaks + base + part)
            higher = tl.maximum(peak, seen)
            fade = tl.exp(peak - higher)
            weight = tl.exp(seen - higher)
            mass = mass * fade + weight * tl.load(masses + base + part)
            total = total * fade + weight * tl.load(sums + (base + part) * WIDTH + depth, mask=within, other=0.0)
            peak = higher
        total = total / mass
    tl.store(made + (token * HEADS + head) * WIDTH + depth, total.to(made.dtype.element_ty), mask=within)


LAYOUTS = {
    (2048, 2048): Layout(16, 128, 4, 4, 2),
    (2048, 8192): Layout(64, 128, 8, 3, 4),
    (3072, 2048): Layout(64, 64, 8, 4, 4),
    (4096, 4096): Layout(64, 128, 4, 3, 4),
    (4096, 11008): Layout(32, 128, 4, 3, 4),
    (5120, 5120): Layout(16, 128, 2, 4, 2),
    (5120, 13824): Layout(16, 128, 2, 4, 2),
    (12288, 4096): Layout(64, 128, 2, 3, 4),
    (15360, 5120): Layout(32, 128, 1, 3, 4),
    (32000, 4096): Layout(64, 128, 1, 3, 4),
    (32000, 5120): Layout(32, 256, 2, 3, 4),
    (128256, 2048): Layout(64, 128, 1, 4, 4),
}
"""(outputs, inputs) → layout, where it was measured, on an H100 by ``benchmarks/gpu_products.py``."""


def layout_of(outputs: int, inputs: int) -> Layout:
    """How a product is laid out: by its shape alone, never by the number of tokens, so that sums keep their order."""
    found = LAYOUTS.get((outputs, inputs))
    if found is not None:
        return found
    tiles = triton.cdiv(outputs, 32)
    parts = 1
    while tiles * parts < ENOUGH and inputs // (2 * parts) >= LEAST_PART:
        parts *= 2
    return Layout(32, 128, parts, 3, 4)


ENOUGH = 400
"""Programs that keep a large GPU busy."""

LEAST_PART = 512
"""Inputs that a part of a sum has at least."""


class Kernels:
    """``Arithmetic`` by kernels, for bfloat16, float16 and float32. ``longest`` is the longest row of the cache."""

    def __init__(self, longest: int) -> None:
        self._chunk = max(CHUNK, KEYS * triton.cdiv(longest, KEYS * CHUNKS))

    def add_norm(self, hidden: Tensor, parts: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """As in ``Arithmetic``."""
        tokens, size = hidden.shape
        summed, normed = hidden if parts is None else torch.empty_like(hidden), torch.empty_like(hidden)
        _add_norm[tokens,](
            hidden,
            hidden if parts is None else parts,
            weight,
            summed,
            normed,
            tokens,
            size,
            eps,
            PARTS=0 if parts is None else len(parts),
            SIZE=triton.next_power_of_2(size),
            num_warps=8 if size > 1024 else 4,
        )
        return summed, normed

    def product(self, read: Tensor, weight: Tensor) -> Tensor:
        """As in ``Arithmetic``."""
        layout, (tokens, inputs), outputs = layout_of(*weight.shape), read.shape, len(weight)
        part = layout.inputs * triton.cdiv(inputs, layout.inputs * layout.parts)
        parts = triton.cdiv(inputs, part)
        made = torch.empty((parts, tokens, outputs), dtype=torch.float32, device=read.device)
        wide = _wide(tokens, read)
        _product[triton.cdiv(tokens, wide), triton.cdiv(outputs, layout.outputs), parts](
            read,
            weight,
            made,
            tokens,
            outputs,
            inputs,
            part,
            **_tiled(layout, wide, read),
        )
        return made

    def gated(self, read: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        """As in ``Arithmetic``."""
        (tokens, inputs), outputs = read.shape, len(gate)
        made, wide = read.new_empty((tokens, outputs)), _wide(tokens, read)
        layout = GATED_LAYOUTS.get((outputs, inputs), GATED)
        _gated[triton.cdiv(tokens, wide), triton.cdiv(outputs, layout.outputs)](
            read,
            gate,
            up,
            made,
            tokens,
            outputs,
            inputs,
            **_tiled(layout, wide, read),
        )
        return made

    def rotate(self, parts: Tensor, heads: Heads, keys: Tensor, values: Tensor, places: Places) -> Tensor:
        """As in ``Arithmetic``; padding is written nowhere."""
        tokens = parts.shape[1]
        query = keys.new_empty((tokens, heads.query, heads.width))
        none = heads.cos
        _rotate[tokens, heads.query + 2 * heads.shared](
            parts,
            none if heads.bias is None else heads.bias,
            none if heads.query_norm is None else heads.query_norm,
            none if heads.key_norm is None else heads.key_norm,
            heads.cos,
            heads.sin,
            keys,
            values,
            query,
            places.slots,
            places.starts,
            places.widths,
            tokens,
            places.columns,
            heads.eps,
            keys.stride(0),
            keys.stride(1),
            BIAS=heads.bias is not None,
            NORM=heads.query_norm is not None,
            PARTS=len(parts),
            QUERY=heads.query,
            SHARED=heads.shared,
            WIDTH=heads.width,
            HALF=triton.next_power_of_2(heads.width) // 2,
            num_warps=1,
        )
        return query

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, places: Places, scale: float) -> Tensor:
        """As in ``Arithmetic``; nothing behind a row's end is read."""
        tokens, heads, width = query.shape
        shared, rows, columns = keys.shape[1], len(places.slots), places.columns
        asked = columns * (heads // shared)
        wide = _wide(asked, query)
        tiles, chunks = triton.cdiv(asked, wide), triton.cdiv(places.reach, self._chunk)
        sums = torch.empty((tokens, heads, chunks, width), dtype=torch.float32, device=query.device)
        peaks = torch.empty((tokens, heads, chunks), dtype=torch.float32, device=query.device)
        masses = torch.empty_like(peaks)
        padded = max(16, triton.next_power_of_2(width))
        _attend[rows * tiles, shared, chunks](
            query,
            keys,
            values,
            places.slots,
            places.starts,
            places.widths,
            sums,
            peaks,
            masses,
            scale,
            columns,
            self._chunk,
            chunks,
            keys.stride(0),
            keys.stride(1),
            tiles,
            SHARED=shared,
            GROUP=heads // shared,
            WIDTH=width,
            PADDED=padded,
            ASKED=wide,
            KEYS=KEYS,
            PRECISION=_precision(query),
            num_warps=4,
        )
        made = query.new_empty((tokens, heads * width))
        _joined[tokens, heads](
            sums,
            peaks,
            masses,
            places.starts,
            places.widths,
            made,
            columns,
            self._chunk,
            chunks,
            HEADS=heads,
            WIDTH=width,
            PADDED=padded,
            num_warps=2,
        )
        return made


GATED = Layout(32, 128, 1, 3, 4)
"""The layout of gated products, which are many outputs wide …"""

GATED_LAYOUTS = {(8192, 2048): Layout(32, 128, 1, 4, 4), (13824, 5120): Layout(64, 128, 1, 3, 8)}
"""… but for these shapes (outputs, inputs)."""


def _wide(tokens: int, numbers: Tensor) -> int:
    """Tokens of a tile. The tensor cores add up alike in both kinds of tile; float32 does not go through them."""
    return TOKENS if tokens <= TOKENS or numbers.dtype == torch.float32 else MORE_TOKENS


def _tiled(layout: Layout, wide: int, read: Tensor) -> dict[str, Any]:
    """What the kernel of a product is compiled for: tiles of ``wide`` tokens, laid out so."""
    return {
        "TOKENS": wide,
        "OUTPUTS": layout.outputs,
        "INPUTS": layout.inputs,
        "EVEN": read.shape[1] % layout.inputs == 0,
        "PRECISION": _precision(read),
        "num_stages": layout.stages,
        "num_warps": layout.warps,
    }


def _precision(numbers: Tensor) -> str:
    """Float32 is multiplied in full: the tensor cores' shortened kind would change tokens."""
    return "ieee" if numbers.dtype == torch.float32 else "tf32"
