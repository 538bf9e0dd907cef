"""Running the gateway: in the foreground, or for a while beside other work on a free port.

The application's lifespan is entered here and not by the server, so that a router that cannot start raises its own
error to whoever asked for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stepladder.gateway.collector import few_looks, settle
from stepladder.gateway.reload import Turnstile
from stepladder.gateway.watch import Watch

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

    from stepladder.gateway.protocol import ConnectionLimits

_POLL_S = 0.005
_LEAVE_POLL_S = 0.05
_BACKLOG = 2048
_CUT_OFF_S = 5.0
_STALLED_MS = 60_000

log = logging.getLogger("stepladder.gateway")


Ready = Callable[[str], None]
"""Told the base URL once the application has started and the port is bound."""


@dataclass(frozen=True, slots=True)
class Drain:
    """How a gateway leaves once it is told to: for ``notice_s`` seconds it still takes requests while ``/ready`` says
    503; then it takes none, and those at work get ``grace_s`` seconds to end before they are cut off."""

    grace_s: float = 10.0
    notice_s: float = 0.0


class Served(Protocol):
    """What can be served: it puts an application into force at its ``turnstile`` within its ``lifespan``."""

    @property
    def turnstile(self) -> Turnstile: ...
    def lifespan(self) -> AbstractAsyncContextManager[None]: ...


class Plain:
    """One application, for as long as it is served."""

    def __init__(self, app: Starlette) -> None:
        self.turnstile = Turnstile()
        self._app = app

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None, None]:
        async with self._app.router.lifespan_context(self._app):
            self.turnstile.app = self._app
            yield


def serve(
    served: Served,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    drain: Drain | None = None,
    ready: Ready | None = None,
    watch: Watch | None = None,
    hangup: Callable[[], None] | None = None,
    limits: ConnectionLimits | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then drain; a second one of either cuts off at once. ``hangup`` answers SIGHUP.

    While the application starts (models load) requests get a 503; a signal then ends the start, and this returns.

    Raises OSError where the address cannot be had, and what the router raises where it cannot start.
    """
    drain = drain or Drain()

    def settled(url: str) -> None:
        settle()
        if ready is not None:
            ready(url)

    with _listening(host, port) as listener, few_looks():
        server = _server(served, drain.grace_s, limits)
        _in_own_loop(served, server, listener, _Signals(server, drain, watch, hangup), settled)


@asynccontextmanager
async def serving(
    app: Starlette,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    grace_s: float = 1,
    limits: ConnectionLimits | None = None,
) -> AsyncIterator[str]:
    """Serve on the running loop while the block lasts; yields the base URL with the port that was really bound."""
    with _listening(host, port) as listener:
        served = Plain(app)
        server = _server(served, grace_s, limits)
        task = asyncio.create_task(_run(served, server, listener))
        try:
            while not (server.started and served.turnstile.is_open):
                await asyncio.wait({task}, timeout=_POLL_S)
                if task.done():
                    await task
            yield _url(listener)
        finally:
            server.should_exit = True
            await task


@contextmanager
def running(
    app: Starlette,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    grace_s: float = 1,
    limits: ConnectionLimits | None = None,
) -> Iterator[str]:
    """The same in a thread with a loop of its own, for callers that are not async."""
    with _listening(host, port) as listener, ThreadPoolExecutor(1, "stepladder-gateway") as pool:
        served = Plain(app)
        server = _server(served, grace_s, limits)
        task = pool.submit(_in_own_loop, served, server, listener)
        try:
            while not (server.started and served.turnstile.is_open):
                wait([task], timeout=_POLL_S)
                if task.done():
                    task.result()
            yield _url(listener)
        finally:
            server.should_exit = True
            task.result()


def _server(served: Served, grace_s: float, limits: ConnectionLimits | None = None) -> uvicorn.Server:
    import uvicorn

    from stepladder.gateway.protocol import ConnectionLimits, guarded

    limits = limits or ConnectionLimits()
    config = uvicorn.Config(
        served.turnstile,
        loop="auto",  # uvloop where it exists
        interface="asgi3",
        proxy_headers=False,  # nothing here asks what address a proxy says that its client has
        http=guarded(limits),  # type: ignore[arg-type]  # called like the class that it asks for
        timeout_keep_alive=limits.keep_alive_s,
        ws="none",
        lifespan="off",
        log_config=None,  # whoever starts the process owns its logging
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace_s,  # type: ignore[arg-type]  # given to asyncio as it is: fractions are fine
    )
    server = uvicorn.Server(config)
    server.capture_signals = nullcontext  # type: ignore[assignment]  # they belong to whoever owns the process
    return server


