"""The law of the cache: whatever was fed and taken back, a row is as if its tokens had been read afresh."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.decoding import attention, models
from stepladder.decoding.attention import Masked, Packed, Span
from stepladder.decoding.cache import KeyValueCache
from stepladder.decoding.models import Feed, LanguageModel, context_of, require_same
from stepladder.errors import EngineError
from tiny_models import KINDS, other_network, tiny_model, tiny_network

CONTEXT = 24
CPU = torch.device("cpu")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Of logits of a few units: how sums are ordered differs with the width of a pass."""

ROWS = st.integers(0, 3)


@dataclass
class Twin:
    """A model under test, what its rows should hold, and another that reads everything afresh."""

    model: LanguageModel
    fresh: LanguageModel
    texts: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, dtype: torch.dtype, chunk: int = 512) -> Twin:
        made = (tiny_model(kind, dtype=dtype, context=CONTEXT, slots=4, chunk=size) for size in (chunk, 512))
        twin = cls(*made)
        for _ in range(4):
            twin.texts[twin.model.open()] = []
        return twin

    def feed(self, changes: dict[int, tuple[int, list[int], int]], *, poisoned: bool) -> None:
        """Feed rows: tokens taken back, tokens fed, logits wanted; then compare all that came and all that stands."""
        feeds = []
        for row, (back, new, want) in changes.items():
            start = max(0, len(self.texts[row]) - back)
            fitting = new[: CONTEXT - start]
            if not fitting:
                continue
            self.texts[row] = [*self.texts[row][:start], *fitting]
            feeds.append(Feed(row, start, fitting, min(want, len(fitting))))
            if poisoned:
                self.model.cache.poison(row, start)
        for feed, logits in zip(feeds, self.model.forward(feeds), strict=True):
            self.compare(feed, logits)

    def compare(self, feed: Feed, logits: torch.Tensor) -> None:
        """One row's logits and cache against a reading of the whole row by the other model."""
        text, near = self.texts[feed.slot], TOLERANCE[self.model.dtype]
        slot = self.fresh.open()
        afresh = self.fresh.forward([Feed(slot, 0, text, len(text))])[0]
        assert logits.shape == (feed.want, self.model.vocab)
        torch.testing.assert_close(logits, afresh[len(text) - feed.want :], rtol=near, atol=near)
        for mine, other in zip(self.model.cache.layers, self.fresh.cache.layers, strict=True):
            for kept, wanted in ((mine.keys, other.keys), (mine.values, other.values)):
                stands = kept[feed.slot, :, : len(text)], wanted[slot, :, : len(text)]
                torch.testing.assert_close(*stands, rtol=near, atol=near)
        assert self.model.length(feed.slot) == len(text)
        self.fresh.close(slot)


CHANGES = st.dictionaries(
    ROWS,
    st.tuples(st.integers(0, 9), st.lists(st.integers(0, 63), min_size=1, max_size=14), st.integers(0, 5)),
    min_size=1,
    max_size=4,
)
SCRIPTS = st.lists(CHANGES, min_size=1, max_size=8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@settings(max_examples=12, deadline=None)
@given(script=SCRIPTS, chunk=st.sampled_from([1, 3, 512]), poisoned=st.booleans())
def test_after_any_script_of_feeds_and_rollbacks_a_row_is_as_read_afresh(kind, dtype, script, chunk, poisoned):
    """Rows come and go, rest for rounds, and are taken back; what stood behind them may be NaN."""
    twin = Twin.of(kind, dtype, chunk)
    for changes in script:
        twin.feed(changes, poisoned=poisoned)


def own_logits(network: Any, tokens: list[int]) -> torch.Tensor:
    """What transformers makes of the tokens by itself, without a cache."""
    with torch.inference_mode():
        return network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [1, 2, 4])
def test_logits_are_those_of_transformers_own_forward(kind, shared):
    tokens = list(range(3, 27))
    model = tiny_model(kind, shared=shared, chunk=10)
    slot = model.open()
    begun = model.forward([Feed(slot, 0, tokens[:15], 15)])[0]
    ended = model.forward([Feed(slot, 15, tokens[15:], 9)])[0]
    expected = own_logits(tiny_network(kind, shared=shared), tokens)
    torch.testing.assert_close(torch.cat([begun, ended]), expected, rtol=1e-12, atol=1e-12)


