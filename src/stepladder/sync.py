"""The one synchronous wrapper: a router on an event loop of its own, for scripts and notebooks."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from stepladder.router import Router
from stepladder.types import EMPTY, Answer, Dials, Mode, Request, Trace

T = TypeVar("T")


class Stepladder:
    """A ladder to ask from plain code. Use as a context manager, or call ``close`` when done.

    A stage's model is loaded when it is first asked, unless ``start`` loaded them all. Safe to use from any thread.
    """

    def __init__(self, router: Router) -> None:
        self.router = router
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stepladder-loop", daemon=True)
        self._thread.start()
        self._lock = threading.Lock()
        self._closed = False

    def ask(
        self,
        prompt: str,
        *,
        lam: float | None = None,
        mode: Mode | None = None,
        min_stage: str | None = None,
        max_stage: str | None = None,
        max_cost: float | None = None,
        **params: Any,
    ) -> Answer:
        """Ask one question; ``params`` are OpenAI's (``temperature=0``, ``max_tokens=64`` …).

        Raises RequestError for a request that cannot be served, AnswerError where every way failed.
        """
        dials = Dials(lam, mode, min_stage, max_stage, max_cost)
        messages = ({"role": "user", "content": prompt},)
        return self.answer(Request(_new_id(), messages=messages, params=params or EMPTY, dials=dials))

    def answer(self, request: Request) -> Answer:
        """Answer a full request."""
        return self._run(self.router.answer(request))

    def route(self, prompt: str, *, lam: float | None = None) -> Trace:
        """The first decision alone: no model is asked."""
        messages = ({"role": "user", "content": prompt},)
        return self.router.decide(Request(_new_id(), messages=messages, dials=Dials(lam)))

    def start(self) -> None:
        """Load every stage's model now instead of when it is first asked."""
        self._run(self.router.start())

    def close(self) -> None:
        """Stop the engines and close the trace store. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._run(self.router.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Stepladder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _new_id() -> str:
    return f"req-{uuid.uuid4().hex}"
