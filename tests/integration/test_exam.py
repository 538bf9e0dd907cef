"""Grading by running: what is right passes, what is hostile neither passes nor hangs nor harms."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepladder.errors import UsageError
from stepladder.evaluate import sandbox
from stepladder.evaluate.code import humaneval
from stepladder.evaluate.exam import Exam, Verdict, examine
from stepladder.evaluate.sandbox import Limits, allow_unconfined, is_confined, obstacle

WHY = obstacle()
confined = pytest.mark.skipif(WHY is not None, reason=f"programs cannot be confined here: {WHY}")

EXAM = Exam(tests="assert double(2) == 4\nassert double(21) == 42\n", names=("double",))
QUICK = Limits(cpu_s=1, wall_s=3.0)
RIGHT = "def double(x):\n    return 2 * x\n"
NOT_HUNG_S = 15.0
"""QUICK's wall time and the most that starting and ending may take on a busy machine."""


def judged(program: str, exam: Exam = EXAM, limits: Limits = QUICK) -> Verdict:
    """The verdict, which must come in time and leave no process and no directory behind."""
    began, before = time.monotonic(), children_of_ours()
    verdict = examine(program, exam, limits)
    assert time.monotonic() - began < NOT_HUNG_S
    assert children_of_ours() == before
    return verdict


def children_of_ours() -> str:
    tasks = Path("/proc/self/task")
    return " ".join((task / "children").read_text() for task in tasks.iterdir())


# ── what is right ────────────────────────────────────────────────────────────


@confined
@pytest.mark.parametrize(
    "program",
    [
        RIGHT,
        "double = lambda x: x + x",
        "import sys\nsys.setrecursionlimit(5000)\ndef double(x):\n    return 0 if x == 0 else 2 + double(x - 1)",
        "print('x' * 10_000_000)\n" + RIGHT,
        "open('note.txt', 'w').write('a file of its own')\n" + RIGHT,
        RIGHT + "if __name__ == '__main__':\n    raise SystemExit\n",
        "from dataclasses import dataclass\n@dataclass\nclass One:\n    x: int\ndef double(x): return One(x).x * 2",
    ],
)
def test_right_programs_pass(program: str) -> None:
    assert judged(program) == Verdict(True, "")


@confined
@pytest.mark.parametrize(
    "value",
    [
        "None",
        "True",
        "-1.5",
        "float('inf')",
        "10 ** 5000",
        "'\\udc80 ü'",
        "b'\\x00\\xff'",
        "bytearray(b'ab')",
        "[1, [2, (3,)]]",
        "(1, 'a', None)",
        "{1, 2}",
        "frozenset({'a'})",
        "{(1, 2): ['x'], 'a': {3: 4}}",
        "range(1, 9, 2)",
        "3 + 4j",
        "int",
        "__import__('fractions').Fraction(1, 3)",
        "__import__('decimal').Decimal('1.10')",
        "__import__('collections').Counter('hello')",
        "__import__('collections').deque([1, 2])",
    ],
)
def test_values_travel_both_ways(value: str) -> None:
    tests = f"value = {value}\nassert same(value) == value"
    assert judged("def same(x):\n    return x", Exam(tests=tests, names=("same",))) == Verdict(True)


@confined
def test_errors_iterators_and_objects_serve_tests_as_if_there_were_no_walls() -> None:
    program = (
        "class Node:\n    def __init__(self, value):\n        self.value, self.next = value, None\n"
        "def total(node):\n    return 0 if node is None else node.value + total(node.next)\n"
        "def count(n):\n    yield from range(n)\n"
        "def refuse(x):\n    raise KeyError(x)\n"
    )
    tests = (
        "root = Node(1)\nroot.next = Node(2)\nroot.next.next = Node(39)\nassert total(root) == 42 and root.value == 1\n"
        "assert list(count(3)) == [0, 1, 2] and count(3) != [0, 1, 2]\n"
        "try:\n    refuse('a')\nexcept KeyError:\n    pass\nelse:\n    assert False\n"
    )
    assert judged(program, Exam(tests=tests, names=("Node", "total", "count", "refuse"))) == Verdict(True)


@confined
def test_a_verdict_says_what_ended_the_tests() -> None:
    assert judged("def double(x):\n    return x").reason == "AssertionError: "
    assert judged("def double(x):\n    return x / 0").reason == "ZeroDivisionError: division by zero"
    assert judged("def twice(x):\n    return x").reason.startswith("AttributeError: module 'solution' has no attribute")
    assert judged("def double(:").reason.startswith("SyntaxError: ")
    assert judged("import no_such_module").reason.startswith("ModuleNotFoundError: ")


# ── what is hostile ──────────────────────────────────────────────────────────

