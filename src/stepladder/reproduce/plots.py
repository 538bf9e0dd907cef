"""The experiment's pictures: cost against quality, and how well quality is predicted. Needs the extra [report]."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from stepladder.errors import MissingExtraError
from stepladder.reproduce import paper
from stepladder.reproduce.fits import BY_CLASS, BY_FAMILY, OURS, PAPERS

Found = Mapping[str, Any]

LINES: Mapping[str, tuple[str, str, str]] = {
    BY_CLASS: ("class router", "tab:orange", "s-"),
    BY_FAMILY: ("look-up by family and class", "tab:brown", "v-"),
    PAPERS: ("adaptive, the paper's MLP", "tab:purple", "^-"),
    OURS: ("adaptive, ours", "tab:blue", "o-"),
}


FILES = ("frontier.png", "frontier.svg", "r2.png", "r2.svg")


def draw(found: Found) -> dict[str, bytes]:
    """File name → picture, PNG and SVG of each; the same report gives the same files. Raises MissingExtraError."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError("the report's plots (--no-plots does without them)", "report") from error
    mpl.use("Agg")
    with mpl.rc_context({"svg.hashsalt": "stepladder"}):
        return {**_saved("frontier", _frontier(found)), **_saved("r2", _predictors(found))}


def _saved(name: str, figure: Any) -> dict[str, bytes]:
    from matplotlib import pyplot as plt

    found = {}
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        target = io.BytesIO()
        figure.savefig(target, format=suffix, dpi=130, metadata=metadata)
        found[f"{name}.{suffix}"] = target.getvalue()
    plt.close(figure)
    return found


def _frontier(found: Found) -> Any:
    """Measured cost against quality: single stages and mixes of them, the routers along λ, the oracle."""
    from matplotlib import pyplot as plt

    reading = found["readings"]["measured"]
    figure, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    single = [each for each in reading["alone"] if each["name"].startswith("single:")]
    axes.plot(*_points(single), "o--", color="0.55", label="one stage alone, and random mixes of them", zorder=1)
    for each in single:
        told = each["name"].partition(":")[2]
        place = (each["cost"], each["quality"])
        axes.annotate(told, place, textcoords="offset points", xytext=(7, -13), color="0.3")
    for name, line in reading["curves"].items():
        label, color, style = LINES[name]
        axes.plot(*_points(line), style, color=color, ms=3, lw=1.2, label=label)
    axes.plot(*_points(reading["oracle_curve"]), ":", color="tab:green", lw=1.4, label="oracle (knows every outcome)")
    _calibrated(axes, reading)
    axes.axhline(reading["wanted_quality"], color="0.8", lw=0.8, zorder=0)
    unit = "cheapest stage's mean request = 1" if found["cost_unit"] == "relative" else found["cost_unit"]
    axes.set(xlabel=f"mean cost of a request ({unit})", ylabel="measured quality")
    axes.set_title(f"{' < '.join(found['stages'])}, {found['rows']['judged_queries']} judged prompts", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def _calibrated(axes: Any, reading: Found) -> None:
    """Our operating point with its intervals, and the oracle's."""
    ours = reading["calibrated"].get(OURS)
    if ours is not None:
        width, height = (_reach(ours, key) for key in ("cost", "quality"))
        style: dict[str, Any] = {"fmt": "*", "ms": 13, "color": "tab:red", "capsize": 2, "lw": 1, "zorder": 5}
        label = f"ours, λ = {ours['lambda']:.3g} (calibrated)"
        axes.errorbar(ours["cost"], ours["quality"], height, width, label=label, **style)
    best = reading["oracle"]
    axes.plot(best["cost"], best["quality"], "*", color="tab:green", ms=10, zorder=4)


def _reach(each: Found, key: str) -> list[list[float]]:
    low, high = each[f"{key}_ci"]
    return [[max(each[key] - low, 0.0)], [max(high - each[key], 0.0)]]


def _points(line: Sequence[Found]) -> tuple[list[float], list[float]]:
    order = sorted(line, key=lambda each: (each["cost"], each["quality"]))
    return [each["cost"] for each in order], [each["quality"] for each in order]


LOWEST = -0.5
"""R² below this leaves the picture."""

BARS: Mapping[str, str] = {"pooled": "pooled", "within_stage": "within stage", "within_class": "within class and stage"}


def _predictors(found: Found) -> Any:
    """R² of each estimate on judged prompts, beside what the paper states and the ceiling."""
    from matplotlib import pyplot as plt

    scores, ceiling = found["predictors"]["measured_quality"], found["predictors"]["ceiling"]
    bars = {
        "the paper's MLP": scores[PAPERS],
        "ours": scores[OURS],
        "class means": ceiling["class_stage"],
        "family × class means": ceiling["family_class_stage"],
        "25 nearest": ceiling["nearest_25"],
    }
    figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
    colors = ("tab:blue", "tab:cyan", "0.7")
    for number, ((key, label), color) in enumerate(zip(BARS.items(), colors, strict=True)):
        places = [i + (number - 1) * 0.27 for i in range(len(bars))]
        axes.bar(places, [each[key] or 0.0 for each in bars.values()], 0.25, color=color, label=label)
    axes.axhline(paper.R2, color="tab:red", lw=1, ls="--", label=f"the paper states {paper.R2}")
    axes.axhline(0, color="0.3", lw=0.8)
    axes.set_xticks(range(len(bars)), list(bars), fontsize=9)
    axes.set(ylabel="R² on judged prompts, per answer")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], LOWEST))
    axes.set_title("how well quality is predicted", loc="left")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
