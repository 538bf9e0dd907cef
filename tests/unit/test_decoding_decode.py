"""The loop over rounds: how many tokens, and why it ended."""

from __future__ import annotations

from collections.abc import Generator

from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decoding_enumeration import PROMPT, Tables
from stepladder.decoding.chain import Emitted, ModelDrafter, NgramDrafter, Run, Verifier
from stepladder.decoding.decode import decode
from stepladder.decoding.laws import Sampling
from stepladder.decoding.oracle import SeededOracle
from stepladder.decoding.sequence import Ask, Sequence
from stepladder.decoding.verify import RULES

TABLES = Tables(3, 5, seed=2)


def chain(lengths: list[int], rule: str, ngram: bool) -> Verifier:
    level = NgramDrafter(longest=2, shortest=1, extra=[0, 1, 2, 3, 4, 0, 2, 4, 1]) if ngram else ModelDrafter(0)
    for stage, length in enumerate(lengths, start=1):
        level = Verifier(stage, level, length=length, rule=RULES[rule])
    return level if isinstance(level, Verifier) else Verifier(2)


def written(
    top: Verifier, most: int, ends: frozenset[int], keep_until: int = 10**6, sampling: Sampling | None = None
) -> tuple[list[int], list[list[int]], str]:
    """The answer's tokens, what ``keep`` was told, and why it ended."""
    told: list[list[int]] = []

    def keep(wrote: list[Emitted]) -> bool:
        told.append([each.token for each in wrote])
        return sum(map(len, told)) >= keep_until

    run = Run(Sequence(list(PROMPT)), sampling or Sampling(), SeededOracle(most), ends)
    why = _why(decode(run, lambda: top, most, keep))
    return run.answer.tokens[len(PROMPT) :], told, why


def _why(asking: Generator[Ask, Tensor, str]) -> str:
    try:
        ask = next(asking)
        while True:
            ask = asking.send(TABLES.answer(ask))
    except StopIteration as stopped:
        why: str = stopped.value
        return why


@given(
    st.lists(st.integers(0, 4), max_size=2),
    st.sampled_from(sorted(RULES)),
    st.booleans(),
    st.integers(1, 9),
    st.frozensets(st.integers(0, 4), max_size=2),
    st.integers(1, 12),
)
def test_never_more_than_asked_for_and_nothing_behind_an_end(
    lengths: list[int], rule: str, ngram: bool, most: int, ends: frozenset[int], until: int
) -> None:
    tokens, told, why = written(chain(lengths, rule, ngram), most, ends, until)
    assert [token for each in told for token in each] == tokens
    assert all(told)
    assert 1 <= len(tokens) <= most
    assert not ends & set(tokens[:-1])
    assert sum(map(len, told[:-1])) < until
    stopped = tokens[-1] in ends or len(tokens) >= until
    assert why == ("stop" if stopped else "length")
    assert stopped or len(tokens) == most


@given(st.lists(st.integers(1, 4), min_size=1, max_size=2), st.sampled_from(sorted(RULES)), st.integers(1, 9))
def test_a_greedy_text_is_the_top_stages(lengths: list[int], rule: str, most: int) -> None:
    top = chain(lengths, rule, ngram=False)
    alone = written(Verifier(top.key), most, frozenset({4}), sampling=Sampling(0.0))
    assert written(top, most, frozenset({4}), sampling=Sampling(0.0))[::2] == alone[::2]


def test_each_round_may_have_another_chain() -> None:
    chains = iter([Verifier(2), chain([2, 3], "block", False), chain([3, 2], "rejection", True)] * 9)
    run = Run(Sequence(list(PROMPT)), Sampling(0.0), SeededOracle(0))
    asking = decode(run, lambda: next(chains), 20, lambda _: False)
    assert _why(asking) == "length"
    assert run.answer.tokens[1:] == written(Verifier(2), 20, frozenset(), sampling=Sampling(0.0))[0]


def test_nothing_is_asked_where_nothing_may_be_written() -> None:
    run = Run(Sequence(list(PROMPT)), Sampling(), SeededOracle(0))
    asking = decode(run, lambda: Verifier(2), 0, lambda _: False)
    assert list(asking) == []
