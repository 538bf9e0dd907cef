"""What ``GET /metrics`` tells. Counted once for each request, from its trace; the rest is looked up when somebody asks.

Every label value comes from a closed set: stages of the ladder, drafters of its engines, kinds of fault, routes, modes,
statuses. Nothing that a client wrote becomes a label, so that no client can make the list grow.

All of it happens on the gateway's event loop, and nothing here locks.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from stepladder.gateway.exposition import Family, Histogram, Values, exposed
from stepladder.gateway.report import Account, account, baseline
from stepladder.router import Router
from stepladder.types import (
    Attempt,
    BreakerState,
    Call,
    Fail,
    FaultKind,
    Snapshot,
    Step,
    StoreCounts,
    Trace,
)

DECIDE_S = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1)
"""Seconds: from a matrix's look-up to a predictor that reads whole answers."""

ANSWER_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Seconds: from a cached word to the longest answer that the usual limits allow."""

_REFUSED: frozenset[FaultKind] = frozenset({"bad_request", "context"})

Refresh = Callable[["Metrics"], None]
"""Brings a gauge up to date, right before everything is told."""


class Metrics:
    """The gateway's numbers; ``refreshers`` bring some of them up to date before they are told."""

    def __init__(self, *, started_at: float | None = None) -> None:
        self.refreshers: list[Refresh] = []
        self.requests = Values(
            "counter", "stepladder_requests_total", "Requests that the router took, by how they ended.", _MODE_OUTCOME
        )
        self.replies = Values("counter", "stepladder_http_replies_total", "HTTP replies.", ("route", "status"))
        self.disconnects = Values(
            "counter",
            "stepladder_client_disconnects_total",
            "Clients that left before their reply was whole: before its first byte, or amid it.",
            ("route", "when"),
        )
        self.decisions = Values(
            "counter", "stepladder_decisions_total", "Decisions: call a stage, keep its answer, or give up.", _STAGE_DID
        )
        self.attempts = Values(
            "counter",
            "stepladder_attempts_total",
            "Calls of a stage: 'ok', or the kind of fault.",
            ("stage", "outcome"),
        )
        self.tokens = Values(
            "counter",
            "stepladder_tokens_total",
            "Tokens read and written, as engines count them; cached ones are among the prompt's.",
            ("stage", "kind"),
        )
        self.cost = Values("counter", "stepladder_cost_total", "What was billed.", ("stage", "unit"))
        self.baseline = Values(
            "counter",
            "stepladder_baseline_cost_total",
            "What the answered requests were expected to cost had the baseline alone answered them.",
            ("unit",),
        )
        self.saving = Values(
            "gauge",
            "stepladder_estimated_saving",
            "That, less what the answered requests really cost: an estimate, and below 0 where climbing cost more.",
            ("unit",),
        )
        self.decide_s = Histogram(
            "stepladder_decide_seconds", "Time spent deciding, all decisions of a request together.", DECIDE_S
        )
        self.request_s = Histogram(
            "stepladder_request_seconds", "Time from a request's start to its answer or fault.", ANSWER_S, ("mode",)
        )
        self.first_token_s = Histogram(
            "stepladder_first_token_seconds",
            "Time until a client had the first words of a stream, by how it was streamed.",
            ANSWER_S,
            ("stream_mode",),
        )
        self.in_flight = Values("gauge", "stepladder_in_flight", "HTTP requests at work.")
        self.stages = StageMetrics()
        self.store = StoreMetrics()
        self.speculation = Values(
            "counter",
            "stepladder_speculation_tokens_total",
            "Tokens that a drafter proposed to the stage above it: drafted, and of these accepted.",
            ("drafter", "target", "kind"),
        )
        self.reloads = Values("counter", "stepladder_reloads_total", "Reloads of the configuration.", ("outcome",))
        self.state = Values(
            "gauge", "stepladder_state", "1 for what the gateway is: starting, serving or draining.", ("state",)
        )
        self.config = Values(
            "gauge", "stepladder_config_info", "1 for the configuration in force.", ("ladder", "config", "artifact")
        )
        self.log_dropped = Values(
            "counter", "stepladder_log_lines_dropped_total", "Log lines that nobody took in time."
        )
        self.cpu = Values("counter", "process_cpu_seconds_total", "CPU time of this process, user and system.")
        self.memory = Values("gauge", "process_resident_memory_bytes", "Memory of this process.")
        self.files = Values("gauge", "process_open_fds", "Open files and connections of this process.")
        self.started = Values("gauge", "process_start_time_seconds", "When the gateway was made, Unix time.")
        self.started.set((), time.time() if started_at is None else started_at)

    def observe(self, trace: Trace, against: str | None = None) -> None:
        """Count one finished request; ``against`` is the stage that savings are told by, None for the ladder's last."""
        sums, unit = account(trace), trace.cost_unit
        self.requests.add((trace.mode, outcome(trace)))
        self.request_s.observe((trace.mode,), trace.seconds)
        if trace.steps:
            self.decide_s.observe((), sums.decide_s)
        for step in trace.steps:
            self.decisions.add(_did(step))
        for attempt in sums.attempts:
            self._observe_attempt(attempt, unit)
        if trace.first_token_s is not None:
            self.first_token_s.observe((trace.request.dials.stream_mode or "final",), trace.first_token_s)
        if trace.answer_index is not None:
            self._observe_saving(trace, against, sums)

    def look(self, router: Router) -> None:
        """Take over what a router and its store count themselves."""
        parts, versions = router.parts, router.parts.versions
        self.stages.look(router.snapshot())
        self.store.look(parts.store.counts())
        self.config.replace({(parts.ladder.name, versions.config, versions.artifact): 1.0})

    def expose(self) -> bytes:
        """All of it as text."""
        for refresh in self.refreshers:
            refresh(self)
        _refresh_process(self)
        return exposed(_families(self))

    def _observe_attempt(self, attempt: Attempt, unit: str) -> None:
        stage, usage = attempt.stage, attempt.usage
        self.attempts.add((stage, "ok" if attempt.fault is None else attempt.fault.kind))
        self.tokens.add((stage, "prompt"), usage.prompt_tokens)
        self.tokens.add((stage, "output"), usage.output_tokens)
        if usage.cached_tokens:
            self.tokens.add((stage, "cached"), usage.cached_tokens)
        self.cost.add((stage, unit), attempt.cost)
        if attempt.speculation is not None:
            for pair in attempt.speculation.pairs:
                self.speculation.add((pair.drafter, pair.target, "drafted"), pair.drafted)
                self.speculation.add((pair.drafter, pair.target, "accepted"), pair.accepted)

    def _observe_saving(self, trace: Trace, against: str | None, sums: Account) -> None:
        alone, unit = baseline(trace, against, sums), (trace.cost_unit,)
        self.baseline.add(unit, alone["cost"])
        self.saving.add(unit, alone["saved"])


