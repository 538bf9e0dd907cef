"""ladder.toml + environment + flags → frozen settings, read once at the edge and handed over in small pieces.

A key may be given in the file (``[policy] lambda = 5``), in the environment (``STEPLADDER_POLICY_LAMBDA=5``) or as a
flag (``--set policy.lambda=5``, of a stage ``--set stages.NAME.threads=2``); the later of these wins. Secrets come by
environment variable only, by its name.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stepladder.errors import ConfigError, Problem, nearest
from stepladder.held import MAX_HOLD_BACK
from stepladder.types import Capability, CostUnit, Mode, StreamMode

PRESETS = Path(__file__).parent / "presets"
ENV_PREFIX = "STEPLADDER_"
STAGE = "stages."
"""What an override of one stage's key begins with; the stage's name follows."""
OWN = ("source", "folder", "text")
"""Fields of ``Settings`` that say where the settings came from and are no settings themselves."""

SECRET = ("headers", "api_key_env")
"""Keys whose values are not repeated where they are wrong: somebody may have put the secret itself there."""

LAMBDA_PRESETS: Mapping[str, float] = {"production": 1.5, "balanced": 5.0, "research": 15.0}
"""The paper's §5.1.2 names λ 1-2 for production and 10-20 for research; we take the middles, and 5 as its Table 4.2."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class LadderSettings(_Frozen):
    """[ladder]"""

    name: Name = "ladder"
    """What traces and replies call this ladder."""
    cost_unit: CostUnit = "relative"
    """What costs and λ are counted in: `relative` to the cheapest stage's mean request, dollars, or GPU-seconds."""


class StageSettings(_Frozen):
    """[[stages]], from the cheapest to the dearest. Times in seconds, prices in usd for a million tokens."""

    name: Name
    """What requests, replies and traces call this stage."""
    model: Annotated[str, Field(min_length=1)]
    """The server's name for it; `llama`: GGUF file or `hub:OWNER/NAME/FILE`; `torch`: folder, GGUF or `OWNER/NAME`."""
    engine: str = "openai"
    """Which engine reaches the model."""
    base_url: str | None = None
    """`openai`: where the server is, usually ending in /v1."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """`openai`: the environment variable that holds the key; the key itself never stands here."""
    headers: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """`openai`: further headers of each call."""
    cost: NonNegative | None = None
    """A price of one call set by hand, in the cost unit (costs model `fixed`)."""
    price_in: NonNegative | None = None
    """usd for a million prompt tokens (costs model `price-list`)."""
    price_out: NonNegative | None = None
    """usd for a million output tokens (costs model `price-list`)."""
    context: Annotated[int, Field(gt=0)] | None = None
    """Tokens that the model can hold; longer prompts are refused before they are sent."""
    gpus: Positive = 1.0
    """GPUs that the model occupies; counts in `gpu_s` and `usd`."""
    max_concurrency: Annotated[int, Field(gt=0)] | None = None
    """Calls in flight at once; further ones wait."""
    max_queue: Annotated[int, Field(ge=0)] | None = None
    """Calls that may wait; beyond them requests go to other stages, or get 429 (default 1000)."""
    breaker_failures: Annotated[int, Field(ge=0)] | None = None
    """Failures in a row (or half of the last 20 calls) after which it is left in peace (default 5; 0 never)."""
    breaker_pause_s: Positive | None = None
    """For how long at first; doubles up to 32 times while it stays ill (default 1)."""
    retries: Annotated[int, Field(ge=0, le=10)] | None = None
    """`openai`: times to ask again a server that did nothing yet: not reached, 502, 503, a short 429 (default 1)."""
    capabilities: frozenset[Capability] = Field(default=frozenset({"stream"}), strict=False)
    """What the stage can do; a request that needs more is not sent to it."""
    connect_timeout_s: Positive | None = None
    """Time to reach the server."""
    first_byte_timeout_s: Positive | None = None
    """Time until it begins to answer; an answer that is not streamed begins when all of it is written."""
    idle_timeout_s: Positive | None = None
    """Longest silence within an answer."""
    total_timeout_s: Positive | None = None
    """Time for a whole answer."""
    threads: Annotated[int, Field(gt=0)] | None = None
    """`llama`: compute threads, by default the cores divided by the stages; `torch`: one number for all its stages."""
    n_parallel: Annotated[int, Field(gt=0)] | None = None
    """`llama`, `torch`: answers written at once."""
    load_timeout_s: Positive | None = None
    """`llama`: time to load the model."""
    speculation: str | list[str] | Mapping[str, Any] | None = None
    """`llama`: `"off"`, `"ngram"`, `"auto"` or a table with `draft`; `torch`: `"auto"`, `"off"`, a list of drafters."""
    draft_length: int | str | None = None
    """`torch`: tokens asked of each drafter, or `"auto"`."""
    rounds: Literal["auto", "on", "off"] | None = None
    """`torch`: run whole rounds on their device: `"auto"` does on a GPU, `"off"` runs them pass by pass."""
    verification: str | None = None
    """`torch`: `"rejection"` or `"block"`."""
    drafter: str | None = None
    """`torch`: a model that only drafts, for this stage alone; called STAGE-drafter."""
    deferral: str | None = None
    """`torch`: keep drafts that are good enough under λ (`"chow"`, `"diff"`, `"opt"`, `"token"`): another law."""
    deferral_slack: NonNegative | None = None
    """`torch`: how much of a token's likelihood deferral may give up; by default the stage's cost / λ."""
    device: str | None = None
    """`torch`: `"auto"`, `"cpu"` or `"cuda"`."""
    dtype: str | None = None
    """`torch`: `"auto"` (float32 on a CPU, bfloat16 on a GPU) or one of torch's kinds."""
    prefill_chunk: Annotated[int, Field(gt=0)] | None = None
    """`torch`: tokens of a prompt that are read in one pass."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """`llama`, and a GGUF file of `torch`: checked before the file is loaded."""
    table: str | None = None
    """`replay`: the outcomes table (Parquet or JSONL)."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    """Further options of a plug-in's engine."""