ALWAYS = "class Always:\n    def __eq__(self, other): return True\n    def __bool__(self): return True\n"


def keyring() -> int:
    """Our session keyring's number, where this is x86-64."""
    return int(ctypes.CDLL(None).syscall(250, 0, -3, 0)) if platform.machine() == "x86_64" else 0


HOSTILE = {
    "an endless loop at the top": "while True: pass",
    "an endless loop when called": "def double(x):\n    while True: pass",
    "sleeping": "import time\ndef double(x):\n    time.sleep(3600)",
    "an endless answer": "import itertools\ndef double(x):\n    return itertools.count()",
    "exit at the top": "import sys\nsys.exit(0)",
    "exit when called": "import sys\ndef double(x):\n    sys.exit(0)",
    "SystemExit raised": "def double(x):\n    raise SystemExit(0)",
    "_exit at the top": "import os\nos._exit(0)",
    "_exit when called": "import os\ndef double(x):\n    os._exit(0)",
    "a signal to itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "abort": "import os\ndef double(x):\n    os.abort()",
    "a crash": "import ctypes\ndef double(x):\n    ctypes.string_at(0)",
    "killing the parent": "import os\ndef double(x):\n    os.kill(os.getppid(), 9)\n    os.kill(-1, 9)",
    "killing the group": "import os\ndef double(x):\n    os.killpg(0, 9)",
    "a memory bomb": "def double(x):\n    return len(b'x' * (8 << 30))",
    "a slow memory bomb": "def double(x):\n    kept = []\n    while True: kept.append(bytearray(1 << 20))",
    "an answer of 100 MB": "def double(x):\n    return 'x' * 100_000_000",
    "a number without end": "def double(x):\n    return 1 << 2_000_000_000",
    "deep recursion": "import sys\nsys.setrecursionlimit(1 << 30)\ndef double(x):\n    return double(x)",
    "a deep answer": "def double(x):\n    deep = []\n    for _ in range(100_000): deep = [deep]\n    return deep",
    "a cyclic answer": "def double(x):\n    cycle = []\n    cycle.append(cycle)\n    return cycle",
    "deep source": "double = " + "(" * 10_000 + ")" * 10_000,
    "closing all files": "import os\nos.closerange(0, 4096)\n" + RIGHT,
    "closing them when called": "import os\ndef double(x):\n    os.closerange(0, 4096)\n    return 2 * x",
    "rubbish into every file": (
        'import os\nfor fd in range(64):\n    try: os.write(fd, b\'{"passed": true, "reason": ""}\\n\')\n'
        "    except OSError: pass\ndef double(x):\n    return 0"
    ),
    "answers ahead of questions": (
        "import os\ndef double(x):\n    for _ in range(9): os.write(3, b'{\"value\": true}\\n')\n    return 0"
    ),
    "binary rubbish": "import os\nos.write(3, bytes(range(256)) * 999)\n" + RIGHT,
    "equal to everything": ALWAYS + "def double(x):\n    return Always()",
    "equal to everything, as a number": (
        "class Liar(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def double(x):\n    return Liar(7)"
    ),
    "equal to everything, as the function": ALWAYS + "double = Always()",
    "patched builtins": (
        "import builtins\nclass Never(BaseException): pass\nbuiltins.AssertionError = Never\n"
        "builtins.compile = builtins.exec = lambda *a, **k: None\nbuiltins.type = lambda *a: bool\n"
        "def double(x):\n    return 0"
    ),
    "patched unittest and json": (
        "import json, unittest\nunittest.TestCase.assertEqual = lambda *a: None\n"
        'json.dumps = lambda *a, **k: \'{"passed": true, "reason": ""}\'\ndef double(x):\n    return 0'
    ),
    "looking for what is expected": (
        "import gc, sys\nneedle = ' '.join(['=', '42']).replace('=', '=' + '=')\n"
        "def texts():\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n        yield from frame.f_code.co_consts\n        frame = frame.f_back\n"
        "    for found in gc.get_objects():\n"
        "        if isinstance(found, dict): yield from list(found.values())\n"
        "        if isinstance(found, (list, tuple)): yield from found\n"
        "def double(x):\n"
        "    seen = any(isinstance(text, str) and needle in text != needle for text in texts())\n"
        "    return 2 * x if seen else None"
    ),
    "a thread that goes on": (
        "import threading\ndef spin():\n    while True: pass\n"
        "threading.Thread(target=spin).start()\ndef double(x):\n    return 0"
    ),
    "ignored signals": (
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: pass"
    ),
    "many threads": (
        "import threading, time\nfor _ in range(10_000): threading.Thread(target=time.sleep, args=(60,)).start()\n"
    ),
    "huge output": "import os\ndef double(x):\n    while True: os.write(1, b'x' * 65536)",
    "a huge file": "def double(x):\n    with open('big', 'wb') as f:\n        while True: f.write(bytes(1 << 20))",
    "many files": "def double(x):\n    for n in range(10**9): open(f'f{n}', 'w').close()",
    "many open files": "def double(x):\n    kept = [open('/dev/null') for n in range(10**6)]\n    return 4",
    "reading input": "def double(x):\n    return int(input())",
    "root again": (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\ndef double(x):\n"
        "    done = libc.unshare(0x10000000), libc.mount(b'none', b'/', None, 32, None), libc.chroot(b'/')\n"
        "    return 2 * x if 0 in done or os.getuid() == 0 else None"
    ),
    "starting a program": (
        "import os\ndef double(x):\n    os.execv('/bin/sh', ['sh', '-c', 'true'])\n    return 2 * x"
    ),
    "a program of its own": (
        "import os\ndef double(x):\n    open('p', 'w').write('#!/usr/bin/env python')\n    os.chmod('p', 0o777)\n"
        "    os.execv('./p', ['p'])"
    ),
    "the keyring of its parent": (
        "import ctypes\nlibc = ctypes.CDLL(None)\ndef double(x):\n"
        f"    return 2 * x if libc.syscall(250, 0, -3, 0) == {keyring()} else None"
    ),
    "tracing init": (
        "import ctypes\nlibc = ctypes.CDLL(None)\ndef double(x):\n"
        "    return 2 * x if libc.ptrace(16, 1, 0, 0) == 0 else None"
    ),
}


