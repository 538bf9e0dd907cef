"""The embedded ladder: real weights, real processes, the real gateway and the official client."""

from __future__ import annotations

import hashlib
import io
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
from openai import BadRequestError, OpenAI
from rich.console import Console

import stepladder
from stepladder import config
from stepladder.build import build
from stepladder.cli import demo
from stepladder.evaluate.graders import grade
from stepladder.evaluate.replay import differences
from stepladder.evaluate.tasks.nano import generate
from stepladder.gateway.app import create_app
from stepladder.gateway.server import running
from stepladder.sync import Stepladder

NANO = config.PRESETS / "nano"
JUDGED = generate("judged", 120, seed=3)
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def ladder() -> Iterator[Stepladder]:
    with stepladder.load("nano", environ={}) as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    router = build(config.read("nano"))
    with (
        running(create_app(router, manage_router=True)) as url,
        OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as made,
    ):
        yield made


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_the_weights_are_those_of_the_card():
    lines = (NANO / "SHA256SUMS").read_text("utf-8").split("\n")
    sums = dict(reversed(line.split()) for line in lines if line)
    files = sorted(NANO.glob("*.gguf"))
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} == sums
    assert all(path.stat().st_size < 16 * MIB for path in files)
    assert sum(path.stat().st_size for path in files) <= 20 * MIB
    assert {stage.sha256 for stage in config.read("nano").stages} == set(sums.values())


def test_simple_questions_are_answered(ladder):
    assert ladder.ask("What is 12 + 7?", temperature=0).text.strip() == "19"
    answer = ladder.ask("What is 12 + 7?", temperature=0, lam=1000.0)
    assert answer.text.strip() == "19"
    assert answer.trace.steps[0].view.estimates.calibrated


def test_every_stage_is_much_better_than_nothing_and_the_top_beats_the_bottom(ladder):
    names = ladder.router.parts.ladder.names
    quality = {}
    for name in (names[0], names[-1]):
        answers = [ladder.ask(t.prompt, min_stage=name, max_stage=name, temperature=0, max_tokens=96) for t in JUDGED]
        quality[name] = fmean(grade(t.grader, a.text, t.answer) for t, a in zip(JUDGED, answers, strict=True))
    assert 0.3 < quality[names[0]] < quality[names[-1]]


def test_a_higher_lambda_never_chooses_a_cheaper_mean(ladder):
    costs = []
    for lam in (0.0, 5.0, 20.0, 80.0, 1000.0):
        steps = [ladder.route(task.prompt, lam=lam).steps[0] for task in JUDGED]
        costs.append(fmean(step.view.costs[step.decision.action.stage].resource for step in steps))
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_greedy_answers_repeat(ladder):
    first, second = (ladder.ask(JUDGED[0].prompt, temperature=0).text for _ in range(2))
    assert first == second


def test_a_day_on_real_models_replays_to_the_same_actions(ladder):
    for lam in (1.0, 30.0, 1000.0):
        for mode in ("route", "cascade", "fixed"):
            ladder.ask(JUDGED[1].prompt, lam=lam, mode=mode)
    parts = ladder.router.parts
    for trace in parts.store.read():
        assert not differences([trace], parts.policies[trace.mode])


def test_a_cascade_sees_log_probabilities_that_its_caller_did_not_ask_for(ladder, client):
    trace = ladder.ask(JUDGED[0].prompt, mode="cascade", temperature=0).trace
    assert all(attempt.logprobs and max(attempt.logprobs) <= 0 for attempt in trace.attempts)
    asked = {"messages": say(JUDGED[0].prompt), "temperature": 0, "extra_body": {"stepladder": {"mode": "cascade"}}}
    assert client.chat.completions.create(model="stepladder", **asked).choices[0].logprobs is None
    told = client.chat.completions.create(model="stepladder", logprobs=True, top_logprobs=2, **asked).choices[0]
    assert {len(token.top_logprobs) for token in told.logprobs.content} == {2}
    routed = ladder.ask(JUDGED[0].prompt, mode="route", temperature=0).trace
    assert [attempt.logprobs for attempt in routed.attempts] == [None]  # a final answer is kept anyway


