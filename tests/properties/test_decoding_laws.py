"""The identity behind rejection sampling, and what the laws must be, for any laws: sparse, disjoint, equal, points."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepladder.decoding.deferral import RULE_NAMES, Deferral, slack
from stepladder.decoding.laws import Dense, Law, Point, Sampling, excess, peak, total_variation
from stepladder.decoding.oracle import SeededOracle
from stepladder.errors import UsageError

VOCABULARY = 5
weights = st.lists(st.sampled_from([0.0, 0.0, 1e-12, 0.1, 0.5, 1.0, 3.0]), min_size=VOCABULARY, max_size=VOCABULARY)
dense = weights.filter(lambda w: sum(w) > 1e-9).map(lambda w: Dense(torch.tensor(w, dtype=torch.float64) / sum(w)))
points = st.integers(0, VOCABULARY - 1).map(Point)
laws = st.one_of(dense, points)


def told(law: Law) -> torch.Tensor:
    return torch.tensor([law.prob(token) for token in range(VOCABULARY)], dtype=torch.float64)


@given(laws, laws)
def test_residual_identity(p: Law, q: Law) -> None:
    """q·min(1, p/q) + (1 − Σ min(p, q)) · norm((p − q)⁺) = p."""
    kept = torch.minimum(told(p), told(q))
    left = excess(p, q)
    replaced = told(left) / left.mass * (1 - kept.sum()) if left.mass > 0 else torch.zeros(VOCABULARY)
    assert torch.allclose(kept + replaced, told(p), atol=1e-12)


@given(laws, laws)
def test_mass_left_is_mass_refused(p: Law, q: Law) -> None:
    assert excess(p, q).mass == pytest.approx(1 - float(torch.minimum(told(p), told(q)).sum()), abs=1e-12)
    assert total_variation(p, q) == pytest.approx(total_variation(q, p), abs=1e-12)
    assert total_variation(p, p) == 0


@given(laws, laws, st.floats(0, 1))
def test_a_scaled_excess(p: Law, q: Law, scale: float) -> None:
    assert torch.allclose(told(excess(p, q, scale)), (told(p) * scale - told(q)).clamp_min(0), atol=1e-15)


def test_disjoint_and_equal_laws() -> None:
    p, q = Dense(torch.tensor([0.5, 0.5, 0, 0, 0])), Dense(torch.tensor([0, 0, 0.25, 0.75, 0]))
    assert told(excess(p, q)).tolist() == told(p).tolist()
    assert excess(p, p).mass == 0
    assert excess(Point(1), Point(1)).mass == 0
    assert excess(Point(1), Point(2)) == Point(1)


@given(st.integers(0, 10_000), dense)
def test_no_token_without_mass_is_drawn(seed: int, law: Dense) -> None:
    assert law.prob(SeededOracle(seed).draw(law)) > 0


class Highest:
    """Chance that always comes out as high as it can."""

    @staticmethod
    def random() -> float:
        return 1 - 2**-53


@given(dense)
def test_nor_where_the_draw_is_rounded_up(law: Dense) -> None:
    oracle = SeededOracle(0)
    oracle._random = Highest()  # type: ignore[assignment]
    assert law.prob(oracle.draw(law)) > 0


def test_the_same_seed_draws_the_same() -> None:
    law = Dense(torch.full((50,), 0.02))
    one, other = SeededOracle(7), SeededOracle(7)
    assert [one.draw(law) for _ in range(20)] == [other.draw(law) for _ in range(20)]


logits = st.lists(st.integers(-80, 80), min_size=6, max_size=6, unique=True).map(
    lambda row: torch.tensor([row], dtype=torch.float64) / 10
)


@given(logits, st.floats(0.1, 3), st.integers(1, 6), st.floats(0.05, 1))
def test_cuts_keep_the_likeliest(row: torch.Tensor, temperature: float, top_k: int, top_p: float) -> None:
    (law,) = Sampling(temperature, top_k, top_p).laws(row)
    assert isinstance(law, Dense)
    assert law.mass == pytest.approx(1)
    kept = law.weights > 0
    assert 1 <= int(kept.sum()) <= top_k
    if not bool(kept.all()):
        assert float(row[0][kept].min()) >= float(row[0][~kept].max())
    (cut,) = Sampling(temperature, top_k).laws(row)
    held = float(cut.weights[kept].sum())
    assert held >= top_p - 1e-9
    smallest = float(cut.weights[kept].min())
    assert held - smallest < top_p + 1e-9  # without its least likely token it would hold too little


@given(logits)
def test_greedy_is_the_limit_of_cold(row: torch.Tensor) -> None:
    (cold,) = Sampling(0.0).laws(row)
    assert isinstance(cold, Point)
    assert cold.token == int(row.argmax())
    (almost,) = Sampling(1e-6).laws(row)
    gap = float(row[0].sort().values[-1] - row[0].sort().values[-2])
    if gap > 1e-4:
        assert almost.prob(cold.token) == pytest.approx(1)


@pytest.mark.parametrize(
    ("given_", "key"),
    [((-1.0,), "temperature"), ((float("nan"),), "temperature"), ((1.0, -2), "top_k"), ((1.0, 0, 0.0), "top_p")],
)
def test_sampling_refuses_what_cannot_be(given_: tuple[float, ...], key: str) -> None:
    with pytest.raises(UsageError, match=key):
        Sampling(*given_)  # type: ignore[arg-type]


@given(dense, dense, st.sampled_from(RULE_NAMES), st.floats(0, 1))
def test_deferral_makes_a_law(p: Dense, q: Dense, rule: str, a: float) -> None:
    law = Deferral(rule, a).law(p, q, p, q)  # type: ignore[arg-type]
    assert law.mass == pytest.approx(1)
    if rule != "token":  # which may move a law that the drafter has already
        assert law is p or law is q


@given(dense, dense)
def test_no_slack_keeps_only_what_is_as_likely(p: Dense, q: Dense) -> None:
    kept = Deferral("diff", 0.0).law(p, q, p, q)
    assert (kept is q) == (peak(q) >= peak(p))


@given(dense, dense, st.floats(0, 0.5), st.floats(0, 0.5))
def test_more_slack_keeps_more(p: Dense, q: Dense, a: float, more: float) -> None:
    for rule in ("chow", "diff", "opt"):
        kept = Deferral(rule, a).law(p, q, p, q) is q
        assert not kept or Deferral(rule, a + more).law(p, q, p, q) is q


def test_slack_is_cost_over_lambda() -> None:
    assert slack(6.0, 20.0) == 0.3
    with pytest.raises(UsageError, match="λ"):
        slack(6.0, 0.0)
    with pytest.raises(UsageError, match="valid: chow"):
        Deferral("best", 0.1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="slack"):
        Deferral("opt", -0.1)