def test_a_row_does_not_depend_on_its_companions():
    model = tiny_model()
    rows = [model.open() for _ in range(5)]
    texts = [list(range(1, 2 + 7 * row)) for row in rows]
    together = model.forward([Feed(row, 0, text, 1) for row, text in zip(rows, texts, strict=True)])
    for row, text, logits in zip(rows, texts, together, strict=True):
        alone = model.forward([Feed(row, 0, text, 1)])[0]
        torch.testing.assert_close(logits, alone, rtol=1e-12, atol=1e-12)


def masked_logits(model: LanguageModel, feeds: list[Feed], reach: int, *, ordered: bool = False) -> list[torch.Tensor]:
    """The feeds as one rectangle."""
    width = max(len(feed.tokens) for feed in feeds)
    tokens = torch.tensor([[*feed.tokens, *[0] * (width - len(feed.tokens))] for feed in feeds])
    slots, starts, widths = (
        torch.tensor(part) for part in zip(*((feed.slot, feed.start, len(feed.tokens)) for feed in feeds), strict=True)
    )
    logits = model.masked(tokens, slots, starts, widths, reach=reach, ordered=ordered)
    for feed in feeds:
        model.wrote(feed.slot, feed.start + len(feed.tokens))
    return [logits[row, len(feed.tokens) - feed.want : len(feed.tokens)] for row, feed in enumerate(feeds)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(
    begun=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    widths=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    order=st.permutations([0, 1, 2]),
    ordered=st.booleans(),
    reach=st.sampled_from([18, 20, CONTEXT]),
)
def test_the_masked_layout_agrees_with_the_exact_one(kind, begun, widths, order, ordered, reach):
    """In any order of rows; then each row is used by the other layout."""
    exact, masked = (tiny_model(kind, context=CONTEXT, slots=3) for _ in range(2))
    for model in (exact, masked):
        for row, length in enumerate(begun):
            assert model.open() == row
            model.forward([Feed(row, 0, list(range(length)), 0)])
    rows = sorted(order) if ordered else order
    feeds = [Feed(row, begun[row], [(5 * row + at) % 64 for at in range(widths[row])], 1) for row in rows]
    expected, found = exact.forward(feeds), masked_logits(masked, feeds, reach, ordered=ordered)
    after = [Feed(feed.slot, feed.start + len(feed.tokens), [7], 1) for feed in feeds]
    for wanted, given_ in [*zip(expected, found, strict=True), *zip(exact.forward(after), masked.forward(after))]:  # noqa: B905
        torch.testing.assert_close(given_, wanted, rtol=1e-12, atol=1e-12)


def test_padding_of_the_masked_layout_never_reaches_a_row_even_at_the_very_end():
    """A row whose padding would stand beyond the capacity, beside one that is fed many."""
    exact, masked = (tiny_model(context=CONTEXT, slots=2) for _ in range(2))
    for model in (exact, masked):
        model.forward([Feed(model.open(), 0, list(range(CONTEXT - 1)), 0), Feed(model.open(), 0, [1, 2], 0)])
    feeds = [Feed(0, CONTEXT - 1, [9], 1), Feed(1, 2, list(range(8)), 8)]
    for one, other in zip(exact.forward(feeds), masked_logits(masked, feeds, CONTEXT), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for mine, other in zip(masked.cache.layers, exact.cache.layers, strict=True):
        torch.testing.assert_close(mine.keys[:, :, :CONTEXT], other.keys[:, :, :CONTEXT], rtol=1e-12, atol=1e-12)


def test_the_masked_layout_reads_nothing_back_to_the_host():
    """Tensors of the device `meta` have shapes and no values, so that any look at a value would raise."""
    model = LanguageModel(tiny_network("qwen3").to("meta"), name="shapes only", slots=3)
    rows = torch.zeros(2, dtype=torch.int64, device="meta")
    tokens = torch.zeros(2, 4, dtype=torch.int64, device="meta")
    for ordered in (False, True):
        assert model.masked(tokens, rows, rows, rows, reach=64, ordered=ordered).shape == (2, 4, 64)
    with pytest.raises(RuntimeError, match="meta"):
        rows.sum().item()


def test_a_reader_of_stale_positions_would_be_seen():
    """The negative control of the poison: the masked layout multiplies stale values by zero, which NaN survives."""
    model = tiny_model(context=CONTEXT, slots=1)
    slot = model.open()
    model.forward([Feed(slot, 0, [1, 2, 3], 0)])
    model.cache.poison(slot, 3)
    feed = Feed(slot, 3, [4], 1)
    assert masked_logits(model, [feed], CONTEXT)[0].isnan().all()
    assert model.forward([feed])[0].isfinite().all()


def test_exactly_full_works_and_one_more_is_refused():
    model = tiny_model(context=CONTEXT)
    slot = model.open()
    assert model.forward([Feed(slot, 0, [1] * CONTEXT, 1)])[0].isfinite().all()
    with pytest.raises(EngineError, match=r"cache row 0: 25 positions needed, and its context has 24"):
        model.forward([Feed(slot, CONTEXT, [1], 1)])
    assert model.length(slot) == CONTEXT
    assert model.forward([Feed(slot, CONTEXT - 1, [2], 1)])[0].shape == (1, 64)


def test_rows_are_opened_closed_and_used_again():
    model = tiny_model(slots=2)
    first, second = model.open(), model.open()
    with pytest.raises(EngineError, match="all 2 cache rows are taken"):
        model.open()
    model.forward([Feed(first, 0, [1, 2, 3], 1), Feed(second, 0, [4], 1)])
    model.close(first)
    model.cache.poison(first, 0)
    assert model.open() == first
    assert model.length(first) == 0
    again = model.forward([Feed(first, 0, [5, 6], 2)])[0]
    torch.testing.assert_close(again, own_logits(tiny_network(), [5, 6]), rtol=1e-12, atol=1e-12)
    with pytest.raises(EngineError, match="cache row 7 is not open"):
        model.close(7)
    model.close(second)
    with pytest.raises(EngineError, match="cache row 1 is not open"):
        model.close(second)


@pytest.mark.parametrize(
    ("feed", "said"),
    [
        (Feed(1, 0, [1], 1), "cache row 1 is not open"),
        (Feed(-1, 0, [1], 1), "cache row -1 is not open"),
        (Feed(0, 5, [1], 1), "fed from position 5, but it holds 2"),
        (Feed(0, -1, [1], 1), "fed from position -1, but it holds 2"),
        (Feed(0, 2, [], 0), "0 logits wanted of 0 tokens"),
        (Feed(0, 2, [1], 2), "2 logits wanted of 1 tokens"),
        (Feed(0, 2, [1], -1), "-1 logits wanted of 1 tokens"),
        (Feed(0, 2, [64], 1), "tokens outside its vocabulary of 64"),
        (Feed(0, 2, [-1], 1), "tokens outside its vocabulary of 64"),
        (Feed(0, 0, [1] * 129, 1), "129 positions needed, and its context has 128"),
    ],
)
def test_a_feed_that_cannot_be_is_refused_before_anything_is_written(feed, said):
    model = tiny_model()
    slot = model.open()
    model.forward([Feed(slot, 0, [1, 2], 1)])
    with pytest.raises(EngineError, match=said):
        model.forward([feed])
    assert model.length(slot) == 2


def test_one_row_cannot_be_fed_twice_in_a_pass():
    model = tiny_model()
    slot = model.open()
    with pytest.raises(EngineError, match="cache row 0: fed twice in one pass"):
        model.forward([Feed(slot, 0, [1], 1), Feed(slot, 0, [2], 1)])


def test_no_feeds_are_no_pass():
    assert tiny_model().forward([]) == []


def test_wanted_logits_may_reach_over_chunks_and_be_none():
    tokens = list(range(11))
    model = tiny_model(chunk=3)
    one, other = model.open(), model.open()
    wide, none = model.forward([Feed(one, 0, tokens, 7), Feed(other, 0, tokens[:2], 0)])
    torch.testing.assert_close(wide, own_logits(tiny_network(), tokens)[-7:], rtol=1e-12, atol=1e-12)
    assert none.shape == (0, 64)


def test_a_pass_that_breaks_off_leaves_a_row_no_longer_than_what_stands(monkeypatch):
    model = tiny_model(chunk=4)
    slot = model.open()
    model.forward([Feed(slot, 0, list(range(6)), 1)])
    run, calls = model._run, []

    def second_fails(*args: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return run(*args)

    monkeypatch.setattr(model, "_run", second_fails)
    with pytest.raises(torch.OutOfMemoryError):
        model.forward([Feed(slot, 2, list(range(9)), 1)])
    assert model.length(slot) == 2 + 4
    monkeypatch.undo()
    again = model.forward([Feed(slot, 6, [5], 1)])[0]
    torch.testing.assert_close(again, own_logits(tiny_network(), [0, 1, 0, 1, 2, 3, 5])[-1:], rtol=1e-12, atol=1e-12)


def test_logits_are_cut_to_a_common_size():
    model = tiny_model()
    model.limit_vocab(50)
    slot = model.open()
    expected = own_logits(tiny_network(), [1, 2])[-1:, :50]
    torch.testing.assert_close(model.forward([Feed(slot, 0, [1, 2], 1)])[0], expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(EngineError, match="tokens outside its vocabulary of 50"):
        model.forward([Feed(slot, 2, [50], 1)])
    for size in (0, 51):
        with pytest.raises(EngineError, match=f"has 50 tokens; logits of {size} cannot be given"):
            model.limit_vocab(size)


def test_sixteen_bits_give_logits_of_thirty_two():
    model = tiny_model(dtype=torch.bfloat16)
    logits = model.forward([Feed(model.open(), 0, [1, 2, 3], 1)])[0]
    assert logits.dtype == torch.float32
    assert model.cache.layers[0].keys.dtype == torch.bfloat16


def test_what_a_model_says_of_itself():
    model = tiny_model(context=40, slots=3, name="small")
    network = tiny_network()
    assert (model.name, model.vocab, model.context, model.slots) == ("small", 64, 40, 3)
    assert model.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert model.cache.bytes() == 2 * 2 * 3 * 2 * 41 * 8 * 8  # layers · (keys, values) · slots · heads · …
    assert model.cache.layers[0].get_max_length() == 40


@pytest.mark.parametrize("settings_", [{"slots": 0}, {"chunk": 0}])
def test_no_rows_and_no_chunks_are_refused(settings_):
    with pytest.raises(EngineError, match="slots and chunk must be at least 1"):
        tiny_model(**settings_)


@pytest.mark.parametrize("context", [0, 129])
def test_a_context_that_the_model_was_not_made_for_is_refused(context):
    with pytest.raises(EngineError, match=rf"up to 128 positions here; context {context} is not within that"):
        LanguageModel(tiny_network(), name="small", context=context)


def test_a_context_that_nobody_says_is_asked_for():
    silent: Any = SimpleNamespace()
    with pytest.raises(EngineError, match="does not say how many positions it has"):
        context_of(silent, None, "small")
    assert context_of(silent, 9, "small") == 9


def test_layers_that_look_back_over_a_window_bound_the_context():
    """Of all that the model was made for only the window is safe to use; without windowed layers it says nothing."""
    windowed = tiny_network("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(EngineError, match="up to 8 positions here; context 9 is not within that"):
        LanguageModel(windowed, name="small", context=9)
    model = LanguageModel(windowed, name="small")
    assert model.context == 8
    expected = own_logits(tiny_network("qwen2"), list(range(8)))[-1:]
    torch.testing.assert_close(model.forward([Feed(model.open(), 0, list(range(8)), 1)])[0], expected)
    assert LanguageModel(tiny_network("qwen2", sliding_window=8), name="small").context == 128
    unlisted: Any = SimpleNamespace(max_position_embeddings=64, sliding_window=16)
    assert context_of(unlisted, None, "small") == 16


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma"])
def test_families_that_nobody_lists_are_tried_against_themselves(family):
    network = other_network(family)
    own = models.own_logits(network)
    model = LanguageModel(network, name=family, slots=1)
    require_same(model, own)
    assert model.open() == 0
    model.close(0)
    with pytest.raises(
        EngineError, match=rf"'{family}' \({family}\) cannot be run here: read through a cache it gives"
    ):
        require_same(model, own + 0.1)


def test_families_that_cannot_use_the_cache_are_refused_with_their_reason():
    with pytest.raises(EngineError, match=r"'b' \(bloom\) .* its code has an attention of its own"):
        LanguageModel(other_network("bloom"), name="b", context=16)
    capped = other_network("gemma2")
    own = models.own_logits(capped)
    with pytest.raises(EngineError, match="Gemma2Attention asks for softcap"):
        require_same(LanguageModel(capped, name="g"), own)
    network = tiny_network()
    own = models.own_logits(network)
    model = LanguageModel(network, name="odd")
    network.model.layers[1].mlp = torch.nn.Linear(7, 7)
    with pytest.raises(EngineError, match=r"'odd' \(llama\) cannot be run here: its code cannot use the cache: "):
        require_same(model, own)


def test_running_out_of_memory_in_the_trial_is_not_blamed_on_the_family(monkeypatch):
    model = tiny_model()

    def full(*_args: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model, "_run", full)
    with pytest.raises(torch.OutOfMemoryError):
        require_same(model, torch.zeros(8, 64))


def test_models_with_another_kind_of_past_are_refused():
    network = tiny_network("qwen3")
    network.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(EngineError, match=r"'odd' \(qwen3\) cannot be run here: linear_attention has a past"):
        LanguageModel(network, name="odd")


def test_attention_of_other_kinds_is_refused():
    module, states = torch.nn.Identity(), torch.zeros(1, 1, 1, 8)
    layout = Packed([Span(0, 0, 1, 0, 1)])
    for mask, extra, said in (
        (torch.zeros(1), {}, "a mask of its own"),
        (None, {"softcap": 30.0}, "softcap"),
        (None, {"s_aux": states}, "s_aux"),
    ):
        with pytest.raises(EngineError, match=f"Identity asks for {said}"):
            attention.attend(module, states, states, states, mask, layout=layout, **extra)
    with pytest.raises(
        EngineError, match="looks back 8 positions only, and 9 are in use: set the stage's context to 8"
    ):
        attention.attend(module, states, states, states, None, layout=Packed([Span(0, 0, 9, 0, 1)]), sliding_window=8)
    with pytest.raises(EngineError, match="does not pass on the arguments of its attention"):
        attention.attend(module, states, states, states, None)


def test_the_cache_knows_its_shapes_and_its_place():
    cache = KeyValueCache(layers=1, slots=1, heads=2, capacity=4, width=8, dtype=torch.float32, device=CPU)
    with pytest.raises(EngineError, match=r"outside LanguageModel\.forward"):
        cache.update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8), 0)
    with pytest.raises(EngineError, match=r"past Cache\.update"):
        cache.layers[0].update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8))
    cache.layout = Packed([Span(0, 0, 1, 0, 1)])
    with pytest.raises(EngineError, match=r"layer 0 makes keys of \(3, 8\) and values of \(2, 8\)"):
        cache.update(torch.zeros(1, 3, 1, 8), torch.zeros(1, 2, 1, 8), 0)
    assert cache.get_mask_sizes(3, 0) == (3, 0)
    assert cache.get_seq_length() == 0


def test_attention_is_the_textbooks():
    """Against softmax(q·kᵀ/√d)·v written out, grouped heads included, in both layouts."""
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(1, 4, 3, 8, generator=generator, dtype=torch.float64)
    keys, values = (torch.randn(1, 2, 9, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = torch.zeros(3, 4, 8, dtype=torch.float64)
    for column in range(3):
        for head in range(4):
            seen = keys[0, head // 2, : 4 + column + 1], values[0, head // 2, : 4 + column + 1]
            expected[column, head] = torch.softmax(seen[0] @ query[0, head, column] / 8**0.5, 0) @ seen[1]
    positions = torch.tensor([[4, 5, 6]])
    layouts = (
        Packed([Span(0, 4, 7, 0, 3)]),
        Masked(torch.tensor([0]), positions, positions, reach=8, group=2, dtype=torch.float64),
    )
    for layout in layouts:
        found = layout.attend(query, keys, values, 8**-0.5)[0]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
