"""Runs Python programs that nobody has read, each shut in by what Linux lets an ordinary user do, no package needed.

**Kept out** (``Box``, confined; Linux 5.14 or newer, user namespaces allowed):

- *network*: an own network namespace in which not even the loopback device is up; Unix sockets outside are neither
  seen by name nor by path;
- *files*: an own root with the standard library and the system's libraries to read and nothing else: no home, no
  ``/proc``, ``/sys`` or ``/etc``, no ``bin``. One empty directory of 16 MiB can be written; it is in memory
  and goes with the process;
- *other processes*: an own process namespace, so that no process outside has a number; its end is the end of all in it,
  of those too that left the group, the session or their parent;
- *secrets*: an empty environment, no stdin, no file descriptor but those handed over, an own keyring of the kernel,
  output into the void;
- *privileges*: another user id (where root starts it), no capability, ``no_new_privs``, no further user namespace;
- *excess*: CPU seconds (each process), wall time (all), memory (address space of each process), processes and threads,
  size and number of files, no core dump.

**Not kept out**: faults of the kernel itself, for no system call is filtered; reading the clock, the kernel's version
and the machine's load; using every core until the wall time is over; ``processes`` times ``memory_bytes`` of memory;
slowing others down, and being slowed down. Whoever needs more runs all of this in a virtual machine.

**Unconfined** (only inside ``allow_unconfined()``) the limits hold but for that on processes, the environment is empty,
and orphans are killed. The program reads and writes what its user may, reaches the network, and may kill its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from stepladder.errors import SandboxError, UsageError

PROGRAM = Path(__file__).with_name("sandbox_child.py")
OLDEST_KERNEL = (5, 14)
"""Counts processes within a user namespace, and makes whole trees of mounts read-only."""

START_S = 30.0
"""How long the walls may take; milliseconds are usual."""

LEAVE_S = 5.0
FIRST_UID = 0x70000000
"""User ids from here on are nobody's: each box that root starts takes another, so that its processes count alone."""

_unconfined_allowed: ContextVar[bool] = ContextVar("unconfined_allowed", default=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use. ``cpu_s`` and ``memory_bytes`` are for each process, ``wall_s`` is for all of it."""

    cpu_s: int = 4
    wall_s: float = 8.0
    memory_bytes: int = 512 * 2**20
    processes: int = 8
    file_bytes: int = 8 * 2**20
    open_files: int = 64


@contextlib.contextmanager
def allow_unconfined() -> Iterator[None]:
    """Within this, programs run with limits alone where the kernel refuses more. For programs that you trust."""
    token = _unconfined_allowed.set(True)
    try:
        yield
    finally:
        _unconfined_allowed.reset(token)


def is_confined() -> bool:
    """True where programs are shut in, False where they run with limits alone; raises UsageError where neither is."""
    why = obstacle()
    if why is None:
        return True
    if _unconfined_allowed.get() and sys.platform == "linux":
        return False
    raise UsageError(
        f"programs that models wrote cannot be shut in on this machine: {why}. They would run with your rights; "
        "docs/how-to/grade-code.md says how to mend it, or how to allow that"
    )


@cache
def obstacle() -> str | None:
    """Why programs cannot be confined here, None where they can; found by confining an empty one."""
    if sys.platform != "linux":
        return f"that needs Linux, this is {sys.platform}"
    if _kernel() < OLDEST_KERNEL:
        return f"that needs Linux {'.'.join(map(str, OLDEST_KERNEL))} or newer, this is {platform.release()}"
    try:
        with Box("pass", None, confined=True):
            return None
    except SandboxError as error:
        return str(error)


def _kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])


class Box:
    """A running program. As a context manager: it runs inside, and nothing of it is left after.

    ``program`` is Python source; it finds ``argument`` (anything JSON can say) as ``JOB`` and the ``fds`` it was
    handed, renumbered, as ``FDS``. It runs on its own: what became of it is told by what comes through these. Raises
    SandboxError where the walls cannot be put up.
    """

    def __init__(
        self, program: str, argument: Any, fds: Sequence[int] = (), limits: Limits | None = None, *, confined: bool
    ) -> None:
        self._confined = confined
        self._directory = tempfile.mkdtemp(prefix="stepladder-box-")
        job = {"program": program, "argument": argument, "fds": list(fds), "confined": confined}
        self._job = {**job, "directory": self._directory, **asdict(limits or Limits())}
        self._fds = tuple(fds)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Box:
        try:
            self._start()
        except BaseException:  # also where the user interrupts: nothing may be left running
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=self._fds,
            env={},
            cwd="/",
            start_new_session=True,
        )
        deadline = time.monotonic() + START_S
        self._tell(json.dumps(self._job))
        said = self._hear(deadline)
        if "unshared" in said:
            _map_ids(self._process.pid)
            self._tell("mapped")
            said = self._hear(deadline)
        if "error" in said:
            raise SandboxError(f"the kernel refuses it: {said['error']}")

    def _tell(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            raise SandboxError("the box is not open")
        with contextlib.suppress(BrokenPipeError):  # one that died already is found out by its silence
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _hear(self, deadline: float) -> dict[str, Any]:
        if self._process is None or self._process.stdout is None:
            raise SandboxError("the box is not open")
        line = read_within(self._process.stdout.fileno(), deadline)
        if not line.endswith(b"\n"):
            raise SandboxError("the process that should shut a program in ended or said nothing")
        said: dict[str, Any] = json.loads(line)
        return said

    def _end(self) -> None:
        """End everything: the warden by closing its stdin, and should it not heed that, its group."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(BrokenPipeError):
                if process.stdin is not None:
                    process.stdin.close()
            try:
                process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def read_within(fd: int, deadline: float, most: int = 65536) -> bytes:
    """What comes up to the end of a line, of the stream, of the time (monotonic seconds) or of ``most`` bytes."""
    found = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while not found.endswith(b"\n") and len(found) < most:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            break
        piece = os.read(fd, 4096)
        if not piece:
            break
        found += piece
    return found


def _map_ids(pid: int) -> None:
    """Give the new user namespace its ids: one that is nobody's to the inmate where root may, else our own."""
    user, group = os.geteuid(), os.getegid()
    spare = FIRST_UID + secrets.randbelow(1 << 24)
    folder = Path("/proc") / str(pid)
    try:
        if user == 0:
            with contextlib.suppress(PermissionError):  # root of a container with few ids
                (folder / "uid_map").write_text(f"0 0 1\n1 {spare} 1\n")
                (folder / "gid_map").write_text(f"0 {group} 1\n1 {spare} 1\n")
                return
        (folder / "setgroups").write_text("deny")
        (folder / "gid_map").write_text(f"1 {group} 1\n")
        (folder / "uid_map").write_text(f"1 {user} 1\n")
    except OSError as error:
        raise SandboxError(f"the kernel refuses it: user ids cannot be mapped: {error.strerror}") from error
