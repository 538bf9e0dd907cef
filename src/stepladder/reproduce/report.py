"""The experiment's JSON value as a page of Markdown, and as a few lines for the screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepladder.reproduce import paper
from stepladder.reproduce.experiment import headline
from stepladder.reproduce.fits import BY_CLASS, BY_FAMILY, OURS, PAPERS

Found = Mapping[str, Any]

TITLES = {
    BY_CLASS: "class router (measured class means)",
    PAPERS: "adaptive, the paper's MLP",
    OURS: "adaptive, ours",
    BY_FAMILY: "look-up by family and class (measured means)",
    "calibrated-mix": "random mix of that quality in training",
    "random-mix": "random mix at the cost of ours",
    "oracle": "oracle",
}
SHORT_OF = "°"
"""Marks a share of the oracle's saving that is reckoned at the arm's own quality."""


def page(found: Found, *, with_plots: bool) -> str:
    """The whole report. ``with_plots`` shows the pictures beside it."""
    parts = [
        _head(found),
        _headline(found),
        "![cost and quality](frontier.svg)\n" if with_plots else "",
        _table_42(found),
        _table_41(found),
        _table_43(found),
        _table_44(found),
        "![predicted and measured quality](r2.svg)\n" if with_plots else "",
        _ten(found),
        _contradictions(found),
        _definitions(found),
    ]
    return "\n".join(part for part in parts if part)


def summary(found: Found) -> str:
    """What came of it, in a few lines: every arm at its operating point under measured costs."""
    reading = found["readings"]["measured"]
    lines = [
        (
            f"{found['rows']['judged_queries']} judged prompts, {found['rows']['train']:,} training rows; costs as "
            f"measured, in {found['cost_unit']}; ranges of 95 %"
        ),
        f"{'':36}{'λ':>9}{'quality':>9}{'cost':>10}  {'cheaper, %':23}{'faster, %':23}of the oracle's saving",
    ]
    lines += [_summary_line(found, each) for each in _main(reading)]
    lines += [
        f"{TITLES[name]}: no λ on training rows keeps the loss within {found['quality_loss']:.1%}: no operating point"
        for name, point in reading["operating_points"].items()
        if point["lambda"] is None
    ]
    scores = found["predictors"]["measured_quality"]
    r2 = ", ".join(f"{TITLES[name]} {_number(each['pooled'])}" for name, each in scores.items())
    lines.append(f"R² on judged prompts, pooled: {r2} (the paper: {paper.R2})")
    return "\n".join(lines)


def _summary_line(found: Found, each: Found) -> str:
    lam = "" if each["lambda"] is None else f"{each['lambda']:.4g}"
    return (
        f"{_title(each['name'])[:35]:36}{lam:>9}{each['quality']:>9.4f}{each['cost']:>10.4g}  "
        f"{_plain(each, 'cheaper'):23}{_plain(each, 'faster'):23}{_oracle_share(found, each)}"
    )


# ── parts of the page ────────────────────────────────────────────────────────


def _head(found: Found) -> str:
    run, rows, versions = found["run"], found["rows"], found["versions"]
    machine, stages = run["machine"], found["stages"]
    mix = ", ".join(f"{count} {level}" for level, count in found["classes"]["judged"].items())
    artifacts = ", ".join(f"{name} {version}" for name, version in versions["artifacts"].items())
    made = (
        f"{run['date']}, {run['seconds']:.0f} s on {machine['cores']} cores ({machine['platform']}, Python "
        f"{machine['python']}). Stepladder {versions['code']}, config {versions['config']}, costs {versions['costs']}, "
        f"artifacts {artifacts}; seed {found['seed']}, {found['resamples']} resamples.\n"
    )
    rested = (
        f"Trained on {rows['train']:,} measured rows ({rows['train_queries']:,} prompts × {len(stages)} stages), "
        f"judged on {rows['judged_queries']:,} prompts of other groups ({mix}), each asked of every stage, one call at "
        "a time. Ranges are 95 % bootstrap intervals over groups.\n"
    )
    told = [f"# The paper's experiment on {' < '.join(stages)}\n", f"    {run['command']}\n", made, rested]
    return "\n".join([*told, *(f"- {note}." for note in found["notes"]), *([""] if found["notes"] else [])])


def _headline(found: Found) -> str:
    if headline(found) is None:
        return (
            f"**No λ was found on training rows that keeps our predictor's loss within {found['quality_loss']:.1%}: "
            "there is no operating point to compare with the paper's.**\n"
        )
    compared = [each for each in _main(found["readings"]["measured"]) if not each["name"].startswith("single:")]
    said = {
        "faster": ("faster", f"54 %{_mark('4.2:Adaptive:ms')}"),
        "cheaper": ("cheaper", f"28 %{_mark('4.2:Adaptive:cost')}"),
        "better": ("quality, relative", f"+2.3 %{_mark('4.2:70B Only:better')}"),
    }
    lines = [
        f"## Against {found['stages'][-1]} alone\n",
        (
            f"Each at its λ, set on training rows where the loss there is {found['quality_loss']:.1%} at most (on "
            "other rows it is about that, not surely less); measured costs.\n"
        ),
        _row("", "the paper", *(_title(each["name"]) for each in compared)),
        _rule(2 + len(compared)),
    ]
    lines += [_row(title, word, *(_share_ci(each, key) for each in compared)) for key, (title, word) in said.items()]
    shares = (_oracle_share(found, each) for each in compared)
    lines.append(_row("of the oracle's saving", "–", *shares))
    if "paper" in found["readings"]:
        other = {each["name"]: each for each in _main(found["readings"]["paper"])}
        cells = (_share_ci(other[each["name"]], "cheaper") if each["name"] in other else "–" for each in compared)
        lines.append(_row(f"cheaper, at {_costs(paper.COSTS)}", said["cheaper"][1], *cells))
    return "\n".join([*lines, ""])


def _costs(vector: Sequence[float]) -> str:
    """The paper's costs, under which λ is calibrated anew: 28 % cheaper is a saving of those."""
    return f"the paper's costs {' : '.join(f'{cost:.1f}' for cost in vector)}"


