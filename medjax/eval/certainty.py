"""How sure a model is of its picks, and how hard the questions are to people: two curves of a finished evaluation.

Calibration: with choices scored, the softmax of the scores gives the picked choice a probability. It means what it says
where, of the picks made with 70 %, 70 % are right. Bins hold equally many picks, as those of small models gather close
to guessing. Questions with several right letters are left out: the softmax shares one whole among the choices.

Difficulty: where it is known how many examinees were right, the accuracy in bins of that share, with Wilson intervals.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from medjax.eval.samples import Finished
from medjax.eval.settings import EvalSettings
from medjax.statistics import intervals, reliability
from medjax.statistics.bootstrap import PatientBootstrap

RESAMPLES = 2_000  # at most: slope and intercept are fitted on each
_PICKS_A_BIN = 20
_TENTHS = 10


def certainty(run: Finished, settings: EvalSettings) -> dict[str, Any]:
    """What an entry of medjax.evaluations says about both, as plain numbers; a part that cannot be had is left out.

    calibration  picks, left_out, confidence (mean probability), accuracy (of these picks), curve (one entry a bin, as
                 of medjax.statistics.reliability), and estimates: ece (bins of equal mass), brier, slope, intercept
    difficulty   items, human_accuracy and accuracy of them all, bins: from, to, human_accuracy, items, correct,
                 accuracy, low, high

    Intervals resample items, of which repeated asks are parts.
    """
    found = {"calibration": _calibration(run, settings), "difficulty": _difficulty(run)}
    return {name: part for name, part in found.items() if part}


def _calibration(run: Finished, settings: EvalSettings) -> dict[str, Any]:
    picks = list(_picks(run))
    if not picks:
        return {}
    items, probabilities, right = (np.array(column) for column in zip(*picks, strict=True))
    bins = max(1, min(reliability.BINS, len(picks) // _PICKS_A_BIN))
    bootstrap = PatientBootstrap(items, resamples=min(settings.resamples, RESAMPLES), seed=settings.seed)
    estimates = reliability.summary(right, probabilities, bootstrap)
    named = {"ece": "ece_mass", "brier": "brier", "slope": "slope", "intercept": "intercept"}
    return {
        "picks": len(picks),
        "left_out": sum(len(answer.replies) for answer in run.answers) - len(picks),
        "confidence": float(probabilities.mean()),
        "accuracy": float(right.mean()),
        "curve": reliability.reliability_curve(right, probabilities, items, bins),
        **{name: estimates[key].to_json() for name, key in named.items()},
    }


def _picks(run: Finished) -> Iterator[tuple[int, float, bool]]:
    """Number of the item, probability, and whether it was right, of every pick of one letter."""
    for number, answer in enumerate(run.answers):
        for reply in answer.replies:
            if reply.probability is not None:
                yield number, reply.probability, reply.verdict.correct


def _difficulty(run: Finished) -> dict[str, Any]:
    known = [
        (item.human_accuracy, answer.verdict.correct)
        for item, answer in zip(run.evaluation.items, run.answers, strict=True)
        if item.human_accuracy is not None
    ]
    if not known:
        return {}
    people, right = (np.array(column, dtype=np.float64) for column in zip(*known, strict=True))
    place = np.minimum((people * _TENTHS + 1e-9).astype(int), _TENTHS - 1)
    bins = []
    for number in np.unique(place):
        chosen = place == number
        share = intervals.wilson(int(right[chosen].sum()), int(chosen.sum()))
        bins.append(
            {
                "from": float(number) / _TENTHS,
                "to": float(number + 1) / _TENTHS,
                "human_accuracy": float(people[chosen].mean()),
                "items": int(chosen.sum()),
                "correct": int(right[chosen].sum()),
                **{"accuracy": share.estimate, "low": share.low, "high": share.high},
            }
        )
    return {"items": len(known), "human_accuracy": float(people.mean()), "accuracy": float(right.mean()), "bins": bins}
