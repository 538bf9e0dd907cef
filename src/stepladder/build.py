"""Settings → a wired router: the only module that knows concrete parts, and it knows them by name (``plugins.py``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepladder import config, plugins
from stepladder.config import LAMBDA_PRESETS, Settings, StageSettings, TraceSettings
from stepladder.contracts import CostModel, Engine, Featurizer, Forecast, Policy, Predictor, TraceStore
from stepladder.engines.llama_head import cache_shape
from stepladder.engines.model_file import verify
from stepladder.engines.torch_settings import has_cuda
from stepladder.errors import (
    ArtifactError,
    ConfigError,
    MissingExtraError,
    ModelFileError,
    Problem,
    StepladderError,
    UsageError,
    nearest,
)
from stepladder.guard.conversations import Conversations
from stepladder.guard.gates import GateRules, Gates
from stepladder.hub import is_hub_reference, resolve
from stepladder.router import Parts, Router
from stepladder.traces.keeping import Keeping
from stepladder.traces.memory import MemoryTraceStore
from stepladder.types import Attempt, EngineCost, Ladder, Mode, Stage, Versions
from stepladder.version import __version__

if TYPE_CHECKING:
    from stepladder.predictors.artifact import Artifact
    from stepladder.sync import Stepladder

DEFAULT_LAMBDA = 5.0
"""The paper's Table 4.2 is made at λ = 5; it has a meaning only where costs are relative."""

STAGE_FIELDS = frozenset(
    {"name", "engine", "model", "context", "gpus", "cost", "price_in", "price_out", "max_concurrency", "capabilities"}
)
"""Settings of a stage that every part may read; the rest are its engine's own."""

GATE_FIELDS = frozenset({"max_queue", "breaker_failures", "breaker_pause_s"})
"""Settings of a stage that are the guard's, and no engine's."""

SWITCH_COST = 0.05
"""Where costs are relative: what a model has read of a conversation is read anew by another. At the usual λ = 5 it
outweighs one hundredth of quality."""

NEEDED: Mapping[str, tuple[str, ...]] = {"llama": ("xllamacpp",), "torch": ("torch", "transformers")}
"""Modules that an engine cannot do without; its extra of the same name brings them."""

NAMES_OTHERS = "speculation"
"""The option of a stage that may name other stages of its engine."""


def load(source: str | Path, *, environ: Mapping[str, str] | None = None, overrides: Sequence[str] = ()) -> Stepladder:
    """A ladder ready for scripts: ``load("nano").ask("What is 2+2?")``.

    ``source`` is a preset's name or the path of a ladder.toml; ``overrides`` are ``section.key=value``. Raises
    ConfigError, MissingExtraError, ModelFileError or ArtifactError, each with the cure.
    """
    from stepladder.sync import Stepladder

    found = os.environ if environ is None else environ
    return Stepladder(build(config.read(source, environ=found, overrides=overrides)))


def build(
    settings: Settings, *, store: TraceStore | None = None, fetch: bool = True, reuse: Router | None = None
) -> Router:
    """A router from settings. Engines are made, not started; a hub model that is not here yet is fetched now.

    With ``fetch=False`` hub models are left where they are, and the router can decide but not answer. The store of
    ``reuse`` is taken over, and so are its engines where nothing that they were made from has changed, with what is
    known of their stages' health, and the conversations.
    """
    store = store or (None if reuse is None else reuse.parts.store)
    artifact = _artifact(settings)
    ladder = make_ladder(settings, fetch=fetch)
    engines = make_engines(ladder.stages, reuse)
    costs = _costs(settings, ladder, engines)
    predictor = _predictor(settings, artifact, ladder)
    return Router(
        Parts(
            ladder=ladder,
            engines=engines,
            featurizer=_featurizer(settings, artifact),
            predictor=predictor,
            costs=costs,
            policies=make_policies(settings),
            pinned=plugins.make("policies", "single"),
            store=_store(settings) if store is None else store,
            guard=make_guard(settings, ladder, engines, reuse),
            conversations=Conversations() if reuse is None else reuse.parts.conversations,
            switch_cost=_switch_cost(settings),
            fallback=settings.policy.fallback_stage,
            lam=_lambda(settings, artifact),
            mode=settings.policy.mode,
            seed=settings.policy.seed,
            versions=Versions(__version__, settings.version, predictor.version, costs.version),
        )
    )


