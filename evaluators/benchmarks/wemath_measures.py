"""We-Math's four dimensions (evaluation/four_dimensional_metrics.py at a57a0e8).

A problem is asked whole and in its steps. By what is right it is one of four:

- IK, insufficient knowledge: the whole is wrong, and so is a step;
- IG, inadequate generalisation: the whole is wrong, and every step is right;
- CM, complete mastery: the whole is right, and every step (loose: at least one);
- RM, rote memorisation: the whole is right, and a step is wrong (loose: every one).

The score is (CM + IG / 2) / problems; the rate of RM is of those whose whole is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluators.profiles import Judged, ProblemScore
from evaluators.scores import Score, score_weighted

MULTI = "multi"
WORTH = {"CM": 1.0, "IG": 0.5}
"""What a problem of each dimension adds to the score; the others add nothing."""


@dataclass(frozen=True)
class Problem:
    """What is right of one problem: its whole, and each of its steps."""

    id: str
    whole: bool
    steps: tuple[bool, ...]


def problems_of(outcomes: Sequence[Judged]) -> list[Problem]:
    """The problems of which everything was asked, in order; the others tell nothing."""
    found: dict[str, dict[str, bool]] = {}
    for each in outcomes:
        key = each.sample.tags[0]
        found.setdefault(each.sample.cluster_id, {})[key] = each.is_correct
    problems: list[Problem] = []
    for identity, right in found.items():
        wholes = [key for key in right if key.endswith(MULTI)]
        steps = tuple(value for key, value in right.items() if not key.endswith(MULTI))
        if len(wholes) == 1 and len(steps) == int(wholes[0][0]):
            problems.append(Problem(identity, right[wholes[0]], steps))
    return problems


def dimension(problem: Problem, *, strict: bool) -> str:
    """Which of the four a problem is: "IK", "IG", "CM" or "RM"."""
    if not problem.whole:
        return "IG" if all(problem.steps) else "IK"
    mastered = all(problem.steps) if strict else any(problem.steps)
    return "CM" if mastered else "RM"


def four_dimensions(problems: Sequence[Problem]) -> dict[str, Score]:
    """Rates and scores, strict and loose, each with its error over problems.

    Raises:
        ValueError: If there are no problems.
    """
    found: dict[str, Score] = {}
    for kind in ("strict", "loose"):
        each = [(problem.id, dimension(problem, strict=kind == "strict")) for problem in problems]
        found[f"score ({kind})"] = _mean(f"score ({kind})", each, WORTH)
        for name in ("IK", "IG", "CM") if kind == "strict" else ("CM",):
            label = name if name in ("IK", "IG") else f"{name} ({kind})"
            found[label] = _mean(label, each, {name: 1.0})
        found[f"RM ({kind})"] = _rote_rate(f"RM ({kind})", [name for _, name in each])
    return found


def problem_scores(outcomes: Sequence[Judged]) -> dict[str, list[ProblemScore]]:
    """The scores of `four_dimensions`, strict and loose, problem by problem."""
    found: dict[str, list[ProblemScore]] = {}
    if problems := problems_of(outcomes):
        for kind in ("strict", "loose"):
            names = [dimension(problem, strict=kind == "strict") for problem in problems]
            found[f"score ({kind})"] = [
                ProblemScore(problem.id, name, WORTH.get(name, 0.0))
                for problem, name in zip(problems, names, strict=True)
            ]
    return found


def _mean(name: str, problems: Sequence[tuple[str, str]], worth: dict[str, float]) -> Score:
    values = [(identity, worth.get(kind, 0.0)) for identity, kind in problems]
    return score_weighted(name, "rate", [(1.0, values)])


def _rote_rate(name: str, kinds: Sequence[str]) -> Score:
    """RM / (CM + RM) and the error of a ratio (Cochran, Sampling Techniques, 3rd ed., 6.4).

    It is unknown, not a number, where no whole problem is right.
    """
    rote, right = kinds.count("RM"), kinds.count("RM") + kinds.count("CM")
    if right == 0:
        return Score(name, "rate", math.nan, math.nan, len(kinds))
    rate, count = rote / right, len(kinds)
    squares = math.fsum(((kind == "RM") - rate) ** 2 for kind in kinds if kind in ("RM", "CM"))
    error = math.sqrt(squares * count / (count - 1)) / right if count > 1 else math.nan
    return Score(name, "rate", rate, error, count)
