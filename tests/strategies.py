"""Hypothesis strategies for the words of Stepladder, shared by the property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from stepladder.types import (
    NGRAM,
    Attempt,
    Call,
    Cost,
    Decision,
    Dials,
    Drafting,
    Estimate,
    Estimates,
    Fail,
    Fault,
    Request,
    Speculation,
    Step,
    Stop,
    Trace,
    Usage,
    Versions,
    View,
)

STAGES = ("small", "medium", "large")
finite = st.floats(0, 1e6, allow_nan=False)
unit = st.floats(0, 1, allow_nan=False)
text = st.text(max_size=30)
faults = st.builds(
    Fault,
    kind=st.sampled_from(["timeout", "connect", "rate_limit", "server", "crash"]),
    message=text,
    status=st.none() | st.integers(400, 599),
    retry_after=st.none() | finite,
)
counts = st.integers(0, 999)
speculations = st.builds(
    Speculation,
    chain=st.lists(st.sampled_from((NGRAM, *STAGES)), max_size=3).map(tuple),
    pairs=st.lists(st.builds(Drafting, text, st.sampled_from(STAGES), counts, counts), max_size=2).map(tuple),
    passes=st.dictionaries(st.sampled_from(STAGES), counts, max_size=3),
    climbed=counts,
    kept=counts,
    saved_s=finite,
    moved=st.none() | unit,
)
attempts = st.builds(
    Attempt,
    stage=st.sampled_from(STAGES),
    text=text,
    usage=st.builds(Usage, st.integers(0, 999), st.integers(0, 999), st.integers(0, 99)),
    seconds=finite,
    first_token_s=st.none() | finite,
    finish_reason=st.sampled_from([None, "stop", "length"]),
    logprobs=st.none() | st.lists(st.floats(-20, 0), max_size=4).map(tuple),
    cost=finite,
    fault=st.none() | faults,
    speculation=st.none() | speculations,
)
costs = st.builds(Cost, finite, finite, finite, finite)
estimates = st.builds(
    Estimates,
    st.fixed_dictionaries({name: st.builds(Estimate, unit, unit) for name in STAGES}),
    st.booleans(),
    st.dictionaries(st.sampled_from(["class", "why"]), text, max_size=1),
)
json_values = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | text
requests = st.builds(
    Request,
    id=text,
    messages=st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": text}), max_size=2).map(tuple),
    prompt=st.none() | text,
    params=st.dictionaries(st.sampled_from(["max_tokens", "seed", "x"]), json_values, max_size=2),
    dials=st.builds(Dials, lam=st.none() | finite, mode=st.sampled_from([None, "route", "cascade", "fixed"])),
    needs=st.frozensets(st.sampled_from(["tools", "images", "json"])),
)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """A trace of up to three calls with everything that a trace may hold."""
    tried = draw(st.lists(attempts, max_size=3))
    steps = [draw(_step(tried[:n], Call(made.stage, draw(st.booleans())), made)) for n, made in enumerate(tried)]
    end = Stop(tried[-1]) if tried else Fail(draw(faults))
    steps.append(draw(_step(tried, end, None)))
    return Trace(
        id=draw(text),
        created_at=draw(finite),
        request=draw(requests),
        ladder="nano",
        stages=STAGES,
        policy="greedy",
        mode="route",
        cost_unit="relative",
        versions=draw(st.builds(Versions, text, text, text, text)),
        steps=tuple(steps),
        answer_index=len(tried) - 1 if tried else None,
        fault=draw(st.none() | faults),
        seconds=draw(finite),
    )


@st.composite
def _step(draw: st.DrawFn, seen: list[Attempt], action: Call | Stop | Fail, made: Attempt | None) -> Step:
    view = View(
        stages=STAGES,
        lam=draw(finite),
        estimates=draw(estimates),
        costs={name: draw(costs) for name in STAGES},
        attempts=tuple(seen),
        spent=draw(finite),
        coin=draw(unit),
    )
    decision = Decision(action, draw(unit), {name: draw(finite) for name in STAGES}, draw(text))
    return Step(view, decision, draw(finite), made)
