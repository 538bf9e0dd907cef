"""Benchmarks in their published layouts as prompts, and the mistakes in a file that are named by file and line."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcome_tables import REPLAY_LADDER
from stepladder.cli import main
from stepladder.errors import MissingExtraError, UsageError
from stepladder.evaluate.grouping import Numbering, question_hash, split_of
from stepladder.evaluate.judging import by_reference, check_gradable
from stepladder.evaluate.loaders import BENCHMARKS, load
from stepladder.evaluate.outcomes import read
from stepladder.evaluate.records import read_records

MMLU = {
    "question": "Find the order of the factor group (Z_11 x Z_15)/(<1, 1>)",
    "subject": "abstract_algebra",
    "choices": ["1", "2", "5", "11"],
    "answer": 0,
}
MMLU_PRO = {
    "question_id": 70,
    "question": "Which of these floats?",
    "options": ["A stone", "A cork", "An anvil", "N/A", "N/A"],
    "answer": "B",
    "answer_index": 1,
    "cot_content": "",
    "category": "physics",
    "src": "made-up",
}
GSM8K = {
    "question": "Ann has 1,000 pears and buys 200. How many?",
    "answer": "1000+200=<<1000+200=1200>>1200\n#### 1,200",
}
ROWS: dict[str, dict[str, Any]] = {"mmlu": MMLU, "mmlu_pro": MMLU_PRO, "gsm8k": GSM8K}
RIGHT = {"mmlu": "A", "mmlu_pro": "Cork floats.\nAnswer: B", "gsm8k": "It is\n#### 1200"}
WRONG = {"mmlu": "B", "mmlu_pro": "Answer: C", "gsm8k": "#### 1000"}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    """The rows in the form that the file's name says."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        text = "\n".join(json.dumps(row) for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


# ── layouts ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("name", ["test.jsonl", "x.jsonl.gz", "x.json", "test-00000-of-00001.parquet", "data"])
def test_every_form_gives_the_same_prompt(task: str, name: str, tmp_path: Path) -> None:
    (prompt,) = load(task, written(tmp_path / name, ROWS[task]))
    assert prompt.split == ("test" if "test" in name else None)
    assert prompt.dataset == task
    assert prompt.group_id == question_hash(ROWS[task]["question"])
    assert ROWS[task]["question"] in prompt.text
    assert prompt.where.startswith(f"{tmp_path / name}: ")
    check_gradable([prompt], None)
    assert by_reference(prompt, RIGHT[task], None) == (1.0, prompt.grader)
    assert by_reference(prompt, WRONG[task], None)[0] == by_reference(prompt, "I do not know.", None)[0] == 0.0


def test_what_is_asked(tmp_path: Path) -> None:
    (mmlu,) = load("mmlu", written(tmp_path / "a.jsonl", MMLU))
    assert mmlu.text == (
        "Answer this multiple-choice question about abstract algebra. Reply with the letter of the right option alone."
        "\n\nFind the order of the factor group (Z_11 x Z_15)/(<1, 1>)\nA. 1\nB. 2\nC. 5\nD. 11"
    )
    assert (mmlu.query_id, mmlu.subset, mmlu.reference) == (
        f"mmlu:abstract_algebra:{question_hash(mmlu.text.split(chr(10) * 2)[1])}",
        "abstract_algebra",
        "A",
    )
    (pro,) = load("mmlu_pro", written(tmp_path / "b.jsonl", MMLU_PRO))
    assert pro.text.endswith("\n\nWhich of these floats?\nA. A stone\nB. A cork\nC. An anvil"), "no filling"
    assert (pro.query_id, pro.subset, pro.reference) == ("mmlupro:70", "physics", "B")
    (gsm8k,) = load("gsm8k", written(tmp_path / "c.jsonl", GSM8K))
    assert (gsm8k.query_id, gsm8k.reference) == (f"gsm8k:{gsm8k.group_id}", "1200")
    assert "####" in gsm8k.text


def test_mmlu_as_its_authors_published_it(tmp_path: Path) -> None:
    for name, question in (
        ("abstract_algebra_test.csv", MMLU["question"]),
        ("world_religions_val.csv", 'A "god", who?'),
    ):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([[question, "1", "2", "5", "11\n12", "D"]])
    first, second = load("mmlu", tmp_path)
    assert (first.subset, first.split, first.reference) == ("abstract_algebra", "test", "D")
    assert first.text.endswith("D. 11\n12")
    assert (second.subset, second.split) == ("world_religions", "validation")
    assert "about world religions. Reply" in second.text
    assert first.group_id == question_hash(str(MMLU["question"])), "the same as in the other layout"


