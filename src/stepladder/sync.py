"""The one synchronous wrapper: a router on an event loop of its own, for scripts and notebooks."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any, TypeVar

from stepladder.errors import EngineError
from stepladder.router import Router
from stepladder.types import EMPTY, Answer, Dials, Mode, Request, Trace

T = TypeVar("T")

END_S = 10.0
"""How long work that was cancelled may take to let go of its model and to leave its trace."""

_CLOSED = "this ladder was closed"


class Stepladder:
    """A ladder to ask from plain code. Use as a context manager, or call ``close`` when done.

    A stage's model is loaded when it is first asked, unless ``start`` loaded them all. Safe to use from any thread.
    """

    def __init__(self, router: Router) -> None:
        self.router = router
        self._loop = asyncio.new_event_loop()
        self._tasks: dict[Future[Any], asyncio.Task[Any]] = {}  # touched on the loop's thread alone
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

        Raises RequestError for a request that cannot be served, AnswerError where every way failed, EngineError once
        this was closed.
        """
        dials = Dials(lam, mode, min_stage, max_stage, max_cost)
        return self.answer(question(prompt, dials, params))

    def answer(self, request: Request) -> Answer:
        """Answer a full request."""
        return self._run(self.router.answer(request))

    def route(self, prompt: str, *, lam: float | None = None) -> Trace:
        """The first decision alone: no model is asked."""
        return self.router.decide(question(prompt, Dials(lam)))

    def start(self) -> None:
        """Load every stage's model now instead of when it is first asked."""
        self._run(self.router.start())

    def close(self) -> None:
        """Cancel what other threads still ask, stop the engines, close the trace store. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self._run(self._end(), last=True)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Stepladder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ── from the caller's thread to the loop's and back ──────────────────────

    def _run(self, work: Coroutine[Any, Any, T], *, last: bool = False) -> T:
        """Do work on the loop. Its future is done only when the work has ended, also where it was cancelled."""
        future: Future[T] = Future()
        try:
            with self._lock:  # so that ``close`` sees all that was begun before it
                if self._closed and not last:
                    work.close()
                    future.set_exception(EngineError(_CLOSED))
                else:
                    self._loop.call_soon_threadsafe(self._make_task, work, future)
            return future.result()
        except BaseException:  # re-raised: Ctrl-C reaches the thread that waits, not the work
            if not future.done():
                self._loop.call_soon_threadsafe(self._cancel, future)
                wait([future], END_S)
            raise

    def _make_task(self, work: Coroutine[Any, Any, T], future: Future[T]) -> None:
        task = self._tasks[future] = self._loop.create_task(work)
        task.add_done_callback(lambda done: self._report(done, future))

    def _report(self, task: asyncio.Task[T], future: Future[T]) -> None:
        del self._tasks[future]
        error = EngineError(_CLOSED) if task.cancelled() else task.exception()
        if error is None:
            future.set_result(task.result())
        else:
            future.set_exception(error)

    def _cancel(self, future: Future[Any]) -> None:
        if future in self._tasks:
            self._tasks[future].cancel()
        else:
            future.cancel()  # interrupted before it was begun: there is nothing to wait for

    async def _end(self) -> None:
        try:
            await _cancelled(set(self._tasks.values()))
            await self.router.close()
        finally:
            await _cancelled(asyncio.all_tasks())  # what an engine may have left running
            await self._loop.shutdown_asyncgens()


async def _cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, but for the one that this is, and wait until they have ended."""
    others = [task for task in tasks if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=END_S)


def question(prompt: str, dials: Dials, params: Mapping[str, Any] = EMPTY) -> Request:
    """A chat request with one user message and an id of its own."""
    return Request(
        f"req-{uuid.uuid4().hex}", messages=({"role": "user", "content": prompt},), params=params, dials=dials
    )
