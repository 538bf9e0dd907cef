"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripted_ladder import LADDER
from stepladder.cli import VERBS, main, options
from stepladder.cli.ask import speculated, told_time
from stepladder.types import Attempt, Drafting, Speculation


@pytest.fixture
def ladder(tmp_path: Path) -> str:
    path = tmp_path / "ladder.toml"
    path.write_text(LADDER, "utf-8")
    return str(path)


def test_ask_prints_the_answer_and_tells_about_it_apart(ladder, capsys):
    assert main(["ask", "-l", ladder, "hello"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "from low\n"
    assert "[low] predicted quality 0.88 (uncalibrated) · cost 1 relative" in printed.err


@pytest.mark.parametrize(("whole", "said"), [(0.55, "0.50 s"), (7.0, "0.50 s, after 6.5 s of loading")])
def test_ask_tells_loading_apart_from_answering(whole, said):
    trace = SimpleNamespace(seconds=whole, attempts=(Attempt("low", seconds=0.2), Attempt("high", seconds=0.3)))
    assert told_time(trace) == said


def test_ask_tells_what_was_drafted(tmp_path, capsys):
    path = tmp_path / "ladder.toml"
    path.write_text(LADDER.replace('reply = "from low"', 'reply = "a b c d", speedup = 2'), "utf-8")
    assert main(["ask", "-l", str(path), "hello"]) == 0
    assert capsys.readouterr().err.splitlines()[1:] == ["low: low accepted 2/2 from ngram"]
    assert main(["ask", "-q", "-l", str(path), "hello"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Speculation(("b",)), "nothing was drafted"),
        (Speculation(pairs=(Drafting("", "b", 9, 5),)), "b accepted 5/9 from its drafter"),
        (
            Speculation(
                pairs=(Drafting("a", "b", 9, 5), Drafting("ngram", "a", 4, 0)), climbed=20, kept=14, moved=0.03
            ),
            "b accepted 5/9 from a, a accepted 0/4 from ngram, kept 14/20 of the lower answer, moved the law by 0.030",
        ),
    ],
)
def test_one_line_of_speculation(found, said):
    assert speculated(found) == said


def test_lambda_decides_which_stage(ladder, capsys):
    assert main(["ask", "-q", "-l", ladder, "--lambda", "100", "hello"]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("from high\n", "")


def test_ask_as_json_is_the_trace(ladder, capsys):
    assert main(["ask", "--json", "-l", ladder, "hello"]) == 0
    trace = json.loads(capsys.readouterr().out)
    assert trace["steps"][0]["attempt"]["text"] == "from low"


def test_a_prompt_from_standard_input(ladder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin.read", lambda: "hello", raising=False)
    assert main(["ask", "-q", "-l", ladder, "-"]) == 0
    assert capsys.readouterr().out == "from low\n"


def test_route_shows_every_stage_and_the_reason(ladder, capsys):
    assert main(["route", "-l", ladder, "hello"]) == 0
    printed = capsys.readouterr().out
    assert "◀ chosen" in printed
    assert "uncalibrated" in printed
    assert "low is worth" in printed


def test_route_as_json(ladder, capsys):
    assert main(["route", "--json", "-l", ladder, "hello"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"][0]["action"]["call"] == "low"


def test_check_finds_nothing_wrong(ladder, capsys):
    assert main(["check", ladder]) == 0
    assert "nothing wrong found" in " ".join(capsys.readouterr().out.split())  # a title is folded to its table's width


def test_check_tells_every_problem_with_its_line(tmp_path, capsys):
    path = tmp_path / "bad.toml"
    path.write_text(LADDER.replace('"scripted"', '"scriptd"', 1) + '\n[policy]\nname = "gredy"\n', "utf-8")
    assert main(["check", str(path)]) == 2
    told = capsys.readouterr().err
    assert "line 3: stages[0].engine: no such part 'scriptd'; did you mean 'scripted'?" in told
    assert "line 16: policy.name: no such part 'gredy'; did you mean 'greedy'?" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("cost = 1.0\n", ""), "cost"),
        (('options = { reply = "from low" }', "options = { rply = 1 }"), "rply"),
        (('[[stages]]\nname = "low"', '[ladder]\ncost_unit = "usd"\n[[stages]]\nname = "low"'), "policy.lambda"),
    ],
)
def test_check_goes_as_far_as_building(tmp_path, capsys, change, told):
    path = tmp_path / "bad.toml"
    path.write_text(LADDER.replace(*change, 1), "utf-8")
    assert main(["check", str(path)]) == 2
    assert told in capsys.readouterr().err


def test_a_model_file_that_is_none(tmp_path, capsys):
    (tmp_path / "m.gguf").write_bytes(b"nothing of the kind")
    path = tmp_path / "ladder.toml"
    path.write_text('[[stages]]\nname = "a"\nengine = "llama"\nmodel = "m.gguf"\ncost = 1.0\n', "utf-8")
    assert main(["check", str(path)]) == 2
    assert "line 4: stages[0].model" in capsys.readouterr().err
    assert main(["ask", "-l", str(path), "hello"]) == 1
    assert "is no GGUF file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ask", "-l", "LADDER", "--lambda", "high", "x"], "--lambda: 'high' is not a finite number"),
        (["ask", "-l", "LADDER", "--lambda", "nan", "x"], "--lambda: 'nan' is not"),
        (["ask", "-l", "LADDER", "--max-cost", "-1", "x"], "--max-cost: '-1' is not"),
        (["ask", "-l", "LADDER", " \n"], "PROMPT is empty"),
        (["ask", "-l", "LADDER", "--max-tokens", "0", "x"], "--max-tokens: 0 should be at least 1"),
        (["ask", "-l", "LADDER", "--temperature", "9", "x"], "--temperature: 9 should be from 0 to 2"),
        (["ask", "-l", "LADDER", "--temperature", "nan", "x"], "--temperature: nan should be from 0 to 2"),
        (["ask", "-l", "LADDER", "--max-stage", "hgh", "x"], "did you mean 'high'?"),
        (["ask", "-l", "LADDER", "--max-cost", "0.1", "x"], "the cheapest, 'low', takes 1"),
        (["ask", "-l", "absent.toml", "x"], "is neither a file nor a preset"),
        (["ask", "-l", "LADDER", "--set", "policy.lamda=1", "x"], "did you mean 'lambda'?"),
    ],
)
def test_usage_errors_exit_with_2_and_one_sentence(ladder, capsys, words, told):
    assert main([ladder if word == "LADDER" else word for word in words]) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_a_server_that_cannot_be_reached(tmp_path, capsys):
    path = tmp_path / "ladder.toml"
    path.write_text('[[stages]]\nname = "a"\nmodel = "m"\ncost = 1.0\nbase_url = "http://127.0.0.1:9/v1"\n', "utf-8")
    assert main(["ask", "-l", str(path), "hello"]) == 1
    assert "the server of stage 'a' cannot be reached" in (told := capsys.readouterr().err)
    assert "base_url of that stage says where" in told