class PolicySettings(_Frozen):
    """[policy]"""

    name: str = "greedy"
    """Which policy decides."""
    mode: Mode = "route"
    """`route` decides before an answer, `cascade` also after each, `fixed` takes the dearest allowed stage."""
    lam: Annotated[NonNegative | None, Field(alias="lambda")] = None
    """Cost units that one unit of quality is worth; default: the artifact's, else 5 where costs are relative."""
    preset: Literal["production", "balanced", "research"] | None = None
    """λ by name: production 1.5, balanced 5, research 15."""
    seed: int = 0
    """Feeds the coin of policies that mix."""
    fallback_stage: str | None = None
    """Which stage answers where predictor, features or costs fail; default: the dearest that may."""
    switch_cost: NonNegative | None = None
    """What leaving the stage that a conversation is at costs more; default 0.05 where costs are relative, else 0."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    """The policy's own options."""

    @model_validator(mode="after")
    def _one_dial(self) -> PolicySettings:
        if self.lam is not None and self.preset is not None:
            raise ValueError("give lambda or preset, not both")
        return self


class PredictorSettings(_Frozen):
    """[predictor]; without an artifact the uncalibrated ``prior`` serves."""

    artifact: str | None = None
    """Folder of a trained predictor."""
    name: str | None = None
    """Must agree with the artifact; without one only `prior` makes sense."""
    features: str | None = None
    """Must agree with the artifact; default `paper`."""
    profile: Literal["full", "fast"] | None = None
    """Of a `stack`: `full`, or `fast`, which decides several times sooner and knows less; default: the artifact's."""


class CostSettings(_Frozen):
    """[costs]; ``latency_price`` in cost units a second."""

    model: str = "fixed"
    """Which cost model prices a call."""
    latency_price: NonNegative = 0.0
    """Cost units that a second of waiting is worth."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    """The cost model's own options."""


