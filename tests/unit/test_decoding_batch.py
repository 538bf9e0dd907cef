"""Many answers over shared models: who shares a pass, who goes first, and what an error ends."""

from __future__ import annotations

from collections.abc import Generator
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from stepladder.decoding.batch import Batch, Job, Took
from stepladder.decoding.sequence import Ask, Sequence
from stepladder.errors import EngineError
from torch_fakes import VOCAB, FakeModel

MODELS = 3


def models(**settings: Any) -> list[FakeModel]:
    return [FakeModel(lambda tokens: len(tokens) % VOCAB, name=f"m{n}", **settings) for n in range(MODELS)]


def batch_of(made: list[FakeModel], told: list[tuple[int, int, int, float]] | None = None) -> Batch:
    ticks = count()
    on_pass = None if told is None else lambda *each: told.append(each)
    return Batch(made, timer=lambda: float(next(ticks)), on_pass=on_pass)


def asks(answer: Sequence, *stages: int, want: int = 1) -> Generator[Ask, Tensor, str]:
    """Asks these stages one after the other, a token more each time."""
    for stage in stages:
        logits = yield Ask(stage, answer, want)
        assert logits.shape == (want, VOCAB)
        answer.append(int(logits[-1].argmax()))
    return "done"


def job(*stages: int, prompt: int = 3, **settings: Any) -> Job:
    answer = Sequence(list(range(1, prompt + 1)))
    return Job(asks(answer, *stages, **settings), answer)


def finish(batch: Batch, most: int = 1000) -> list[Job]:
    over: list[Job] = []
    for _ in range(most):
        over += batch.step()
        if not batch.jobs:
            return over
    raise AssertionError("it does not end")


def test_answers_that_wait_for_one_stage_share_a_pass() -> None:
    made, told = models(), []
    batch = batch_of(made, told)
    jobs = [job(0, 0, 2, prompt=n + 3) for n in range(4)]
    for each in jobs:
        batch.add(each)
    assert finish(batch) == jobs
    assert [(stage, width, rows) for stage, width, rows, _ in told] == [(0, 6, 4), (0, 1, 4), (2, 8, 4)]
    assert {seconds for *_, seconds in told} == {1.0}
    assert made[0].widths == [[3, 4, 5, 6], [1] * 4]
    assert {tuple(each.passes.items()) for each in jobs} == {((0, 2), (2, 1))}
    assert [each.result for each in jobs] == ["done"] * 4
    assert all(not model.rows for model in made)
    assert batch.step() == []


class Clock:
    """Seconds that only passes take: a stage's own for each."""

    def __init__(self, made: list[FakeModel], costs: tuple[float, ...]) -> None:
        self.now = 0.0
        for model, cost in zip(made, costs, strict=True):
            self._slow_down(model, cost)

    def _slow_down(self, model: FakeModel, cost: float) -> None:
        forward = model.forward

        def slow(feeds: Any) -> Any:
            self.now += cost
            return forward(feeds)

        model.forward = slow  # type: ignore[method-assign]

    def __call__(self) -> float:
        return self.now


def test_a_pass_goes_to_the_lowest_stage_that_is_asked() -> None:
    """Drafters that take less time than a verification finish first, and the verifications share a pass."""
    made, told = models(), []
    costs = (1.0, 3.0, 10.0)
    batch = Batch(made, timer=Clock(made, costs), on_pass=lambda *each: told.append(each), usual=dict(enumerate(costs)))
    for drafts in (2, 4, 6):
        batch.add(job(*[0] * drafts, 2))
    finish(batch)
    assert [(stage, rows) for stage, _, rows, _ in told] == [(0, 3), (0, 3), (0, 2), (0, 2), (0, 1), (0, 1), (2, 3)]


@pytest.mark.parametrize("costs", [(1.0, 1.0, 2.0), (1.0, 1.0, 10.0), (3.0, 1.0, 1.0)])
def test_a_busy_lower_stage_leaves_a_higher_one_half_of_the_time(costs: tuple[float, ...]) -> None:
    made, told = models(), []
    batch = Batch(made, timer=Clock(made, costs), on_pass=lambda *each: told.append(each))
    batch.add(job(*[0] * 400))
    batch.add(job(*[2] * 400))
    while len(batch.jobs) == 2:
        batch.step()
    spent = {stage: sum(seconds for at, *_, seconds in told if at == stage) for stage in (0, 2)}
    assert 0.2 < spent[2] / sum(spent.values()) < 0.7


