"""Passes on a GPU: kernels against PyTorch's operations, and logits that do not depend on how a pass is cut."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from stepladder.decoding.arithmetic import Heads, Places, Plain
from stepladder.decoding.models import Feed, LanguageModel
from tiny_models import KINDS, other_network, tiny_network

pytestmark = pytest.mark.gpu

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NEAR = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Relative to the greatest number: how far sums in another order may lie apart."""

FAR = {torch.float32: 2e-3, torch.bfloat16: 8e-2}
"""The same through all layers, where PyTorch may be set to shorten float32 in its products."""


def close(one: torch.Tensor, other: torch.Tensor, near: float) -> None:
    """Fail where two tensors differ by more than rounding."""
    assert one.shape == other.shape
    far = (one.double() - other.double()).abs().max().item()
    assert far <= near * max(1.0, other.abs().max().item()), far


def some(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=made).to(device, dtype)


# ── each kernel ──────────────────────────────────────────────────────────────

SIZES = [(1, 64, 32), (3, 96, 200), (16, 4096, 512), (17, 1024, 4096), (72, 520, 1032), (5, 11008, 256)]
"""(tokens, inputs, outputs), some of them no multiples of a tile."""


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SIZES)
def test_products_and_gated_products(gpu, dtype, tokens, inputs, outputs):
    from stepladder.decoding.kernels import Kernels

    kernels, read = Kernels(128), some(tokens, inputs, dtype=dtype, device=gpu)
    gate, up = (some(outputs, inputs, dtype=dtype, device=gpu, seed=s) / inputs**0.5 for s in (1, 2))
    wanted = read.double() @ gate.double().T
    close(kernels.product(read, gate).sum(0), wanted, NEAR[torch.float32])
    both = torch.nn.functional.silu(wanted) * (read.double() @ up.double().T)
    close(kernels.gated(read, gate, up), both, NEAR[dtype])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("size", [32, 200, 4096, 5120])
@pytest.mark.parametrize("parts", [0, 1, 4])
def test_sums_and_norms(gpu, dtype, size, parts):
    from stepladder.decoding.kernels import Kernels

    hidden, weight = some(5, size, dtype=dtype, device=gpu), some(size, dtype=dtype, device=gpu, seed=1)
    added = some(parts, 5, size, dtype=torch.float32, device=gpu, seed=2) if parts else None
    for one, other in zip(
        Kernels(128).add_norm(hidden, added, weight, 1e-5), Plain().add_norm(hidden, added, weight, 1e-5), strict=True
    ):
        close(one, other, NEAR[dtype])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("query", "shared", "width"), [(4, 4, 128), (8, 2, 64), (6, 1, 16), (3, 3, 80)])