class ServeSettings(_Frozen):
    """[gateway]"""

    host: str = "127.0.0.1"
    """Address to bind."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port to bind; 0 takes a free one."""
    model_name: Name = "stepladder"
    """The model name under which the policy decides."""
    max_body_bytes: Annotated[int, Field(gt=0)] = 8 * 1024 * 1024
    """Larger request bodies are refused with 413."""
    write_idle_s: Positive = 30.0
    """A client that takes nothing of its stream for so many seconds is given up, and its stage is free again."""
    drain_s: NonNegative = 30.0
    """Seconds that requests at work have to end once the gateway is told to (SIGTERM); then they are cut off."""
    drain_notice_s: NonNegative = 0.0
    """Seconds before that in which `/ready` says 503 and requests are still taken, for balancers that look rarely."""
    log: Literal["json", "text", "off"] = "text"
    """How the log on standard error is written: one line for each request, one for each warning."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged; requests are `info`, those that end with 5xx `error`, polls for health `debug`."""
    baseline: str | None = None
    """The stage that savings are told against; default: the last, the dearest."""
    keys: str | None = None
    """File of the keys that callers need (`stepladder keys new` makes it); without one no key is asked for."""
    open: bool = False
    """Bind an address that others can reach although no keys are asked for."""
    hosts: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Public names that a gateway without keys answers to on this machine's own address."""
    image_urls: Literal["any", "data", "off"] = "data"
    """URLs in messages that are passed on: `data` those that hold their content; `any` also those a stage fetches."""
    max_head_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024
    """Request lines and headers above this are refused with 431."""
    max_headers: Annotated[int, Field(gt=0)] = 128
    """Requests with more headers are refused with 431."""
    head_timeout_s: Positive = 15.0
    """Time for a request's line and headers, and for the first request of a connection to begin."""
    body_timeout_s: Positive = 30.0
    """Time for a request's body, and a second more for each 16 KiB of it that came."""
    keep_alive_s: Annotated[int, Field(gt=0)] = 20
    """How long a connection may stay idle between requests."""
    max_connections: Annotated[int, Field(gt=0)] | None = None
    """Connections at once; default: half as many as the process may open files."""
    max_connections_per_address: Annotated[int, Field(gt=0)] | None = None
    """Connections at once from one address; default: no bound, since many callers may stand behind one proxy."""


class PresetSettings(_Frozen):
    """[presets.NAME]; what a request asks for by the model name `stepladder/NAME`, unless it says otherwise itself."""

    lam: Annotated[NonNegative | None, Field(alias="lambda")] = None
    """Cost units that one unit of quality is worth."""
    mode: Mode | None = None
    """When is decided."""
    min_stage: str | None = None
    """No stage below this one."""
    max_stage: str | None = None
    """No stage above this one."""
    max_cost: Positive | None = None
    """No call whose expected cost would pass this."""
    stream_mode: StreamMode | None = None
    """What a stream shows of an answer that may yet be dropped."""
    hold_back: Annotated[int | None, Field(gt=0, le=MAX_HOLD_BACK)] = None
    """Tokens that `hold-back` waits for."""

    @property
    def dials(self) -> dict[str, Any]:
        """The keys that are set, as in the block of a request."""
        return self.model_dump(by_alias=True, exclude_none=True)


class TraceSettings(_Frozen):
    """[traces]; without a path traces are kept in memory and end with the process."""

    path: str | None = None
    """SQLite file for the traces, made where it does not exist."""
    prompts: Literal["full", "hash", "omit"] = "full"
    """Texts of requests, answers and errors: as they are, as hashes keyed by `PATH.salt`, or not at all."""
    keep_days: Positive | None = None
    """Older traces are deleted; default: none is for its age."""
    keep_rows: Annotated[int, Field(gt=0)] | None = None
    """No more traces than these are kept, the oldest go; default: all in a file, 10,000 in memory."""
    keep_feedback_days: Positive | None = None
    """Feedback that was told longer ago is deleted, with or without its trace; default: none is."""
    queue_rows: Annotated[int, Field(gt=0)] = 20_000
    """Traces that may wait for the disk; past them new ones are dropped and counted as shed."""
    queue_bytes: Annotated[int, Field(gt=0)] = 64 * 1024 * 1024
    """What they may weigh together; in memory, what all traces may."""