def test_questions_without_ids_that_come_twice_are_numbered(tmp_path: Path) -> None:
    first, again = load("gsm8k", written(tmp_path / "a.jsonl", GSM8K, GSM8K))
    assert again.query_id == f"{first.query_id}#1"
    assert again.group_id == first.group_id


def test_a_split_can_be_given(tmp_path: Path) -> None:
    rows = [{**GSM8K, "question": f"How much is {number} and 2?"} for number in range(60)]
    path = written(tmp_path / "train.jsonl", *rows)
    assert {prompt.split for prompt in load("gsm8k", path)} == {"train"}
    assert {prompt.split for prompt in load("gsm8k", path, "mine")} == {"mine"}
    drawn = load("gsm8k", path, "by-group")
    assert {prompt.split for prompt in drawn} == {"train", "validation", "test"}
    assert all(prompt.split == split_of(prompt.group_id or "") for prompt in drawn)


# ── laws ─────────────────────────────────────────────────────────────────────


@given(text=st.text(max_size=30))
def test_groups_ignore_case_space_and_punctuation(text: str) -> None:
    # Characters whose lower-case forms depend on the way there ("ẞ", "İ") are left out.
    plain = "".join(character for character in text if character.isascii())
    assert question_hash(plain) == question_hash(f" {plain.upper()}\n?!") == question_hash(plain.replace(" ", " - "))


def test_the_hash_is_that_of_other_tables() -> None:
    question = "George has 45% more pears than bananas. If George has 200 bananas, how many fruits does George have?"
    assert question_hash(question) == "002df2650f3a"
    assert question_hash("Calculate the magnetic moment (μI) of a 13C nucleus.") == "31abc3a92cbb"


def test_splits_have_their_shares() -> None:
    drawn = [split_of(str(number)) for number in range(5000)]
    for split, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        assert drawn.count(split) / len(drawn) == pytest.approx(share, abs=0.02)


@given(names=st.lists(st.sampled_from(["a", "b", "c"]), max_size=20))
def test_numbered_ids_are_unique(names: list[str]) -> None:
    numbering = Numbering()
    found = [numbering.unique(name) for name in names]
    assert len(set(found)) == len(found)
    assert all(each.split("#")[0] == name for each, name in zip(found, names, strict=True))


