"""Graders of code: the program in an answer is run against the tests of its problem (HumanEval's and MBPP's pass@1).

A reference is JSON text. HumanEval's holds ``prompt``, ``entry_point`` and ``test`` as in the official file; MBPP's
holds ``test`` (source of all asserts with their setup) and ``names``, the functions and classes that these call.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice

from stepladder.evaluate.exam import Exam, examine
from stepladder.evaluate.sandbox import is_confined

LONGEST_ANSWER = 100_000
"""Characters; of a longer answer only the beginning is read."""

MOST_STARTS = 8

_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_STARTS = re.compile(r"^(?:(?:def|async def|class|from|import)\b|@)", re.MULTILINE)
_INDENT = "    "
_UNREADABLE = (SyntaxError, ValueError, MemoryError, RecursionError)
"""What Python raises on source that it cannot read: ValueError for null characters, the last two for deep nesting."""


def humaneval(text: str, reference: str) -> float:
    """1.0 if the function in the answer, or the prompt that the answer completes, passes ``check``, else 0.0.

    Raises ValueError if the reference is not as the module says; UsageError or SandboxError where programs cannot be
    confined here.
    """
    prompt, entry_point, test = _texts(reference, ("prompt", "entry_point", "test"))
    exam = Exam(before=prompt, tests=f"{test}\ncheck({entry_point})\n", names=(entry_point,))
    return _graded(find_program(text, (entry_point,), prompt), exam)


def mbpp(text: str, reference: str) -> float:
    """1.0 if the program in the answer passes every assert, else 0.0. Raises as ``humaneval`` does."""
    (test,) = _texts(reference, ("test",))
    names = json.loads(reference).get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("the reference's 'names' should be a list of names that is not empty")
    return _graded(find_program(text, names), Exam(tests=test, names=tuple(names)))


def _graded(program: str | None, exam: Exam) -> float:
    for source in (exam.before, exam.tests):
        if not is_python(source):
            raise ValueError("the reference's source is no Python")
    is_confined()  # where that cannot be, it is said before any stage is asked, not after all answered
    return float(program is not None and examine(program, exam).passed)


def _texts(reference: str, keys: Sequence[str]) -> list[str]:
    try:
        values = json.loads(reference)
    except json.JSONDecodeError as error:
        raise ValueError(f"the reference is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError("the reference is no JSON object")  # noqa: TRY004 - ValueError is what graders promise
    for key in keys:
        if not isinstance(values.get(key), str) or not values[key].strip():
            raise ValueError(f"the reference's {key!r} should be a text that is not empty")
    return [values[key] for key in keys]


# ── the program in an answer ─────────────────────────────────────────────────


def find_program(text: str, names: Sequence[str], prompt: str = "") -> str | None:
    """The program in an answer that should define ``names``; None where there is none.

    In this order: the last fenced block that defines all names; all blocks together, if they do; where there is no
    block, the text from its first line of code, as far as it can be read; what completes the prompt's function
    ``names[0]``, fenced or not. The prompt, where there is one, stands before it, for its imports and helpers.
    """
    text = text[:LONGEST_ANSWER]
    pieces = _FENCE.findall(text)
    blocks = [textwrap.dedent(piece) for piece in pieces]
    together = "\n".join(blocks)
    for block in (*reversed(blocks), together, *([] if blocks else _from_first_code(text))):
        if _defines(block, names):
            return f"{prompt}\n\n{block}"
    if prompt:
        completed = [_completed(prompt, piece, names[0]) for piece in pieces or [text]]
        return next((whole for whole in completed if whole), None)
    return together if together and is_python(together) else None


def _from_first_code(text: str) -> Iterator[str]:
    """The text from each of the first lines that may begin a program, as far as it can be read."""
    for start in islice(_STARTS.finditer(text), MOST_STARTS):
        yield readable_prefix(text[start.start() :])


def _completed(prompt: str, text: str, name: str) -> str:
    """The prompt with the body that the text gives its function, indented as models leave it; empty if it is none."""
    text = text.strip("\n")
    bodies = (text, _INDENT + text.lstrip(), textwrap.indent(textwrap.dedent(text), _INDENT))
    wholes = (readable_prefix(f"{prompt.rstrip()}\n{body}\n") for body in bodies)
    bodied = (whole for whole in wholes if _has_body(whole, name))
    return max(bodied, key=lambda whole: (whole.count("\n"), len(whole)), default="")


def _has_body(source: str, name: str) -> bool:
    """True if the function is more than its docstring."""
    functions = [node for node in _parsed(source).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return any(function.name == name and len(function.body) > 1 for function in functions)


def readable_prefix(source: str) -> str:
    """The longest run of lines from the first on that Python can read."""
    lines = source.splitlines(keepends=True)
    while lines:
        problem = _problem("".join(lines))
        if problem is None:
            break
        lines = lines[: min(len(lines), problem) - 1]
    return "".join(lines)


def is_python(source: str) -> bool:
    """True if Python can read it."""
    return _problem(source) is None


def _problem(source: str) -> int | None:
    """The line (from 1) that Python stumbles over, or one that comes later; None where it can read all."""
    try:
        _parsed(source)
    except SyntaxError as error:
        return max(1, error.lineno or 1)
    except _UNREADABLE:
        return 1
    return None


def _parsed(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape in an answer is no matter of ours
        return ast.parse(source)


def _defines(source: str, names: Sequence[str]) -> bool:
    try:
        return set(names) <= set(defined_names(source))
    except _UNREADABLE:
        return False


def defined_names(source: str) -> list[str]:
    """Functions, classes and variables that the source makes at its top level, imports left out.

    Raises SyntaxError, or what else Python raises on source that it cannot read.
    """
    found: list[str] = []
    for node in _parsed(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)]
    return list(dict.fromkeys(found))