def _table_42(found: Found) -> str:
    lines = ["## Table 4.2: methods\n"]
    for name, reading in found["readings"].items():
        costs = ", ".join(f"{stage} {_cost(cost)}" for stage, cost in reading["stage_costs"].items())
        lines += [f"### Costs {reading['told']} (mean: {costs}; {reading['cost_unit']})\n", *_methods(found, name), ""]
    if len(found["readings"]) > 1:
        lines.append(_improvements(found))
    return "\n".join(lines)


def _methods(found: Found, name: str) -> list[str]:
    reading = found["readings"][name]
    head = ("method", "λ", "the paper: ms · cost · quality", "quality", "cost", "ms, mean", "p50 / p95", "faster")
    lines = [_row(*head, "cheaper", "quality lost or won", "of the oracle's saving", _stages(found)), _rule(12)]
    lines += [_method(found, each) for each in _rows_42(reading)]
    lines += [
        _row(_title(name), "", _papers(found, name), f"– ({why})", *["–"] * 8)
        for name, why in reading["missing"].items()
    ]
    return lines


def _method(found: Found, each: Found) -> str:
    lam, latency = each["lambda"], each["latency"]
    return _row(
        _title(each["name"]),
        "" if lam is None else f"{lam:.4g}",
        _papers(found, each["name"]) if lam in (None, paper.CHOSEN_LAMBDA) else "",
        f"{each['quality']:.4f} {_ci(each['quality_ci'], 1, 3)}",
        _cost(each["cost"]),
        _ms(latency["mean"]),
        f"{_ms(latency['p50'])} / {_ms(latency['p95'])}",
        _share_ci(each, "faster"),
        _share_ci(each, "cheaper"),
        f"{round(each['quality_diff'], 4) + 0.0:+.4f} {_ci(each['quality_diff_ci'], 1, 3)}",
        _oracle_share(found, each),
        _shares(each["shares"].values()),
    )