# ── mistakes ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("mmlu", {"question": ""}, "line 2: question should be a text that is not empty, not ''"),
        ("mmlu", {"answer": 4}, "line 2: answer should be a letter from A to D or a number from 0 to 3, not 4"),
        ("mmlu", {"answer": "E"}, "line 2: answer should be a letter from A to D"),
        ("mmlu", {"answer": True}, "line 2: answer should be a letter"),
        ("mmlu", {"choices": ["1"]}, "line 2: choices should be a list of 2 to 26 texts, not ['1']"),
        ("mmlu", {"choices": ["1", 2]}, "line 2: choices should be a list of texts"),
        ("mmlu", {"subject": 3}, "line 2: subject should be a text"),
        ("mmlu_pro", {"question_id": "70"}, "line 2: question_id should be a whole number, not '70'"),
        ("mmlu_pro", {"question_id": 70}, "line 2: question_id 'mmlupro:70' stands on line 1 already"),
        ("mmlu_pro", {"answer_index": 2}, "line 2: answer is B, answer_index 2"),
        ("mmlu_pro", {"answer": "D"}, "line 2: answer should be a letter from A to C"),
        ("mmlu_pro", {"options": "A. stone"}, "line 2: options should be a list of 2 to 26 texts"),
        ("mmlu_pro", {"category": None}, "line 2: category should be a text"),
        (
            "gsm8k",
            {"answer": "1200"},
            "line 2: answer should be a text that ends in \"#### N\", N a number, not '1200'",
        ),
        ("gsm8k", {"answer": "#### many"}, "line 2: answer should be a text that ends in"),
    ],
)
def test_mistakes_are_named(task: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", ROWS[task], {**ROWS[task], "question_id": 71, **change})
    with pytest.raises(UsageError) as error:
        load(task, path)
    assert f"{path}: {message}" in str(error.value)


@pytest.mark.parametrize(("task", "key"), [("mmlu", "answer"), ("gsm8k", "question"), ("mmlu_pro", "options")])
def test_a_key_that_is_missing_is_named(task: str, key: str, tmp_path: Path) -> None:
    row = {name: value for name, value in ROWS[task].items() if name != key}
    with pytest.raises(UsageError, match=f"line 1: has no {key}, which should be"):
        load(task, written(tmp_path / "rows.jsonl", row))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a_test.csv", "q,1,2,3,4,A\nq,1,2,3,A\n", "line 2: has 5 fields, not 6: question, A, B, C, D, answer"),
        ("a_test.csv", 'q,"1\n2",2,3,4,A\nq,1,2,3,4,\n', "line 3: answer should be a letter"),
        ("a_test.csv", 'q,1,2,3,4,A\n"q"x,1,2,3,4,A\n', "line 2: is no CSV"),
        ("a_test.csv", b"\xff\xfe", "is no text in UTF-8"),
        (
            "a.jsonl",
            "{}\n[]",
            "line 1: has no choices" if False else "line 1: A should be a text" if False else "line 1",
        ),
        ("a.json", "[[]]", "item 1: is no object"),
        ("a.jsonl", "\n{", "line 2: is no JSON"),
        ("a.jsonl", "", "holds no problems"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 100, mtime=0)[:-12], "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 100, mtime=0)[:10] + b"\xff" * 20, "cannot be read"),
        ("a.parquet", b"PAR1", "is no Parquet file that can be read"),
    ],
)
def test_files_that_are_broken(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError) as error:
        load("mmlu", path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_rows_of_parquet_are_named_by_number(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", GSM8K, {**GSM8K, "answer": "?"})
    with pytest.raises(UsageError, match=r"a\.parquet: row 2: answer should be"):
        load("gsm8k", path)


def test_files_and_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.jsonl: cannot be read: No such file"):
        load("gsm8k", tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="holds no file that ends in"):
        load("gsm8k", tmp_path)


def test_ids_of_two_files_are_one_set(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        written(tmp_path / name, MMLU_PRO)
    with pytest.raises(UsageError, match=r"b\.jsonl: line 1: question_id 'mmlupro:70' stands on line 1 of .*a\.jsonl"):
        load("mmlu_pro", tmp_path)


@pytest.mark.parametrize("name", ["t.pkl", "t.PICKLE", "t.pkl.gz"])
def test_pickles_are_never_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"may run any program.*to_parquet\('t\.parquet'\)"):
        list(read_records(tmp_path / name))


def test_parquet_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"stepladder\[train\]"):
        list(read_records(tmp_path / "a.parquet"))


def test_long_fields_of_csv_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"prompt,n\n{'x' * 200_000},1\n")
    (record,) = read_records(tmp_path / "a.csv")
    assert len(record.values["prompt"]) == 200_000
    assert csv.field_size_limit() == 131_072, "what others set is left as it was"


def test_long_fields_are_read_in_turns(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("prompt,n\n" + f"{'x' * 200_000},1\n" * 2)
    first, second = read_records(tmp_path / "a.csv"), read_records(tmp_path / "b.csv")
    begun = [next(first), next(second)]
    assert csv.field_size_limit() == 131_072
    assert [len(each.values["prompt"]) for each in (*begun, *first, *second)] == [200_000] * 4
    assert csv.field_size_limit() == 131_072


# ── the verb ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task", ROWS)
def test_collect_grades_a_benchmark(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {**ROWS[task], "question": "Another one?", "question_id": 71}
    file = written(tmp_path / "b.jsonl", ROWS[task], other)
    answers = [
        {"query_id": prompt.query_id, "model": "a", "quality": 0, "prompt": prompt.text, "response": answer}
        for prompt, answer in zip(load(task, file), (RIGHT[task], WRONG[task]), strict=True)
    ]
    table = written(tmp_path / "answers.jsonl", *answers)
    (tmp_path / "ladder.toml").write_text(REPLAY_LADDER.replace("TABLE", str(table)))
    out = tmp_path / "out.jsonl"
    asked = ["collect", "-l", str(tmp_path / "ladder.toml"), "--task", task, "--file", str(file), "--out", str(out)]
    assert main([*asked, "--split", "by-group"]) == 0
    rows = read(out)
    assert [(row.quality, row.metric) for row in rows] == [(1.0, rows[0].metric), (0.0, rows[0].metric)]
    assert all(row.split == split_of(row.group_id or "") for row in rows)
    assert "mean quality 0.500 of 2" in capsys.readouterr().out


def test_every_benchmark_names_its_files() -> None:
    for benchmark in BENCHMARKS.values():
        assert benchmark.hub_file(None) == benchmark.hub_file("test")
        with pytest.raises(UsageError, match=f"{benchmark.repo} has no split 'judged'; it has test"):
            benchmark.hub_file("judged")
