"""What a stage's options tell the ``torch`` engine."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from stepladder.engines.options import Options
from stepladder.errors import ConfigError, Problem, nearest
from stepladder.types import Stage

NGRAM = "ngram"
"""The drafter that looks tokens up (``decoding.chain.NgramDrafter``), as ladders and traces call it."""

RULES = ("rejection", "block")
DEFERRALS = ("chow", "diff", "opt", "token")
DEVICES = ("auto", "cpu", "cuda")
ROUNDS = ("auto", "on", "off")
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
LONGEST_DRAFT = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """One stage's options, read.

    ``chain`` are the drafters below the stage, bottom first: () for plain decoding, None where the planner chooses.
    ``length`` is the draft length asked of each of them, None where the planner chooses. ``slack`` None means that it
    follows from λ. ``device``, ``dtype`` and ``rounds`` are as written, "auto" included.
    """

    stage: Stage
    device: str
    dtype: str
    slots: int
    chunk: int
    sha256: str | None
    drafter: str | None
    chain: tuple[str, ...] | None
    length: int | None
    rule: str
    deferral: str | None
    slack: float | None
    total_s: float
    threads: int | None
    rounds: str = "auto"

    @property
    def own_drafter(self) -> str:
        """Name of the model that drafts for this stage alone."""
        return f"{self.stage.name}-drafter"


def read_settings(stages: tuple[Stage, ...]) -> tuple[Settings, ...]:
    """The options of all stages. Raises ConfigError for those that cannot be used."""
    found = tuple(_settings(stage) for stage in stages)
    _check_names(found)
    _check_threads(found)
    for position, settings in enumerate(found):
        _check_chain(settings, tuple(stage.name for stage in stages[:position]))
    return found


def has_cuda() -> bool | None:
    """Whether there is a CUDA device for torch; None where torch is not installed. Imports torch, which takes long."""
    if find_spec("torch") is None:
        return None
    import torch

    return bool(torch.cuda.is_available())


def _settings(stage: Stage) -> Settings:
    options = Options(stage)
    deferral = _one_of(options, "deferral", DEFERRALS, None)
    settings = Settings(
        stage=stage,
        device=_one_of(options, "device", DEVICES, "auto") or "auto",
        dtype=_one_of(options, "dtype", DTYPES, "auto") or "auto",
        slots=options.whole("n_parallel", 8, most=64),
        chunk=options.whole("prefill_chunk", 512, most=65536),
        sha256=options.text("sha256"),
        drafter=options.text("drafter"),
        chain=_chain(options, stage),
        length=_length(options, stage),
        rule=_one_of(options, "verification", RULES, "rejection") or "rejection",
        deferral=deferral,
        slack=_slack(options, stage),
        total_s=options.seconds("total_timeout_s", 600.0),
        threads=_threads(options, stage),
        rounds=_one_of(options, "rounds", ROUNDS, "auto") or "auto",
    )
    _check_deferral(options, settings)
    options.done()
    return settings


def _check_names(found: tuple[Settings, ...]) -> None:
    """Raise ConfigError where two models, or a model and the n-grams, would go by one name."""
    names = [each.stage.name for each in found]
    for each in found:
        name = each.stage.name
        if name == NGRAM:
            told = f"'{NGRAM}' is what the drafter that asks no model is called; give the stage another name"
            raise ConfigError(f"stage '{name}'", [Problem("name", told)])
        if each.drafter is not None and each.own_drafter in names:
            told = f"would be called '{each.own_drafter}', as a stage is; give that stage another name"
            raise ConfigError(f"stage '{name}'", [Problem("drafter", told)])


def _check_threads(found: tuple[Settings, ...]) -> None:
    """Raise ConfigError where stages ask for different numbers of threads: they take turns in one."""
    asked = {each.threads: each.stage.name for each in reversed(found) if each.threads is not None}
    if len(asked) > 1:
        told = ", ".join(f"{count} in '{name}'" for count, name in sorted(asked.items()))
        problem = Problem("threads", f"must be the same in all stages of the engine 'torch'; there are {told}")
        raise ConfigError(f"stage '{found[-1].stage.name}'", [problem])


def _chain(options: Options, stage: Stage) -> tuple[str, ...] | None:
    """``speculation``: "auto", "off", or a list of drafters, bottom first."""
    options.allow("speculation")
    value: Any = stage.options.get("speculation", "auto")
    if value == "auto":
        return None
    if value == "off":
        return ()
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    options.wrong("speculation", f'must be "auto", "off" or a list of drafters, bottom first, not {value!r}')
    return None


def _length(options: Options, stage: Stage) -> int | None:
    if stage.options.get("draft_length", "auto") == "auto":
        options.allow("draft_length")
        return None
    return options.whole("draft_length", 4, most=LONGEST_DRAFT)


def _threads(options: Options, stage: Stage) -> int | None:
    if stage.options.get("threads") is None:
        options.allow("threads")
        return None
    return options.whole("threads", 1, most=1024)


def _slack(options: Options, stage: Stage) -> float | None:
    options.allow("deferral_slack")
    value = stage.options.get("deferral_slack")
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    options.wrong("deferral_slack", f"must be a number from 0 up, not {value!r}")
    return None


def _one_of(options: Options, key: str, valid: tuple[str, ...], default: str | None) -> str | None:
    value = options.text(key)
    if value is not None and value not in valid:
        options.wrong(key, f"no such value {value!r}; {nearest(value, valid)}")
        return default
    return value or default


def _check_deferral(options: Options, settings: Settings) -> None:
    if settings.deferral is None:
        if settings.slack is not None:
            options.wrong("deferral_slack", f"has no meaning without deferral; valid: {', '.join(DEFERRALS)}")
        return
    if not settings.chain or settings.chain[-1] == NGRAM:
        told = "needs speculation = [...] with a model as the last drafter: the law that it mixes has to be known"
        options.wrong("deferral", told)
    if settings.slack is None and settings.stage.cost is None:
        options.wrong("deferral", "takes its slack from λ and the stage's cost: set cost, or deferral_slack")


def _check_chain(settings: Settings, below: tuple[str, ...]) -> None:
    """Raise ConfigError where a chain names what cannot draft, or names it twice or out of order."""
    chain = settings.chain or ()
    models = [*([settings.own_drafter] if settings.drafter else []), *below]
    valid = [NGRAM, *models]
    problems = []
    for place, name in enumerate(chain):
        if name not in valid:
            why = "Only n-grams and lower stages of the engine 'torch' can: it has to see their probabilities"
            problems.append(f"'{name}' cannot draft for '{settings.stage.name}'; {nearest(name, valid)} {why}")
        elif name == NGRAM and place:
            problems.append(f"'{NGRAM}' asks no model and verifies nothing, so it can only stand first")
        elif name in chain[:place]:
            problems.append(f"'{name}' stands in it twice")
    places = [models.index(name) for name in chain if name in models]
    if places != sorted(places):
        problems.append(f"drafters stand from the cheapest to the dearest: {', '.join(models)}")
    if problems:
        raise ConfigError(f"stage '{settings.stage.name}'", [Problem("speculation", told) for told in problems])
