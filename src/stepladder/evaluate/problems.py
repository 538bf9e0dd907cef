"""HumanEval's and MBPP's problems as prompts, from the files that their authors published, plain or gzipped."""

from __future__ import annotations

import ast
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stepladder.errors import UsageError
from stepladder.evaluate.code import defined_names, is_python
from stepladder.evaluate.prompts import Prompt, gathered

GZIP_MAGIC = b"\x1f\x8b"
MBPP_SPLITS = ((10, "prompt"), (510, "test"), (600, "validation"), (974, "train"))
"""The last ``task_id`` of each of its splits, as its authors cut them."""

Values = Mapping[str, Any]


def read_humaneval(path: str | Path) -> list[Prompt]:
    """The problems of HumanEval.jsonl(.gz); raises UsageError that names the file, the line and the key."""
    return _read(Path(path), _humaneval)


def read_mbpp(path: str | Path) -> list[Prompt]:
    """The problems of mbpp.jsonl, or of its sanitized form as JSON lines; raises UsageError as ``read_humaneval``."""
    return _read(Path(path), _mbpp)


READERS: Mapping[str, Callable[[str | Path], list[Prompt]]] = {"humaneval": read_humaneval, "mbpp": read_mbpp}


def _humaneval(values: Values, where: str) -> Prompt:
    task_id = _text(values, "task_id", where)
    reference = {key: _source(values, key, where) for key in ("prompt", "test")}
    reference["entry_point"] = _text(values, "entry_point", where)
    asked = (
        "Complete this Python function. Reply with the whole function in one code block, and the imports it needs.\n\n"
        f"```python\n{reference['prompt'].rstrip()}\n```"
    )
    return Prompt(
        query_id=task_id,
        messages=({"role": "user", "content": asked},),
        reference=json.dumps(reference),
        grader="humaneval",
        dataset="humaneval",
        split="test",
        group_id=task_id,
        where=where,
    )


def _mbpp(values: Values, where: str) -> Prompt:
    number = values.get("task_id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise UsageError(f"{where}: task_id should be a whole number, not {number!r}")
    task = _text(values, "text" if "text" in values else "prompt", where).strip()
    code = _source(values, "code", where)
    asserts = "\n".join(_list(values, "test_list", where))
    setup = _setup(values, where)
    test = "\n".join((*setup, *_imports(code), asserts))
    if not is_python(test):
        raise UsageError(f"{where}: test_list is no Python")
    loose = _used(test)
    names = [name for name in defined_names(code) if name in loose]
    if not names:
        raise UsageError(f"{where}: test_list calls nothing that code defines")
    asked = (
        f"{task} Write it in Python and reply with one code block. Your code should pass these tests:\n\n"
        f"```python\n{asserts}\n```"
    )
    return Prompt(
        query_id=f"mbpp/{number}",
        messages=({"role": "user", "content": asked},),
        reference=json.dumps({"test": test, "names": names}),
        grader="mbpp",
        dataset="mbpp",
        split=next((name for last, name in MBPP_SPLITS if number <= last), None),
        group_id=f"mbpp/{number}",
        where=where,
    )


def _setup(values: Values, where: str) -> list[str]:
    setup = values.get("test_setup_code") or ""
    if not isinstance(setup, str):
        raise UsageError(f"{where}: test_setup_code should be a text, not {setup!r}")
    return [*(_list(values, "test_imports", where) if values.get("test_imports") else ()), setup]


def _imports(code: str) -> list[str]:
    """The imports of the authors' solution: some tests lean on them."""
    return [ast.unparse(node) for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]


def _used(source: str) -> set[str]:
    """Names that the source reads and does not set."""
    names = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    return {node.id for node in names} - {node.id for node in names if isinstance(node.ctx, ast.Store)}


# ── lines and keys ───────────────────────────────────────────────────────────


def _read(path: Path, make: Callable[[Values, str], Prompt]) -> list[Prompt]:
    return gathered(path, _lines(path), make, id_name="task_id", what="problems")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        content = path.read_bytes()
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise UsageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    yield from ((number, line) for number, line in enumerate(io.BytesIO(content), start=1) if line.strip())


def _text(values: Values, key: str, where: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where}: {key} should be a text that is not empty, not {value!r}")
    return value


def _source(values: Values, key: str, where: str) -> str:
    source = _text(values, key, where)
    if not is_python(source):
        raise UsageError(f"{where}: {key} is no Python")
    return source


def _list(values: Values, key: str, where: str) -> list[str]:
    value = values.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise UsageError(f"{where}: {key} should be a list of texts that is not empty, not {value!r}")
    return value
