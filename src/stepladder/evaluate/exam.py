"""Whether a program passes tests: it runs in one box, the tests in another, and only plain data pass between them.

The verdict is said by the examiner's box, through a pipe that the program's box does not hold. The program never sees
the tests, nor what they expect; it is called with arguments and answers. So nothing it does to its own process, such as
leaving with status 0, changing ``builtins`` or returning objects that are equal to everything, can make it pass.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stepladder.evaluate.sandbox import Box, Limits, is_confined, read_within

CHILD = Path(__file__).with_name("exam_child.py")
USUAL_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """Tests: Python source that raises where the program is wrong.

    ``names`` are what the tests see of the program; ``before`` is source that they may build on.
    """

    tests: str
    names: tuple[str, ...]
    before: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the program passed, and if not, what ended the tests."""

    passed: bool
    reason: str = ""


def examine(program: str, exam: Exam, limits: Limits = USUAL_LIMITS) -> Verdict:
    """Run the tests against the program, for ``limits.wall_s`` seconds at most.

    Raises UsageError where programs cannot be confined on this machine and nobody allowed to go without, SandboxError
    where the walls cannot be put up. Everything that the program itself may do ends in a verdict.
    """
    confined = is_confined()
    source = _child_source()
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        read, write = os.pipe()
        heard, said = (stack.enter_context(end) for end in (os.fdopen(read, "rb", 0), os.fdopen(write, "wb", 0)))
        candidate = {"role": "candidate", "program": program}
        examiner = {"role": "examiner", "before": exam.before, "tests": exam.tests, "names": exam.names}
        stack.enter_context(Box(source, candidate, [theirs.fileno()], limits, confined=confined))
        theirs.close()
        stack.enter_context(Box(source, examiner, [ours.fileno(), said.fileno()], limits, confined=confined))
        ours.close()
        said.close()
        line = read_within(heard.fileno(), time.monotonic() + limits.wall_s)
    if not line.endswith(b"\n"):
        return Verdict(False, "no verdict within the limits of time and memory")
    verdict = json.loads(line)
    return Verdict(verdict["passed"] is True, str(verdict["reason"]))


@cache
def _child_source() -> str:
    return CHILD.read_text(encoding="utf-8")
