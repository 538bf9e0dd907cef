"""Narrow passes: fused layers against transformers' own, shapes that passes are rounded up to, how feeds are cut."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepladder.decoding import graphs
from stepladder.decoding.fused import arithmetic_for, why_not
from stepladder.decoding.graphs import ROWS, WIDTHS, above, reach_for
from stepladder.decoding.models import FEW, WIDEST, Feed, LanguageModel, _cut
from tiny_models import KINDS, other_network, tiny_network


def narrow(network: Any, **settings: Any) -> LanguageModel:
    return LanguageModel(network, name="narrow", narrow=True, **settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [1, 2, 4])
def test_fused_layers_give_transformers_own_logits(kind, shared):
    """Through any feeds, with rows that rest and are taken back."""
    network = tiny_network(kind, shared=shared)
    own, chance = tiny_network(kind, shared=shared), random.Random(shared)
    if kind == "qwen2":
        for each in (network, own):
            made = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for name, weights in each.named_parameters():
                    if name.endswith("bias"):
                        weights.copy_(torch.randn(weights.shape, generator=made, dtype=weights.dtype))
    model = narrow(network, slots=3)
    assert model.told == "fused layers, cpu has no CUDA graphs"
    texts: dict[int, list[int]] = {model.open(): [] for _ in range(3)}
    for _ in range(10):
        feeds = []
        for row in chance.sample(sorted(texts), chance.randint(1, 3)):
            start = max(0, len(texts[row]) - chance.randint(0, 3))
            new = [chance.randrange(64) for _ in range(chance.choice([1, 2, 5, 11]))]
            texts[row] = [*texts[row][:start], *new]
            feeds.append(Feed(row, start, new, chance.randint(1, len(new))))
        for feed, logits in zip(feeds, model.forward(feeds), strict=True):
            with torch.inference_mode():
                wanted = own(input_ids=torch.tensor([texts[feed.slot]]), use_cache=False).logits[0, -feed.want :]
            torch.testing.assert_close(logits, wanted, rtol=1e-12, atol=1e-12)


def test_joined_matrices_are_the_models_own_and_held_once():
    network = tiny_network()
    attention = network.model.layers[0].self_attn
    before = attention.k_proj.weight.detach().clone()
    narrow(network)
    query, key = attention.q_proj.weight, attention.k_proj.weight
    assert key.data_ptr() == query.data_ptr() + query.numel() * query.element_size()
    assert torch.equal(key, before)
    place = query.data_ptr()
    narrow(network)  # a drafter of the same layers
    assert attention.q_proj.weight.data_ptr() == place


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden_act": "gelu"}, "the activation 'gelu' is not fused"),
        ({"mlp_bias": True}, "biases outside of queries, keys and values are not fused"),
        ({"attention_bias": True}, "biases outside of queries, keys and values are not fused"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rotations of the kind 'dynamic' follow the length of the text",
        ),
    ],
)
def test_what_is_not_fused_runs_in_stock_layers_and_says_why(settings, said):
    network = tiny_network(**settings)
    assert why_not(network) == said
    model = narrow(network)
    assert model.told == f"stock layers ({said}), cpu has no CUDA graphs"
    logits = model.forward([Feed(model.open(), 0, [1, 2, 3], 2)])[0]
    with torch.inference_mode():
        wanted = tiny_network(**settings)(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False).logits[0, -2:]
    torch.testing.assert_close(logits, wanted, rtol=1e-12, atol=1e-12)


def test_other_families_and_other_matrices_are_not_fused():
    assert why_not(other_network("mistral", sliding_window=None)) == "layers of the family 'mistral' are not fused"
    network = tiny_network()

    class Other(torch.nn.Linear):
        pass

    mlp = network.model.layers[0].mlp
    mlp.gate_proj = Other(32, 64, bias=False, dtype=torch.float64)
    assert why_not(network) == "its matrices are not plain ones"


def test_dtypes_without_kernels_say_so():
    assert arithmetic_for(torch.device("cuda"), torch.float64, 64) == "there are no kernels for torch.float64"


def test_packed_passes_are_what_a_processor_runs():
    model = LanguageModel(tiny_network(), name="packed")
    assert model.told == "stock layers (the passes of this device are packed)"
    model.warm()
    assert model.forward([Feed(model.open(), 0, [1], 1)])[0].shape == (1, 64)


def test_warming_makes_the_shapes_that_are_asked_for():
    model = narrow(tiny_network(), slots=2)
    model.warm(rows=(1, 2), widths=(1, 5))
    assert model._graphs is not None
    assert len(model._graphs) == 4
    model.forward([Feed(model.open(), 0, [1], 1)])
    assert len(model._graphs) == 4


@pytest.mark.parametrize(
    ("start", "count", "rough", "packs"),
    [(0, 30, True, 0), (0, 30, False, 1), (5, 30, False, 0), (5, 101, False, 1), (5, 101, True, 0), (0, 401, True, 1)],
)
def test_what_was_missed_is_read_in_narrow_passes_of_one_width(start, count, rough, packs):
    """What the cache then holds is what a packed pass leaves."""
    network, text, keys = tiny_network(context=512), [each % 64 for each in range(start + count)], []
    for told in (rough, None):
        model, packed = narrow(network, slots=1), []
        read = model._packed
        model._packed = lambda feeds, read=read, told=packed: told.append(feeds) or read(feeds)
        slot = model.open()
        if start:
            read([Feed(slot, 0, text[:start], 0)])
        if told is None:
            read([Feed(slot, start, text[start:], 0)])
        else:
            model.forward([Feed(slot, start, text[start:], 0, rough)])
            assert len(packed) == packs
            assert packs or [key[:2] for key in model._graphs._made] == [(1, WIDTHS[-1])]
        keys.append(model.cache.layers[-1].keys[slot, :, : len(text)])
    torch.testing.assert_close(*keys, rtol=1e-9, atol=1e-9)


@given(st.integers(1, 40))
def test_shapes_are_rounded_up_to_the_next_and_no_further(number):
    for steps in (ROWS, WIDTHS):
        found = above(number, steps)
        assert found >= number
        assert found in steps if number <= steps[-1] else found < number + steps[-1]
        assert not any(number <= step < found for step in steps)


@given(st.integers(1, 200_000), st.integers(1, 200_000))
def test_graphs_reach_far_enough_within_the_context(length, context):
    reach = reach_for(min(length, context), context)
    assert min(length, context) <= reach <= context
    assert reach <= max(graphs.SHORTEST_REACH, graphs.REACH_FACTOR * length)


@given(st.integers(0, 100), st.integers(0, 60), st.integers(1, WIDEST), st.integers(1, WIDEST))
def test_what_stands_before_the_wanted_tokens_is_read_alike_however_many_are_wanted(start, before, few, many):
    """So that a prompt leaves the same bits in the cache whether drafts stand behind it or not."""
    cuts = [_cut(Feed(0, start, [1] * (before + want), want)) for want in (few, many)]
    assert cuts[0] == cuts[1]
    assert cuts[0] in {0, before}
    assert before - cuts[0] + max(few, many) <= WIDTHS[-1]
    assert cuts[0] == before or (start > 0 and before <= FEW)