def _in_own_loop(
    served: Served,
    server: uvicorn.Server,
    listener: socket.socket,
    signals: _Signals | None = None,
    ready: Ready | None = None,
) -> None:
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        in_main = threading.current_thread() is threading.main_thread()
        runner.run(_run(served, server, listener, signals if in_main else None, ready))


async def _run(
    served: Served,
    server: uvicorn.Server,
    listener: socket.socket,
    signals: _Signals | None = None,
    ready: Ready | None = None,
) -> None:
    if signals is not None:
        signals.install(asyncio.get_running_loop())
    listening = asyncio.create_task(server.serve(sockets=[listener]))
    leaving = asyncio.create_task(_cancel_once_asked(server, asyncio.current_task()))
    try:
        async with served.lifespan():
            leaving.cancel()
            if ready is not None:
                ready(_url(listener))
            try:
                await listening
            finally:
                await _cut_off(server.server_state.tasks)
    except asyncio.CancelledError:
        if not server.should_exit:
            raise
    finally:
        leaving.cancel()
        server.should_exit = True
        await asyncio.wait((listening,))


class _Signals:
    """What the process is told, and what the server makes of it."""

    def __init__(
        self, server: uvicorn.Server, drain: Drain, watch: Watch | None, hangup: Callable[[], None] | None
    ) -> None:
        self._server = server
        self._drain = drain
        self._watch = watch
        self._hangup = hangup
        self._was_told = False
        self._terminal = _terminal()

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.leave)
        if self._hangup is not None:
            loop.add_signal_handler(signal.SIGHUP, self.hang_up)

    def leave(self) -> None:
        """The first time drain, the second cut off."""
        if self._was_told:
            log.warning("told twice to end: requests at work are cut off")
            self._server.force_exit = self._server.should_exit = True
            for task in self._server.server_state.tasks:
                task.cancel()
            return
        self._was_told = True
        if self._watch is not None:
            if self._watch.state == "starting":  # nothing is at work yet
                self._server.should_exit = True
            self._watch.state = "draining"
            log.info("draining: %d requests at work, %g s to end", self._watch.in_flight, self._drain.grace_s)
        if self._drain.notice_s:
            self._loop.call_later(self._drain.notice_s, self._stop_accepting)
        else:
            self._stop_accepting()

    def hang_up(self) -> None:
        """Reload; but a terminal that was closed sends the same signal, and then nobody is left to serve."""
        if self._terminal is not None and not os.isatty(self._terminal):
            self.leave()
        elif self._hangup is not None:
            self._hangup()

    def _stop_accepting(self) -> None:
        self._server.should_exit = True


def _terminal() -> int | None:
    """The terminal that this process was started at, None where there is none."""
    return sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None


async def _cancel_once_asked(server: uvicorn.Server, start: asyncio.Task[None] | None) -> None:
    """Cancel a start as soon as the server is to exit, which it looks at itself only once it runs: models load long."""
    while not server.should_exit:  # noqa: ASYNC110 - the server's flag has no event to wait for
        await asyncio.sleep(_LEAVE_POLL_S)
    if start is not None:
        start.cancel()


async def _cut_off(requests: set[asyncio.Task[None]]) -> None:
    """End the requests still under way and wait for them: their traces must be written before the store is closed.

    The server has cancelled them when their grace was over, but does not wait; after a second SIGINT it does neither.
    """
    left = [task for task in requests if not task.done()]
    for task in left:
        if not task.cancelling():
            task.cancel()
    if left:
        _, stuck = await asyncio.wait(left, timeout=_CUT_OFF_S)
        if stuck:
            log.error("%d requests did not end within %g s; their traces are lost", len(stuck), _CUT_OFF_S)


def _listening(host: str, port: int) -> socket.socket:
    """A bound, listening socket.

    It names its protocol: event loops turn Nagle's algorithm off only on sockets known to be TCP, and with it on, a
    reply's body waits 40 ms for the acknowledgement of its head.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":  # drops a connection whose client takes nothing, also once a reply is given up
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALLED_MS)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
