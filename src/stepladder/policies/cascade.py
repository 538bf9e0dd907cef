"""The threshold cascade: ask one stage after the other, and stop at the first answer that looks good enough."""

from __future__ import annotations

from collections.abc import Sequence

from stepladder.errors import UsageError, nearest, refuse_unknown
from stepladder.policies.candidates import answers, best_answer, draft_for, give_up, untried
from stepladder.policies.options import number, numbers
from stepladder.types import Attempt, Call, Decision, Fail, Fault, Stop, View

OPTIONS = ("thresholds", "keep")
KEEPS = ("best", "last")


class CascadePolicy:
    """Calls the stages from the cheapest up, and stops once the newest answer's posterior mean reaches its threshold.

    ``thresholds`` is one number for all stages, or one for each stage of the ladder but the last, in its order. In the
    end the answer with the highest posterior mean is kept, or the newest with ``keep = "last"``. λ and costs are not
    looked at: whoever fits the thresholds has to. A stage that failed is passed by. A call is final where it is certain
    to be kept: nothing else could be called, and nothing better can be in hand.

    Source: L. Chen, M. Zaharia, J. Zou, "FrugalGPT", arXiv 2305.05176, §3 (the LLM cascade), whose order of stages
    is fitted too; here it is the ladder's. Raises UsageError for options that it does not have or cannot take.
    """

    name = "cascade"

    def __init__(
        self, *, thresholds: float | Sequence[float] | None = None, keep: str = "best", **unknown: object
    ) -> None:
        refuse_unknown("policy 'cascade'", unknown, OPTIONS)
        if thresholds is None:
            raise UsageError("policy 'cascade' needs 'thresholds', one number or one for each stage but the last")
        if keep not in KEEPS:
            raise UsageError(
                f"policy 'cascade': 'keep' should be 'best' or 'last', not {keep!r}; {nearest(keep, KEEPS)}"
            )
        one = isinstance(thresholds, int | float)
        self.thresholds = number("cascade", "thresholds", thresholds, most=1.0) if one else _listed(thresholds)
        self.keep = keep

    def decide(self, view: View) -> Decision:
        """The next action."""
        wrong = self._wrong_many(view)
        if wrong is not None:
            return Decision(Fail(wrong), reason=wrong.message)
        left, made = untried(view), answers(view)
        if made and (not left or self._is_enough(view, made[-1])):
            return self._stop(view, made, left)
        return self._call(view, left, made) if left else give_up(view)

    def _call(self, view: View, left: tuple[str, ...], made: tuple[Attempt, ...]) -> Decision:
        certain = len(left) == 1 and (not made or self.keep == "last")
        call = Call(left[0], final=certain, draft=draft_for(view, left[0]))
        told = f"{left[0]} is next" if not made else f"{made[-1].stage} is not good enough: {left[0]} is next"
        return Decision(call, values={left[0]: view.value(left[0])}, reason=told)

    def _stop(self, view: View, made: tuple[Attempt, ...], left: tuple[str, ...]) -> Decision:
        best = best_answer(view)
        kept = made[-1] if self.keep == "last" or best is None else best
        return Decision(Stop(kept), reason=f"{made[-1].stage} is {'good enough' if left else 'the last'}")

    def _is_enough(self, view: View, newest: Attempt) -> bool:
        """Whether the newest answer reaches its stage's threshold; the ladder's last stage has none, and does."""
        if isinstance(self.thresholds, float):
            return view.estimates[newest.stage].mean >= self.thresholds
        place = list(view.costs).index(newest.stage)
        return place == len(self.thresholds) or view.estimates[newest.stage].mean >= self.thresholds[place]

    def _wrong_many(self, view: View) -> Fault | None:
        if isinstance(self.thresholds, float) or len(self.thresholds) == len(view.costs) - 1:
            return None
        many, wanted = len(self.thresholds), len(view.costs) - 1
        told = f"policy 'cascade' has {many} thresholds, and this ladder of {wanted + 1} stages needs {wanted}"
        return Fault("bad_request", told)


def _listed(thresholds: object) -> tuple[float, ...]:
    return numbers("cascade", "thresholds", thresholds, most=1.0)