def _rows_42(reading: Found) -> list[Found]:
    at_five = [_at(line, paper.CHOSEN_LAMBDA) for name, line in reading["by_lambda"].items() if name in (PAPERS, OURS)]
    main = _main(reading)
    return [*reading["alone"], *at_five, *main[sum(each["name"].startswith("single:") for each in main) :]]


def _main(reading: Found) -> list[Found]:
    """Singles, the routers at their operating points, the random mix, the oracle."""
    singles = [each for each in reading["alone"] if each["name"].startswith("single:")]
    return [*singles, *reading["calibrated"].values(), *reading["mixes"], reading["oracle"]]


def _improvements(found: Found) -> str:
    """Table 4.2's last column, reckoned again from its other ones."""
    lines = [
        "### The paper's “improvement” column, reckoned again from its own numbers\n",
        _row("adaptive against", "speed: said, follows", "cost: said, follows", "quality: said, follows"),
        _rule(4),
    ]
    for name, line in paper.TABLE_42.items():
        if line.better is not None:
            both = zip(line.better, paper.followed(line), strict=True)
            cells = (f"{said:+.0%}, {value:+.1%}" for said, value in both)
            lines.append(_row(name + _mark(f"4.2:{name}:better"), *cells))
    pairs = [(line.better, paper.followed(line)) for line in paper.TABLE_42.values() if line.better is not None]
    wrong = sum(abs(a - b) > 0.0051 for said, follows in pairs for a, b in zip(said, follows, strict=True))
    told = f"{wrong} of {3 * len(pairs)} differ by more than rounding: what is wrong stands in the figures before them."
    return "\n".join([*lines, "", told, ""])


def _table_41(found: Found) -> str:
    three = len(found["readings"]) > 1
    lines = [
        "## Table 4.1: shares of the stages by λ\n",
        f"Each cell: shares of {_stages(found)}, and the mean cost.\n",
    ]
    papers = ("the paper", "its matrix, its ten prompts (arithmetic)") if three else ()
    for name in ("paper", "measured") if three else ("measured",):
        reading = found["readings"][name]
        routers = reading["by_lambda"]
        head = papers if name == "paper" else ()
        lines += [
            f"Costs {reading['told']}:\n",
            _row("λ", *head, *(TITLES[router] for router in routers)),
            _rule(1 + len(head) + len(routers)),
        ]
        for lam in found["lambdas"]:
            said = (_papers_41(lam), _matrix_41(found, lam)) if head else ()
            cells = (_at(line, lam) for line in routers.values())
            lines.append(
                _row(f"{lam:g}", *said, *(f"{_shares(c['shares'].values())} · {_cost(c['cost'])}" for c in cells))
            )
        lines.append("")
    return "\n".join(lines)


def _papers_41(lam: float) -> str:
    line = paper.TABLE_41[lam]
    shares, cost = _mark(f"4.1:{lam:g}:shares"), _mark(f"4.1:{lam:g}:cost")
    return f"{_shares(line.shares)}{shares} · {line.cost:.2f}{cost}"


def _matrix_41(found: Found, lam: float) -> str:
    point = found["paper"]["matrix"][f"{lam:g}"]
    return f"{_shares(point['shares'])} · {point['cost']:.2f} (quality {point['quality']:.3f}, {point['ms']:,.0f} ms)"


def _table_43(found: Found) -> str:
    lines = ["## Table 4.3: shares by class\n"]
    for name, reading in found["readings"].items():
        if name == "finer":
            continue
        lines += [f"Costs {reading['told']}; shares of {_stages(found)}:\n", *_by_class(found, reading), ""]
    return "\n".join(lines)


