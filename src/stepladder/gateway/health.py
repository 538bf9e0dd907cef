"""``GET /ready``: whether this process can take a request now, for load balancers and orchestrators.

``/health`` is about the process alone. A process that is alive and not ready should be left alone, not restarted.
"""

from __future__ import annotations

from typing import Any

from stepladder.gateway.watch import State
from stepladder.types import Snapshot, StageState


def readiness(state: State, snapshot: Snapshot) -> tuple[int, dict[str, Any]]:
    """The status and the body of the reply: 503 while starting or draining, and where no stage can take a call.

    A stage that may be tried again now counts as available: a gateway that is sent no requests finds no stage well.
    """
    stages = [_stage(each) for each in snapshot.stages]
    status: str = state
    if state == "serving":
        status = "ready" if not stages or any(each["available"] for each in stages) else "unavailable"
    return (200 if status == "ready" else 503), {"status": status, "stages": stages}


def _stage(stage: StageState) -> dict[str, Any]:
    told: dict[str, Any] = {"stage": stage.stage, "available": stage.absence is None, "breaker": stage.breaker}
    if stage.absence is not None:
        told |= {"reason": stage.absence.kind, "retry_after_s": stage.absence.retry_after}
    return {**told, "in_flight": stage.in_flight, "waiting": stage.waiting}