def problems(settings: Settings) -> tuple[Problem, ...]:
    """What would keep this from being built, as far as can be told without fetching or loading a model."""
    found = [
        *wrong_names(settings.model_dump(by_alias=True), settings.text),
        *_wrong_weights(settings),
        *_wrong_torch_models(settings),
        *_wrong_contexts(settings),
        *_wrong_devices(settings),
    ]
    if not found:
        found = [*_wrong_engines(settings), *_wrong_parts(settings)]
    return tuple(sorted(found, key=lambda problem: problem.line or 0))


def wrong_names(tree: Mapping[str, Any], text: str) -> list[Problem]:
    """Parts asked for by a name that nobody registered; ``tree`` may have any shape (see ``config.read``)."""
    stages = tree.get("stages")
    listed = stages if isinstance(stages, list | tuple) else ()
    asked: list[tuple[tuple[str | int, ...], plugins.Kind, Any]] = [
        *((("stages", index, "engine"), "engines", _key(stage, "engine")) for index, stage in enumerate(listed)),
        (("policy", "name"), "policies", _key(tree.get("policy"), "name")),
        (("predictor", "name"), "predictors", _key(tree.get("predictor"), "name")),
        (("predictor", "features"), "features", _key(tree.get("predictor"), "features")),
        (("costs", "model"), "costs", _key(tree.get("costs"), "model")),
    ]
    return [
        config.problem(path, f"no such part '{name}'; {nearest(name, plugins.names(kind))}", text)
        for path, kind, name in asked
        if isinstance(name, str) and name not in plugins.names(kind)
    ]


def _key(table: Any, key: str) -> Any:
    return table.get(key) if isinstance(table, Mapping) else None


def make_ladder(settings: Settings, *, fetch: bool = True) -> Ladder:
    """The ladder with every model's place resolved; with ``fetch=False`` hub references are left as they stand."""
    stages = tuple(_stage(stage, settings.folder, fetch=fetch) for stage in settings.stages)
    return Ladder(settings.ladder.name, stages, settings.ladder.cost_unit)


def make_engines(stages: tuple[Stage, ...], reuse: Router | None = None) -> dict[str, Engine]:
    """Stage name → engine; stages that name the same engine share one object. Raises PluginError and UsageError."""
    engines: dict[str, Engine] = {}
    for name in dict.fromkeys(stage.engine for stage in stages):
        mine = tuple(stage for stage in stages if stage.engine == name)
        engine = _running_engine(name, mine, reuse) or plugins.make("engines", name, mine)
        engines.update({stage.name: engine for stage in mine})
    return {stage.name: engines[stage.name] for stage in stages}


def _running_engine(name: str, stages: tuple[Stage, ...], reuse: Router | None) -> Engine | None:
    """The engine that serves just these stages already; None where there is none, or one of them has changed.

    An engine may name, in an attribute ``ignores``, fields of a stage that it was not made from: it is handed the stage
    with each call. A file that was replaced under the same name is not seen.
    """
    if reuse is None:
        return None
    before = tuple(each for each in reuse.parts.ladder.stages if each.engine == name)
    if not before:
        return None
    engine = reuse.parts.engines[before[0].name]
    ignored: frozenset[str] = getattr(engine, "ignores", frozenset())
    same = _without(before, ignored) == _without(stages, ignored)
    return engine if same else None


def _without(stages: tuple[Stage, ...], ignored: frozenset[str]) -> list[dict[str, Any]]:
    return [{f.name: getattr(stage, f.name) for f in fields(Stage) if f.name not in ignored} for stage in stages]