class Settings(_Frozen):
    """A whole ladder.toml."""

    ladder: LadderSettings = LadderSettings()
    stages: Annotated[tuple[StageSettings, ...], Field(min_length=1, strict=False)]
    policy: PolicySettings = PolicySettings()
    predictor: PredictorSettings = PredictorSettings()
    costs: CostSettings = CostSettings()
    gateway: ServeSettings = ServeSettings()
    presets: Mapping[Name, PresetSettings] = Field(default_factory=dict)
    traces: TraceSettings = TraceSettings()
    source: str = Field(default="<settings>", exclude=True)
    folder: Path = Field(default=Path(), exclude=True, strict=False)
    text: str = Field(default="", exclude=True, repr=False)

    def problem(self, path: Sequence[str | int], message: str) -> Problem:
        """A problem of one key, with its line where the file has it."""
        return problem(path, message, self.text)

    @property
    def version(self) -> str:
        """A short hash of everything set, for the trace; the same in every process."""
        plain = self.model_dump(mode="json")
        for stage in plain["stages"]:
            stage["capabilities"].sort()  # a set: its order differs from process to process
        return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


Check = Callable[[Mapping[str, Any], str], list[Problem]]
"""(plain values, text of the file) → more problems: what only somebody who knows the parts can tell."""


def read(
    source: str | Path,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
    check: Check | None = None,
) -> Settings:
    """Settings from a preset's name or a file, then the environment, then ``section.key=value`` overrides, or
    ``stages.NAME.key=value``.

    Raises ConfigError with every problem found, each with its key and, where it stands in the file, its line; those of
    ``check`` are told together with the shape's.
    """
    path = locate(source)
    text = _text(path)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = "; each stage begins with [[stages]], in double brackets" if "('stages',)" in str(error) else ""
        raise ConfigError(str(path), [Problem("file", f"is no valid TOML: {error}{hint}")]) from error
    except RecursionError as error:
        raise ConfigError(str(path), [Problem("file", "is nested too deeply to be read")]) from error
    _merge(tree, _from_environ(environ or {}, str(path), _secrets(tree)))
    _merge(tree, _from_overrides((each for each in overrides if not each.lstrip().startswith(STAGE)), str(path)))
    for override in overrides:
        if override.lstrip().startswith(STAGE):
            _set_stage(tree, override, str(path))
    return parse(tree, source=str(path), folder=path.parent.resolve(), text=text, check=check)


def parse(
    tree: Mapping[str, Any],
    *,
    source: str = "<settings>",
    folder: Path = Path(),
    text: str = "",
    check: Check | None = None,
) -> Settings:
    """Settings from plain values; raises ConfigError."""
    problems = _shape_problems(tree, text)
    if check is not None:
        problems += check(tree, text)
    if problems:
        raise ConfigError(source, sorted(problems, key=lambda problem: problem.line or 0))
    settings = Settings.model_validate(tree).model_copy(update={"source": source, "folder": folder, "text": text})
    problems = _sense_problems(settings)
    if problems:
        raise ConfigError(source, problems)
    return settings


def named_dials(settings: Settings) -> dict[str, dict[str, Any]]:
    """What each preset of dials turns: λ by its three names where costs are relative, and the ladder's own presets."""
    relative = settings.ladder.cost_unit == "relative"  # in another unit these numbers would mean nothing
    ours = {name: {"lambda": lam} for name, lam in LAMBDA_PRESETS.items()} if relative else {}
    return {**ours, **{name: preset.dials for name, preset in settings.presets.items()}}


def presets() -> tuple[str, ...]:
    """Names of the ladders that come with Stepladder."""
    return tuple(sorted(path.parent.name for path in PRESETS.glob("*/ladder.toml")))


def locate(source: str | Path) -> Path:
    """The file behind a preset's name or a path; raises ConfigError where there is neither."""
    if isinstance(source, str) and source in presets():
        return PRESETS / source / "ladder.toml"
    path = Path(source)
    if path.is_dir():
        path = path / "ladder.toml"
    if not path.is_file():
        hint = nearest(str(source), presets())
        raise ConfigError(str(source), [Problem("file", f"is neither a file nor a preset; {hint}")])
    return path


