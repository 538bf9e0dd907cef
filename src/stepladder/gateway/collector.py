"""Python's collector of cycles while a gateway serves.

It looks through all that is alive again and again, and most of that are the modules, models and settings that were
loaded before the first request: 80 ms each time with a predictor of trees, while nobody is answered. They are set apart
once all is loaded. What one request makes is freed as it ends, without the collector, so it may look less often.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = (10_000, 20, 10)
"""New objects between two looks at the youngest; such looks between two at the next generation, and so on.

With Python's own 700 the objects of a few requests under way were enough for a look."""


@contextmanager
def few_looks() -> Iterator[None]:
    """What ``settle`` sets apart in this block is looked at again after it, as often as before."""
    usual = gc.get_threshold()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*usual)


def settle() -> None:
    """Set apart what is alive now, after one look at all of it, and look less often from here on."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


def settle_again() -> None:
    """The same after much was replaced, where it was done before."""
    if gc.get_freeze_count():
        settle()
