"""What is told beside an answer: found once, and the same as where each thing is asked for itself."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway_fakes import attempt, fault
from stepladder.gateway import report
from stepladder.types import Drafting, Speculation, Usage
from strategies import traces


@given(traces())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_an_account_is_what_the_trace_says(trace) -> None:
    told = report.account(trace)
    assert tuple(told.attempts) == trace.attempts
    assert repr((told.cost, told.decide_s)) == repr((trace.cost, trace.decide_s))


@given(st.text() | st.text("abcXYZ019_.~ !#$&'()*+,/:;<=>?@[]^`{|}-%\\\"\n"))
def test_a_headers_value_is_percent_encoded_or_plain(value: str) -> None:
    assert report._text(value) == quote(value, safe=report._PRINTABLE).encode()


@pytest.mark.parametrize("value", ["dec-0f", "small", "qwen2.5:0.5b", "a b", ""])
def test_usual_names_stay_as_they_are(value: str) -> None:
    assert report._text(value) == value.encode()


def test_what_stages_took_is_added_up() -> None:
    made = [
        attempt("a", usage=Usage(7, 2, 1), cost=1.0, seconds=0.25),
        replace(fault("a", "server"), seconds=0.5),
        attempt("b", usage=Usage(9, 4), cost=2.0, seconds=1.0),
        attempt("a", usage=Usage(7, 3), cost=1.5, seconds=0.25),
    ]
    assert report.usage_by_stage(made) == {
        "a": {
            "calls": 3,
            "faults": 1,
            "prompt_tokens": sum(each.usage.prompt_tokens for each in made if each.stage == "a"),
            "cached_tokens": 1,
            "output_tokens": sum(each.usage.output_tokens for each in made if each.stage == "a"),
            "cost": sum(each.cost for each in made if each.stage == "a"),
            "seconds": sum(each.seconds for each in made if each.stage == "a"),
        },
        "b": {
            "calls": 1,
            "faults": 0,
            "prompt_tokens": 9,
            "cached_tokens": 0,
            "output_tokens": 4,
            "cost": 2.0,
            "seconds": 1.0,
        },
    }


def test_speculation_and_tries_are_told_where_there_were_any() -> None:
    plain = report.spent(attempt("a"))
    assert not {"speculation", "tries"} & set(plain)
    told = report.spent(attempt("a", tries=2, speculation=Speculation(("b", "a"), (Drafting("b", "a", 8, 5),))))
    assert told["tries"] == 2
    assert told["speculation"]["pairs"] == [{"drafter": "b", "target": "a", "drafted": 8, "accepted": 5}]
    assert {key: told[key] for key in plain} == plain
