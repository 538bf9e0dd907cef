"""HumanEval's and MBPP's files as prompts, and the mistakes in them that are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from outcome_tables import REPLAY_LADDER
from stepladder.cli import main
from stepladder.errors import UsageError
from stepladder.evaluate.judging import by_reference, check_gradable
from stepladder.evaluate.loaders import load
from stepladder.evaluate.outcomes import read
from stepladder.evaluate.prompts import Prompt
from stepladder.evaluate.sandbox import obstacle

WHY = obstacle()
confined = pytest.mark.skipif(WHY is not None, reason=f"programs cannot be confined here: {WHY}")

ADD = {
    "task_id": "HumanEval/900",
    "prompt": 'def add(x, y):\n    """Sum."""\n',
    "entry_point": "add",
    "canonical_solution": "    return x + y\n",
    "test": "def check(candidate):\n    assert candidate(2, 40) == 42\n",
}
TWICE = {
    "text": "Write a function to double a number.",
    "code": "import math\r\nTWO = 2\r\ndef helper(x):\r\n    return x\r\ndef twice(x):\r\n    return helper(x) * TWO",
    "task_id": 602,
    "test_setup_code": "",
    "test_list": ["assert twice(2) == 4", "assert math.isclose(twice(0.1), 0.2)"],
    "challenge_test_list": [],
}
CHAIN = {
    "prompt": "Write a function to sum a linked list.",
    "code": "class Node:\n    def __init__(self, v):\n        self.v, self.next = v, None\nroot = None\n"
    "def total(n):\n    return n.v + total(n.next) if n else 0",
    "task_id": 5,
    "test_imports": ["import math"],
    "test_setup_code": "root = Node(1)\nroot.next = Node(2)",
    "test_list": ["assert total(root) == math.ceil(2.5)"],
}


def read_humaneval(path: Path) -> list[Prompt]:
    return load("humaneval", path)


def read_mbpp(path: Path) -> list[Prompt]:
    return load("mbpp", path)


def file_of(folder: Path, *problems: dict[str, object], name: str = "problems.jsonl") -> Path:
    path = folder / name
    text = "\n".join(json.dumps(problem) for problem in problems).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


@pytest.mark.parametrize("name", ["HumanEval.jsonl", "HumanEval.jsonl.gz"])
def test_humaneval(tmp_path: Path, name: str) -> None:
    (prompt,) = read_humaneval(file_of(tmp_path, ADD, name=name))
    assert (prompt.query_id, prompt.group_id, prompt.grader) == ("HumanEval/900", "HumanEval/900", "humaneval")
    assert (prompt.dataset, prompt.split) == ("humaneval", "test")
    assert "def add(x, y):" in prompt.text
    assert "candidate" not in prompt.text
    assert json.loads(prompt.reference or "") == {key: ADD[key] for key in ("prompt", "entry_point", "test")}


def test_mbpp(tmp_path: Path) -> None:
    twice, chain = read_mbpp(file_of(tmp_path, TWICE, CHAIN))
    assert (twice.query_id, twice.group_id, twice.split, chain.split) == ("mbpp/602", "mbpp/602", "train", "prompt")
    assert "double a number" in twice.text
    assert "assert twice(2) == 4" in twice.text
    reference = json.loads(twice.reference or "")
    assert reference["names"] == ["twice"], "what the tests do not call may be called otherwise"
    assert "import math" in reference["test"]
    assert json.loads(chain.reference or "")["names"] == ["Node", "total"], "root is the tests' own"


@confined
def test_the_authors_solutions_pass(tmp_path: Path) -> None:
    prompts = read_mbpp(file_of(tmp_path, TWICE, CHAIN)) + read_humaneval(file_of(tmp_path, ADD, name="h.jsonl"))
    check_gradable(prompts, None)
    answers = [f"```python\n{TWICE['code']}\n```", CHAIN["code"], ADD["canonical_solution"]]
    for prompt, answer in zip(prompts, answers, strict=True):
        assert by_reference(prompt, str(answer), None) == (1.0, prompt.grader)
        assert by_reference(prompt, "I do not know", None) == (0.0, prompt.grader)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "line 2: prompt should be a text that is not empty, not None"),
        ({"prompt": "def add(:"}, "line 2: prompt is no Python"),
        ({"entry_point": 3}, "line 2: entry_point should be a text"),
        ({"test": ""}, "line 2: test should be a text"),
        ({"task_id": "HumanEval/900"}, "line 2: task_id 'HumanEval/900' stands on line 1 already"),
    ],
)
def test_mistakes_in_humaneval(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = file_of(tmp_path, ADD, {**ADD, "task_id": "HumanEval/901", **change})
    with pytest.raises(UsageError) as error:
        read_humaneval(path)
    assert f"{path}: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_id": "7"}, "line 1: task_id should be a whole number, not '7'"),
        ({"text": ""}, "line 1: text should be a text that is not empty"),
        ({"code": "def"}, "line 1: code is no Python"),
        ({"test_list": []}, "line 1: test_list should be a list of texts that is not empty"),
        ({"test_list": ["assert"]}, "line 1: test_list is no Python"),
        ({"test_list": ["assert thrice(1)"]}, "line 1: test_list calls nothing that code defines"),
        ({"test_setup_code": 3}, "line 1: test_setup_code should be a text, not 3"),
        ({"test_imports": [3]}, "line 1: test_imports should be a list of texts"),
    ],
)
def test_mistakes_in_mbpp(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_mbpp(file_of(tmp_path, {**TWICE, **change}))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for content, message in (
        (b"", "holds no problems"),
        (b"[1]", "line 1: is no object"),
        (b"\n{", "line 2: is no JSON"),
    ):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(UsageError, match=message):
            read_humaneval(tmp_path / "bad")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(json.dumps(ADD).encode())[:-12])
    for name in ("cut.gz", "missing.jsonl"):
        with pytest.raises(UsageError, match=f"{name}: cannot be read"):
            read_mbpp(tmp_path / name)


@confined
def test_collect_grades_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = file_of(tmp_path, ADD, {**ADD, "task_id": "HumanEval/901", "prompt": ADD["prompt"] + "    # again\n"})
    answers = ["return x + y", "return x"]
    rows = [
        {"query_id": prompt.query_id, "model": "a", "quality": 0, "prompt": prompt.text, "response": answer}
        for prompt, answer in zip(read_humaneval(problems), answers, strict=True)
    ]
    table = file_of(tmp_path, *rows, name="answers.jsonl")
    ladder = tmp_path / "ladder.toml"
    ladder.write_text(REPLAY_LADDER.replace("TABLE", str(table)))
    out = tmp_path / "out.jsonl"
    asked = ["collect", "-l", str(ladder), "--task", "humaneval", "--file", str(problems), "--out", str(out)]
    assert main(asked) == 0
    assert [(row.query_id, row.quality, row.metric) for row in read(out)] == [
        ("HumanEval/900", 1.0, "humaneval"),
        ("HumanEval/901", 0.0, "humaneval"),
    ]
    assert "mean quality 0.500 of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "nano", "--file", "x"], "--file goes with --task mmlu, mmlu_pro, gsm8k, humaneval, mbpp"),
        (["--task", "nano", "--split", "test"], "--split: nano has no split 'test'; it has nano-train, train, judged"),
        (["--prompts", "x", "--split", "test"], "--split goes with --task"),
        (["--task", "gsm8k", "--split", "dev"], "--split: openai/gsm8k has no split 'dev'; it has test, train"),
        (["--task", "mbpp", "--file", "x", "--seed", "2"], "--seed goes with --task nano"),
    ],
)
def test_flags_that_make_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["collect", *flags, "--out", str(tmp_path / "out.jsonl")]) == 2
    assert message in capsys.readouterr().err
