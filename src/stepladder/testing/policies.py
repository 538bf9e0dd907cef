"""What every policy must keep. Authors of plug-ins run this in their own tests."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isfinite, sqrt

from stepladder.contracts import Policy
from stepladder.testing.fakes import make_attempt, make_view
from stepladder.testing.require import require
from stepladder.types import Attempt, Call, Decision, Estimate, Estimates, Fail, FaultKind, Stop, View

WALKS = 200
FAULTS: tuple[FaultKind, ...] = ("timeout", "connect", "rate_limit", "context", "auth", "server", "protocol", "crash")


def check_policy(
    policy: Policy, stages: Sequence[str], views: Sequence[View] = (), *, walks: int = WALKS, seed: int = 0
) -> None:
    """Raise AssertionError, with a sentence, where ``policy`` breaks the contract.

    It must be pure (equal views give equal decisions and stay as they were), call only allowed stages, keep only
    answers that are in the view, give propensities in (0, 1] and finite values, keep what a final call answered, and
    fail in words where nothing is allowed. From any start it must come to an end: within 4 steps for each stage, and 4
    more. ``views`` are more views to put to it, beside ``walks`` random requests whose attempts fail at random.
    """
    require(isinstance(policy.name, str), "name must be a string")
    require(bool(policy.name), "name must not be empty: it is written into every trace")
    chance = random.Random(seed)  # noqa: S311 - seeded chance makes test cases, not secrets
    for view in (*views, *_corners(stages, chance)):
        _decide(policy, view)
    for _ in range(walks):
        _walk(policy, stages, chance)


def random_view(stages: Sequence[str], chance: random.Random) -> View:
    """A view before any attempt: random estimates, rising costs, a random price of quality, some stages left out."""
    costs = sorted(chance.choice((0.0, 1.0, chance.uniform(0, 5))) for _ in stages)
    allowed = [stage for stage in stages if chance.random() < 0.9]
    quality = {stage: _estimate(chance) for stage in stages}
    lam = chance.choice((0.0, 0.5, 5.0, chance.uniform(0, 50)))
    return make_view(quality, costs, lam=lam, allowed=allowed, coin=chance.random(), lot=chance.random())


def _estimate(chance: random.Random) -> Estimate:
    """Any mean, with any doubt that a quality in [0, 1] can have, of which an answer will tell none, some or all."""
    mean = chance.random()
    doubt = chance.random() * sqrt(mean * (1.0 - mean))
    return Estimate(mean, doubt, doubt * chance.choice((0.0, chance.random(), 1.0)))


def _corners(stages: Sequence[str], chance: random.Random) -> Iterator[View]:
    view = replace(random_view(stages, chance), stages=tuple(stages))
    yield replace(view, stages=())
    for stage in stages:
        failed, answered = make_attempt(stage, fault="server"), make_attempt(stage)
        yield replace(view, stages=(stage,))
        yield replace(view, stages=(), attempts=(failed,))
        yield replace(view, stages=(), attempts=(answered,))
    yield replace(view, attempts=tuple(make_attempt(stage, fault="server") for stage in stages))


def _walk(policy: Policy, stages: Sequence[str], chance: random.Random) -> None:
    view, fault_rate = random_view(stages, chance), chance.choice((0.0, 0.3, 1.0))
    most = 4 * len(stages) + 4
    for _ in range(most):
        decision = _decide(policy, view)
        if not isinstance(decision.action, Call):
            return
        view = _after(view, decision.action, chance, fault_rate)
        if decision.action.final and view.attempts[-1].is_answer:
            kept = policy.decide(view).action
            told = f"a final call of '{decision.action.stage}' answered, and then came {kept}"
            require(kept == Stop(view.attempts[-1]), told)
    raise AssertionError(f"policy '{policy.name}' had not come to an end after {most} steps")


def _after(view: View, call: Call, chance: random.Random, fault_rate: float) -> View:
    """The next view: one more attempt, other posteriors, and at times a stage fewer (a budget that ran out)."""
    failed = chance.random() < fault_rate
    attempt = make_attempt(call.stage, fault=chance.choice(FAULTS) if failed else None, cost=chance.random())
    posterior = {stage: _estimate(chance) for stage in view.estimates.stages}
    kept = view.stages if chance.random() < 0.9 else view.stages[:-1]
    return replace(
        view,
        stages=kept,
        estimates=Estimates(posterior),
        attempts=(*view.attempts, attempt),
        spent=view.spent + attempt.cost,
        coin=chance.random(),
    )


def _decide(policy: Policy, view: View) -> Decision:
    before = _plain(view)
    decision, again = policy.decide(view), policy.decide(view)
    require(_plain(view) == before, f"policy '{policy.name}' changed the view that it was given")
    _check_action(decision, view)
    require(0.0 < decision.propensity <= 1.0, f"propensity {decision.propensity} is not in (0, 1]")
    for stage, value in decision.values.items():
        require(isfinite(value), f"the value of '{stage}' is {value}")
    require(decision == again, f"policy '{policy.name}' decided otherwise when shown the same view again")
    return decision


def _check_action(decision: Decision, view: View) -> None:
    match decision.action:
        case Call(stage):
            require(stage in view.stages, f"'{stage}' was called, and only {view.stages} are allowed")
        case Stop(attempt):
            require(_is_among(attempt, view.attempts), "Stop must keep an attempt that is in the view")
            require(attempt.is_answer, f"Stop kept the failed attempt of '{attempt.stage}'")
        case Fail(fault):
            require(bool(fault.message), "Fail must say why")
        case other:
            raise AssertionError(f"an action is Call, Stop or Fail, not {other!r}")


def _is_among(attempt: Attempt, attempts: tuple[Attempt, ...]) -> bool:
    return any(attempt == other for other in attempts)


def _plain(view: View) -> tuple[object, ...]:
    return (
        view.stages,
        view.lam,
        dict(view.estimates.stages),
        dict(view.costs),
        view.attempts,
        view.spent,
        view.coin,
        view.lot,
    )