def _by_class(found: Found, reading: Found) -> list[str]:
    levels = sorted(found["classes"]["judged"], key=_order)
    head = [f"{lam:g}" for lam in found["lambdas"]]
    lines = [_row("class", "the paper", "predictor", *(f"λ = {lam}" for lam in head), "calibrated λ")]
    lines.append(_rule(4 + len(head)))
    for level in levels:
        said = f"{paper.TABLE_43.get(level, '–')}{_mark(f'4.3:{level}')}"
        for name, line in reading["by_lambda"].items():
            at = reading["calibrated"].get(name)
            own = "–" if at is None else _shares(at["by_class"][level].values())
            cells = (_shares(each["by_class"][level].values()) for each in line)
            lines.append(_row(level, said, TITLES[name], *cells, own))
    return lines


def _order(level: str) -> tuple[int, str]:
    known = list(paper.TABLE_43)
    return (known.index(level) if level in known else len(known), level)


def _table_44(found: Found) -> str:
    scores, ceiling = found["predictors"], found["predictors"]["ceiling"]
    lines = [
        "## Table 4.4: how well quality is predicted\n",
        (
            "R² on judged prompts, per answer. “Within” is what is left to explain once the means of each stage, or of "
            f"each class on each stage, are known. The paper reports {paper.R2} without saying of what.\n"
        ),
        _row("estimate", "pooled", "within stage", "within class", "AUC", *found["stages"]),
        _rule(5 + len(found["stages"])),
    ]
    for name, each in scores["measured_quality"].items():
        lines.append(_scored(f"{TITLES[name]} ({each['chosen']})", each))
    said = {name: each for name, each in scores["stand_in_predicted"].items() if each is not None}
    lines += [
        _scored(f"{TITLES[name]}: trained on the stand-in, and judged by it", each) for name, each in said.items()
    ]
    titles = {
        "class_stage": "training means by class and stage",
        "family_class_stage": "training means by family, class and stage",
        "nearest_1": "nearest training prompt of the same family and class",
        "nearest_25": "mean of the 25 nearest of the same family and class",
    }
    lines += [_scored(title, ceiling[key]) for key, title in titles.items()]
    lines += ["", _ceiling_told(found), _stand_in(found), _cheapest(found)]
    return "\n".join(lines)


def _scored(title: str, each: Found) -> str:
    figures = (each[key] for key in ("pooled", "within_stage", "within_class", "auc"))
    return _row(title, *(_number(value) for value in (*figures, *each["per_stage"].values())))


def _ceiling_told(found: Found) -> str:
    shared = found["predictors"]["ceiling"]["nearest_1_shared"]
    families = (
        "" if found["predictors"]["ceiling"]["has_families"] else " No prompt names a family: class alone counts."
    )
    return (
        "What there is to explain: the training means say what knowing a prompt's stage and class, or its family too, "
        "is worth; the 25 nearest what knowing its kind and size is worth. A judged answer and that to its nearest "
        f"training prompt share {_number(shared)} of their variance: so much would be explained by the chance of "
        f"success that the two have in common.{families}\n"
    )


def _stand_in(found: Found) -> str:
    each = found["predictors"]["stand_in"]
    if each is None:
        return (
            "No stage tells its tokens' probabilities: the paper's stand-in for quality (§5.3.2) cannot be reckoned.\n"
        )
    lines = [
        (
            "**The paper's stand-in for quality** (§5.3.2) is the highest predicted probability; here the geometric "
            "mean of the answer's tokens' probabilities, exp(mean log-probability). How it follows measured quality:\n"
        ),
        _row("answers of", "mean stand-in", "measured", "correlation", "AUC", "R² as an estimate"),
        _rule(6),
    ]
    measured = found["quality"]["judged"]
    whole = sum(measured.values()) / len(measured)
    for name, part in (("all stages, pooled", each), *each["per_stage"].items()):
        mean = measured.get(name, whole)
        figures = (part["mean"], mean, part["correlation"], part["auc"], part["r2"])
        lines.append(_row(name, *(_number(value) for value in figures)))
    return "\n".join([*lines, ""])