def test_a_long_prompt_is_read_in_chunks_between_which_others_are_served() -> None:
    made = models()
    batch = Batch(made, timer=lambda: 0.0, chunk=8)
    heard: list[Took] = []
    long, short = job(0, 1, prompt=30), job(0, 0, 0)
    long.told = heard.append
    batch.add(long)
    batch.add(short)
    finish(batch)
    assert made[0].widths[:4] == [[8, 3], [8, 1], [8, 1], [6]]
    assert [(took.stage, took.read, took.want, took.rows) for took in heard[:4]] == [
        (0, 8, 0, 2),
        (0, 8, 0, 2),
        (0, 8, 0, 2),
        (0, 6, 1, 1),
    ]
    assert (long.result, short.result) == ("done", "done")


def test_a_wide_wish_is_one_pass_behind_the_chunks() -> None:
    made = models()
    batch = Batch(made, timer=lambda: 0.0, chunk=4)
    batch.add(job(0, prompt=20, want=10))
    finish(batch)
    assert made[0].widths == [[4], [4], [2], [10]]


def test_passes_of_rows_unlike_each_other_tell_no_times() -> None:
    made, told = models(), []
    batch = batch_of(made, told)
    batch.add(job(0, prompt=20))
    batch.add(job(0, prompt=3))
    finish(batch)
    assert told == []


def test_a_stage_that_was_skipped_reads_what_it_missed() -> None:
    made = models()
    batch = batch_of(made)
    batch.add(job(0, 0, 1, 0, 1))
    finish(batch)
    assert made[0].widths == [[3], [1], [2]]
    assert made[1].widths == [[5], [2]]


def test_an_error_of_a_pass_ends_those_in_it() -> None:
    made = models()
    batch = batch_of(made)
    hit, spared = [job(0, 0), job(0, 1)], job(1, 1, 1)
    for each in (*hit, spared):
        batch.add(each)
    made[0].fail = RuntimeError("no")
    over = batch.step()
    assert over == hit
    assert {str(each.error) for each in over} == {"no"}
    assert not made[0].rows
    assert finish(batch) == [spared]
    assert (spared.error, spared.result) == (None, "done")


def test_an_error_of_an_answer_ends_it_alone() -> None:
    made = models()
    batch = batch_of(made)

    def breaks(answer: Sequence) -> Generator[Ask, Tensor, str]:
        yield Ask(0, answer, 1)
        raise ZeroDivisionError

    def never_begins() -> Generator[Ask, Tensor, str]:
        raise EngineError("not even that")
        yield

    answer = Sequence([1])
    bad, worse, good = Job(breaks(answer), answer), Job(never_begins(), Sequence([1])), job(0, 0)
    for each in (bad, worse, good):
        batch.add(each)
    assert set(map(id, finish(batch))) == {id(bad), id(worse), id(good)}
    assert isinstance(bad.error, ZeroDivisionError)
    assert isinstance(worse.error, EngineError)
    assert good.result == "done"
    assert not made[0].rows


def test_more_answers_than_rows_fail_and_give_back_what_they_took() -> None:
    made = models(slots=2)
    batch = batch_of(made)
    for _ in range(3):
        batch.add(job(0))
    over = finish(batch)
    assert all("all 2 cache rows are taken" in str(each.error) for each in over)
    assert not made[0].rows


@pytest.mark.parametrize("steps", range(4))
def test_an_answer_may_be_taken_out_at_any_time(steps: int) -> None:
    made = models()
    batch = batch_of(made)
    gone, stays = job(0, 1, 0, 1), job(0, 1, 0, 1)
    batch.add(gone)
    batch.add(stays)
    for _ in range(steps):
        batch.step()
    batch.remove(gone)
    assert gone.is_over
    assert all(len(model.rows) <= 1 for model in made)
    batch.remove(gone)
    assert finish(batch) == [stays]
    assert all(not model.rows for model in made)
    batch.remove(stays)


def test_logits_go_to_whom_they_belong() -> None:
    made = models()
    batch = batch_of(made)
    found: dict[int, Tensor] = {}

    def asking(answer: Sequence, want: int) -> Generator[Ask, Tensor, str]:
        found[want] = yield Ask(0, answer, want)
        return ""

    for want in (1, 3, 2):
        answer = Sequence(list(range(10 * want, 10 * want + 4 + want)))
        batch.add(Job(asking(answer, want), answer))
    finish(batch)
    for want, logits in found.items():
        assert logits.argmax(-1).tolist() == list(range(5, 5 + want))
    assert torch.equal(found[1], found[1].clone())