class StageMetrics:
    """How the stages stand at this moment, and what their guard has counted (``Router.snapshot``)."""

    def __init__(self) -> None:
        stage = ("stage",)
        self.available = Values("gauge", "stepladder_stage_available", "1 where a stage can take a call now.", stage)
        self.in_flight = Values("gauge", "stepladder_stage_in_flight", "Calls of a stage at work.", stage)
        self.waiting = Values("gauge", "stepladder_stage_waiting", "Calls that wait for a place at a stage.", stage)
        self.breaker = Values(
            "gauge", "stepladder_breaker_state", "1 for the state of a stage's circuit breaker.", ("stage", "state")
        )
        self.opened = Values("counter", "stepladder_breaker_opened_total", "How often a breaker opened.", stage)
        self.retries = Values("counter", "stepladder_retries_total", "How often a server was asked again.", stage)
        self.left_out = Values(
            "counter",
            "stepladder_stage_left_out_total",
            "Decisions and calls that a stage was left out of.",
            ("stage", "reason"),
        )
        self.failed_open = Values(
            "counter",
            "stepladder_failed_open_total",
            "Decisions that were made without a part that failed: the part, and the kind of error.",
            ("failure",),
        )
        self.conversations = Values("gauge", "stepladder_conversations", "Conversations remembered.")
        self.followups = Values(
            "counter", "stepladder_followups_total", "Follow-ups answered by the same stage or another.", ("by",)
        )

    def look(self, now: Snapshot) -> None:
        """Take over what is so now."""
        states = now.stages
        self.available.replace({(each.stage,): float(each.absence is None) for each in states})
        self.in_flight.replace({(each.stage,): each.in_flight for each in states})
        self.waiting.replace({(each.stage,): each.waiting for each in states})
        self.breaker.replace({(s.stage, state): float(s.breaker == state) for s in states for state in _BREAKER})
        self.opened.replace({(each.stage,): each.opened for each in states})
        self.retries.replace({(each.stage,): each.retries for each in states})
        self.left_out.replace({(s.stage, why): count for s in states for why, count in s.left_out.items()})
        self.failed_open.replace({(failure,): count for failure, count in now.failed_open.items()})
        self.conversations.set((), now.conversations)
        self.followups.replace({("same",): now.stayed, ("other",): now.switched})


