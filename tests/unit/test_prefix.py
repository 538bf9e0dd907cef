"""Beginnings of answers: how they are drawn, what is learned from them, and that nothing beyond them is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outcome_tables import make_row
from stack_tables import both_profiles, fitted, small
from stepladder.contracts import LOGPROBS
from stepladder.errors import ArtifactError
from stepladder.evaluate import metrics
from stepladder.evaluate.aligned import Aligned, align
from stepladder.predictors.artifact import Artifact
from stepladder.predictors.gbdt import GBDTPredictor
from stepladder.predictors.history import BANDS, cut_to, is_partial
from stepladder.predictors.stack import FAST, StackPredictor
from stepladder.train import boost, choose
from stepladder.train.prefix import Cutter, cutter_of
from stepladder.train.stack import FEWEST, Stacked, _trust
from stepladder.types import Attempt, Fault, Features, Usage

STAGES = ("a", "b")
FROM = 6
"""Tokens of 4 characters after which an answer of ``table`` shows whether it is right."""

KINDS = ("gbdt", "fast", "full")


def text_of(right: bool, tokens: int) -> str:
    """Blank talk, then what tells, then blank talk again."""
    told = "1234" if right else "okay"
    return "".join(told if FROM <= place < FROM + 4 else "hmm " for place in range(tokens))


def table(queries: int = 220, seed: int = 0) -> Aligned:
    """Stage a is right half of the time, by chance; its answers say so from their FROM-th token on, in digits."""
    chance, rows = np.random.default_rng(seed), []
    for number in range(queries):
        prompt = f"Tell me of fact {int(chance.integers(10**6))}"
        for name, share in (("a", 0.5), ("b", 0.95)):
            right, tokens = bool(chance.random() < share), int(chance.integers(12, 40))
            told = tuple(-float(x) for x in chance.random(tokens).round(3))
            rows.append(
                make_row(
                    f"{seed}-{number}",
                    name,
                    float(right),
                    prompt=prompt,
                    response=text_of(right, tokens),
                    output_tokens=tokens,
                    token_logprobs=told,
                )
            )
    return align(rows, STAGES, pricing=(1.0, 3.0))


@cache
def stacked() -> Stacked:
    return fitted(table(), trees=12)


@cache
def artifacts() -> dict[str, Artifact]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boost, "TREES", 20)
        both = choose.with_fast(stacked().artifact(STAGES), table(), 0)
    own = {name.removeprefix(FAST): array for name, array in both.arrays.items() if name.startswith(FAST)}
    fast = replace(both, params={**both.params, "profile": "fast"})
    return {"gbdt": Artifact("gbdt", STAGES, params=both.params["fast"], arrays=own), "fast": fast, "full": both}


def made(artifact: Artifact) -> GBDTPredictor | StackPredictor:
    kind: Callable[..., GBDTPredictor | StackPredictor] = GBDTPredictor if artifact.kind == "gbdt" else StackPredictor
    return kind(artifact.stages, artifact.params, artifact.arrays)


@cache
def served(kind: str) -> GBDTPredictor | StackPredictor:
    return made(artifacts()[kind])


def said(kind: str, *attempts: Attempt) -> float:
    """Stage a's mean after these attempts."""
    return served(kind).predict(Features({}, "Tell me of fact 7", attempts))["a"].mean


def whole(right: bool, tokens: int = 30, stage: str = "a") -> Attempt:
    return Attempt(stage, text_of(right, tokens), Usage(9, tokens), finish_reason="stop")


# ── what is learned ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_a_beginning_tells_as_soon_as_it_shows(kind):
    early = [said(kind, cut_to(whole(right), FROM - 2, 4.0)) for right in (True, False)]
    late = [said(kind, cut_to(whole(right), FROM + 6, 4.0)) for right in (True, False)]
    assert early[0] == early[1]
    assert 0.25 < early[0] < 0.75
    assert late[0] > 0.75
    assert late[1] < 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_new_answers_too(kind):
    new = table(120, seed=5)
    found = {}
    for tokens in (FROM - 2, FROM + 4):
        cut = [cut_to(line[0].attempt("a"), tokens, 4.0) for line in new.rows]
        means = [
            served(kind).predict(Features({}, q.text, (each,)))["a"].mean
            for q, each in zip(new.requests, cut, strict=True)
        ]
        found[tokens] = metrics.r2(new.quality[:, 0], np.array(means))
    assert found[FROM - 2] < 0.15
    assert found[FROM + 4] > 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_other_stages_whole_answers_stand_beside_a_beginning(kind):
    part = cut_to(whole(True), FROM + 6, 4.0)
    assert said(kind, whole(False, stage="b"), part) > 0.7
    assert said(kind, part, whole(False, stage="b")) == said(kind, whole(False, stage="b"), part)