@pytest.mark.parametrize("normed", [False, True])
def test_rotation_and_attention(gpu, dtype, query, shared, width, normed):
    """Over rows of very different lengths, one of them empty; what stands behind a row's end is NaN."""
    from stepladder.decoding.kernels import Kernels

    positions, columns = 700, 5
    angles = torch.arange(positions)[:, None] / 100 ** (torch.arange(width // 2) / (width // 2))
    cos, sin = (made.repeat(1, 2).to(gpu, dtype) for made in (angles.cos(), angles.sin()))
    norms = [some(width, dtype=dtype, device=gpu, seed=s) for s in (4, 5)] if normed else [None, None]
    outputs = (query + 2 * shared) * width
    heads = Heads(query, shared, width, cos, sin, 1e-6, some(outputs, dtype=dtype, device=gpu, seed=3), *norms)
    numbers = ([3, 0, 1, 2], [0, 640, 127, 0], [5, 3, 4, 0])
    places = Places(*(torch.tensor(each, device=gpu) for each in numbers), columns, 650)
    parts = some(2, 4 * columns, outputs, dtype=torch.float32, device=gpu, seed=6)
    memory = [some(4, shared, positions + 1, width, dtype=dtype, device=gpu, seed=s) for s in (7, 8)]
    other = [each.clone() for each in memory]
    kernels, plain = Kernels(positions), Plain()
    asked = kernels.rotate(parts, heads, *memory, places)
    wanted = plain.rotate(parts, heads, *other, places)
    found_plain = plain.attend(wanted, *other, places, width**-0.5)
    real = places.real().flatten()
    close(asked[real], wanted[real], NEAR[dtype])
    for one, two in zip(memory, other, strict=True):
        close(one[:, :, :positions], two[:, :, :positions], NEAR[dtype])
    for slot, start, count in zip(*numbers, strict=True):
        for each in memory:
            each[slot, :, start + count :] = torch.nan
    found = kernels.attend(asked, *memory, places, width**-0.5)
    close(found[real], found_plain[real], NEAR[dtype])


# ── whole passes ─────────────────────────────────────────────────────────────


def model_of(
    device: torch.device, dtype: torch.dtype, kind: str = "llama", *, narrow: bool = True, **settings: Any
) -> LanguageModel:
    settings = {"hidden": 128, "heads": 8, "shared": 2, "layers": 3, "context": 1500} | settings
    network = tiny_network(kind, dtype=dtype, **settings).to(device)
    return LanguageModel(network, name=kind, context=settings["context"], slots=8, narrow=narrow)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_narrow_passes_give_the_logits_of_packed_ones(device, dtype, kind):
    """Whatever is fed and taken back, in rows that come and rest."""
    narrow, packed = (model_of(device, dtype, kind, narrow=each) for each in (True, False))
    if device.type == "cuda":
        assert narrow.told == "fused layers, CUDA graphs"
    chance, texts = random.Random(1), {narrow.open(): [] for _ in range(5)}
    for _ in texts:
        packed.open()
    for step in range(12):
        feeds = []
        for row in chance.sample(sorted(texts), chance.randint(1, 5)):
            start = max(0, len(texts[row]) - chance.randint(0, 6))
            new = [chance.randrange(64) for _ in range(chance.choice([1, 1, 2, 5, 9, 17, 18, 300 if step < 3 else 4]))]
            texts[row] = [*texts[row][:start], *new]
            feeds.append(Feed(row, start, new, chance.randint(0, min(len(new), 20))))
        for one, other in zip(narrow.forward(feeds), packed.forward(feeds), strict=True):
            if len(one):
                close(one, other, FAR[dtype])
    for one, other in zip(narrow.cache.layers, packed.cache.layers, strict=True):
        for row, text in texts.items():
            close(one.keys[row, :, : len(text)], other.keys[row, :, : len(text)], FAR[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_logits_do_not_depend_on_width_companions_or_reach(gpu, dtype, kind):
    """Bit for bit: a token verified among seventeen is the same as one written alone. Sums are long, and in parts."""
    model = model_of(gpu, dtype, kind, hidden=1024, heads=16, shared=4, layers=2)
    text = [random.Random(2).randrange(64) for _ in range(1400)]
    rows = [model.open() for _ in range(6)]
    for start in (3, 120, 500, 1017, 1300):
        tails = []
        for row in rows:
            model.forward([Feed(row, 0, text[:start], 0)])
        for width in (1, 2, 3, 5, 8, 17):
            made = [model.forward([Feed(0, start + at, text[start + at : start + at + width], width)])[0]
                    for at in range(0, 17 - width + 1, width)]  # fmt: skip
            tails.append(torch.cat(made))
        whole = tails[-1]
        for tail in tails:
            assert torch.equal(tail, whole[: len(tail)])
        beside = [Feed(row, start, text[start : start + 4 + row], 1 + row) for row in rows]
        for feed, logits in zip(beside, model.forward(beside), strict=True):
            assert torch.equal(logits, whole[4 + feed.slot - feed.want : 4 + feed.slot])


def test_places_may_be_columns_of_a_table(device):
    """As whoever keeps a row of numbers for each answer hands them in."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float64
    model = model_of(device, kind)
    for row in range(4):
        model.forward([Feed(model.open(), 0, list(range(row + 3)), 0)])
    table = torch.tensor([[3, 6, 2], [0, 3, 1], [2, 5, 2]], device=device)
    tokens = torch.tensor([[1, 2], [3, 0], [4, 5]], device=device)
    one = model.masked(tokens, table[:, 0], table[:, 1], table[:, 2], reach=64)
    other = model.masked(tokens, *(table[:, at].clone() for at in range(3)), reach=64)
    assert torch.equal(one, other)


def test_a_family_without_fused_layers_runs_its_own_in_graphs(gpu):
    network = other_network("mistral", sliding_window=None).to(gpu)
    narrow, packed = (LanguageModel(network, name="mistral", slots=3, narrow=each) for each in (True, False))
    assert narrow.told == "stock layers (layers of the family 'mistral' are not fused), CUDA graphs"
    for model in (narrow, packed):
        for row, length in enumerate((9, 4, 30)):
            assert model.open() == row
            model.forward([Feed(row, 0, list(range(length)), 0)])
    feeds = [Feed(0, 9, [5, 6], 2), Feed(2, 30, [7], 1), Feed(1, 2, [8, 9, 1], 1)]
    for one, other in zip(narrow.forward(feeds), packed.forward(feeds), strict=True):
        close(one, other, FAR[torch.float32])


def test_a_model_that_cannot_be_captured_runs_without_graphs(gpu, caplog):
    """Code that looks at a value on its way breaks a capture; what it computes is the same."""
    model, packed = model_of(gpu, torch.float32), model_of(gpu, torch.float32, narrow=False)
    model._fused = None
    run = model.model.forward

    def looking(*args: Any, **kwargs: Any) -> Any:
        made = run(*args, **kwargs)
        assert made.logits.isfinite().all().item()
        return made

    model.model.forward = looking
    feed = Feed(model.open(), 0, [1, 2, 3], 2)
    packed.open()
    close(model.forward([feed])[0], packed.forward([feed])[0], FAR[torch.float32])
    assert "runs without CUDA graphs" in caplog.text
    assert "CUDA graphs" not in model.told
