"""Running the gateway: in the foreground, or for a while beside other work on a free port.

The application's lifespan is entered here and not by the server, so that a router that cannot start raises its own
error to whoever asked for it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

_POLL_S = 0.005
_LEAVE_POLL_S = 0.05
_BACKLOG = 2048
_CUT_OFF_S = 5.0
_STALLED_MS = 60_000

log = logging.getLogger("stepladder.gateway")


Ready = Callable[[str], None]
"""Told the base URL once the application has started and the port is bound."""


def serve(
    app: Starlette, host: str = "127.0.0.1", port: int = 8080, *, grace_s: int = 10, ready: Ready | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; requests under way then get ``grace_s`` seconds to end, a second SIGINT none.

    One that comes while the application starts (models load) ends the start, and this returns.

    Raises OSError where the address cannot be had, and what the router raises where it cannot start.
    """
    with _listening(host, port) as listener:
        _in_own_loop(app, _server(app, grace_s), listener, ready)


@asynccontextmanager
async def serving(app: Starlette, host: str = "127.0.0.1", port: int = 0, *, grace_s: int = 1) -> AsyncIterator[str]:
    """Serve on the running loop while the block lasts; yields the base URL with the port that was really bound."""
    with _listening(host, port) as listener:
        server = _server(app, grace_s)
        task = asyncio.create_task(_run(app, server, listener))
        try:
            while not server.started:
                await asyncio.wait({task}, timeout=_POLL_S)
                if task.done():
                    await task
            yield _url(listener)
        finally:
            server.should_exit = True
            await task


@contextmanager
def running(app: Starlette, host: str = "127.0.0.1", port: int = 0, *, grace_s: int = 1) -> Iterator[str]:
    """The same in a thread with a loop of its own, for callers that are not async."""
    with _listening(host, port) as listener, ThreadPoolExecutor(1, "stepladder-gateway") as pool:
        server = _server(app, grace_s)
        served = pool.submit(_in_own_loop, app, server, listener)
        try:
            while not server.started:
                wait([served], timeout=_POLL_S)
                if served.done():
                    served.result()
            yield _url(listener)
        finally:
            server.should_exit = True
            served.result()


def _server(app: Starlette, grace_s: int) -> uvicorn.Server:
    import uvicorn

    config = uvicorn.Config(
        app,
        loop="auto",  # uvloop where it exists
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,  # whoever starts the process owns its logging
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace_s,
    )
    server = uvicorn.Server(config)
    server.capture_signals = nullcontext  # type: ignore[assignment]  # they belong to whoever owns the process
    return server


def _in_own_loop(app: Starlette, server: uvicorn.Server, listener: socket.socket, ready: Ready | None = None) -> None:
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        in_main = threading.current_thread() is threading.main_thread()
        runner.run(_run(app, server, listener, signals=in_main, ready=ready))


async def _run(
    app: Starlette,
    server: uvicorn.Server,
    listener: socket.socket,
    *,
    signals: bool = False,
    ready: Ready | None = None,
) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM) if signals else ():
        loop.add_signal_handler(number, server.handle_exit, number, None)
    leaving = asyncio.create_task(_cancel_once_asked(server, asyncio.current_task()))
    try:
        async with app.router.lifespan_context(app):
            leaving.cancel()
            if ready is not None:
                ready(_url(listener))
            try:
                await server.serve(sockets=[listener])
            finally:
                await _cut_off(server.server_state.tasks)
    except asyncio.CancelledError:
        if not server.should_exit:
            raise
    finally:
        leaving.cancel()


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