@pytest.mark.parametrize("kind", KINDS)
def test_a_beginning_is_past_once_its_answer_is_whole(kind):
    part, end = cut_to(whole(True), FROM + 6, 4.0), whole(True)
    assert said(kind, part, end) == said(kind, end)
    assert said(kind, end, replace(part, stage="z")) == said(kind, end)
    assert said(kind, end, replace(part, fault=Fault("cancelled", "given up"))) != said(kind, part)


def test_several_choices_share_the_tokens_that_were_counted_for_all():
    alone = whole(True)
    raw = {"choices": [{"index": n, "text": alone.text} for n in range(3)]}
    three = replace(alone, usage=Usage(9, 90), raw=raw)
    assert cut_to(three, 10, 4.0) == cut_to(alone, 10, 4.0)
    assert cutter_of([{0: three}] * 80, 1, 60) == cutter_of([{0: alone}] * 80, 1, 60) is not None


# ── what is not known ────────────────────────────────────────────────────────


@given(st.data(), st.sampled_from(KINDS), st.integers(1, 12), st.booleans())
def test_nothing_beyond_the_beginning_is_known(data, kind, tokens, pieces):
    """Two answers that are equal in their first tokens have the same estimate, whatever follows."""
    words = st.sampled_from(("hmm ", "1234", "okay", "\n42\n", "I'm sorry", "```", ""))
    shared = data.draw(st.lists(words, min_size=tokens, max_size=tokens))

    def answer() -> Attempt:
        parts = [*shared, *data.draw(st.lists(words, min_size=1, max_size=20))]
        told = [{"token": part} for part in parts]
        text = "".join(parts) if pieces else "".join(shared).ljust(ceil(4 * tokens)) + "".join(parts[tokens:])
        raw = {"choices": [{"logprobs": {"content": told}}]} if pieces else None
        logprobs = tuple(-float(len(part)) for part in parts)
        usage, seconds = Usage(9, len(parts)), data.draw(st.floats(0, 9))
        return Attempt("a", text, usage, seconds, finish_reason="length", logprobs=logprobs, cost=seconds, raw=raw)

    one, other = (cut_to(answer(), tokens, 4.0) for _ in range(2))
    assert is_partial(one)
    assert said(kind, one) == said(kind, other)


@pytest.mark.parametrize("kind", KINDS)
def test_without_such_trees_a_beginning_is_not_looked_at(kind):
    """Artifacts of old load as they did, and their estimates of whole answers are what they were."""
    artifact = artifacts()[kind]
    own = {**artifact.params, "fast": {k: v for k, v in artifact.params.get("fast", {}).items() if "prefix" not in k}}
    params = {name: value for name, value in own.items() if not name.startswith("prefix_")}
    arrays = {name: array for name, array in artifact.arrays.items() if "prefix_" not in name}
    old, now = made(replace(artifact, params=params, arrays=arrays)), served(kind)

    def both(*attempts: Attempt) -> list[list[float]]:
        found = [each.predict(Features({}, "Tell me of fact 7", attempts)) for each in (old, now)]
        return [[every.mean for every in each.stages.values()] for each in found]

    before, part = both(), both(cut_to(whole(False), 12, 4.0))
    assert before[0] == before[1]
    assert part[0] == before[0]
    assert part[1] != before[1]
    after = both(whole(True), whole(True, stage="b"))
    assert after[0] == after[1] != before[0]
    beside = both(whole(True), cut_to(whole(False, stage="b"), 12, 4.0))
    assert beside[0] == both(whole(True))[0]


@pytest.mark.parametrize("kind", ["gbdt", "full"])
def test_a_beginning_asks_for_log_probabilities(kind):
    assert served(kind).reads == {LOGPROBS}


def test_crossed_estimates_read_beginnings_as_serving_does():
    crossed, data = stacked().crossed, table()
    part = cut_to(data.rows[3][0].attempt("a"), FROM + 4, 4.0)
    found = crossed.estimates(3, (part,))
    assert found["a"].mean != crossed.means(3)[0]
    assert found["a"].told == 0
    assert (found["a"].mean > 0.5) == (data.quality[3, 0] == 1)
    assert len(stacked().params["prefix_trust"]) == BANDS


# ── drawing ──────────────────────────────────────────────────────────────────


def lines(data: Aligned) -> list[dict[int, Attempt]]:
    return [{n: row.attempt(STAGES[n]) for n, row in enumerate(line)} for line in data.rows]


def test_how_a_table_is_cut():
    cutter = cutter_of(lines(table()), 2, 60)
    assert cutter is not None
    assert cutter.chars == (4.0, 4.0)
    assert 30 < cutter.longest < 40


def test_a_stage_that_tells_no_text_takes_the_usual_length():
    told = [{0: line[0]} for line in lines(table(80))]
    assert cutter_of(told, 2, 60).chars == (4.0, 4.0)


@pytest.mark.parametrize(
    "told",
    [
        [],
        lines(table(20)),
        [{0: Attempt("a", "B", Usage(9, 200))}] * 200,
        [{0: Attempt("a", "B", Usage(9, 1))}] * 200,
        [{0: Attempt("a", "no tokens counted")}] * 200,
    ],
    ids=["none", "few", "final answers", "one token", "uncounted"],
)
def test_tables_that_cannot_be_cut(told):
    assert cutter_of(told, 2, 60) is None


