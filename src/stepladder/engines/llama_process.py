"""Starts, watches and ends the processes that hold local models. Each is ended by the pid that was started here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepladder.engines.llama_drafting import Drafter
from stepladder.errors import EngineError, ModelFileError

PROGRAM = Path(__file__).with_name("llama_child.py")
"""Run by its path, and with -P, so that it starts fast, wherever we are installed, and imports nothing of ours."""

LEAVE_S = 1.0
"""How long a child may take to leave after its stdin closed, and again after SIGTERM, before it is killed."""

LAST_WORDS_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Model:
    """What a child is to load. ``n_ctx`` is in tokens over all slots; 0 leaves it to the model.

    ``drafter`` drafts for it with llama.cpp's own speculative decoding, None where each token is written alone.
    """

    stage: str
    path: str
    n_ctx: int
    slots: int
    threads: int
    load_timeout_s: float
    drafter: Drafter | None = None

    @property
    def files(self) -> str:
        """What is loaded, in words."""
        drafts = None if self.drafter is None else self.drafter.path
        return self.path if drafts is None else f"{self.path} with the drafter {drafts}"


class Child:
    """A running child. ``port`` and ``key`` open its HTTP API on the loopback address."""

    def __init__(self, process: asyncio.subprocess.Process, key: str) -> None:
        self._process = process
        self.key = key
        self.port = 0
        self._last_words = b""
        self._listener = asyncio.create_task(self._listen())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """False once it was seen to have ended."""
        return self._process.returncode is None

    async def ended_within(self, seconds: float) -> bool:
        """True if it has ended, or ends within this time: a broken connection is seen before the death behind it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
        return not self.is_alive

    async def tell(self, line: bytes) -> None:
        """Write to its stdin; one that died already is found out by its silence."""
        stdin = self._process.stdin
        if stdin is not None:
            with contextlib.suppress(ConnectionError):
                stdin.write(line)
                await stdin.drain()

    async def first_line(self) -> bytes:
        """What it says once it has loaded its model; empty where it died first."""
        return await _pipe(self._process.stdout).readline()

    async def obituary(self) -> str:
        """How it ended and what it said last. Waits for the end."""
        code = await self._process.wait()
        await self._listener
        how = f"was ended by {_signal_name(-code)}" if code < 0 else f"left with status {code}"
        words = self._last_words.decode("utf-8", "replace").strip()
        return f"{how}; its last words: {words}" if words else how

    async def end(self) -> None:
        """Ask it to leave, then insist. Safe to call twice, and for one that has gone already."""
        stdin = self._process.stdin
        if stdin is not None:
            stdin.close()
        for insist in (self._process.terminate, self._process.kill):
            if await self.ended_within(LEAVE_S):
                break
            with contextlib.suppress(ProcessLookupError):
                insist()
        await self._process.wait()
        await self._listener

    async def _listen(self) -> None:
        """Read what it writes to stderr, lest the pipe fill up, and keep the end of it."""
        stderr = _pipe(self._process.stderr)
        while piece := await stderr.read(4096):
            self._last_words = (self._last_words + piece)[-LAST_WORDS_BYTES:]


async def start_child(model: Model) -> Child:
    """A child that has loaded its model and answers. Raises ModelFileError or EngineError."""
    key = secrets.token_hex(16)
    child = Child(await _spawn(), key)
    try:
        await _hand_over(child, model)
        async with asyncio.timeout(model.load_timeout_s):
            line = await child.first_line()
        child.port = await _port(line, child, model)
    except TimeoutError as error:
        await child.end()
        raise EngineError(
            f"stage '{model.stage}': {model.files} was not loaded within {model.load_timeout_s:g} s (load_timeout_s)"
        ) from error
    except BaseException:  # a cancelled start must not leave a process behind either
        await child.end()
        raise
    return child


async def _spawn() -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        str(PROGRAM),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # else an abort attaches a debugger where there is one
        start_new_session=True,  # Ctrl-C in a terminal is for the parent, which then ends its children in order
    )


async def _hand_over(child: Child, model: Model) -> None:
    settings: dict[str, Any] = {
        "model": model.path,
        "alias": model.stage,
        "n_ctx": model.n_ctx,
        "n_parallel": model.slots,
        "threads": model.threads,
        "api_key": child.key,
        "load_timeout_s": model.load_timeout_s,
        "speculation": None if model.drafter is None else model.drafter.settings(),
    }
    await child.tell(json.dumps(settings).encode() + b"\n")


async def _port(line: bytes, child: Child, model: Model) -> int:
    """The port from a child's first line, or the error that the line (or its absence) means."""
    if line:
        said = json.loads(line)
        if "port" in said:
            return int(said["port"])
        if said["kind"] == "import":
            await child.end()
            raise EngineError(f"stage '{model.stage}': xllamacpp is installed but cannot be used: {said['error']}")
        await child.end()
        raise ModelFileError(
            f"stage '{model.stage}': the model file {model.files} cannot be loaded: {said['error']} "
            f"The process {await child.obituary()}"
        )
    await child.end()
    raise ModelFileError(
        f"stage '{model.stage}': the model file {model.files} cannot be loaded: the process that tried "
        f"{await child.obituary()}"
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _pipe(stream: asyncio.StreamReader | None) -> asyncio.StreamReader:
    if stream is None:
        raise EngineError("the process was started without its pipes")
    return stream