def make_guard(settings: Settings, ladder: Ladder, engines: Mapping[str, Engine], reuse: Router | None = None) -> Gates:
    """The gates before the stages, with as many places as each stage's engine says, or else its max_concurrency.

    Gates of ``reuse`` go on to stand before stages whose engine does and whose limits are the same.
    """
    rules = {}
    for stage, asked in zip(ladder.stages, settings.stages, strict=True):
        engine = engines[stage.name]
        places = engine.places(stage) if hasattr(engine, "places") else stage.max_concurrency
        usual = GateRules(places)
        rules[stage.name] = GateRules(
            places,
            usual.max_queue if asked.max_queue is None else asked.max_queue,
            usual.failures if asked.breaker_failures is None else asked.breaker_failures,
            usual.pause_s if asked.breaker_pause_s is None else asked.breaker_pause_s,
        )
    before = None if reuse is None else reuse.parts.guard
    if reuse is None or not isinstance(before, Gates):
        return Gates(ladder.names, rules)
    same = {name for name, engine in engines.items() if reuse.parts.engines.get(name) is engine}
    return Gates(ladder.names, rules, kept={name: gate for name, gate in before.kept(rules).items() if name in same})


def _switch_cost(settings: Settings) -> float:
    if settings.policy.switch_cost is not None:
        return settings.policy.switch_cost
    return SWITCH_COST if settings.ladder.cost_unit == "relative" else 0.0


def make_policies(settings: Settings) -> dict[Mode, Policy]:
    """One policy for each mode: the configured one for its own, and for the others what their names promise."""
    greedy, single = plugins.load("policies", "greedy"), plugins.load("policies", "single")
    policies: dict[Mode, Policy] = {"route": greedy(), "cascade": greedy(cascade=True), "fixed": single()}
    if settings.policy.name != "greedy" or settings.policy.options:
        _check_policy_stages(settings)
        policies[settings.policy.mode] = _policy(settings.policy.name, settings.policy.options)
    return policies


def _policy(name: str, options: Mapping[str, Any]) -> Policy:
    """A policy by name. Its option ``base``, a name or a table of a name and options, is another that it wraps."""
    base = options.get("base")
    if isinstance(base, str):
        base = {"name": base}
    if isinstance(base, Mapping):
        inner = {key: value for key, value in base.items() if key != "name"}
        if not isinstance(base.get("name"), str):
            raise UsageError(f"policy '{name}': 'base' should be a policy's name, or a table with its 'name'")
        options = {**options, "base": _policy(base["name"], inner)}
    made: Policy = plugins.make("policies", name, **options)
    return made


def _check_policy_stages(settings: Settings) -> None:
    """What the built-in policies' options say of stages must fit the ladder: policies themselves do not know it."""
    wrong = list(_wrong_policy_stages(settings, ("policy", "options"), settings.policy.name, settings.policy.options))
    if wrong:
        raise ConfigError(settings.source, wrong)


def _wrong_policy_stages(
    settings: Settings, path: tuple[str, ...], policy: object, options: Mapping[str, Any]
) -> Iterator[Problem]:
    names = tuple(stage.name for stage in settings.stages)
    asked = [(key, options[key]) for key in ("stage", "first", "then") if key in options]
    listed = options.get("stages", ())
    asked += [("stages", name) for name in (listed if isinstance(listed, list | tuple) else ())]
    for key, name in asked:
        if isinstance(name, str) and name not in names:
            yield settings.problem((*path, key), f"no stage '{name}'; {nearest(name, names)}")
    limits = options.get("thresholds") if policy == "cascade" else None
    if isinstance(limits, list | tuple) and len(limits) != len(names) - 1:
        told = f"{len(limits)} of them; {len(names)} stages need {len(names) - 1}, one for each but the last"
        yield settings.problem((*path, "thresholds"), told)
    inner = options.get("base")
    if isinstance(inner, Mapping):
        yield from _wrong_policy_stages(settings, (*path, "base"), inner.get("name"), inner)