def problem(path: Sequence[str | int], message: str, text: str) -> Problem:
    """A problem of one key, with its line where the text has it."""
    return Problem(_dotted(path), message, line_of(text, path))


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The line on which a key (or failing that, its table) stands in a TOML text; None where it was not found."""
    table, counts, found = "", dict[str, int](), None
    wanted = [str(part) for part in path]
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*(\[\[?)\s*([^\]]+?)\s*\]", line)
        if header:
            table = header[2]
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = f"{table}.{counts[table]}"
            if wanted[: len(table.split("."))] == table.split("."):
                found = number
            continue
        key = re.match(r"\s*[\"']?([\w.-]+)[\"']?\s*=", line)
        if key and _is_prefix([*_parts(table), *key[1].split(".")], wanted):
            return number
    return found


# ── reading ──────────────────────────────────────────────────────────────────


def _parts(table: str) -> list[str]:
    return table.split(".") if table else []


def _is_prefix(shorter: list[str], longer: list[str]) -> bool:
    return longer[: len(shorter)] == shorter


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [Problem("file", f"cannot be read: {error}")]) from error


def _value(raw: str) -> Any:
    """A TOML literal where it is one, else the string itself."""
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _secrets(tree: Mapping[str, Any]) -> set[Any]:
    """Variables that stages name as the place of their keys: no settings, whatever they are called."""
    stages = tree.get("stages")
    listed = stages if isinstance(stages, list) else ()
    names = (stage.get("api_key_env") for stage in listed if isinstance(stage, Mapping))
    return {name for name in names if isinstance(name, str)}


def _from_environ(environ: Mapping[str, str], source: str, secrets: Container[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    known = _env_names()
    for name, raw in sorted(environ.items()):
        if not name.startswith(ENV_PREFIX) or name in secrets:
            continue
        if name not in known:
            raise ConfigError(source, [Problem(name, f"no such setting; {nearest(name, sorted(known))}")])
        section, key = known[name]
        tree.setdefault(section, {})[key] = _value(raw)
    return tree


def _env_names() -> dict[str, tuple[str, str]]:
    """Every variable that is read: STEPLADDER_<SECTION>_<KEY> for the sections that hold single values."""
    return {
        f"{ENV_PREFIX}{section}_{key}".upper(): (section, key)
        for section, model in _sections().items()
        for key in _keys(model)
        if key not in ("options",)
    }


def _from_overrides(overrides: Iterable[str], source: str) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for override in overrides:
        name, separator, raw = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not separator or not dot or section not in _sections():
            valid = ", ".join((*_sections(), f"{STAGE}NAME"))
            raise ConfigError(source, [Problem("--set", f"'{override}' is not section.key=value; sections: {valid}")])
        tree.setdefault(section, {})[key] = _value(raw.strip())
    return tree


def _set_stage(tree: Mapping[str, Any], override: str, source: str) -> None:
    """``stages.NAME.key=value``; a name may have dots in it. Raises ConfigError where no stage is called so."""
    name, separator, raw = override.strip().removeprefix(STAGE).partition("=")
    listed = tree.get("stages")
    stages = {
        str(stage.get("name")): stage
        for stage in (listed if isinstance(listed, list) else ())
        if isinstance(stage, dict)
    }
    called = max((each for each in stages if name.startswith(f"{each}.")), key=len, default=None)
    if not separator or called is None or not all(name[len(called) + 1 :].split(".")):
        told = f"'{override}' is not stages.NAME.key=value; {nearest(name.rpartition('.')[0], tuple(stages))}"
        raise ConfigError(source, [Problem("--set", told)])
    *path, key = name[len(called) + 1 :].strip().split(".")
    table = stages[called]
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(source, [Problem("--set", f"'{override}': '{part}' is no table")])
    table[key] = _value(raw.strip())


def _merge(tree: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for section, values in extra.items():
        target = tree.setdefault(section, {})
        if not isinstance(target, dict):
            continue  # the shape's check will say that this is no table
        if "lambda" in values:
            target.pop("preset", None)
        if "preset" in values:
            target.pop("lambda", None)
        target.update(values)


def _sections() -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _keys(model: type[BaseModel]) -> tuple[str, ...]:
    return tuple(
        field.alias or name for name, field in model.model_fields.items() if name not in ("source", "folder", "text")
    )


# ── judging ──────────────────────────────────────────────────────────────────


def _shape_problems(tree: Mapping[str, Any], text: str) -> list[Problem]:
    ours = [problem((key,), f"unknown key; {nearest(key, _keys(Settings))}", text) for key in OWN if key in tree]
    if ours:
        return ours
    try:
        Settings.model_validate(tree)
    except ValidationError as error:
        details = error.errors()
        inside = any(detail["loc"][:1] == ("stages",) and len(detail["loc"]) > 1 for detail in details)
        # Stages that are wrong one by one are left out before they are counted: "too few" would be a false alarm.
        return [_problem(dict(d), text) for d in details if not (inside and d["loc"] == ("stages",))]
    return []


def _problem(detail: Mapping[str, Any], text: str) -> Problem:
    path = detail["loc"]
    kind = detail["type"]
    if kind == "extra_forbidden":
        message = f"unknown key; {nearest(str(path[-1]), _valid_keys(path[:-1]))}"
    elif path == ("stages",) and kind != "missing":
        message = "should be a list of stages: begin each with [[stages]], in double brackets"
    elif kind == "missing":
        message = f"missing; {_model_name(path[:-1])} needs it"
    else:
        told = detail["msg"].removeprefix("Value error, ")
        secret = any(part in SECRET for part in path)
        message = told if secret else f"{told} (got {_short(detail.get('input'))})"
    return Problem(_dotted(path), message, line_of(text, path))


def _valid_keys(path: Sequence[str | int]) -> tuple[str, ...]:
    if not path:
        return _keys(Settings)
    if path[0] == "stages":
        return _keys(StageSettings)
    if path[0] == "presets":
        return _keys(PresetSettings)
    return _keys(_sections()[str(path[0])])


def _model_name(path: Sequence[str | int]) -> str:
    if path and path[0] == "stages":
        return "every stage"
    return f"[{path[0]}]" if path else "the file"


def _dotted(path: Sequence[str | int]) -> str:
    words = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(words).removeprefix(".")


def _short(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()[:80]
    except TypeError:
        return repr(value)[:80]


def _sense_problems(settings: Settings) -> list[Problem]:
    """What the shape cannot tell: names used twice, or for two things."""
    problems: list[Problem] = []
    seen: set[str] = set()
    for index, stage in enumerate(settings.stages):
        place = ("stages", index, "name")
        if stage.name in seen:
            problems.append(settings.problem(place, f"'{stage.name}' names two stages"))
        if stage.name == settings.gateway.model_name:
            problems.append(settings.problem(place, f"'{stage.name}' is the gateway's own model name"))
        seen.add(stage.name)
    return (
        problems + _strange_stages(settings) + _falling_costs(settings) + _idle_queues(settings) + _reachable(settings)
    )


def _reachable(settings: Settings) -> list[Problem]:
    """An address that others can reach, and nothing that keeps them out."""
    gateway = settings.gateway
    if gateway.keys is not None or gateway.open or is_loopback(gateway.host):
        return []
    told = f"'{gateway.host}' can be reached by others, and no keys are asked for"
    cure = "set gateway.keys ('stepladder keys new' makes the file), or gateway.open = true if something else guards it"
    return [settings.problem(("gateway", "host"), f"{told}: {cure}")]


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine can reach."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _idle_queues(settings: Settings) -> list[Problem]:
    return [
        settings.problem(("stages", index, "max_queue"), "needs max_concurrency: without it no call ever waits")
        for index, stage in enumerate(settings.stages)
        if stage.max_queue is not None and stage.max_concurrency is None and stage.engine == "openai"
    ]


def _strange_stages(settings: Settings) -> list[Problem]:
    """Stages that are named where savings are told, dials turned or parts fail, and are not on the ladder."""
    names = tuple(stage.name for stage in settings.stages)
    asked: list[tuple[tuple[str, ...], str | None]] = [
        (("gateway", "baseline"), settings.gateway.baseline),
        (("policy", "fallback_stage"), settings.policy.fallback_stage),
    ]
    for name, preset in settings.presets.items():
        asked += [(("presets", name, key), getattr(preset, key)) for key in ("min_stage", "max_stage")]
    return [
        settings.problem(place, f"no stage '{stage}'; {nearest(stage, names)}")
        for place, stage in asked
        if stage is not None and stage not in names
    ]


def _falling_costs(settings: Settings) -> list[Problem]:
    priced = [(index, stage) for index, stage in enumerate(settings.stages) if stage.cost is not None]
    return [
        settings.problem(
            ("stages", index, "cost"),
            f"stages stand from the cheapest to the dearest, but '{stage.name}' ({stage.cost:g}) is cheaper than "
            f"'{before.name}' ({before.cost:g}) before it",
        )
        for (_, before), (index, stage) in pairwise(priced)
        if before.cost is not None and stage.cost is not None and stage.cost < before.cost
    ]
