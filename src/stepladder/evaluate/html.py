"""A judgement as one HTML file: plain tables, and curves as inline SVG where matplotlib is installed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
)
STYLES = {"greedy": "o-", "cascade": "D-", "class-router": "s-", "zero-router": "--", "oracle": ":"}
WHEN = {"before": "before an answer", "after": "after its own answer and those below it"}
FIGURES = ("cost_save", "perf_gain", "apgr", "cpt50", "cpt80", "cost_auc", "gap_closed")


def page(found: Mapping[str, Any]) -> str:
    """The report of what ``judge`` found, with the verb's facts about table and artifact."""
    parts = [
        f"<h1>{escape(' < '.join(found['stages']))}</h1>",
        f"<p>{escape(_facts(found))}</p>",
        _overlap(found["overlap"]),
        _plot(found),
        *(f"<h2>Predicted quality, {WHEN[when]}</h2>{_predictor(each)}" for when, each in found["predictor"].items()),
        f"<h2>Policies (costs in {escape(found['cost_unit'])})</h2>",
        _policies([*found["policies"], *found["baselines"]]),
        "<h2>Along λ, best points in hindsight</h2>",
        _summary(found["summary"]),
        f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in found['notes'])}</ul>",
    ]
    head = f"<meta charset='utf-8'><title>Stepladder: evaluation</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _facts(found: Mapping[str, Any]) -> str:
    artifact = found["artifact"]
    return (
        f"{found['n']} queries of {found['outcomes']}, split '{found['split']}', {found['dropped']} left out for "
        f"want of a stage. Artifact {artifact['kind']} {artifact['version']}. Intervals: 95 %, bootstrap over groups, "
        f"{found['resamples']} resamples, seed {found['seed']}."
    )


def _overlap(facts: Mapping[str, Any]) -> str:
    if facts["judged_nevertheless"]:
        return f"<p><b>{facts['queries']} of these queries were known from training: the figures are too good.</b></p>"
    return f"<p>{facts['queries']} queries known from training were left out.</p>"


def _predictor(figures: Mapping[str, Any]) -> str:
    names = ("r2", "auc", "brier", "logloss", "ece", "ece_floor", "n")
    lines = [{"stage": "all, pooled", **figures["pooled"]}, *figures["per_stage"]]
    return _table(("stage", *names), ([line["stage"], *(line[name] for name in names)] for line in lines))


def _policies(entries: Sequence[Mapping[str, Any]]) -> str:
    head = ("policy", "λ", "quality", "95 %", "cost", "95 %", "answers by stage")
    return _table(head, (_policy(entry) for entry in entries))


def _policy(entry: Mapping[str, Any]) -> list[Any]:
    shares = " / ".join(f"{share:.0%}" for share in entry["shares"].values())
    quality, cost = (_range(entry[f"{name}_ci"]) for name in ("quality", "cost"))
    return [entry["name"], entry["lambda"], entry["quality"], quality, entry["cost"], cost, shares]


def _summary(summary: Mapping[str, Mapping[str, Any]]) -> str:
    return _table(
        ("policy", *FIGURES),
        ([name, *(_with_range(found, figure) for figure in FIGURES)] for name, found in summary.items()),
    )


def _with_range(found: Mapping[str, Any], figure: str) -> str:
    return f"{_shown(found[figure])} {_range(found[f'{figure}_ci'])}".strip()


def _table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    top = "".join(f"<th>{escape(word)}</th>" for word in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(_shown(cell))}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table><tr>{top}</tr>{body}</table>"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _range(pair: Sequence[float | None]) -> str:
    return "" if None in pair else f"({_shown(pair[0])} … {_shown(pair[1])})"


def _plot(found: Mapping[str, Any]) -> str:
    """Quality over cost as SVG; nothing where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "<p>Install matplotlib for the curves.</p>"
    figure = Figure(figsize=(7.5, 4.5), layout="tight")
    axes = figure.add_subplot(xlabel=f"cost [{found['cost_unit']}]", ylabel="quality")
    for name, style in STYLES.items():
        points = [line for line in (*found["policies"], *found["baselines"]) if line["name"] == name]
        if points:
            axes.plot(*_points(points), style, label=name, markersize=3)
    for line in found["baselines"]:
        if line["name"].startswith("single:"):
            axes.plot(line["cost"], line["quality"], "k^")
            axes.annotate(line["name"].removeprefix("single:"), (line["cost"], line["quality"]), fontsize=8)
    axes.legend()
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _points(entries: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    ordered = sorted(entries, key=lambda line: (line["cost"], line["quality"]))
    return [line["cost"] for line in ordered], [line["quality"] for line in ordered]
