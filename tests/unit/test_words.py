"""Hashed words: what counts as the same text, and the weights that serving gives them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepladder.predictors.words import BUCKETS, READ_CHARS, hashed_words, weighed

TEXTS = st.one_of(st.text(max_size=200), st.sampled_from(["", " \n", "a", "a a a", "\udc80", "x" * 10_000]))


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_buckets_rise_and_amounts_count(text):
    places, amounts = hashed_words(text)
    assert len(places) == len(amounts)
    assert (np.diff(places) > 0).all()
    assert ((places >= 0) & (places < BUCKETS)).all()
    assert (amounts >= 1).all()
    again = hashed_words(text)
    assert np.array_equal(places, again[0])
    assert np.array_equal(amounts, again[1])


@given(text=TEXTS, seed=st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_weighed_rows_have_length_one_or_nothing(text, seed):
    idf = (np.random.default_rng(seed).integers(0, 3, BUCKETS)).astype(np.float32)
    places, amounts = weighed(*hashed_words(text), idf)
    assert (idf[places] > 0).all()
    assert not len(places) or float(amounts @ amounts) == pytest.approx(1.0, abs=1e-5)


def test_how_often_and_in_which_order():
    once, thrice = hashed_words("up"), hashed_words("up up up")
    place = int(once[0][0])
    assert once[1].tolist() == [1.0]
    at = thrice[0].tolist().index(place)
    assert thrice[1][at] == pytest.approx(1 + np.log(3))
    assert set(hashed_words("red fox")[0]) != set(hashed_words("fox red")[0])  # pairs of neighbours
    assert np.array_equal(hashed_words("Red FOX")[0], hashed_words("red fox")[0])
    assert hashed_words("")[0].tolist() == []


def test_of_long_texts_both_ends_are_read():
    half = READ_CHARS // 2
    head, tail = "h" * half, "t" * half
    short = hashed_words(head + tail)
    assert np.array_equal(hashed_words(head + "middle " * 999 + tail)[0], short[0])
    assert not np.array_equal(hashed_words(head + tail[:-1] + "!")[0], short[0])