@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_of_the_drawn_answers_one_has_not_ended(length, seed):
    cutter, rng = Cutter((4.0, 4.0), 40), np.random.default_rng(seed)
    answers = {0: whole(True, length), 1: whole(True, 50, "b")}
    found = cutter.draw(answers, (0, 1), rng)
    if found is not None:
        assert set(found) == {0, 1}
        [part] = [stage for stage, each in found.items() if is_partial(each)]
        assert found[part].text == answers[part].text[: 4 * found[part].usage.output_tokens]
        assert found[1 - part] is answers[1 - part]


def test_beginnings_are_drawn_without_a_look_at_how_long_answers_get():
    """Of two answers that both run for long, the longer is not cut later."""
    cutter, rng = Cutter((4.0,), 20), np.random.default_rng(0)
    cuts = {length: [] for length in (25, 400)}
    for length, drawn in cuts.items():
        told = [{0: whole(True, length)}] * 3000
        pairs = cutter.beginnings(told, np.arange(3000), [(0,)] * 3000, rng)
        drawn += [found[0].usage.output_tokens for _, found in pairs]
    assert all(len(drawn) == 9000 for drawn in cuts.values())
    means = {length: np.log(drawn).mean() for length, drawn in cuts.items()}
    assert abs(means[25] - means[400]) < 0.06


def test_what_was_not_told_is_not_drawn():
    cutter, rng = Cutter((4.0, 4.0), 40), np.random.default_rng(0)
    assert cutter.draw({}, (0, 1), rng) is None
    assert all(cutter.draw({0: Attempt("a", "x")}, (0,), rng) is None for _ in range(20))


# ── what is refused ──────────────────────────────────────────────────────────


def test_a_table_of_final_answers_has_no_heads_for_beginnings():
    assert not any("prefix" in name for name in (*both_profiles().arrays, *both_profiles().params))
    assert small().rows[0][0].response is None


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"prefix_signals": ["smell"]}, "'smell'"),
        ({"prefix_chars": [1.0]}, "prefix_chars should be 2 numbers"),
        ({"prefix_chars": [0.0, 1.0]}, "prefix_chars should be 2 numbers from 0.25 to 64"),
        ({"prefix_depth": -1}, "prefix_depth should be"),
    ],
)
@pytest.mark.parametrize("kind", ["gbdt", "full"])
def test_parameters_that_do_not_fit(kind, changed, told):
    artifact = artifacts()[kind]
    with pytest.raises(ArtifactError, match=told):
        made(replace(artifact, params={**artifact.params, **changed}))


@pytest.mark.parametrize("trust", [None, [1.0], [2.0] * BANDS])
def test_trust_that_does_not_fit(trust):
    artifact = artifacts()["full"]
    with pytest.raises(ArtifactError, match="prefix_trust should be"):
        made(replace(artifact, params={**artifact.params, "prefix_trust": trust}))


@pytest.mark.parametrize("kind", ["gbdt", "full"])
def test_missing_arrays_are_named(kind):
    artifact = artifacts()[kind]
    arrays = {name: array for name, array in artifact.arrays.items() if name != "prefix_value"}
    with pytest.raises(ArtifactError, match="prefix_value"):
        made(replace(artifact, arrays=arrays))


# ── how far beginnings are followed ──────────────────────────────────────────


def trusted(told: np.ndarray, without: np.ndarray, quality: np.ndarray, *, queries: int | None = None) -> float:
    """Of examples that all have one token, all of different queries unless said otherwise."""
    count = len(quality)
    bands, places = np.zeros(count, dtype=np.intp), np.arange(count) % (queries or count)
    found = _trust(bands, places, *(each.reshape(-1, 1) for each in (told, without, quality)))
    assert found == (found[0],) * BANDS  # bands without examples follow the one before
    return found[0]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_beginnings_are_followed_as_far_as_they_are_right(seed):
    chance = np.random.default_rng(seed).random((2, 400))
    truth = np.where(chance[0] < 0.5, 0.9, 0.1)
    quality, flat = (chance[1] < truth).astype(float), np.full(400, 0.5)
    assert trusted(truth, flat, quality) > 0.5
    assert trusted(flat, truth, quality) <= 0.3  # by chance a blend may look a little better
    assert trusted(np.full(400, 0.5), flat, quality) == 0.0
    assert trusted(1 - truth, flat, quality) == 0.0


def test_few_queries_are_not_believed_however_often_they_are_cut():
    truth = np.tile([0.9, 0.1], 600)
    quality, flat = np.tile([1.0, 0.0], 600), np.full(1200, 0.5)
    assert trusted(truth, flat, quality) == 1.0
    assert trusted(truth, flat, quality, queries=FEWEST - 2) == 0.0
