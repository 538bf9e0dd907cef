"""The program in an answer is found however models write it, and references that cannot be used are refused."""

from __future__ import annotations

import ast
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.evaluate.code import defined_names, find_program, humaneval, is_python, mbpp, readable_prefix
from stepladder.evaluate.sandbox import obstacle

PROMPT = (
    'from typing import List\n\n\ndef add(xs: List[int]) -> int:\n    """Sum.\n    >>> add([1, 2])\n    3\n    """\n'
)
WHOLE = "def add(xs: List[int]) -> int:\n    return sum(xs)\n"
BODY = "    total = 0\n    for x in xs:\n        total += x\n    return total\n"
REFERENCE = json.dumps(
    {"prompt": PROMPT, "entry_point": "add", "test": "def check(candidate):\n    assert candidate([1, 2, 39]) == 42\n"}
)
TWICE = json.dumps({"test": "assert twice(2) == 4", "names": ["twice"]})

WHY = obstacle()
confined = pytest.mark.skipif(WHY is not None, reason=f"programs cannot be confined here: {WHY}")

ANSWERS = {
    "a fenced function": f"Sure!\n\n```python\n{WHOLE}```\nIt adds.",
    "a fence without a language": f"```\n{WHOLE}```",
    "a fence that never ends": f"Here:\n```python\n{WHOLE}",
    "a fence in a list": f"1. Do:\n\n   ```py\n   {WHOLE.replace(chr(10), chr(10) + '   ').rstrip()}\n   ```",
    "an example after it": f"```python\n{WHOLE}```\nUse it:\n```python\nprint(add([1]))\n```",
    "a better one after it": f"```python\ndef add(xs):\n    return 0\n```\nOr rather:\n```python\n{WHOLE}```",
    "the bare function": WHOLE,
    "the bare function between words": f"Here you are.\n\n{WHOLE}\nThis adds them; isn't it nice?",
    "the prompt again": PROMPT + BODY,
    "the body": BODY,
    "the body after a line": "\n" + BODY,
    "the body whose first indentation was lost": BODY.lstrip(),
    "a long body whose first indentation was lost": (
        "for x in xs:\n        if x < 0:\n            x = x + 0\n            x = x + 0\n            x = x + 0\n"
        "            x = x + 0\n\n    return sum(xs)"
    ),
    "the body without indentation": "total = 0\nfor x in xs:\n    total += x\nreturn total",
    "the body, then words": BODY + "\nThis adds them; isn't it nice?",
    "the body, then another function": BODY + "\n\ndef other():\n    return 1\n\nprint(other(",
    "the body in a fence": f"```python\n{BODY}```",
    "one line": "return sum(xs)",
}


@confined
@pytest.mark.parametrize("name", ANSWERS)
def test_the_program_is_found_and_passes(name: str) -> None:
    assert humaneval(ANSWERS[name], REFERENCE) == 1.0


@pytest.mark.parametrize(
    "text", ["", "I cannot do that.", "```python\n```", "```python\ndef add(:\n```", "def add(", "\0"]
)
def test_no_program(text: str) -> None:
    assert find_program(text, ["add"], PROMPT) is None
    assert find_program(text, ["add"]) is None


@confined
def test_wrong_answers_score_nothing() -> None:
    for text in ("", "return 0", "def add(xs):\n    return max(xs)", "def plus(xs):\n    return sum(xs)"):
        assert humaneval(text, REFERENCE) == 0.0


@confined
def test_mbpp() -> None:
    assert mbpp("```python\ndef twice(x):\n    return x + x\n```", TWICE) == 1.0
    assert mbpp("def twice(x):\n    return x * x + 1", TWICE) == 0.0
    assert mbpp("def double(x):\n    return 2 * x", TWICE) == 0.0
    assert mbpp("```python\nfrom operator import neg as twice\n```", TWICE) == 0.0
    assert mbpp("", TWICE) == 0.0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("42", "no JSON object"),
        ("{", "no JSON"),
        (json.dumps({"prompt": PROMPT, "test": "x"}), "'entry_point' should be a text"),
        (json.dumps({"prompt": PROMPT, "entry_point": "add", "test": ""}), "'test' should be a text"),
        (json.dumps({"prompt": PROMPT, "entry_point": "add", "test": "def"}), "no Python"),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused(reference: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        humaneval("", reference)


@pytest.mark.parametrize("names", [None, [], "twice", [1]])
def test_mbpp_needs_names(names: object) -> None:
    with pytest.raises(ValueError, match="'names' should be a list"):
        mbpp("", json.dumps({"test": "assert twice(2) == 4", "names": names}))


def test_names_at_the_top() -> None:
    source = (
        "import os\nA, (B, C) = 1, (2, 3)\nD: int = 4\ndef e():\n    f = 5\nclass G:\n    h = 6\nasync def i(): pass\n"
    )
    assert defined_names(source) == ["A", "B", "C", "D", "e", "G", "i"]


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    find_program(text, ["add"], PROMPT)
    find_program(f"```\n{text}\n```", ["add"])
    prefix = readable_prefix(text)
    assert text.startswith(prefix)
    assert is_python(prefix)


@given(
    st.lists(st.sampled_from(["x = 1\n", "if x:\n", "    y = 2\n", "def f(\n", "'''\n", "words of ours\n"]), max_size=8)
)
def test_the_readable_prefix_is_no_shorter_than_what_is_whole(lines: list[str]) -> None:
    prefix = readable_prefix("".join(lines))
    ast.parse(prefix)
    whole = next(n for n in range(len(lines) + 1) if n == len(lines) or lines[n] != "x = 1\n")
    assert len(prefix) >= len("".join(lines[:whole]))


def test_deep_nesting_is_no_program() -> None:
    assert find_program("def add(xs): return " + "(" * 50_000 + ")" * 50_000, ["add"], PROMPT) is None
