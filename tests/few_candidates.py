"""Training that tries little: for tests of what comes after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from stepladder.train import choose

KEPT = ("mlp", "logistic, C = 1")


@contextmanager
def few_candidates() -> Iterator[None]:
    """Of all predictors that ``auto`` tries, the two in KEPT."""
    real = choose.candidates
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "candidates", lambda *args, **more: [c for c in real(*args, **more) if c.name in KEPT])
        yield
