"""HumanEval's and MBPP's problems as prompts, from the files that their authors published."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from stepladder.errors import UsageError
from stepladder.evaluate.code import defined_names, is_python
from stepladder.evaluate.prompts import Prompt
from stepladder.evaluate.records import Record

MBPP_SPLITS = ((10, "prompt"), (510, "test"), (600, "validation"), (974, "train"))
"""The last ``task_id`` of each of its splits, as its authors cut them."""

Values = Mapping[str, Any]


def humaneval_prompt(record: Record) -> Prompt:
    """The prompt of one problem of HumanEval; raises UsageError that names the file, the line and the key."""
    values, where = record.values, record.where
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


def mbpp_prompt(record: Record) -> Prompt:
    """The prompt of one problem of MBPP, full or sanitized; raises UsageError as ``humaneval_prompt``."""
    values, where = record.values, record.where
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


# ── keys ─────────────────────────────────────────────────────────────────────


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
