"""What a store keeps, for how long, and how much may wait on the way there."""

from __future__ import annotations

from dataclasses import dataclass

from stepladder.traces.privacy import Prompts
from stepladder.traces.weight import MAX_BYTES

MAX_WAITING = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """``keep_s`` and ``keep_rows`` bound the traces, by their age in seconds and by their number (None: not at all).

    ``keep_feedback_s`` bounds outcomes by the time since they were told, whatever became of their traces.
    ``queue_rows`` and ``queue_bytes`` bound what waits for the disk; past them new traces are shed.
    """

    prompts: Prompts = "full"
    keep_s: float | None = None
    keep_rows: int | None = None
    keep_feedback_s: float | None = None
    queue_rows: int = MAX_WAITING
    queue_bytes: int = MAX_BYTES

    @property
    def prunes(self) -> bool:
        """True where anything ever grows too old."""
        return not (self.keep_s is None and self.keep_rows is None and self.keep_feedback_s is None)


KEEP_ALL = Keeping()