def _cheapest(found: Found) -> str:
    """The paper's claim of table 4.4: "predicts 0.5 for 13B on complex tasks"."""
    scores = found["predictors"]["measured_quality"]
    lines = [
        f"Mean quality of {found['stages'][0]} by class (the paper: “0.5 on complex, predicted exactly”):\n",
        _row("class", "measured", *(TITLES[name] for name in scores)),
        _rule(2 + len(scores)),
    ]
    for level in sorted(found["classes"]["judged"], key=_order):
        cells = [each["cheapest_stage_by_class"][level] for each in scores.values()]
        lines.append(_row(level, _number(cells[0]["measured"]), *(_number(cell["estimated"]) for cell in cells)))
    return "\n".join([*lines, ""])


def _ten(found: Found) -> str:
    reading = found["readings"].get("paper", found["readings"]["measured"])
    if not reading["ten"]:
        return ""
    lines = [
        "## The paper's ten prompts\n",
        (
            "Asked of every stage (`ten-prompts.jsonl`). No grader applies to them: quality “–”. Shares of "
            f"{_stages(found)}, mean cost ({reading['told']}) and mean latency by λ:\n"
        ),
        _row("λ", *(TITLES[name] for name in reading["ten"])),
        _rule(1 + len(reading["ten"])),
    ]
    for number, lam in enumerate(found["lambdas"]):
        cells = (line[number] for line in reading["ten"].values())
        told = (f"{_shares(c['shares'].values())} · {_cost(c['cost'])} · {_ms(c['latency']['mean'])} ms" for c in cells)
        lines.append(_row(f"{lam:g}", *told))
    return "\n".join([*lines, ""])


def _contradictions(found: Found) -> str:
    lines = [
        "## Where the paper contradicts itself\n",
        "Each is reckoned from the paper's own numbers; ✗ marks the cells.\n",
    ]
    lines += [f"{number}. {each['told']}." for number, each in enumerate(found["paper"]["findings"], start=1)]
    return "\n".join([*lines, ""])


def _definitions(found: Found) -> str:
    decisions = ", ".join(f"{TITLES[name]} {value:.2g} ms" for name, value in found["decision_ms"].items())
    told = [
        (
            f"`faster` = 1 − mean latency / that of {found['stages'][-1]} alone, `cheaper` the same of costs; every "
            "interval comes from the same resamples of whole groups, so that ratios are paired. They tell what other "
            "judged prompts would change: predictors, λ, mixes and the oracle's choice stay as they are."
        ),
        (
            "Latency is the time of the calls that an arm makes, each measured alone, and of deciding (mean of "
            f"features and predictor: {decisions}; look-ups and mixes are taken to decide in no time)."
        ),
        (
            "“fixed” calls both stages always and is billed for both; “split” calls one of the two by chance, with the "
            "share that the paper's stated cost implies under its costs; figures are means over the coin."
        ),
        (
            "Random mixes are of those stages that no other mix beats on training rows: one with shares that lose "
            f"{found['quality_loss']:.1%} of quality there, and one at the mean cost of ours. The look-ups are told "
            "each query's class, or its family and class, which a server would have to find out."
        ),
        (
            "The oracle knows every outcome: the cheapest choice whose mean quality is at least "
            f"{1 - found['quality_loss']:.1%} of {found['stages'][-1]}'s, by linear programming (one query may be "
            f"split). Arms of less quality have no share, but for those whose λ was calibrated to reach it: {SHORT_OF} "
            "marks theirs, reckoned with the oracle's saving at their own quality."
        ),
        (
            "λ is calibrated on training rows, for each reading of costs by itself; no judged row has a part in it. "
            f"For the predictors that is out of fold, on {found['rows']['compared']:,} prompts and with fits to four "
            "fifths of those; the predictor that is judged is fitted to all. Expected costs before a call are training "
            "means."
        ),
    ]
    return "\n".join(["## How the figures are meant\n", *(f"- {line}" for line in told), ""])