def test_a_missing_extra_says_the_command(tmp_path, capsys, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    path = tmp_path / "ladder.toml"
    path.write_text('[[stages]]\nname = "a"\nengine = "llama"\nmodel = "m.gguf"\ncost = 1.0\n', "utf-8")
    monkeypatch.setattr("stepladder.engines.llama.find_spec", lambda name: None)
    assert main(["ask", "-l", str(path), "hello"]) == 1
    assert "pip install 'stepladder[llama]'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert "usage: stepladder" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["climb"], ["ask"]])
def test_asked_wrongly(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


def test_output_into_a_pipe_that_closes_early_is_no_disaster(ladder):
    command = f"{sys.executable} -m stepladder route -l {ladder} hello | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert b"Traceback" not in done.stderr


def test_importing_the_package_costs_the_standard_library_only():
    script = "import sys, stepladder; print([m for m in sys.modules if m.split('.')[0] in sys.argv[1:]])"
    heavy = ["numpy", "pydantic", "aiohttp", "starlette", "rich", "orjson", "xllamacpp", "sklearn"]
    done = subprocess.run([sys.executable, "-c", script, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_several_words_are_one_question(ladder, capsys):
    assert main(["ask", "--json", "-l", ladder, "hello", "world"]) == 0
    assert json.loads(capsys.readouterr().out)["request"]["messages"][0]["content"] == "hello world"


NAMING = {
    "ask": ["ask", "x"],
    "route": ["route", "x"],
    "serve": ["serve"],
    "check": ["check"],
    "collect": ["collect", "--task", "nano", "--n", "1", "--out", "t.jsonl"],
    "reproduce": ["reproduce", "--out", "report"],
    "traces export": ["traces", "export", "--out", "-"],
    "traces outcomes": ["traces", "outcomes", "--out", "t.jsonl"],
    "traces prune": ["traces", "prune"],
}
"""Commands that only lack their ladder; the other verbs read none (``demo`` always shows nano)."""


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_no_verb_that_takes_a_ladder_is_left_out(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert ("--ladder" in capsys.readouterr().out) == (verb in NAMING)  # of traces, each action takes it


@pytest.mark.parametrize("command", NAMING)
@pytest.mark.parametrize("flag", ["-l", "--ladder"])
def test_every_command_takes_its_ladder_by_option(command, flag, capsys):
    verb, rest = command.split(), NAMING[command][len(command.split()) :]
    for words in ([*verb, flag, "absent.toml", *rest], [*verb, *rest, flag, "absent.toml"]):
        assert main(words) == 2
        assert "absent.toml" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check", "serve"])
def test_what_is_about_a_ladder_takes_it_without_an_option(verb, capsys):
    assert main([verb, "absent.toml"]) == 2
    assert "absent.toml: file: is neither a file nor a preset" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["LADDER"], ["-l", "LADDER"], ["--ladder", "LADDER"], ["LADDER", "-l", "LADDER"]])
def test_check_tells_which_ladder_it_has_read(words, ladder, capsys):
    assert main(["check", *(ladder if word == "LADDER" else word for word in words)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("low", "high", "scripted"))


@pytest.mark.parametrize("verb", ["check", "serve"])
@pytest.mark.parametrize("words", [["nano", "-l", "LADDER"], ["-l", "LADDER", "nano"], ["LADDER", "--ladder=nano"]])
def test_two_ladders_are_one_too_many(verb, words, ladder, capsys):
    assert main([verb, *(ladder if word == "LADDER" else word for word in words)]) == 2
    told = capsys.readouterr().err
    assert "two ladders are named" in told
    assert f"'{ladder}'" in told
    assert "'nano'" in told


def test_whoever_names_no_ladder_means_nano():
    parser = argparse.ArgumentParser()
    options.add_ladder(parser, positional=True)
    assert options.ladder(parser.parse_args([])) == "nano"
    assert options.ladder(parser.parse_args(["-l", ""])) == ""


def test_a_key_that_is_not_set_is_a_warning_of_check_and_an_error_of_asking(tmp_path, capsys):
    path = tmp_path / "ladder.toml"
    path.write_text(
        '[[stages]]\nname = "a"\nmodel = "m"\ncost = 1.0\nbase_url = "http://127.0.0.1:9/v1"\napi_key_env = "NO_KEY"\n',
        "utf-8",
    )
    assert main(["check", str(path)]) == 0
    assert "warning" in capsys.readouterr().err
    assert main(["ask", "-l", str(path), "x"]) == 2
    assert "NO_KEY is not set" in capsys.readouterr().err


def test_a_problem_of_a_stages_options_names_stage_and_line(tmp_path, capsys):
    path = tmp_path / "ladder.toml"
    path.write_text(
        '[[stages]]\nname = "a"\nmodel = "m"\ncost = 1.0\n[[stages]]\nname = "b"\nmodel = "m"\ncost = 1.0\n'
    )
    assert main(["check", str(path)]) == 2
    told = capsys.readouterr().err
    assert "line 1: stages[0].base_url" in told
    assert "line 5: stages[1].base_url" in told


def test_a_stage_that_failed_is_told_beside_the_answer(tmp_path, capsys):
    path = tmp_path / "ladder.toml"
    path.write_text(
        '[[stages]]\nname = "a"\nmodel = "m"\ncost = 1.0\nbase_url = "http://127.0.0.1:9/v1"\n'
        '[[stages]]\nname = "b"\nengine = "scripted"\nmodel = "m"\ncost = 3.0\noptions = { reply = "from b" }\n',
        "utf-8",
    )
    assert main(["ask", "-l", str(path), "x"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "from b\n"
    assert "a failed: " in printed.err
    assert "[a → b]" in printed.err
    assert "b is worth" in printed.err


def test_route_calls_and_writes_nothing(tmp_path, capsys):
    path = tmp_path / "ladder.toml"
    path.write_text(
        '[[stages]]\nname = "a"\nengine = "llama"\nmodel = "hub:no/such/m.gguf"\ncost = 1.0\n'
        '[traces]\npath = "t.sqlite3"\n',
        "utf-8",
    )
    assert main(["route", "-l", str(path), "x"]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["ladder.toml"]
    assert "chosen" in capsys.readouterr().out


def test_a_bug_is_told_in_a_sentence(ladder, capsys, monkeypatch):
    def broken(self, *args, **kwargs):
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("stepladder.policies.greedy.GreedyPolicy.decide", broken)
    assert main(["ask", "-l", ladder, "x"]) == 1
    assert "stepladder: unexpected ZeroDivisionError: by nought" in capsys.readouterr().err


def test_a_terminal_without_greek_letters(ladder):
    done = subprocess.run(
        [sys.executable, "-m", "stepladder", "route", "-l", ladder, "x"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