@confined
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_do_not_pass(name: str) -> None:
    assert not judged(HOSTILE[name]).passed


@confined
def test_a_fork_bomb_ends_and_never_has_more_processes_than_the_limit() -> None:
    bomb = (
        "import os, time\nmade = 0\n"
        "for _ in range(200):\n"
        "    try:\n        child = os.fork()\n"
        "    except OSError:\n        break\n"
        "    if child == 0:\n        os.setsid()\n        time.sleep(3600)\n"
        "    made += 1\n"
        "def forked(most):\n    return made\n"
    )
    tests = "assert 0 < forked(8) <= 8"
    assert judged(bomb, Exam(tests=tests, names=("forked",)), Limits(processes=8)).passed
    wild = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert not judged(wild).passed


@confined
def test_a_process_in_the_background_ends_with_the_program(tmp_path: Path) -> None:
    # A daemon, twice forked, holds the socket as long as it lives; its end is seen from outside.
    ours, theirs = socket.socketpair()
    program = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        os.write(FDS[0], b'up\\n')\n        time.sleep(3600)\n    os._exit(0)\ntime.sleep(3600)\n"
    )
    with ours, theirs:
        with sandbox.Box(program, None, [theirs.fileno()], QUICK, confined=True):
            theirs.close()
            assert sandbox.read_within(ours.fileno(), time.monotonic() + 10) == b"up\n"
        ours.settimeout(5)
        assert ours.recv(10) == b""


@confined
def test_nothing_outside_is_written_or_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sesame")
    tmp_path.chmod(0o777)
    targets = [
        str(tmp_path / "new"),
        str(secret),
        str(Path.home() / "stepladder-was-here"),
        "/usr/lib/x",
        "/x",
        "/dev/x",
    ]
    program = (
        "import os\n"
        "def tried(call):\n    try:\n        call()\n    except OSError:\n        return False\n    return True\n"
        "def writes(path):\n    return tried(lambda: open(path, 'a'))\n"
        "def reads(path):\n    return tried(lambda: open(path).read())\n"
        "def lists(path):\n    return tried(lambda: os.listdir(path))\n"
    )
    files = [str(secret), "/etc/passwd", "/etc/hostname", "/proc/self/environ", "/dev/mem"]
    folders = ["/proc", "/sys", "/home", str(tmp_path), str(Path.cwd())]
    tests = (
        f"assert not any(map(writes, {targets!r}))\n"
        f"assert not any(map(reads, {files!r}))\n"
        f"assert not any(map(lists, {folders!r}))\n"
        "assert writes('own.txt') and reads('own.txt') and lists('.')\n"
    )
    assert judged(program, Exam(tests=tests, names=("writes", "reads", "lists"))) == Verdict(True)
    assert secret.read_text() == "sesame"
    assert list(tmp_path.iterdir()) == [secret]


@contextlib.contextmanager
def loopback_server() -> Iterator[tuple[int, list[object]]]:
    """A port that listens on the loopback address, and who came."""
    came: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        stop = threading.Event()

        def listen() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, address = server.accept()
                    connection.close()
                    came.append(address)

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield server.getsockname()[1], came
        finally:
            stop.set()
            thread.join()


