"""``GET /ready``: whether this process can take a request now, for load balancers and orchestrators.

``/health`` is about the process alone. A process that is alive and not ready should be left alone, not restarted.
"""

from __future__ import annotations

from typing import Any

from stepladder.gateway.watch import State


def readiness(state: State) -> tuple[int, dict[str, Any]]:
    """The status and the body of the reply."""
    status = "ready" if state == "serving" else state
    return (200 if status == "ready" else 503), {"status": status}
