"""A judgement as one HTML file: plain tables, and curves as inline SVG where matplotlib is installed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from stepladder.evaluate.tables import WHEN, Table, facts, tables

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-size:13px}td,th{padding:.2rem .6rem;"
    "border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}"
    "svg{max-width:100%;height:auto}"
)
STYLES = {
    "greedy": "o-",
    "cascade": "D-",
    "pandora": "P-",
    "cascade-route": "X-",
    "optimal": "p-",
    "class-router": "s-",
    "task-mean": "v-",
    "neighbours": "<-",
    "prompt-length": ">-",
    "zero-router": "--",
    "perfect-verifier": "k*",
    "oracle": ":",
}
DEFERRED = ("greedy", "cascade", "pandora", "task-mean", "neighbours", "prompt-length", "perfect-verifier")


def page(found: Mapping[str, Any]) -> str:
    """The report of what ``judge`` found, with the verb's facts about table and artifact."""
    parts = [
        f"<h1>{escape(' < '.join(found['stages']))}</h1>",
        *(f"<p>{escape(told)}</p>" for told in facts(found)),
        _plots(found),
        *map(_table, tables(found)),
        f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in found['notes'])}</ul>",
    ]
    head = f"<meta charset='utf-8'><title>Stepladder: evaluation</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _table(table: Table) -> str:
    top = "".join(f"<th>{escape(word)}</th>" for word in table.head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in table.lines)
    told = f"<p>{escape(table.told)}</p>" if table.told else ""
    return f"<h2>{escape(table.title)}</h2>{told}<table><tr>{top}</tr>{body}</table>"


# ── plots ────────────────────────────────────────────────────────────────────


def _plots(found: Mapping[str, Any]) -> str:
    """Three pictures as SVG; nothing where matplotlib is not installed."""
    try:
        return "".join(_drawn(draw, found) for draw in (_frontier, _deferral, _reliability))
    except ImportError:
        return "<p>Install matplotlib for the curves.</p>"


def _drawn(draw: Callable[[Any, Mapping[str, Any]], None], found: Mapping[str, Any]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="tight")
    draw(figure, found)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _frontier(figure: Any, found: Mapping[str, Any]) -> None:
    """Quality over cost."""
    axes = figure.add_subplot(xlabel=f"cost [{found['cost_unit']}]", ylabel="quality")
    for name, style in STYLES.items():
        points = [line for line in (*found["policies"], *found["baselines"]) if line["name"] == name]
        if points:
            axes.plot(*_points(points), style, label=name, markersize=3)
    for line in found["baselines"]:
        if line["name"].startswith("single:"):
            axes.plot(line["cost"], line["quality"], "k^")
            axes.annotate(line["name"].removeprefix("single:"), (line["cost"], line["quality"]), fontsize=8)
    axes.legend(fontsize=7)


def _deferral(figure: Any, found: Mapping[str, Any]) -> None:
    """Quality over the share of queries that go to the dearest stage, the others to the cheapest."""
    axes = figure.add_subplot(xlabel="share of queries sent to the dearest stage", ylabel="quality")
    curves = {name: found["summary"].get(name, {}).get("deferral") for name in DEFERRED}
    for name, curve in curves.items():
        if curve is not None:
            axes.plot(curve["share"], curve["quality"], STYLES[name], label=name, markersize=3)
    ends = next(curve["quality"] for curve in curves.values() if curve is not None)
    axes.plot((0, 1), (ends[0], ends[-1]), "k--", linewidth=0.8, label="by chance")
    axes.legend(fontsize=7)


def _reliability(figure: Any, found: Mapping[str, Any]) -> None:
    """Mean quality over mean estimate, by bins of equally many, for each stage."""
    judged = {when: figures for when, figures in found["predictor"].items() if when in WHEN}
    panels = figure.subplots(1, len(judged), squeeze=False)[0]
    for axes, (when, figures) in zip(panels, judged.items(), strict=True):
        axes.plot((0, 1), (0, 1), "k--", linewidth=0.8)
        for line in figures["per_stage"]:
            bins = line["reliability"]
            said, was = ([each[name] for each in bins] for name in ("estimate", "quality"))
            axes.plot(said, was, "o-", markersize=3, label=line["stage"])
        axes.set(title=WHEN[when], xlabel="mean estimate", ylabel="mean quality")
        axes.title.set_fontsize(9)
        axes.legend(fontsize=7)


def _points(entries: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    ordered = sorted(entries, key=lambda line: (line["cost"], line["quality"]))
    return [line["cost"] for line in ordered], [line["quality"] for line in ordered]