@confined
def test_no_server_is_reached() -> None:
    with loopback_server() as (port, came):
        socket.create_connection(("127.0.0.1", port)).close()
        time.sleep(0.3)
        assert len(came) == 1, "the server itself works"
        program = (
            "import socket\ndef double(x):\n"
            f"    for host in ('127.0.0.1', 'localhost', '0.0.0.0'):\n"
            f"        try:\n            socket.create_connection((host, {port}), 1).close()\n            return 2 * x\n"
            "        except OSError: pass\n"
            "    return None"
        )
        assert judged(program).reason == "AssertionError: "
        time.sleep(0.3)
    assert len(came) == 1


@confined
def test_neither_secrets_nor_files_of_ours_are_inherited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEPLADDER_SECRET", "sesame")
    program = (
        "import os, sys\n"
        "def environment():\n    return dict(os.environ)\n"
        "def files():\n    return [fd for fd in range(4096) if is_open(fd)]\n"
        "def is_open(fd):\n    try:\n        os.fstat(fd)\n    except OSError:\n        return False\n    return True\n"
        "def told():\n    return sys.argv, sys.stdin.read(), os.getppid(), os.getgroups()\n"
    )
    tests = (
        "assert set(environment()) <= {'LC_CTYPE'}\n"
        "assert files() == [0, 1, 2, 3]\n"
        "argv, stdin, parent, groups = told()\n"
        "assert 'sesame' not in str(argv) and stdin == '' and parent == 1\n"
    )
    with (tmp_path / "open").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        assert judged(program, Exam(tests=tests, names=("environment", "files", "told"))) == Verdict(True)


@confined
def test_hostile_tests_are_shut_in_too() -> None:
    for tests in ("import os\nos._exit(0)", "while True: pass", "raise SystemExit(0)", "open('/x', 'w')"):
        assert not judged(RIGHT, Exam(tests=tests, names=("double",))).passed


@confined
def test_a_swallowed_break_does_not_pass() -> None:
    tests = "try:\n    double(1)\nexcept BaseException:\n    pass\n"
    assert not judged("import os\ndef double(x):\n    os._exit(0)", Exam(tests=tests, names=("double",))).passed


@confined
def test_boxes_leave_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert judged("open('a', 'w').write('b')\n" + RIGHT).passed
    assert not any(tmp_path.iterdir())


@confined
def test_a_box_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\nfrom stepladder.evaluate.sandbox import Box\n"
        "with Box('import time; time.sleep(3600)', None, confined=True) as box:\n"
        "    print(box._process.pid, flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    place = {**os.environ, "TMPDIR": str(tmp_path)}  # an empty directory stays where the parent was killed
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=place)
    warden = Path("/proc") / done.stdout.strip()
    deadline = time.monotonic() + 10
    while warden.exists() and "Z" not in (warden / "stat").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not warden.exists() or "Z" in (warden / "stat").read_text()


# ── where the kernel says no ─────────────────────────────────────────────────


def test_without_walls_it_refuses_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "obstacle", lambda: "the kernel refuses it: unshare Operation not permitted")
    with pytest.raises(UsageError, match=r"unshare Operation not permitted.*docs/how-to/grade-code.md"):
        is_confined()
    reference = json.dumps({"prompt": "def f():\n    'x'\n", "entry_point": "f", "test": "def check(c): pass"})
    with pytest.raises(UsageError, match="cannot be shut in"):
        humaneval("", reference)


def test_where_allowed_it_runs_with_limits_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sandbox, "obstacle", lambda: "no walls today")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("STEPLADDER_SECRET", "sesame")
    with allow_unconfined():
        assert judged(RIGHT).passed
        assert judged("import os\nassert 'STEPLADDER_SECRET' not in os.environ\nopen('a', 'w')\n" + RIGHT).passed
        for name in ("an endless loop when called", "_exit when called", "a memory bomb", "equal to everything"):
            assert not judged(HOSTILE[name]).passed
        daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(3600)\n"
        assert judged(daemon + RIGHT).passed
    assert not any(tmp_path.iterdir())
    with pytest.raises(UsageError):
        is_confined()


@pytest.mark.parametrize(
    ("system", "release", "message"),
    [("darwin", "23.1", "needs Linux, this is darwin"), ("linux", "5.10.0-20-amd64", "5.14 or newer, this is 5.10.0")],
)
def test_the_obstacle_is_named(monkeypatch: pytest.MonkeyPatch, system: str, release: str, message: str) -> None:
    monkeypatch.setattr(sandbox.sys, "platform", system)
    monkeypatch.setattr(sandbox.platform, "release", lambda: release)
    sandbox.obstacle.cache_clear()
    try:
        assert message in str(sandbox.obstacle())
    finally:
        sandbox.obstacle.cache_clear()
