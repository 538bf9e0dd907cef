"""What every predictor must keep. Authors of plug-ins run this in their own tests."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from stepladder.contracts import Featurizer, Predictor
from stepladder.features.paper import PaperFeatures
from stepladder.testing.fakes import make_attempt
from stepladder.testing.require import require
from stepladder.types import Attempt, Estimates, Features, Request

TEXTS: tuple[str, ...] = (
    "What is 2+2?",
    "Explain photosynthesis",
    "Implement B+ tree",
    "",
    " \n\t ",
    "\x00\x00",
    "🪜🧗‍♀️" * 40,
    "なぜ空は青いのですか？",
    "\udc80 half of a surrogate pair",
    "word " * 5000,
    "x" * 1_000_000,
)
"""Questions, and texts that nobody should ask but somebody will."""


def check_predictor(
    predictor: Predictor,
    stages: Sequence[str],
    texts: Sequence[str] = TEXTS,
    featurizer: Featurizer | None = None,
) -> None:
    """Raise AssertionError, with a sentence, where ``predictor`` breaks the contract.

    It must have a version, estimate every stage of ``stages`` and no other, with means in [0, 1] and finite standard
    deviations from 0 up, for any text and any history; the same features must always give the same estimates, in
    whatever order they come and whatever it keeps in their memo, and must not be changed.
    """
    require(isinstance(predictor.version, str), "version must be a string")
    require(bool(predictor.version), "version must not be empty: it is written into every trace")
    given = _features(texts, stages, featurizer or PaperFeatures())
    before = [(dict(features.values), features.text, features.attempts) for features in given]
    first = [predictor.predict(features) for features in given]
    for features, estimates in zip(given, first, strict=True):
        _check_estimates(estimates, stages, features)
    _check_same(first, [predictor.predict(_anew(features)) for features in given], given, "asked a second time")
    backwards = [predictor.predict(_anew(features)) for features in reversed(given)]
    _check_same(first, backwards[::-1], given, "asked in another order")
    memos: dict[str, dict[Any, Any]] = {}
    later = [predictor.predict(_anew(features, memos.setdefault(features.text, {}))) for features in given]
    _check_same(first, later, given, "asked with what it keeps of a request's text from decision to decision")
    after = [(dict(features.values), features.text, features.attempts) for features in given]
    require(before == after, "predict() changed the features that it was given")


def _features(texts: Sequence[str], stages: Sequence[str], featurizer: Featurizer) -> list[Features]:
    histories: list[tuple[Attempt, ...]] = [()]
    if stages:
        failed, answered = make_attempt(stages[0], fault="timeout"), make_attempt(stages[-1])
        histories += [(failed,), (answered,), (failed, answered)]
    requests = [Request("check", prompt=text) for text in texts]
    found = [featurizer.features(request, history) for request in requests for history in histories]
    return [Features(dict(features.values), features.text, features.attempts) for features in found]


def _anew(features: Features, memo: dict[Any, Any] | None = None) -> Features:
    """The same of another request, whose text nobody has read, or of one with this memo."""
    return Features(features.values, features.text, features.attempts, {} if memo is None else memo)


def _check_estimates(estimates: Estimates, stages: Sequence[str], features: Features) -> None:
    asked = _short(features.text)
    require(set(estimates.stages) == set(stages), f"estimates for {asked} are of {sorted(estimates.stages)}")
    for stage, estimate in estimates.stages.items():
        require(0.0 <= estimate.mean <= 1.0, f"mean {estimate.mean} of {stage} for {asked} is not in [0, 1]")
        require(isfinite(estimate.sd), f"sd of {stage} for {asked} is {estimate.sd}")
        require(estimate.sd >= 0.0, f"sd {estimate.sd} of {stage} for {asked} is below 0")


def _check_same(first: list[Estimates], again: list[Estimates], given: list[Features], how: str) -> None:
    for features, one, two in zip(given, first, again, strict=True):
        require(_plain(one) == _plain(two), f"predict() answered otherwise for {_short(features.text)} when {how}")


def _plain(estimates: Estimates) -> tuple[object, ...]:
    return dict(estimates.stages), estimates.calibrated, dict(estimates.notes)


def _short(text: str) -> str:
    return ascii(text if len(text) <= 40 else f"{text[:40]}…")
