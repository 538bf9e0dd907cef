"""pass@k: how likely at least one of k answers to a problem is right, from n answers that were graded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from statistics import fmean

from stepladder.errors import UsageError
from stepladder.evaluate.outcomes import OutcomeRow


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased estimate from ``right`` of ``n`` answers: 1 - C(n - right, k) / C(n, k) (Chen et al. 2021, §2.1).

    That is the share of the k-subsets of the n answers that hold a right one. Raises ValueError unless
    0 <= right <= n and 1 <= k <= n.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {right} right answers in {n}: needs 0 <= right <= n and 1 <= k <= n")
    if n - right < k:
        return 1.0
    return 1.0 - prod((n - right - drawn) / (n - drawn) for drawn in range(k))


def mean_pass_at_k(rows: Iterable[OutcomeRow], k: int) -> Mapping[str, float]:
    """Mean pass@k over problems of every model; a problem's answers are the rows of its ``query_id``.

    Raises UsageError naming the row whose quality is neither 0 nor 1, or the problem with less than k answers.
    """
    answers: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.quality not in {0.0, 1.0}:
            raise UsageError(
                f"the row of '{row.query_id}' and '{row.model}': quality should be 0 or 1, not {row.quality:g}"
            )
        answers.setdefault(row.model, {}).setdefault(row.query_id, []).append(row.quality)
    return {
        model: fmean(_of_problem(found, k, f"'{problem}' by '{model}'") for problem, found in problems.items())
        for model, problems in answers.items()
    }


def _of_problem(found: list[float], k: int, what: str) -> float:
    try:
        return pass_at_k(len(found), round(sum(found)), k)
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from error