def profiled(artifact: Artifact, profile: str | None, what: str) -> Artifact:
    """The artifact of a ``stack`` that serves this profile; itself where None, or its own, is asked for.

    Raises ArtifactError that names ``what`` for an artifact of another kind: it has no profiles.
    """
    if profile is None:
        return artifact
    if artifact.kind != "stack":
        told = f"but only a 'stack' has profiles, and the artifact holds a '{artifact.kind}' predictor: leave it out"
        raise ArtifactError(f"{what} is '{profile}', {told}")
    if profile == artifact.params.get("profile", "full"):
        return artifact
    return replace(artifact, params={**artifact.params, "profile": profile})


# ── parts ────────────────────────────────────────────────────────────────────


def _stage(settings: StageSettings, folder: Path, *, fetch: bool) -> Stage:
    values = settings.model_dump(exclude_none=True, exclude={"options"})
    shared = {key: value for key, value in values.items() if key in STAGE_FIELDS}
    own = {key: value for key, value in values.items() if key not in STAGE_FIELDS | GATE_FIELDS and value != {}}
    if settings.engine == "llama" and (fetch or not is_hub_reference(settings.model)):
        shared["model"] = _weights(settings, folder)
    if settings.table is not None:
        own["table"] = str(folder / settings.table)
    options = {**own, **settings.options}
    if settings.engine == "torch":
        shared["model"] = _torch_model(settings.model, folder, fetch=fetch)
        if isinstance(options.get("drafter"), str):
            options["drafter"] = _torch_model(options["drafter"], folder, fetch=fetch)
    return Stage(**shared, options=options)


def _torch_model(model: str, folder: Path, *, fetch: bool) -> str:
    """A file or folder beside the configuration by its whole path; else it is a repository's name, kept as it is."""
    if is_hub_reference(model):
        return str(resolve(model, folder)) if fetch else model
    path = folder / Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def _weights(settings: StageSettings, folder: Path) -> str:
    """Where a local model's file is; a first look at it now, so that a wrong path is not found out by a request."""
    path = resolve(settings.model, folder)
    try:
        verify(str(path), None)
    except ModelFileError as error:
        raise ModelFileError(f"stage '{settings.name}': {error}") from error
    return str(path)


def _artifact(settings: Settings) -> Artifact | None:
    profile = settings.predictor.profile
    if settings.predictor.artifact is None:
        if profile is not None:
            raise ArtifactError(f"predictor.profile is '{profile}', but without an artifact there are no profiles")
        return None
    from stepladder.predictors.artifact import load as load_artifact

    artifact = load_artifact(settings.folder / settings.predictor.artifact)
    named = settings.predictor.name
    if named is not None and named != artifact.kind:
        raise ArtifactError(f"predictor.name is '{named}', but the artifact holds a '{artifact.kind}' predictor")
    artifact.check_stages(tuple(stage.name for stage in settings.stages))
    return profiled(artifact, profile, "predictor.profile")


def _featurizer(settings: Settings, artifact: Artifact | None) -> Featurizer:
    trained = None if artifact is None else artifact.features
    asked = settings.predictor.features
    if trained is not None and asked is not None and trained != asked:
        raise ArtifactError(f"predictor.features is '{asked}', but the artifact was trained on '{trained}'")
    made: Featurizer = plugins.make("features", asked or trained or "paper")
    return made


def _predictor(settings: Settings, artifact: Artifact | None, ladder: Ladder) -> Predictor:
    kind = settings.predictor.name or "prior" if artifact is None else artifact.kind
    params = {} if artifact is None else artifact.params
    arrays = {} if artifact is None else artifact.arrays
    made: Predictor = plugins.make("predictors", kind, ladder.names, params, arrays)
    return made


def _costs(settings: Settings, ladder: Ladder, engines: Mapping[str, Engine]) -> CostModel:
    options: dict[str, Any] = {"latency_price": settings.costs.latency_price, **settings.costs.options}
    if "path" in options:
        options["path"] = str(settings.folder / str(options["path"]))
    if settings.costs.model == "measured":
        options.setdefault("cost_unit", ladder.cost_unit)
    if settings.costs.model == "price-list" and ladder.cost_unit != "usd":
        told = f"prices are in usd, but ladder.cost_unit is '{ladder.cost_unit}'; set it to 'usd'"
        raise ConfigError(settings.source, [settings.problem(("costs", "model"), told)])
    made: CostModel = plugins.make("costs", settings.costs.model, ladder.stages, _forecast(engines), **options)
    return made


