"""What runs inside the two boxes of an examination (``exam.py``): the examiner with the tests, the candidate without.

It is handed over as text, so it imports nothing of ours. The two talk over a socket in lines of JSON: the examiner asks
for a name (``get``), sets an attribute (``set``) or calls something (``call``), the candidate answers with a value or
the error that was raised. Values travel as plain data; anything else stays with the candidate, and a number stands for
it. So whatever the candidate's objects claim to be equal to, the examiner compares data of its own.
"""

from __future__ import annotations

import builtins
import json
import os
import socket
import sys
import types
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from functools import partial
from itertools import islice
from typing import Any, NoReturn

LONGEST_LINE = 16 * 2**20
MOST_ITEMS = 100_000
"""Of an iterator; one that has more is an error, for it may have no end."""

PLAIN_INT = 2**53
REASON_CHARS = 300
NAMESPACE = 0
"""The number that stands for the candidate's module."""

NUMBERS = {("fractions", "Fraction"), ("decimal", "Decimal")}


class BrokenLinkError(BaseException):
    """The candidate is gone or talks nonsense. No test can swallow it by ``except Exception``."""


class CandidateError(Exception):
    """What the candidate raised, where that is no error of Python's own."""


# ── values on their way ──────────────────────────────────────────────────────

MAKERS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "iter": iter,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "items": lambda items: dict(items).items(),
    "dict": dict,
    "range": lambda bounds: range(*bounds),
    "complex": lambda parts: complex(*parts),
}


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """JSON's words for a value; ``keep`` gives the number of one that cannot travel."""
    if value is None or isinstance(value, bool):
        return value
    if _is_builtin_type(value):
        return {"type": value.__name__}
    for kind, convert in SCALARS.items():
        if isinstance(value, kind):
            return convert(value)
    if isinstance(value, list):
        return [encode(item, keep) for item in list.__iter__(value)]
    for kind, name, items in COLLECTIONS:
        if isinstance(value, kind):
            return {name: [encode(item, keep) for item in items(value)]}
    if (type(value).__module__, type(value).__name__) in NUMBERS:
        return {type(value).__name__: str(value)}
    return {"handle": keep(value)}


def _is_builtin_type(value: object) -> bool:
    return isinstance(value, type) and vars(builtins).get(value.__name__) is value


def _int(value: int) -> Any:
    plain = int(value)
    return plain if abs(plain) < PLAIN_INT else {"int": hex(plain)}


def _limited(items: Any) -> list[Any]:
    found = list(islice(items, MOST_ITEMS + 1))
    if len(found) > MOST_ITEMS:
        raise ValueError(f"an iterator of more than {MOST_ITEMS} items")
    return found


SCALARS: dict[type, Callable[[Any], Any]] = {
    int: _int,
    float: float,
    str: str,
    bytes: lambda value: {"bytes": value.hex()},
    bytearray: lambda value: {"bytearray": value.hex()},
}

COLLECTIONS: list[tuple[type, str, Callable[[Any], Any]]] = [
    (tuple, "tuple", iter),
    (dict, "dict", lambda value: [tuple(pair) for pair in value.items()]),
    (set, "set", iter),
    (frozenset, "frozenset", iter),
    (deque, "deque", iter),
    (range, "range", lambda value: (value.start, value.stop, value.step)),
    (complex, "complex", lambda value: (value.real, value.imag)),
    (KeysView, "keys", iter),
    (ItemsView, "items", iter),
    (ValuesView, "iter", iter),
    (Iterator, "iter", _limited),
]


def decode(value: Any, handle: Callable[[int], Any]) -> Any:
    """The value that JSON's words stand for; raises ValueError, TypeError or KeyError where they stand for none."""
    if isinstance(value, list):
        return [decode(item, handle) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, inner),) = value.items()
    if name in MAKERS:
        return MAKERS[name]([decode(item, handle) for item in inner])
    match name:
        case "int":
            return int(inner, 16)
        case "bytes":
            return bytes.fromhex(inner)
        case "bytearray":
            return bytearray.fromhex(inner)
        case "type":
            return _builtin_type(inner)
        case "Fraction":
            from fractions import Fraction

            return Fraction(inner)
        case "Decimal":
            from decimal import Decimal

            return Decimal(inner)
    return handle(value["handle"])


def _builtin_type(name: str) -> type:
    found = getattr(builtins, name)
    if not isinstance(found, type):
        raise TypeError(f"{name} is no type")
    return found


# ── the examiner ─────────────────────────────────────────────────────────────


