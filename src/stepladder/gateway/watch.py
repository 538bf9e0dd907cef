"""What the gateway sees of each HTTP request, gathered for the metrics and for one line of the log.

A request's trace is made deep inside the router, and may be all that is left of it where the client has gone. The two
meet over a context variable, which the tasks of a request inherit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Literal

from starlette.types import Scope

from stepladder.gateway.metrics import Metrics
from stepladder.router import Router
from stepladder.types import Trace

State = Literal["starting", "serving", "draining"]
Ending = Literal["replied", "left", "stalled", "cut_off"]
"""How a reply ended: whole, its client gone, its client not reading, or the server ending."""


@dataclass(slots=True, eq=False)
class Visit:
    """One HTTP request. ``started`` is on the watch's timer; ``bytes_in`` counts the body, ``bytes_out`` the reply's.

    ``status`` is 0 until a reply begins, ``trace`` None until the router has told of it, or where it was not asked.
    """

    number: int
    route: str
    method: str
    started: float
    seconds: float = 0.0
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    caller: str | None = None
    ending: Ending = "replied"
    trace: Trace | None = None


CURRENT: ContextVar[Visit | None] = ContextVar("stepladder_visit", default=None)
"""The request that the running task works for."""

Tell = Callable[[Visit], None]


class Watch:
    """Counts what comes and goes. ``tell`` is told of each request at its end; ``state`` is what ``/ready`` goes by.

    For one event loop. It outlives the application that it watches where that is replaced by a newer one.
    """

    def __init__(
        self,
        metrics: Metrics | None = None,
        *,
        tell: Tell | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.metrics = metrics or Metrics()
        self.state: State = "serving"
        self.in_flight = 0
        self._tell = tell
        self._timer = timer
        self._numbers = count(1)
        self.metrics.refreshers.append(self._refresh)

    def begin(self, route: str, scope: Scope) -> Visit:
        """A request has come."""
        visit = Visit(next(self._numbers), route, scope["method"], self._timer())
        CURRENT.set(visit)  # never reset: the server gives each request a context of its own
        self.in_flight += 1
        return visit

    def end(self, visit: Visit) -> None:
        """Its reply is over, however it ended."""
        self.in_flight -= 1
        visit.seconds = self._timer() - visit.started
        metrics = self.metrics
        if visit.status:
            metrics.replies.add((visit.route, str(visit.status)))
        if visit.ending in ("left", "stalled"):
            metrics.disconnects.add((visit.route, "amid the reply" if visit.status else "before the reply"))
        if self._tell is not None:
            self._tell(visit)

    def on_trace(self, trace: Trace, against: str | None = None) -> None:
        """The router has finished a request (``Router.watch``); ``against`` is the stage that savings are told by."""
        self.metrics.observe(trace, against)
        visit = CURRENT.get()
        if visit is not None:
            visit.trace = trace

    def expose(self, router: Router) -> bytes:
        """All metrics as text, with what this router and its store tell at this moment."""
        self.metrics.look(router)
        return self.metrics.expose()

    def _refresh(self, metrics: Metrics) -> None:
        metrics.in_flight.set((), self.in_flight)
        metrics.state.replace({(state,): float(state == self.state) for state in ("starting", "serving", "draining")})


def note_stalled() -> None:
    """Say that the client of the running request takes nothing and is given up."""
    visit = CURRENT.get()
    if visit is not None:
        visit.ending = "stalled"
