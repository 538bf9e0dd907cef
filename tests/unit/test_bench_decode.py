"""``stepladder bench decode``: what it counts, what it forecasts, and that it runs."""

from __future__ import annotations

import json
import random
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepladder import cli
from stepladder.decoding.bench.arms import Arm, Bench, Counts, LookedUp, Planned, Way, own, stock, with_drafts
from stepladder.decoding.bench.compare import against, interval
from stepladder.decoding.bench.families import CONTEXT, Family, dialled, kept_share, random_family
from stepladder.decoding.bench.forecast import best_lengths, seconds_of_round, speed_of, tokens_of
from stepladder.decoding.bench.shapes import random_network
from stepladder.decoding.laws import Sampling
from stepladder.decoding.rounds import Shape, pieces
from stepladder.decoding.times import StepTimes
from stepladder.errors import UsageError

PROMPTS = [[random.Random(seed).randrange(96) for _ in range(12)] for seed in range(4)]


@cache
def family() -> Family:
    torch.set_num_threads(1)
    return random_family("toy", (1, 3), device="cpu", sharpness=4.0, rows=2)


def times_of(*costs: float) -> StepTimes:
    times = StepTimes()
    for stage, cost in enumerate(costs):
        for width in range(1, 18):
            times.observe(stage, width, 1, cost * (1 + 0.01 * width))
    return times


def bench(greedy: bool = True) -> Bench:
    return Bench(family(), Sampling(0.0 if greedy else 1.0), times_of(0.1, 0.3, 1.0))


# ── forecasts ────────────────────────────────────────────────────────────────


@given(st.floats(0.05, 0.99), st.floats(0.05, 0.99), st.integers(1, 3), st.integers(2, 8))
def test_tokens_of_a_round_are_those_of_enumerated_verdicts(lower, upper, each, most):
    """Every outcome of every verdict, weighed."""
    rates = {(0, 1): [lower], (1, 2): [upper], (0, 2): [upper]}
    expected = 0.0
    for kept in product(*[range(length + 1) for length in pieces((each, most))]):
        chance = 1.0
        for count, length in zip(kept, pieces((each, most)), strict=True):
            chance *= lower**count * (1 - lower if count < length else 1.0)
        drafts = sum(kept) + len(kept)
        expected += chance * sum(upper**place for place in range(drafts + 1))
    assert tokens_of(Shape(3, (each, most)), (0, 1, 2), rates) == pytest.approx(expected)
    pair = tokens_of(Shape(2, (most,)), (0, 2), rates)
    assert pair == pytest.approx(sum(upper**place for place in range(most + 1)))
    assert tokens_of(Shape(2), (0, 2), rates) == 1.0


def test_seconds_of_a_round_are_those_of_its_passes():
    times = times_of(0.1, 0.3, 1.0)
    assert seconds_of_round(Shape(2, (4,)), (0, 2), times) == pytest.approx(4 * 0.101 + 1.05, rel=0.01)
    three = seconds_of_round(Shape(3, (2, 5)), (0, 1, 2), times)
    assert three == pytest.approx(3 * 0.101 + 0.309 + 0.306 + 1.06, rel=0.01)


def test_the_best_lengths_are_the_best_of_all():
    rates, times = {(0, 1): [0.8], (1, 2): [0.9], (0, 2): [0.7]}, times_of(0.02, 0.3, 1.0)
    for chain, all_of in (((0, 2), [(n,) for n in range(1, 9)]), ((0, 1, 2), list(product(range(1, 9), range(2, 9))))):
        best, speed = best_lengths(chain, rates, times, 8)
        assert speed == max(speed_of(chain, each, rates, times) for each in all_of)
        assert speed == speed_of(chain, best, rates, times)


# ── figures ──────────────────────────────────────────────────────────────────


def test_acceptance_is_counted_by_position_up_to_the_first_refusal():
    counts = Counts()
    for drafted, accepted in ((3, 0), (3, 1), (3, 3), (0, 0)):
        counts.verified((0, 1), drafted, accepted)
    assert counts.judged == {(0, 1): [3, 2, 1]}
    assert counts.kept == {(0, 1): [2, 1, 1]}


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=1, max_size=9))
def test_an_interval_holds_its_ratio(pairs):
    ratio, low, high = interval(pairs)
    assert low <= ratio <= high
    assert ratio == pytest.approx(sum(a for a, _ in pairs) / sum(b for _, b in pairs), abs=1e-4)


def test_speed_is_told_per_token():
    slow, fast = (Arm(name, lambda *_: []) for name in ("slow", "fast"))
    slow.seconds, slow.texts = [4.0, 4.0], [[1] * 4, [1] * 4]
    fast.seconds, fast.texts = [1.0, 1.0], [[1] * 2, [1] * 2]
    assert against(fast, slow) == [2.0, 2.0, 2.0]


# ── arms ─────────────────────────────────────────────────────────────────────


