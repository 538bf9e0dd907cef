"""What the experiment asks of training: the chosen candidate again, on other qualities of the same prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from outcome_tables import STAGES, make_aligned
from stepladder.cli.train import predictor_of
from stepladder.evaluate.aligned import Aligned
from stepladder.features.paper import PaperFeatures
from stepladder.reproduce import fits, predicted
from stepladder.train import boost, choose, stack
from stepladder.types import Estimate, Estimates

MAKERS = fits.Makers(predictor_of, lambda name: PaperFeatures())


def sure(data: Aligned, told: list[float | None]) -> Aligned:
    """The rows with the mean log probability that a table tells of each query's answers."""
    lines = (tuple(replace(row, confidence=each) for row in line) for line, each in zip(data.rows, told, strict=True))
    return replace(data, rows=tuple(lines))


def test_the_stand_in_is_learned_from_whole_queries_alone():
    data = make_aligned(20)
    told = sure(data, [None if number % 4 else -0.5 for number in range(20)])
    learned: list[Aligned] = []

    def learn(rows: Aligned) -> list[Estimates]:
        learned.append(rows)
        return [Estimates({name: Estimate(0.5) for name in STAGES})] * 20

    assert predicted.stand_in_predicted(told, told, ["x"] * 20, learn) is not None
    assert len(learned[0]) == 5
    assert learned[0].requests == data.take(np.arange(20) % 4 == 0).requests
    assert np.isfinite(learned[0].quality).all()
    assert (learned[0].quality != data.take(np.arange(20) % 4 == 0).quality).any()


@pytest.mark.parametrize("kind", ["logistic", "stack", "knn", "mean"])
def test_the_chosen_candidate_fits_other_qualities(kind, monkeypatch):
    monkeypatch.setattr(boost, "TREES", 5)
    monkeypatch.setattr(stack, "TREES", 5)
    monkeypatch.setattr(choose, "PENALTIES", (1.0,))
    data = make_aligned(80)
    one = fits.fit("ours", kind, data, MAKERS, quality_loss=0.05, seed=0, tick=lambda told: None)
    assert one.held.shape == one.some.quality.shape
    other = fits.refit(one, replace(data, quality=1 - data.quality), 0)
    assert other.kind == kind
    said = [
        np.mean([each.stages["large"].mean for each in fits.estimates_of(found, MAKERS, data)])
        for found in (one.artifact, other)
    ]
    assert said[0] > 0.7
    assert said[1] < 0.3