class Link:
    """The examiner's end of the line. ``is_broken`` stays true once it was, whatever a test swallowed."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._lines = self._socket.makefile("rb")
        self.is_broken = False

    def ask(self, **question: Any) -> Any:
        """The candidate's answer; raises what the candidate raised, or BrokenLinkError."""
        if question:
            asked = json.dumps(question).encode() + b"\n"
        try:
            if question:
                self._socket.sendall(asked)
            answer = self._answer()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
            self._break(error)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _answer(self) -> Any:
        line = self._lines.readline(LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise ValueError("it ended without an answer" if len(line) < LONGEST_LINE else "its answer is too long")
        said = json.loads(line)
        if "error" in said:
            return as_error(str(said["error"][0]), str(said["error"][1]))
        return decode(said["value"], lambda number: Handle(self, int(number)))

    def _break(self, error: Exception) -> NoReturn:
        self.is_broken = True
        raise BrokenLinkError(f"the program's process: {error}") from error


class Handle:
    """Something that stayed with the candidate: it can be called, and has attributes. It is equal to itself alone."""

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        words = encode(args, number_of), {name: encode(value, number_of) for name, value in kwargs.items()}
        return self._link.ask(op="call", of=self._number, args=words[0]["tuple"], kwargs=words[1])

    def __getattr__(self, name: str) -> Any:
        return self._link.ask(op="get", of=self._number, name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask(op="set", of=self._number, name=name, value=encode(value, number_of))


def number_of(value: Any) -> int:
    if isinstance(value, Handle):
        number: int = object.__getattribute__(value, "_number")
        return number
    raise TypeError(f"a test hands over a {type(value).__name__}, which cannot leave the examiner")


def as_error(name: str, message: str) -> Exception:
    """Python's own error of this name where there is one, so that a test may expect it."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:  # such as UnicodeDecodeError, which wants five arguments
            pass
    return CandidateError(f"{name}: {message}")


def examine(job: dict[str, Any], link: Link) -> str | None:
    """Why the candidate does not pass; None where it does."""
    try:
        link.ask()  # the candidate's first line: was its program run?
        module = Handle(link, NAMESPACE)
        space: dict[str, Any] = {"__name__": "tests"}
        exec(compile(job["before"], "<before the tests>", "exec"), space)  # noqa: S102 - in a box of its own
        for name in job["names"]:
            space[name] = getattr(module, name)
        exec(compile(job["tests"], "<tests>", "exec"), space)  # noqa: S102 - in a box of its own
    except BaseException as error:  # noqa: BLE001 - whatever ends the tests early is a failure, SystemExit too
        return f"{type(error).__name__}: {error}"[:REASON_CHARS]
    return "the program's process broke off" if link.is_broken else None


def run_examiner(job: dict[str, Any], link_fd: int, verdict_fd: int) -> None:
    """Examine, and say the verdict."""
    reason = examine(job, Link(link_fd))
    os.write(verdict_fd, json.dumps({"passed": reason is None, "reason": reason or ""}).encode() + b"\n")


# ── the candidate ────────────────────────────────────────────────────────────


class Candidate:
    """The program's module, and what of it the examiner knows by number."""

    def __init__(self, source: str) -> None:
        self.module = types.ModuleType("solution")
        sys.modules["solution"] = self.module
        self._kept: list[Any] = [self.module]
        self._source = source

    def load(self) -> None:
        """Run the program's own statements."""
        exec(compile(self._source, "<solution>", "exec"), self.module.__dict__)  # noqa: S102 - in a box of its own

    def reply(self, act: Callable[[], Any]) -> bytes:
        """A line with what came of it."""
        try:
            said = {"value": encode(act(), self._keep)}
            return json.dumps(said).encode() + b"\n"
        except BaseException as error:  # noqa: BLE001 - the program may raise anything; it is the examiner's to know
            return json.dumps({"error": [type(error).__name__, str(error)[:REASON_CHARS]]}).encode() + b"\n"

    def do(self, question: dict[str, Any]) -> Any:
        """What the examiner asks for."""
        thing = self._kept[question["of"]]
        match question["op"]:
            case "get":
                return getattr(thing, question["name"])
            case "set":
                return setattr(thing, question["name"], self._decoded(question["value"]))
            case _:
                args = self._decoded(question["args"])
                return thing(*args, **{name: self._decoded(value) for name, value in question["kwargs"].items()})

    def _decoded(self, value: Any) -> Any:
        return decode(value, self._kept.__getitem__)

    def _keep(self, value: Any) -> int:
        self._kept.append(value)
        return len(self._kept) - 1


def run_candidate(job: dict[str, Any], link_fd: int) -> None:
    """Run the program, then answer until the examiner hangs up."""
    link = socket.socket(fileno=link_fd)
    lines = link.makefile("rb")
    candidate = Candidate(job["program"])
    link.sendall(candidate.reply(candidate.load))
    for line in lines:
        link.sendall(candidate.reply(partial(candidate.do, json.loads(line))))


if __name__ == "__main__":
    JOB: dict[str, Any] = globals()["JOB"]
    FDS: list[int] = globals()["FDS"]
    if JOB["role"] == "examiner":
        run_examiner(JOB, *FDS)
    else:
        run_candidate(JOB, *FDS)