def test_a_cascade_reads_its_answers_and_climbs_on_them(ladder):
    climbs = 0
    for task in JUDGED[:60]:
        steps = ladder.ask(task.prompt, mode="cascade", lam=1000.0, temperature=0).trace.steps
        first, second = steps[0].view, steps[1].view
        assert first.estimates != second.estimates
        called = first.value(steps[0].decision.action.stage)
        assert called == max(first.value(stage) for stage in first.stages)
        climbs += sum(step.attempt is not None for step in steps) > 1
    assert climbs  # and only because of what was answered: by the first estimates the first call was the best


def test_the_stream_says_what_the_whole_reply_says(client):
    ask = {"model": "stepladder", "messages": say("What is 12 + 7?"), "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**ask)
    pieces = [c.choices[0].delta.content or "" for c in client.chat.completions.create(**ask, stream=True) if c.choices]
    assert "".join(pieces) == whole.choices[0].message.content == "19"
    assert whole.model in config_names()
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0


def config_names() -> list[str]:
    return [stage.name for stage in config.read("nano").stages]


def test_a_stage_by_name_and_its_logprobs(client):
    name = config_names()[-1]
    reply = client.chat.completions.create(
        model=name, messages=say("What is 12 + 7?"), temperature=0, logprobs=True, top_logprobs=2
    )
    assert reply.model == name
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.content is not None
    assert reply.choices[0].logprobs.content[0].logprob <= 0


def test_raw_completions(client):
    reply = client.completions.create(model="stepladder", prompt="2+2=", max_tokens=3, temperature=0)
    assert reply.choices[0].text


def test_a_prompt_longer_than_the_context(client):
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="stepladder", messages=say("word " * 700))
    assert caught.value.code == "context_length_exceeded"


def test_a_prompt_that_no_tokenizer_could_shorten_enough(client):
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="stepladder", messages=say("word " * 70_000))
    assert caught.value.code == "context_length_exceeded"


def test_the_demo_prints_its_tables_plainly_when_piped():
    done = subprocess.run(
        [sys.executable, "-m", "stepladder", "demo", "--once"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "always largest" in done.stdout
    assert "What is 2+2?" in done.stdout
    assert sum(line.startswith("λ = ") for line in done.stdout.split("\n")) >= 4


def test_the_demo_on_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "stepladder", "demo", "--once", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"--port: {port} cannot be bound" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_ends_in_order_also_where_its_shell_ignores_ctrl_c():
    command = ["bash", "-c", f"trap '' INT; exec {sys.executable} -m stepladder demo"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("Ctrl-C ends it" in line for line in iter(process.stderr.readline, ""))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.parametrize("width", [80, 120, 160])
def test_no_number_of_the_demo_is_cut(width):
    prompt = demo.Prompt("What is the sum of nineteen and twenty-two? " * 3, "simple", "arithmetic", "41", "numeric")
    result = demo.Result(prompt, "medium", "19+22=41 " * 5, 0.95, 1.0, 12.34, 0.0456)
    out = Console(width=width, file=io.StringIO(), force_terminal=False)
    out.print(demo._table("λ = 5", [result], [result], narrow=width))
    shown = out.file.getvalue()
    for number in ("0.95", "1.00", "12.34", "46", "medium"):
        assert number in shown


@pytest.mark.parametrize("example", ["ask.py"])
def test_examples_run(example):
    path = Path(__file__).parents[2] / "examples" / example
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("19") >= 3


def test_the_client_example_runs(client):
    path = Path(__file__).parents[2] / "examples" / "openai_client.py"
    done = subprocess.run([sys.executable, path, str(client.base_url)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "written by" in done.stdout