def _forecast(engines: Mapping[str, Engine]) -> Forecast:
    def forecast(
        stage: Stage, prompt_tokens: int, output_tokens: int, draft: Attempt | None = None
    ) -> EngineCost | None:
        return engines[stage.name].expected_cost(stage, prompt_tokens, output_tokens, draft)

    return forecast


def _store(settings: Settings) -> TraceStore:
    kept = keeping(settings.traces)
    if settings.traces.path is None:
        return MemoryTraceStore(kept)
    from stepladder.traces.sqlite import SqliteTraceStore

    return SqliteTraceStore(settings.folder / settings.traces.path, kept)


def keeping(traces: TraceSettings) -> Keeping:
    """What the settings say of how long traces are kept, and what of them."""
    return Keeping(
        prompts=traces.prompts,
        keep_s=_seconds(traces.keep_days),
        keep_rows=traces.keep_rows,
        keep_feedback_s=_seconds(traces.keep_feedback_days),
        queue_rows=traces.queue_rows,
        queue_bytes=traces.queue_bytes,
    )


def _seconds(days: float | None) -> float | None:
    return None if days is None else days * 86_400


def _lambda(settings: Settings, artifact: Artifact | None) -> float:
    policy = settings.policy
    if policy.lam is not None:
        return policy.lam
    if policy.preset is not None:
        return LAMBDA_PRESETS[policy.preset]
    if artifact is not None and artifact.lambda_ is not None and artifact.cost_unit == settings.ladder.cost_unit:
        return artifact.lambda_
    if settings.ladder.cost_unit == "relative":
        return DEFAULT_LAMBDA
    unit = settings.ladder.cost_unit
    message = f"missing; with cost_unit '{unit}' it has no default: say how many {unit} one unit of quality is worth"
    raise ConfigError(settings.source, [Problem("policy.lambda", message)])


def _wrong_weights(settings: Settings) -> list[Problem]:
    """Local model files that are missing or no GGUF."""
    found = []
    for index, stage in enumerate(settings.stages):
        file = stage.engine == "llama" or (stage.engine == "torch" and stage.model.endswith(".gguf"))
        if file and not is_hub_reference(stage.model):
            try:
                _weights(stage, settings.folder)
            except ModelFileError as error:
                found.append(settings.problem(("stages", index, "model"), str(error)))
    return found


def _wrong_torch_models(settings: Settings) -> list[Problem]:
    """Models and drafters of torch stages that are files or folders, and are not there."""
    found = []
    for index, stage in enumerate(settings.stages):
        named = {"model": stage.model, "drafter": stage.drafter} if stage.engine == "torch" else {}
        for key, model in named.items():
            if model is None or is_hub_reference(model) or (key == "model" and model.endswith(".gguf")):
                continue
            told = _wrong_torch_model(model, settings.folder)
            if told is not None:
                found.append(settings.problem(("stages", index, key), told))
    return found


def _wrong_torch_model(model: str, folder: Path) -> str | None:
    path = folder / Path(model).expanduser()
    if model.endswith(".gguf"):
        try:
            verify(str(path), None)
        except ModelFileError as error:
            return str(error)
    is_place = model.startswith(("/", ".", "~")) or model.partition("@")[0].count("/") > 1
    if is_place and not path.exists():
        return f"there is no file and no folder {path}, and it is no OWNER/NAME of a hub"
    return None


def _wrong_contexts(settings: Settings) -> list[Problem]:
    """Contexts that are asked for beyond what the model knows, where a GGUF file's header tells that."""
    found = []
    for index, stage in enumerate(settings.stages):
        if stage.engine not in ("llama", "torch") or stage.context is None or is_hub_reference(stage.model):
            continue
        own = _own_context(str(settings.folder / Path(stage.model).expanduser()))
        if own is not None and stage.context > own:
            told = f"{stage.context} tokens are more than the {own} that the model was made for (its file says)"
            found.append(settings.problem(("stages", index, "context"), told))
    return found


