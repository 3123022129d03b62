"""What several asks of each item say besides its one answer: agreement, single templates, shifts and position bias."""

from collections.abc import Callable
from itertools import compress
from typing import Any

from medjax.eval.asking import Ask
from medjax.eval.reading import Reply
from medjax.eval.rotation import position_bias
from medjax.eval.samples import Finished
from medjax.eval.scoring import in_accuracy
from medjax.eval.settings import EvalSettings
from medjax.statistics import intervals


def repeats(run: Finished, settings: EvalSettings) -> dict[str, Any]:
    """What an entry of medjax.evaluations says about repeated asks, as plain numbers; {} where there is nothing to say.

    forced    answers that were forced after reasoning (protocol cot)
    asks      how many times the model was asked; agreement: mean share of an item's replies that say what its answer
              says (within a shift where choices are rotated)
    samples   count, temperature, top_p, and the mean accuracy of a single answer
    templates name -> accuracy and its interval, unparsed, of the answers to this template alone
    rotation  robust_accuracy, mean_accuracy over shifts and their intervals; by_shift, the accuracy of each, where an
              item that has one order only counts with it in every shift, and one of fewer choices in as many as it has;
              consistent, the share of items with one reading under every shift, of those that were asked under several
              (None where there is none); position_bias (medjax.eval.rotation)
    """
    e, p = run.evaluation, run.evaluation.protocol
    found: dict[str, Any] = {}
    if p.reasons:
        found["forced"] = sum(reply.forced for answer in run.answers for reply in answer.replies)
    if len(e.asks) > len(e.items):
        found["asks"] = len(e.asks)
    if agreements := [answer.agreement for answer in run.answers if answer.agreement is not None]:
        found["agreement"] = sum(agreements) / len(agreements)
    if p.settings.samples > 1:
        drawn = {"temperature": p.settings.temperature, "top_p": p.settings.top_p}
        found["samples"] = {"count": p.settings.samples, **drawn, **_accuracy(run, settings, lambda ask: True)}
    if len(p.wordings) > 1:
        found["templates"] = {name: _template(run, settings, name) for name in p.wordings}
    if p.settings.rotate:
        found["rotation"] = _rotation(run, settings)
    return found


def _rotation(run: Finished, settings: EvalSettings) -> dict[str, Any]:
    e = run.evaluation
    orders = [list(dict.fromkeys(e.asks[i].order for i in asks)) for asks in e.by_item]
    shifts = [answer.shifts for answer in run.answers]
    counted = list(compress(shifts, _counted(run)))
    means = [sum(reply.verdict.correct for reply in part) / len(part) for part in counted]
    robust = [answer.verdict.correct for answer in compress(run.answers, _counted(run))]
    most = max(map(len, counted))
    # an item that cannot be shifted is the same under every shift, also where it was not asked
    each = [part * most if len(part) == 1 else part for part in counted]
    by_shift = [[part[k].verdict.correct for part in each if k < len(part)] for k in range(most)]
    asked = [
        (item, order, reply.picked)
        for item, parts, replies in zip(e.items, orders, shifts, strict=True)
        for order, reply in zip(parts, replies, strict=True)
        if _was_asked(reply)
    ]
    several = [part for part in shifts if sum(map(_was_asked, part)) > 1]
    same = [len({reply.picked for reply in part}) == 1 and part[0].picked is not None for part in several]
    return {
        **_mean("robust_accuracy", robust, settings),
        **_mean("mean_accuracy", means, settings),
        "by_shift": [sum(right) / len(right) for right in by_shift],
        "consistent": sum(same) / len(same) if same else None,
        "position_bias": position_bias(asked, resamples=settings.resamples, seed=settings.seed),
    }


def _was_asked(reply: Reply) -> bool:
    return reply.verdict.outcome not in ("not_asked", "too_long")


def _template(run: Finished, settings: EvalSettings, name: str) -> dict[str, Any]:
    unparsed = [reply.verdict.outcome == "unparsed" for reply in _replies(run, lambda ask: ask.template == name)]
    found = _accuracy(run, settings, lambda ask: ask.template == name)
    return {**found, "unparsed": sum(unparsed)}


def _accuracy(run: Finished, settings: EvalSettings, which: Callable[[Ask], bool]) -> dict[str, Any]:
    """Mean over the items that accuracy counts of the share of their replies that are right, of some of the asks."""
    shares = []
    for asks, answer in compress(zip(run.evaluation.by_item, run.answers, strict=True), _counted(run)):
        pairs = zip(asks, answer.replies, strict=True)
        right = [reply.verdict.correct for i, reply in pairs if which(run.evaluation.asks[i])]
        shares.append(sum(right) / len(right))
    return _mean("accuracy", shares, settings)


def _counted(run: Finished) -> list[bool]:
    """Which items accuracy counts; all where it counts none, of open questions without an answer."""
    counted = in_accuracy((str(item.kind), item.answer) for item in run.evaluation.items)
    return counted if any(counted) else [True] * len(counted)


def _replies(run: Finished, which: Callable[[Ask], bool]) -> list[Reply]:
    every = (
        (run.evaluation.asks[i], reply)
        for asks, answer in zip(run.evaluation.by_item, run.answers, strict=True)
        for i, reply in zip(asks, answer.replies, strict=True)
    )
    return [reply for ask, reply in every if which(ask)]


def _mean(name: str, values: list[Any], settings: EvalSettings) -> dict[str, Any]:
    found = intervals.share_interval(values, resamples=settings.resamples, seed=settings.seed)
    return {name: found.estimate, f"{name}_interval": [found.low, found.high]}
