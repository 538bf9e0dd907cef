"""What every trace store must keep. Authors of stores run this in their own tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

from stepladder.contracts import TraceStore
from stepladder.errors import TraceError
from stepladder.testing.fakes import make_attempt, make_request
from stepladder.testing.require import require
from stepladder.types import (
    Call,
    Cost,
    Decision,
    Estimate,
    Estimates,
    Outcome,
    Receipt,
    Step,
    Stop,
    Stored,
    Trace,
    Versions,
    View,
)

MakeStore = Callable[[], TraceStore]

THREADS = 8
MANY = 40
WAIT_S = 30.0


def check_store(make: MakeStore, *, durable: bool = True, private: bool = False) -> None:
    """Raise AssertionError, with a sentence, where the stores that ``make`` opens break the contract.

    ``make`` opens a store at a place that is empty at first; where stores are ``durable`` it is called again once the
    one before was closed, and must find what that one held. ``private`` ones are not asked for the texts of traces.
    """
    with closing(make()) as store:
        _check_traces(store, private=private)
        _check_pages(store)
        _check_outcomes(store)
        _check_threads(store)
        _check_counts(store)
        held = _ids(store), store.outcomes("dec-told")
    if durable:
        _check_closed(store)
        with closing(make()) as again:
            require((_ids(again), again.outcomes("dec-told")) == held, "opened again, it does not hold what it held")


def make_trace(name: str, at: float = 0.0, stage: str = "small", text: str = "What is 2+2?") -> Trace:
    """A trace of one call whose answer was kept; ``name`` is its id, ``at`` when it was made."""
    made = make_attempt(stage, cost=1.0)
    stages = ("small", "large")
    view = View(stages, 5.0, Estimates({each: Estimate(0.5, 0.1) for each in stages}), dict.fromkeys(stages, Cost(1.0)))
    seen = replace(view, attempts=(made,), spent=1.0)
    steps = (Step(view, Decision(Call(stage, final=True)), attempt=made), Step(seen, Decision(Stop(made))))
    request = make_request(text, name=f"req-{name}")
    return Trace(name, at, request, "test", stages, "greedy", "route", "relative", Versions(), steps, 0)


def _check_traces(store: TraceStore, *, private: bool) -> None:
    require(store.get("dec-none") is None, "get() of a trace that was never appended is not None")
    for number, at in enumerate((30.0, 10.0, 20.0)):
        given = make_trace(f"dec-{number}", at)
        store.append(given)
        found = store.get(given.id)
        require(found is not None, "a trace that was just appended is not there")
        same = (
            found == given if not private else found is not None and found.steps[0].decision == given.steps[0].decision
        )
        require(same, f"the trace '{given.id}' came back as another: {found}")
    read = [(trace.id, trace.created_at) for trace in store.read()]
    require(read == [("dec-1", 10.0), ("dec-2", 20.0), ("dec-0", 30.0)], f"read() is not in order of time: {read}")
    later = [trace.id for trace in store.read(since=20.0)]
    require(later == ["dec-2", "dec-0"], f"read(since=20) gave {later}")
    require([trace.id for trace in store.read(limit=1)] == ["dec-1"], "read(limit=1) is not the first alone")


def _check_pages(store: TraceStore) -> None:
    found = list(_pages(store, 2))
    ids = [each.trace.id for each in found]
    require(ids == ["dec-0", "dec-1", "dec-2"], f"scan() is not in the order of writing: {ids}")
    numbers = [each.seq for each in found]
    require(numbers == sorted(set(numbers)) and min(numbers) > 0, f"seq does not rise from 1 or more: {numbers}")
    within = [each.trace.id for each in store.scan(since=10.0, until=30.0)]
    require(within == ["dec-1", "dec-2"], f"scan(since=10, until=30) gave {within}")
    store.append(make_trace("dec-large", 40.0, stage="large"))
    large = [each.trace.id for each in store.scan(stage="large")]
    require(large == ["dec-large"], f"scan(stage='large') gave {large}")
    store.append(make_trace("dec-1", 10.0))
    after = [each.trace.id for each in store.scan(after=numbers[-1])]
    require(after == ["dec-large", "dec-1"], f"what was written since, or written again, is not behind it: {after}")
    require(len(_ids(store)) == 4, "a trace that was written again is there twice")


def _pages(store: TraceStore, size: int) -> Iterator[Stored]:
    after: int | None = 0
    while after is not None:
        found = store.scan(after=after, limit=size)
        require(len(found) <= size, f"scan(limit={size}) gave {len(found)} traces")
        require(all(each.seq > after for each in found), f"scan(after={after}) gave what is not behind it")
        yield from found
        after = found[-1].seq if found else None


def _ids(store: TraceStore) -> list[str]:
    return [each.trace.id for each in _pages(store, 64)]


def _check_outcomes(store: TraceStore) -> None:
    def told(outcome: Outcome, change: str, *, found: bool = False) -> None:
        receipt = store.outcome(outcome)
        require(receipt == Receipt(change, found), f"{outcome} gave {receipt}, not {change} and {found}")  # type: ignore[arg-type]

    told(Outcome("dec-0", 1.0, "user"), "added", found=True)
    store.append(make_trace("dec-fresh", 50.0))
    told(Outcome("dec-fresh", 1.0, "user"), "added", found=True)
    first = Outcome("dec-told", 0.5, "user")
    told(first, "added")
    told(first, "same")
    told(Outcome("dec-told", 1.0, "user"), "replaced")
    told(Outcome("dec-told", 1.0, "user", "small"), "added")
    told(Outcome("dec-told", 0.25, "judge"), "added")
    keyed = Outcome("dec-told", 0.25, "user", key="k1")
    told(keyed, "added")
    told(keyed, "same")
    told(replace(keyed, score=0.75), "conflict")
    told(replace(keyed, stage="small"), "conflict")
    told(replace(keyed, key="k2"), "added")
    told(Outcome("dec-told", 0.0, "user"), "replaced")
    kept = store.outcomes("dec-told")
    wanted = (
        Outcome("dec-told", 1.0, "user", "small"),
        Outcome("dec-told", 0.25, "judge"),
        keyed,
        replace(keyed, key="k2"),
        Outcome("dec-told", 0.0, "user"),
    )
    require(kept == wanted, f"outcomes are not kept in the order they were told: {kept}")
    require(store.outcomes("dec-none") == (), "outcomes of a decision that nobody told any of")


def _check_threads(store: TraceStore) -> None:
    """Whoever appends finds it at once, and whoever is told that an outcome is kept finds that."""
    with ThreadPoolExecutor(THREADS) as pool:
        lost = [each for found in pool.map(_work, [store] * THREADS, range(THREADS)) for each in found]
    require(not lost, f"written by one of {THREADS} threads and then not found by it: {lost[:3]}")
    ids = _ids(store)
    require(len(ids) == len(set(ids)), "scan() gives traces twice")


def _work(store: TraceStore, worker: int) -> Sequence[str]:
    lost = []
    for number in range(MANY):
        name = f"dec-{worker}-{number}"
        store.append(make_trace(name, 100.0 + number))
        told = store.report(Outcome(name, number / MANY, "user")).result(WAIT_S)
        if store.get(name) is None or not told.found or len(store.outcomes(name)) != 1:
            lost.append(name)
    return lost


def _check_counts(store: TraceStore) -> None:
    counts = store.counts()
    lost = counts.appended - counts.written - counts.shed - counts.waiting
    require(lost == 0, f"{lost} of the traces appended were neither written nor shed and do not wait: {counts}")
    require(counts.appended == 6 + THREADS * MANY, f"counts() says that {counts.appended} were appended")
    feedback = counts.feedback_accepted, counts.feedback_refused, counts.feedback_failed, counts.feedback_waiting
    require(feedback == (11 + THREADS * MANY, 2, 0, 0), f"counts() says of outcomes {feedback}")


def _check_closed(store: TraceStore) -> None:
    store.close()
    uses: tuple[Callable[[], object], ...] = (
        lambda: store.get("dec-0"),
        store.read,
        store.scan,
        lambda: store.outcomes("dec-0"),
        lambda: store.report(Outcome("dec-0", 1.0, "user")),
    )
    for use in uses:
        try:
            use()
        except TraceError:
            continue
        raise AssertionError("a store that was closed does not raise TraceError")
    store.append(make_trace("dec-late"))
    require(store.counts().shed == 1, "a trace that came after the end is not counted as shed")
