"""A judgement as tables of words, for whoever shows them: the terminal, Markdown, HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from stepladder.evaluate.operating import TELL

WHEN = {"before": "before an answer", "after": "after its own answer and those below it"}
SCORES = ("r2", "auc", "brier", "logloss", "ece", "ece_floor", "n")
HINDSIGHT = ("cost_save", "perf_gain", "apgr", "cpt50", "cpt80", "cost_auc", "aiq")
POINT = ("quality", "quality_ratio", "cost", "cost_save", "perf_gain")
UNSAID = ("single:", "fixed:")
"""Baselines whose one point says everything: they have no line among the curves."""


class Table(NamedTuple):
    """``lines`` hold as many cells as ``head``; ``told`` is a sentence under the title, empty where there is none."""

    title: str
    told: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]


def tables(found: Mapping[str, Any]) -> list[Table]:
    """All tables of a judgement (``report.report`` with the verb's facts), those that would be empty left out."""
    every = [
        *_predicted(found["predictor"]),
        *_predicted(found.get("predictor_fast", {}), ", profile fast"),
        _ceilings(found["ceilings"]),
        _clusters(found["clusters"]),
        _policies(found),
        _baselines(found),
        _operating(found),
        _along(found["summary"]),
        _hindsight(found["summary"]),
    ]
    return [table for table in every if table.lines]


def facts(found: Mapping[str, Any]) -> list[str]:
    """What was judged, on what, and how the intervals came about, in sentences."""
    artifact, unseen = found["artifact"], [n for n, each in found["datasets"].items() if not each["seen_in_training"]]
    judged = (
        f"{found['n']} queries of split '{found['split']}' of {found['outcomes']}; left out: {found['dropped']} for "
        f"want of a stage; datasets not seen in training: {', '.join(unseen) or 'none'}."
    )
    how = (
        f"Artifact {artifact['kind']} {artifact['version']}. Costs in {found['cost_unit']}. Intervals: 95 %, bootstrap "
        f"over groups, {found['resamples']} resamples, seed {found['seed']}."
    )
    return [judged, overlap(found["overlap"]), how]


def overlap(facts: Mapping[str, Any]) -> str:
    """How many of the queries training knew."""
    if facts["judged_nevertheless"]:
        return f"OVERLAP: {facts['queries']} of these queries were known from training; the figures are too good."
    return f"known from training and left out: {facts['queries']} queries."


def figure(value: Any) -> str:
    """A number in few digits; a dash for one that has no value."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) >= 10 else f"{round(value, 3) + 0.0:.3f}"


def span(pair: Sequence[float | None]) -> str:
    """An interval; empty where it has no ends."""
    return "" if None in pair else f"{figure(pair[0])} … {figure(pair[1])}"


# ── the predictor ────────────────────────────────────────────────────────────


def _predicted(found: Mapping[str, Any], which: str = "") -> list[Table]:
    return [_predictor(f"{told}{which}", found[when]) for when, told in WHEN.items() if when in found]


def _predictor(when: str, figures: Mapping[str, Any]) -> Table:
    pooled = figures["pooled"]
    told = f"R² within stage {figure(pooled['r2_within_stage'])}"
    if "r2_within_class" in pooled:
        told += f", within class and stage {figure(pooled['r2_within_class'])}"
    head = ("stage", "R²", "AUC", "Brier", "log-loss", "ECE", "its floor", "n")
    lines = ({"stage": "all, pooled", **pooled}, *figures["per_stage"])
    cells = [[line["stage"], *(figure(line[name]) for name in SCORES)] for line in lines]
    return Table(f"Predicted quality, {when}", told, head, cells)


def _ceilings(found: Iterable[Mapping[str, Any]]) -> Table:
    told = "the R² of whoever knew every query's true chance to be answered right, from repeated answers"
    names = ("r2_single", "r2_mean", "queries")
    lines = [[each["stage"], *(figure(each[name]) for name in names)] for each in found]
    return Table("Ceiling of R²", told, ("stage", "one answer", "mean of the answers", "queries"), lines)


def _clusters(found: Mapping[str, Any] | None) -> Table:
    told = (
        "R² of mean quality by cluster of prompts, within a stage; clusters are drawn on training prompts. Corrected: "
        "less the noise of the clusters' means; strict: the residual's own noise alone. Signal: the share of the "
        "clusters' spread that is no noise. Control: groups of the same sizes by chance"
    )
    head = ("estimates", "clusters", "stage", "R² corrected", "strict", "raw", "signal", "control raw", "its signal")
    lines = []
    for when, entries in (found or {}).items():
        for entry in entries:
            for fit, by_chance in zip(entry["per_stage"], entry["control"], strict=True):
                mine = [figure(fit[name]) for name in ("r2", "r2_strict", "r2_raw", "signal")]
                control = [figure(by_chance[name]) for name in ("r2_raw", "signal")]
                lines.append([when, str(entry["k"]), fit["stage"], *mine, *control])
    return Table("Expected quality of kinds of prompts", told, head, lines)


# ── policies ─────────────────────────────────────────────────────────────────

_POINTS = ("policy", "λ", "quality", "95 %", "cost", "95 %", "answers by stage")


def _policies(found: Mapping[str, Any]) -> Table:
    shown = {*found["lambda_grid"], found["lambda_calibrated"]}
    lines = [_point(line, found) for line in found["policies"] if line["lambda"] in shown]
    told = f"costs in {found['cost_unit']}; ◀ marks the λ that stands in the artifact"
    return Table("Policies along λ", told, _POINTS, lines)


def _baselines(found: Mapping[str, Any]) -> Table:
    shown = {*found["lambda_grid"], None}
    kept = [line for line in found["baselines"] if line["lambda"] in shown and line["name"] != "oracle"]
    oracle = [line for line in found["baselines"] if line["name"] == "oracle"][-1:]
    lines = [_point(line, found) for line in (*kept, *oracle)]
    return Table("Baselines", f"costs in {found['cost_unit']}", _POINTS, lines)


def _point(line: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    lam = line["lambda"]
    mark = " ◀" if lam is not None and lam == found["lambda_calibrated"] else ""
    shares = " / ".join(f"{share:.0%}" for share in line["shares"].values())
    figures = (figure(line["quality"]), span(line["quality_ci"]), figure(line["cost"]), span(line["cost_ci"]))
    return [line["name"] + mark, "" if lam is None else f"{lam:.3g}", *figures, shares]


def _operating(found: Mapping[str, Any]) -> Table:
    told = (
        "λ chosen out of fold on training rows, applied here once; ▲ marks the policy that they chose. Quality ratio "
        "and saving are against the dearest stage, the gain against the best single one. Without a λ: training rows "
        "found none, and the single stage itself is used"
    )
    head = ("point", "policy", "λ", "quality", "of the dearest's", "cost", "saving", "gain")
    lines = []
    for kind, sought in TELL.items():
        for name, summary in found["summary"].items():
            point = summary.get("operating", {}).get(kind)
            if point is not None:
                mark = " ▲" if found["operating"].get(kind, {}).get("policy") == name else ""
                lam = point["policy_used"] if point["lambda"] is None else f"{point['lambda']:.3g}"
                lines.append([sought, name + mark, lam, *(_with_span(point, each) for each in POINT)])
    return Table("Operating points", told, head, lines)


def _along(summary: Mapping[str, Mapping[str, Any]]) -> Table:
    told = (
        "means over the nine λ of the grid: score is λ·quality − cost, regret how far below the oracle's, gap closed "
        "the share of the way from the best single stage to the oracle; the lead over the best baseline is paired"
    )
    head = ("policy", "score", "gap closed", "mean regret", "best baseline", "lead over it")
    lines = []
    for name, found in _curves(summary):
        regret = None if None in found["regret"] else sum(found["regret"]) / len(found["regret"])
        lead = found.get("vs_best_baseline")
        ahead = ["", ""] if lead is None else [lead["name"], f"{figure(lead['value_diff'])} ({span(lead['ci'])})"]
        scores = [_with_span(found, each) for each in ("score", "gap_closed")]
        lines.append([name, *scores, figure(regret), *ahead])
    return Table("Along λ", told, head, lines)


def _hindsight(summary: Mapping[str, Mapping[str, Any]]) -> Table:
    told = "cost_save and perf_gain at the best point of the curve in hindsight: what was there to be had, not promised"
    lines = [[name, *(_with_span(found, each) for each in HINDSIGHT)] for name, found in _curves(summary)]
    return Table("Along the curve", told, ("policy", *HINDSIGHT), lines)


def _curves(summary: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, found) for name, found in summary.items() if not name.startswith(UNSAID)]


def _with_span(found: Mapping[str, Any], name: str) -> str:
    told = span(found[f"{name}_ci"])
    return f"{figure(found[name])} ({told})" if told else figure(found[name])