def wrote(made: Any, most: int = 20) -> list[list[int]]:
    return [made(prompt, most, Counts()) for prompt in PROMPTS]


def test_own_arms_write_what_plain_decoding_writes():
    plain = wrote(own(bench(), Way((2,)), 0))
    assert [len(text) for text in plain] == [20] * 4
    ways = [Way((0, 2), (3,)), Way((1, 2), (4,)), Way((0, 1, 2), (2, 5)), LookedUp((2,)), Planned(bench(), 4)]
    assert [wrote(own(bench(), way, 1)) for way in ways] == [plain] * len(ways)
    assert all(model._lengths == [None, None] for model in family().models)


def test_an_answer_ends_behind_an_end_and_in_no_other_place():
    plain = wrote(own(bench(), Way((2,)), 0))
    ends = frozenset({plain[0][7], plain[1][3]})
    made = Bench(Family(family().models, (), (), ends), Sampling(0.0), times_of(0.1, 0.3, 1.0))
    for text, whole in zip(wrote(own(made, Way((0, 2), (4,)), 0)), plain, strict=True):
        end = next((place for place, token in enumerate(whole) if token in ends), 19)
        assert text == whole[: end + 1]


def test_transformers_answers_are_counted_by_passes():
    family().dials[1].turn(0.0)
    eager, helped = Counts(), Counts()
    text = stock(family(), Sampling(0.0), disable_compile=True)(PROMPTS[0], 20, eager)
    assert len(text) == 20
    assert eager.passes == {"toy/1 layers": 0, "toy/3 layers": 0, "toy": 20}
    drafted = with_drafts(family(), 4, stock(family(), Sampling(0.0), assistant_model=family().stock[-2]))
    assert drafted(PROMPTS[0], 20, helped) == text
    assert helped.passes["toy"] == 4, "five tokens a pass where all of four drafts are kept"
    for dial in family().dials:
        dial.turn(1.0)


def test_dials_set_acceptance():
    for alpha in (1.0, 0.7):
        dialled(family(), 1, alpha, Sampling(0.0), PROMPTS)
        assert kept_share(family(), 1, Sampling(0.0), PROMPTS) == pytest.approx(alpha, abs=0.1)
    for dial in family().dials:
        dial.turn(1.0)


def test_what_cannot_be_a_family_is_refused():
    with pytest.raises(UsageError, match=r"layers: should rise from 1 to less than the 6 of the target, not \[3, 3\]"):
        random_family("toy", (3, 3), device="cpu", sharpness=1.0, rows=1)
    with pytest.raises(UsageError, match="no shape '9B'"):
        random_network("9B", device="cpu")


# ── the command ──────────────────────────────────────────────────────────────


def test_the_command_writes_every_arm_and_its_figures(tmp_path, capsys):
    out = tmp_path / "figures.json"
    words = ["bench", "decode", "--shape", "toy", "--layers", "1,3", "--alphas", "1/1", "--device", "cpu"]
    words += ["--prompts", "2", "--tokens", "8", "--prompt-tokens", "8", "--lengths", "2,3", "--assisted", "3"]
    words += ["--out", str(out)]
    assert cli.main(words) == 0
    report = json.loads(out.read_bytes())
    found = report["compared"]["T = 0, α = 1/1"]
    names = ["own plain", *(f"own γ={n} of toy/{m} layers" for m in (1, 3) for n in (2, 3))]
    assert list(found["arms"])[:5] == names
    assert {"own n-grams", "own adaptive", "hf eager", "hf assisted", "hf assisted γ=3"} <= set(found["arms"])
    assert found["failed"] == {}
    for name, arm in found["arms"].items():
        if name.startswith("own"):
            assert arm["same_text_as_plain"] == 1.0
            assert arm["waits_per_round"] >= 1
    assert set(report["pass_ms"]) >= {"toy 1x1", "toy/1 layers 1x1"}
    assert found["arms"]["own plain"]["passes_per_token"] == {"toy": 1.0}
    shown = capsys.readouterr().out
    assert all(name in shown for name in found["arms"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--alphas", "0.9", "--layers", "1,3"], "should have a number from 0 to 1 for each of 2 drafters"),
        (["--alphas", "many"], "--alphas many: should be numbers"),
        (["--lengths", "0"], "--lengths 0: should be whole numbers from 1 up"),
        (["--tokens", "1"], "--tokens at least 2"),
        (["--prompt-tokens", "1000"], f"together at most {CONTEXT - 32}"),
        (["--shape", "9B"], "no shape '9B'"),
    ],
)
def test_what_is_asked_wrongly_is_told(words, said, capsys):
    assert cli.main(["bench", "decode", "--shape", "toy", "--layers", "1", "--device", "cpu", *words]) == 2
    assert said in capsys.readouterr().err


def test_embedded_models_are_named(capsys):
    assert cli.main(["bench", "decode", "--device", "cpu", "--stages", "small,huge"]) == 2
    assert "--stages small,huge: should name some of small, medium, large" in capsys.readouterr().err