# ── cells ────────────────────────────────────────────────────────────────────


def _title(name: str) -> str:
    kind, _, stages = name.partition(":")
    if kind == "single":
        return f"{stages} only"
    if kind == "fixed":
        return f"fixed {stages.replace('+', '→')}, both billed"
    if kind == "split":
        return f"fixed {stages.replace('+', '→')} read as a random split"
    return TITLES[name]


def _papers(found: Found, name: str) -> str:
    """The paper's line of table 4.2 for an arm, its impossible cells marked; nothing where it has none."""
    if len(found["stages"]) != len(paper.STAGES):
        return ""
    kind, _, stages = name.partition(":")
    names = dict(zip(found["stages"], paper.STAGES, strict=True))
    if kind == "single":
        line = f"{names[stages]} Only"
    elif kind in ("fixed", "split"):
        line = f"Fixed {'→'.join(names[stage] for stage in stages.split('+'))}"
    elif name in (OURS, PAPERS):
        line = paper.ADAPTIVE
    else:
        return ""
    said = paper.TABLE_42[line]
    ms, cost, quality = (_mark(f"4.2:{line}:{column}") for column in ("ms", "cost", "quality"))
    return f"{said.ms:,.0f}{ms} · {said.cost:.2f}{cost} · {said.quality}{quality}"


def _mark(cell: str) -> str:
    numbers = [str(number) for number in paper.marks().get(cell, ())]
    return f"<sup>✗{','.join(numbers)}</sup>" if numbers else ""


def _oracle_share(found: Found, each: Found) -> str:
    """The share; of arms that fall short only for those whose calibrated λ aimed at that quality, and marked."""
    short = each["oracle_quality"] < found["readings"]["measured"]["wanted_quality"] - 1e-9
    aimed = each["lambda"] not in (None, paper.CHOSEN_LAMBDA)
    if each["oracle_share"] is None or (short and not aimed):
        return "–"
    return f"{each['oracle_share'] + 0.0:.0%}{SHORT_OF if short else ''}"


def _at(line: Iterable[Found], lam: float) -> Found:
    return next(each for each in line if each["lambda"] == lam)


def _stages(found: Found) -> str:
    return " / ".join(found["stages"])


def _shares(shares: Iterable[float]) -> str:
    return " / ".join(f"{share:.0%}" for share in shares)


def _share_ci(each: Found, key: str) -> str:
    return "–" if each[key] is None else f"{100 * each[key] + 0.0:.1f} % {_ci(each[f'{key}_ci'], 100, 1)}"


def _plain(each: Found, key: str) -> str:
    return "–" if each[key] is None else f"{100 * each[key] + 0.0:5.1f} {_ci(each[f'{key}_ci'], 100, 1)}"


def _ci(pair: Sequence[float | None] | None, scale: float, digits: int) -> str:
    if pair is None or None in pair:
        return ""
    low, high = (round(scale * (value or 0.0), digits) + 0.0 for value in pair)
    return f"({low:.{digits}f} … {high:.{digits}f})"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{1000 * seconds:,.1f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if abs(value) >= 10 else f"{round(value, 3) + 0.0:.3f}"


def _cost(value: float) -> str:
    """Three decimals of what is near 1; four digits of what is much dearer or, in usd or seconds, much cheaper."""
    return _number(value) if abs(value) >= 0.1 or not value else f"{value:.4g}"


def _row(*cells: str) -> str:
    """A line of a table; a stage or a class may be named with the sign that parts cells."""
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _rule(columns: int) -> str:
    return f"|{'---|' * columns}"
