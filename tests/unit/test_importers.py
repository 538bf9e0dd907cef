"""Tables that others published become outcomes tables; the row that cannot is named by file, line, column and value."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepladder.cli import main
from stepladder.errors import UsageError
from stepladder.evaluate import outcomes
from stepladder.evaluate.grouping import question_hash, split_of
from stepladder.evaluate.importers import mt_bench, routellm, routerbench
from stepladder.evaluate.importers.common import Imported, read_dropped
from stepladder.evaluate.outcomes import OutcomeRow

WEAK, STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
GROUP_QUESTION = "(Z,*) is a group with a*b = a+b+1 for all a, b in Z. The inverse of a is"
ALGEBRA = f"{GROUP_QUESTION}\nA. 0\nB. -2\nC. a-2\nD. (2+a)*-1\nAnswer:"
PEARS = "George has 45% more pears than bananas. If George has 200 bananas, how many fruits does George have?"


def sheet(path: Path, header: list[str], *rows: list[Any]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mmlu(folder: Path, *rows: list[Any], name: str = "mmlu_abstract_algebra.csv") -> Path:
    return sheet(folder / name, ["prompt", WEAK, STRONG], *(rows or [[ALGEBRA, "False", "True"]]))


def bench(folder: Path, *rows: list[Any], name: str = "bench.csv") -> Path:
    header = [
        "sample_id",
        "prompt",
        "eval_name",
        "m",
        "n",
        "m|model_response",
        "m|total_cost",
        "n|total_cost",
        "oracle",
    ]
    return sheet(
        folder / name, header, *(rows or [["s.1", "['Why?']", "winogrande", "0.5", "1.0", "['So']", "1e-5", "", "m"]])
    )


# ── what comes of them ───────────────────────────────────────────────────────


def test_routellms_mmlu(tmp_path: Path) -> None:
    weak, strong = routellm.read([mmlu(tmp_path)]).rows
    assert weak == OutcomeRow(
        query_id="mmlu:abstract_algebra:003f4e5d614f",
        model=WEAK,
        quality=0.0,
        dataset="routellm_mmlu",
        subset="abstract_algebra",
        split=split_of("7e9f51564daf"),
        prompt=ALGEBRA,
        metric="exact_match_5shot",
        group_id="7e9f51564daf",
    )
    assert (strong.model, strong.quality, strong.group_id) == (STRONG, 1.0, question_hash(GROUP_QUESTION))


def test_routellms_gsm8k_with_its_answers(tmp_path: Path) -> None:
    header = ["prompt", WEAK, STRONG, f"{WEAK}_response", f"{STRONG}_response"]
    path = sheet(tmp_path / "gsm8k_responses.csv", header, [PEARS, "true", "FALSE", " 490\n#### 490", "I do, not"])
    weak, strong = routellm.read([path]).rows
    assert (weak.query_id, weak.group_id, weak.dataset) == ("gsm8k:002df2650f3a", "002df2650f3a", "routellm_gsm8k")
    assert (weak.quality, weak.response) == (1.0, " 490\n#### 490")
    assert (strong.quality, strong.response, strong.prompt) == (0.0, "I do, not", PEARS)


def test_questions_that_stand_twice_in_mmlu_are_two_rows(tmp_path: Path) -> None:
    path = mmlu(tmp_path, [ALGEBRA, "True", "True"], [ALGEBRA, "False", "True"])
    ids = [row.query_id for row in routellm.read([path]).rows if row.model == WEAK]
    assert ids == ["mmlu:abstract_algebra:003f4e5d614f", "mmlu:abstract_algebra:003f4e5d614f#1"]


def test_routerbench(tmp_path: Path) -> None:
    first, second = routerbench.read([bench(tmp_path)]).rows
    assert first == OutcomeRow(
        query_id="s.1",
        model="m",
        quality=0.5,
        dataset="routerbench",
        subset="winogrande",
        split=split_of(question_hash("Why?")),
        prompt="Why?",
        metric="routerbench",
        cost=1e-5,
        cost_unit="usd",
        response="So",
        group_id=question_hash("Why?"),
    )
    assert (second.model, second.quality, second.cost, second.cost_unit, second.response) == (
        "n",
        1.0,
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("['a', \"b\"]", "a\n\nb"),
        ("[1, 2]", "[1, 2]"),
        ("[not a list", "[not a list"),
        ("[]", "[]"),
        ("plain", "plain"),
    ],
)
def test_lists_that_were_written_as_text_are_texts_again(prompt: str, read: str, tmp_path: Path) -> None:
    rows = routerbench.read([bench(tmp_path, ["s", prompt, "e", "1", "1", "", "", "", ""])]).rows
    assert rows[0].prompt == read


def test_routerbench_as_parquet_leaves_out_what_has_no_score(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [
        {"sample_id": 7, "prompt": "a?", "eval_name": "e", "m": float("nan"), "m|total_cost": 0.1},
        {"sample_id": 8, "prompt": "b?", "eval_name": "e", "m": 0.25, "m|total_cost": 0.2},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    found = routerbench.read([tmp_path / "b.parquet"])
    assert [(row.query_id, row.quality, row.cost) for row in found.rows] == [("8", 0.25, 0.2)]
    assert found.left_out == {"no score": 1}


QUESTION = {"question_id": 121, "category": "coding", "turns": ["Write a program.", "Can you parallelize it?"]}
JUDGED = {"question_id": 121, "model": "small", "judge": ["gpt-4", "single-v1"], "score": 9, "turn": 1}


def judged(folder: Path, *rows: dict[str, Any], question: dict[str, Any] | None = None) -> Imported:
    questions = lines(folder / "question.jsonl", QUESTION if question is None else question)
    return mt_bench.read([lines(folder / "judgements.jsonl", *rows)], questions)


def test_mt_bench(tmp_path: Path) -> None:
    first, second = judged(tmp_path, JUDGED, {**JUDGED, "turn": 2, "score": 1, "judge": None}).rows
    assert (first.query_id, first.quality, first.subset) == ("mt_bench:121:t1", 8 / 9, "coding")
    assert (first.metric, first.prompt, first.group_id) == ("judge:gpt-4", "Write a program.", "mt_bench:121")
    assert (second.query_id, second.quality, second.metric) == ("mt_bench:121:t2", 0.0, "judge")
    assert second.prompt == "Write a program.\n\nCan you parallelize it?"
    assert second.split == first.split


def test_a_judge_without_a_score_gave_no_verdict(tmp_path: Path) -> None:
    found = judged(tmp_path, JUDGED, {**JUDGED, "turn": 2, "score": -1})
    assert len(found.rows) == 1
    assert found.left_out == {"no score by the judge": 1}


# ── laws ─────────────────────────────────────────────────────────────────────

PROMPTS = st.lists(
    st.text("ab\n\",'é ", min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=5, unique=True
)


@given(prompts=PROMPTS, data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_cell_of_routellm_is_one_row(prompts: list[str], data: st.DataObject, tmp_path: Path) -> None:
    right = data.draw(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=len(prompts), max_size=len(prompts)))
    path = mmlu(tmp_path, *([prompt, *cells] for prompt, cells in zip(prompts, right, strict=True)), name="x.csv")
    rows = routellm.read([path]).rows
    cells = {(row.prompt, row.model): row.quality for row in rows}
    for prompt, (weak, strong) in zip(prompts, right, strict=True):
        assert (cells[prompt, WEAK], cells[prompt, STRONG]) == (weak, strong)
    assert len(rows) == 2 * len(prompts)
    outcomes.write(rows, tmp_path / "t.jsonl")
    assert outcomes.read(tmp_path / "t.jsonl") == rows


# ── what is dropped ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.txt", "mmlu:abstract_algebra:003f4e5d614f\n\n"),
        ("d.csv", "query_id\nmmlu:abstract_algebra:003f4e5d614f\n"),
        ("d.jsonl", json.dumps({"train_prompt": "x", "eval_prompt": ALGEBRA, "eval_idx": 0})),
    ],
)
def test_contaminated_questions_are_left_out(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    drop = read_dropped(tmp_path / name)
    found = routellm.read([mmlu(tmp_path, [ALGEBRA, "True", "True"], ["Other?\nA. x\nAnswer:", "True", "True"])], drop)
    assert [row.prompt for row in found.rows] == ["Other?\nA. x\nAnswer:"] * 2
    assert found.left_out == {"dropped": 1}
    assert routerbench.read(
        [bench(tmp_path, *([[s, s, "e", 1, 1, "", "", "", ""] for s in "ab"]))], frozenset("a")
    ).left_out
    questions = lines(tmp_path / "q.jsonl", QUESTION)
    both = lines(tmp_path / "j.jsonl", JUDGED, {**JUDGED, "turn": 2})
    assert mt_bench.read([both], questions, frozenset({"mt_bench:121:t1"})).left_out == {"dropped": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.txt", "\n", "names no question to drop"),
        ("d.txt", None, "cannot be read"),
        ("d.txt", b"\xff", "cannot be read"),
        ("d.csv", "id\n1\n", "line 2: names no question; one of query_id, sample_id, eval_prompt, prompt should"),
    ],
)
def test_lists_to_drop_that_are_wrong(name: str, content: str | bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message):
        read_dropped(tmp_path / name)


def test_a_list_of_other_questions_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--drop: none of its 2 questions is in"):
        routellm.read([mmlu(tmp_path)], frozenset({"a", "b"}))


# ── mistakes ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([ALGEBRA, "True", "1"], f"line 2: {STRONG} should be True or False: '1'"),
        ([ALGEBRA, "", "True"], f"line 2: {WEAK} should be True or False: ''"),
        (["", "True", "True"], "line 2: prompt should be a text that is not empty: ''"),
        ([ALGEBRA, "True"], "line 2: has 2 fields, not 3"),
    ],
)
def test_bad_rows_of_routellm(row: list[str], message: str, tmp_path: Path) -> None:
    path = mmlu(tmp_path, row)
    with pytest.raises(UsageError) as error:
        routellm.read([path])
    assert str(error.value).startswith(f"{path}: {message}")


def test_the_line_is_that_where_the_row_begins(tmp_path: Path) -> None:
    path = mmlu(tmp_path, [ALGEBRA, "True", "True"], ["x", "True", "no"])
    with pytest.raises(UsageError, match=r"mmlu_abstract_algebra\.csv: line 8: "):
        routellm.read([path])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["s", "p", "e", "1.5", "1", "", "", "", ""], "line 2: m does not lie between 0 and 1: '1.5'"),
        (["s", "p", "e", "1", "good", "", "", "", ""], "line 2: n should be a number: 'good'"),
        (["s", "p", "e", "1", "1", "", "-1", "", ""], "line 2: m|total_cost should not be negative: '-1'"),
        (["", "p", "e", "1", "1", "", "", "", ""], "line 2: sample_id should be a text that is not empty: ''"),
        (["s", "p", "e", "", "", "", "", "", ""], "holds no rows that can be used"),
    ],
)
def test_bad_rows_of_routerbench(row: list[str], message: str, tmp_path: Path) -> None:
    path = bench(tmp_path, row)
    with pytest.raises(UsageError) as error:
        routerbench.read([path])
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": 7}, "judgements.jsonl: line 1: question_id 7 is not among the questions"),
        ({"question_id": "x"}, "line 1: question_id is no finite number: 'x'"),
        ({"turn": 3}, "line 1: turn should lie between 1 and 2: 3"),
        ({"score": 11}, "line 1: score should be a number from 1 to 10, or -1 for none: 11"),
        ({"score": "9"}, "line 1: score should be a number from 1 to 10, or -1 for none: '9'"),
        ({"model": None}, "line 1: model should be a text that is not empty: None"),
    ],
)
def test_bad_rows_of_mt_bench(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        judged(tmp_path, {**JUDGED, **change})
    assert message in str(error.value)


@pytest.mark.parametrize("turns", [[], "x", [1]])
def test_bad_questions_of_mt_bench(turns: object, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="turns should be a list of texts that is not empty"):
        judged(tmp_path, JUDGED, question={"question_id": 121, "turns": turns})


def test_tables_of_something_else(tmp_path: Path) -> None:
    other = sheet(tmp_path / "o.csv", ["id", "text"], ["1", "x"])
    bare = sheet(tmp_path / "b.csv", ["prompt"], ["x"])
    no_model = sheet(tmp_path / "n.csv", ["sample_id", "prompt", "eval_name", "m"], ["1", "x", "e", "1"])
    judgement = lines(tmp_path / "j.jsonl", {"question_id": 1})
    for read, message in (
        (lambda: routellm.read([other]), r"is no table of RouteLLM: it has no column prompt \(it has: id, text\)"),
        (lambda: routellm.read([bare]), "no column but prompt names a model"),
        (lambda: routerbench.read([other]), "no column sample_id, prompt, eval_name"),
        (lambda: routerbench.read([no_model]), r"no model has a column MODEL\|model_response"),
        (lambda: mt_bench.read([judgement], lines(tmp_path / "q.jsonl", QUESTION)), "no column model, turn, score"),
        (lambda: mt_bench.read([judgement], judgement), "MT-Bench's questions: it has no column turns"),
    ):
        with pytest.raises(UsageError, match=message):
            read()


def test_a_file_that_is_given_twice(tmp_path: Path) -> None:
    path, again = mmlu(tmp_path), tmp_path / "again" / "mmlu_abstract_algebra.csv"
    again.parent.mkdir()
    again.write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=r"again.*line 2: 'mmlu:.*' of 'mistralai.*' stands at .*line 2 already"):
        routellm.read([path, again])


class Bomb:
    """What a pickle may do: anything."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("the pickle was read",)


