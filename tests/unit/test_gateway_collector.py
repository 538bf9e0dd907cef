"""What is set apart for serving is what is alive, and only for as long as the gateway serves."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from stepladder.gateway.collector import THRESHOLDS, few_looks, settle, settle_again


class Ring:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    assert gc.get_threshold() == before
    assert not gc.get_freeze_count()


def dropped() -> weakref.ref[Ring]:
    return weakref.ref(Ring())


def test_what_is_alive_is_set_apart_and_garbage_is_not_kept() -> None:
    gc.disable()
    try:
        with few_looks():
            before = dropped()
            settle()
            assert before() is None
            assert gc.get_freeze_count() > 1000
            assert gc.get_threshold() == THRESHOLDS
    finally:
        gc.enable()


def test_what_was_set_apart_is_collected_once_it_is_replaced() -> None:
    with few_looks():
        ring = Ring()
        told = weakref.ref(ring)
        settle()
        del ring
        gc.collect()
        assert told() is not None
        settle_again()
        assert told() is None


def test_nothing_is_set_apart_again_where_nothing_was() -> None:
    settle_again()
    assert not gc.get_freeze_count()


def test_it_ends_with_an_error_too() -> None:
    def fail() -> None:
        with few_looks():
            settle()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