class StoreMetrics:
    """What the trace store has counted, and what waits in it (``TraceStore.counts``)."""

    def __init__(self) -> None:
        self.traces = Values("counter", "stepladder_traces_total", "Traces, by what became of them.", ("outcome",))
        self.waiting = Values("gauge", "stepladder_traces_waiting", "Traces that wait to be written.")
        self.bytes = Values("gauge", "stepladder_traces_waiting_bytes", "What these weigh.")
        self.feedback = Values(
            "counter",
            "stepladder_feedback_total",
            "Feedback: on disk, contradicting what was there, or lost.",
            _OUTCOME,
        )
        self.feedback_waiting = Values("gauge", "stepladder_feedback_waiting", "Feedback that waits for the disk.")

    def look(self, now: StoreCounts) -> None:
        """Take over what is so now."""
        self.traces.replace(
            {
                ("appended",): now.appended,
                ("written",): now.written,
                ("shed",): now.shed,
                ("pruned",): now.pruned,
            }
        )
        self.waiting.set((), now.waiting)
        self.bytes.set((), now.waiting_bytes)
        self.feedback.replace(
            {
                ("accepted",): now.feedback_accepted,
                ("refused",): now.feedback_refused,
                ("failed",): now.feedback_failed,
            }
        )
        self.feedback_waiting.set((), now.feedback_waiting)


def _families(holder: object) -> Iterator[Family]:
    """Every family that an object holds, and those that its groups hold, in the order in which they were made."""
    for value in vars(holder).values():
        if isinstance(value, Values | Histogram):
            yield value
        elif isinstance(value, StageMetrics | StoreMetrics):
            yield from _families(value)


_OUTCOME = ("outcome",)
_BREAKER: tuple[BreakerState, ...] = get_args(BreakerState)
_MODE_OUTCOME = ("mode", "outcome")
_STAGE_DID = ("stage", "action")


def outcome(trace: Trace) -> str:
    """How a request ended: answered, refused (it cannot be served as it stands), cancelled (the caller left),
    unavailable (no stage could take it now), or failed."""
    if trace.answer_index is not None:
        return "answered"
    if trace.fault is None:
        return "failed"
    if trace.fault.kind == "cancelled":
        return "cancelled"
    if trace.fault.kind in ("rate_limit", "unavailable"):
        return "unavailable"
    return "refused" if trace.fault.kind in _REFUSED else "failed"


def _did(step: Step) -> tuple[str, str]:
    action = step.decision.action
    if isinstance(action, Call):
        return action.stage, "call"
    if isinstance(action, Fail):
        return "", "fail"
    return action.attempt.stage, "stop"


def _refresh_process(metrics: Metrics) -> None:
    """The process's own numbers, under the names that everybody's dashboards know."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    metrics.cpu.set((), used.ru_utime + used.ru_stime)
    proc = Path("/proc/self")
    if proc.is_dir():  # Linux
        pages = int((proc / "statm").read_text("ascii").split()[1])
        metrics.memory.set((), pages * os.sysconf("SC_PAGE_SIZE"))
        metrics.files.set((), sum(1 for _ in (proc / "fd").iterdir()))
