"""The outcomes table: what is written is read again, what is wrong is named."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepladder.errors import MissingExtraError, UsageError
from stepladder.evaluate import outcomes
from stepladder.evaluate.outcomes import OutcomeRow
from stepladder.types import Request

SHARED = Path(__file__).parents[3] / "shared" / "data"
TABLES = ["mmlu_pro", "zeroeval", "llmrouter_ulab", "gsm8k_ladders", "routellm"]
SUFFIXES = pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])

texts = st.text(max_size=8)
names = st.text(string.ascii_letters, min_size=1, max_size=8)
amounts = st.floats(0, 1e9)
counts = st.integers(0, 10**9)
messages = st.lists(st.fixed_dictionaries({"role": names, "content": texts}), min_size=1, max_size=3).map(tuple)


def maybe(strategy):
    return st.none() | strategy


rows = st.builds(
    OutcomeRow,
    query_id=names,
    model=names,
    quality=st.floats(0, 1),
    prompt=maybe(texts),
    messages=maybe(messages),
    metric=maybe(texts),
    prompt_tokens=maybe(counts),
    output_tokens=maybe(counts),
    cost=maybe(amounts),
    cost_unit=maybe(st.sampled_from(["relative", "usd", "gpu_s"])),
    latency_s=maybe(amounts),
    response=maybe(texts),
    confidence=maybe(st.floats(-1e6, 0)),
    pred=maybe(texts),
    group_id=maybe(texts),
    token_logprobs=maybe(st.lists(st.floats(-1e6, 0), max_size=3).map(tuple)),
)


def jsonl(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), "utf-8")
    return path


@SUFFIXES
@given(table=st.lists(rows, max_size=5))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_again(tmp_path, suffix, table):
    path = tmp_path / f"table{suffix}"
    outcomes.write(table, path)
    assert outcomes.read(path) == table
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@SUFFIXES
def test_dollars_stand_in_a_column_of_their_own_too(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    outcomes.write([OutcomeRow(query_id="q", model="m", quality=1, cost=0.5, cost_unit="usd")], path)
    if suffix == ".jsonl":
        assert json.loads(path.read_text("utf-8"))["cost_usd"] == 0.5
    else:
        from pyarrow import parquet

        assert parquet.read_table(path)["cost_usd"].to_pylist() == [0.5]


def test_a_table_in_dollars_from_elsewhere(tmp_path):
    path = jsonl(tmp_path / "t.jsonl", {"query_id": "q", "model": "m", "quality": 1, "cost_usd": 2, "n_samples": 3})
    (row,) = outcomes.read(path)
    assert (row.cost, row.cost_unit) == (2.0, "usd")


def test_an_answer_has_its_tokens_log_probabilities_or_their_mean():
    row = OutcomeRow(query_id="q", model="m", quality=1)
    assert row.attempt("a").logprobs is None
    assert replace(row, confidence=-0.5).attempt("a").logprobs == (-0.5,)
    assert replace(row, confidence=-0.5, token_logprobs=(-0.25, -0.75)).attempt("a").logprobs == (-0.25, -0.75)


def test_a_row_is_a_request_again():
    said = ({"role": "user", "content": "why?"},)
    assert OutcomeRow(query_id="q", model="m", quality=1, prompt="why?").request == Request("q", messages=said)
    more = ({"role": "system", "content": "be brief"}, *said)
    assert OutcomeRow(query_id="q", model="m", quality=1, prompt="why?", messages=more).request.messages == more


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"quality": 1.5}, "row 2: quality does not lie between 0 and 1: 1.5"),
        ({"quality": -0.1}, "row 2: quality does not lie between 0 and 1: -0.1"),
        ({"quality": float("nan")}, "row 2: is no JSON"),
        ({"quality": True}, "row 2: quality is no finite number: True"),
        ({"quality": None}, "row 2: quality is missing"),
        ({"query_id": None}, "row 2: query_id is missing"),
        ({"query_id": ""}, "row 2: query_id should be a text that is not empty: ''"),
        ({"query_id": 7}, "row 2: query_id should be a text"),
        ({"model": None}, "row 2: model is missing"),
        ({"prompt_tokens": -1}, "row 2: prompt_tokens should not be negative: -1"),
        ({"output_tokens": 1.5}, "row 2: output_tokens should be a whole number: 1.5"),
        ({"latency_s": "fast"}, "row 2: latency_s is no finite number: 'fast'"),
        ({"cost_unit": "yen"}, "row 2: cost_unit should be one of relative, usd, gpu_s: 'yen'"),
        ({"messages": []}, "row 2: messages should be a list of messages"),
        ({"messages": "[1"}, "row 2: messages "),
        ({"response": 3}, "row 2: response is no text: 3"),
        ({"token_logprobs": -0.5}, "row 2: token_logprobs should be a list of numbers: -0.5"),
        ({"token_logprobs": [-0.5, None]}, "row 2: token_logprobs is no finite number: [-0.5, None]"),
        ({"token_logprobs": [-0.5, 0.5]}, "row 2: token_logprobs should hold no number above 0: [-0.5, 0.5]"),
    ],
)
def test_a_bad_row_is_named_by_number_column_and_value(tmp_path, change, told):
    good = {"query_id": "q", "model": "m", "quality": 0.5}
    path = jsonl(tmp_path / "t.jsonl", good, {**good, **change})
    with pytest.raises(UsageError) as caught:
        outcomes.read(path)
    assert told in str(caught.value)
    bad: list[str] = []
    assert len(outcomes.read(path, on_bad=bad.append)) == 1
    assert told in bad[0]


def test_a_bad_row_of_parquet(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    table = {"query_id": ["a", "b"], "model": ["m", "m"], "quality": [0.0, float("nan")], "output_tokens": [5.0, 6.0]}
    parquet.write_table(pa.table(table), path)
    with pytest.raises(UsageError, match="row 2: quality is no finite number: nan"):
        outcomes.read(path)
    table["quality"], table["output_tokens"] = [0.0, 1.0], [5.0, float("nan")]
    parquet.write_table(pa.table(table), path)
    assert [row.output_tokens for row in outcomes.read(path)] == [5, None]


@pytest.mark.parametrize("line", ["[1]", "3", '"x"', "{", ""])
def test_lines_that_are_no_rows(tmp_path, line):
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n", "utf-8")
    if not line:
        assert outcomes.read(path) == []
        return
    with pytest.raises(UsageError, match="row 1: is no"):
        outcomes.read(path)


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="no Parquet file"):
        outcomes.read(tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="cannot be read"):
        outcomes.read(tmp_path / "absent.jsonl")
    with pytest.raises(UsageError, match=r"ends in .parquet or .jsonl"):
        outcomes.read(tmp_path / "t.csv")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        outcomes.write([], tmp_path / "file" / "t.jsonl")


def test_parquet_without_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("stepladder.evaluate.outcomes.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"stepladder\[train\]"):
        outcomes.write([], tmp_path / "t.parquet")


def test_a_write_that_fails_leaves_the_old_table(tmp_path):
    path = tmp_path / "t.jsonl"
    outcomes.write([OutcomeRow(query_id="q", model="m", quality=1)], path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        outcomes.write([OutcomeRow(query_id="q", model="m", quality=1, messages=({"x": object()},))], path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["t.jsonl"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the measured tables are not beside this checkout")
@pytest.mark.parametrize("name", TABLES)
def test_measured_tables_from_elsewhere(name):
    bad: list[str] = []
    found = outcomes.read(SHARED / f"{name}.parquet", on_bad=bad.append)
    assert len(found) > 5000
    assert all(row.prompt and row.group_id and row.split for row in found)
    assert len(bad) < 30
    assert all("quality does not lie between 0 and 1: -0.22" in told for told in bad)