def test_a_pickle_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "routerbench_0shot.pkl"
    path.write_bytes(pickle.dumps(Bomb()))
    assert main(["import", "routerbench", str(path), "--out", str(tmp_path / "t.jsonl")]) == 2
    told = capsys.readouterr().err
    assert "may run any program" in told
    assert "pandas.read_pickle('routerbench_0shot.pkl').to_parquet('routerbench_0shot.parquet')" in told


# ── the verb ─────────────────────────────────────────────────────────────────


def test_import_writes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mmlu(tmp_path, [ALGEBRA, "True", "True"], ["Other?\nA. x\nAnswer:", "False", "True"])
    (tmp_path / "drop.txt").write_text("mmlu:abstract_algebra:003f4e5d614f\n")
    out = tmp_path / "out" / "t.jsonl"
    asked = ["import", "routellm", str(tmp_path / "mmlu_abstract_algebra.csv"), "--out", str(out)]
    assert main([*asked, "--drop", str(tmp_path / "drop.txt"), "--split", "train"]) == 0
    told = capsys.readouterr().out
    assert "2 rows of 1 queries" in told
    assert "left out 1: dropped 1" in told
    assert f"{WEAK}: mean quality 0.0000 of 1" in told
    assert [row.split for row in outcomes.read(out)] == ["train", "train"]
    assert main(asked) == 2
    assert "is there already" in capsys.readouterr().err


def test_import_of_the_other_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, judgements = lines(tmp_path / "q.jsonl", QUESTION), lines(tmp_path / "j.jsonl", JUDGED)
    asked = ["import", "mt-bench", str(judgements), "--out", str(tmp_path / "mt.jsonl")]
    assert main([*asked, "--questions", str(questions)]) == 0
    assert main(["import", "routerbench", str(bench(tmp_path)), "--out", str(tmp_path / "rb.jsonl")]) == 0
    assert "2 rows of 1 queries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mt-bench", "x.jsonl", "--out", "t.jsonl"], "mt-bench needs --questions"),
        (["routellm", "x.csv", "--out", "t.jsonl", "--questions", "q"], "--questions goes with mt-bench"),
        (["routellm", "x.csv", "--out", "t.csv"], "an outcomes table ends in .parquet or .jsonl"),
        (["routellm", "none.csv", "--out", "t.jsonl"], "none.csv: cannot be read"),
    ],
)
def test_flags_that_make_no_sense(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", *words]) == 2
    assert message in capsys.readouterr().err