def _own_context(path: str) -> int | None:
    """None where the file is no GGUF, or does not tell."""
    try:
        return cache_shape(path)[3]
    except ModelFileError:
        return None


def _wrong_devices(settings: Settings) -> list[Problem]:
    """A GPU that is asked for by name where there is none."""
    asked = [index for index, stage in enumerate(settings.stages) if stage.engine == "torch" and stage.device == "cuda"]
    if not asked or has_cuda() is not False:
        return []
    told = 'there is no CUDA device here (or this torch was built without CUDA); use "auto" or "cpu"'
    return [settings.problem(("stages", index, "device"), told) for index in asked]


def _wrong_engines(settings: Settings) -> list[Problem]:
    """What each stage's engine says against its options, and engines whose extra is not installed."""
    found = []
    stages = make_ladder(settings, fetch=False).stages
    for index, stage in enumerate(stages):
        try:
            wrong = _wrong_stage(stage, tuple(each for each in stages if each.engine == stage.engine))
            found += [settings.problem(_place(index, each.key), each.message) for each in wrong]
        except StepladderError as error:
            found.append(settings.problem(("stages", index, "engine"), str(error)))
        if any(find_spec(needed) is None for needed in NEEDED.get(stage.engine, ())):
            told = str(MissingExtraError(f"engine '{stage.engine}'", stage.engine))
            found.append(settings.problem(("stages", index, "engine"), told))
    return found


def _wrong_stage(stage: Stage, mates: tuple[Stage, ...]) -> tuple[Problem, ...]:
    """What the engine says against this stage. Raises StepladderError for what it says against all of them.

    The stage is tried alone first, since an engine that is made for several tells only of the first that is wrong. But
    its options may name another: then what is wrong with it among its mates counts, as far as they let that be seen.
    """
    alone = _objections(stage.engine, (stage,))
    together = _objections(stage.engine, mates)
    if together is None:
        return ()
    if stage.name in together.source.split("'"):
        return together.problems
    return () if alone is None else tuple(each for each in alone.problems if each.key != NAMES_OTHERS)


def _objections(engine: str, stages: tuple[Stage, ...]) -> ConfigError | None:
    try:
        plugins.make("engines", engine, stages)
    except ConfigError as error:
        return error
    return None


def _place(index: int, key: str) -> tuple[str | int, ...]:
    own = key in StageSettings.model_fields
    return ("stages", index, key) if own else ("stages", index, "options", key)


Trial = tuple[tuple[str, ...], Callable[[], object]]


def _wrong_parts(settings: Settings) -> list[Problem]:
    """The steps of ``build``, each for itself, so that one problem does not hide the next."""
    ladder = make_ladder(settings, fetch=False)
    trials: list[Trial] = [
        (("policy", "options"), lambda: make_policies(settings)),
        (("costs", "options"), lambda: _costs(settings, ladder, {})),
    ]
    found: list[Problem] = []
    try:
        artifact = _artifact(settings)
    except StepladderError as error:
        found.append(settings.problem(("predictor", "artifact"), str(error)))
    else:  # without the artifact nobody knows what these would be made of
        trials += [
            (("policy", "lambda"), lambda: _lambda(settings, artifact)),
            (("predictor", "artifact" if artifact else "name"), lambda: _predictor(settings, artifact, ladder)),
            (("predictor", "features"), lambda: _featurizer(settings, artifact)),
        ]
    return [*found, *(problem for trial in trials for problem in _tried(trial, settings))]


def _tried(trial: Trial, settings: Settings) -> Iterable[Problem]:
    path, attempt = trial
    try:
        attempt()
    except ConfigError as error:
        return error.problems
    except StepladderError as error:
        return (settings.problem(path, str(error)),)
    return ()
