"""From verdicts on items to the score of an exam: totals, tables, and the official pass or fail.

Two rules turn a prediction into a verdict:

  judge        the set of letters must be the gold set (or the number text the gold text). No answer that could be
               read is wrong and counted as unparsed.
  judge_kasai  the rule IgakuQA was published with: the prediction is split at "," and nothing is trimmed, so "a, c"
               is wrong. It reproduces the published scores of GPT-4 (388.8 points a year) and ChatGPT (273.2).

Both count a prohibited pick whether or not the answer was right. In IgakuQA 116A71 is right whatever is answered, and
112B30 has two gold answers; both are marked on the items. Withdrawn items (0 points) stay in the item accuracy.

"Accuracy" means different things in print: here `accuracy` is items right / items, and `points_share` is points /
points possible. The items are those of `in_accuracy`: an exam that asks for texts beside choices has the accuracy, and
the chance, of its choices and numbers.
"""

import math
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from medjax.data.exams.tasks import LoadedTask
from medjax.data.qa import NUMBER, Item
from medjax.statistics import intervals

_Pairs = list[tuple[Item, "Verdict"]]
# what can become of an item, in the order of tables; every item is one of them. Cut off: at the limit of new tokens,
# with nothing to read. No reference: an open question whose right answer nobody gave, answered, for people to judge.
OUTCOMES = ("right", "wrong", "unparsed", "cut_off", "not_asked", "too_long", "no_reference")
_UNSEEN = ("not_asked", "too_long")  # outcomes of items that no model has seen
ACCURACY_KINDS = ("choice", "number")  # of items whose answer is right or wrong and nothing between


@dataclass(frozen=True)
class Prediction:
    """What was read from a model's answer: letters, or one number text, or None when nothing could be read."""

    item_id: str
    letters: tuple[str, ...] | None


@dataclass(frozen=True)
class Verdict:
    """How one prediction scored.

    unparsed   nothing could be read; the outcome is "cut_off" where that is since the answer was truncated
    asked      False: the protocol cannot put the item, which counts as wrong
    truncated  the answer ended at the limit of new tokens
    too_long   the prompt is longer than the model's context and was not sent; worth nothing
    no_reference  nobody gave a right answer to compare with: not right, and not counted in the accuracy
    """

    correct: bool
    points: int | float
    prohibited: bool
    unparsed: bool
    asked: bool = True
    truncated: bool = False
    too_long: bool = False
    no_reference: bool = False

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""
        if self.too_long or self.correct:
            return "too_long" if self.too_long else "right"
        if not self.asked:
            return "not_asked"
        if self.unparsed:
            return "cut_off" if self.truncated else "unparsed"
        return "no_reference" if self.no_reference else "wrong"


def judge(item: Item, prediction: Prediction) -> Verdict:
    """Exact set rule (exact order for an `ordered` item); a similarity must be the same number, a text the same text.

    Raises ValueError when the prediction is for another item.
    """
    if prediction.item_id != item.id:
        raise ValueError(f"judge: got the prediction for {prediction.item_id!r}, expected {item.id!r}; keep one order")
    letters = prediction.letters or ()
    if item.kind == "entities":
        correct = prediction.letters is not None and set(letters) == set(item.answer)
    elif item.kind == "similarity":
        correct = bool(letters) and float(letters[0]) == float(item.answer[0])
    else:
        correct = bool(letters) and (letters if item.ordered else tuple(sorted(set(letters)))) in _golds(item)
    return _verdict(item, correct, set(letters), unparsed=prediction.letters is None)


def judge_kasai(item: Item, text: str) -> Verdict:
    """The rule of IgakuQA's evaluation script on a prediction that `parse_kasai` has put in half-width lower case.

    Letters are matched against the gold byte for byte; for prohibited picks blanks around letters are removed. Unparsed
    is only a remark here: the text is not a list of the item's letters (or a number).
    Source: jungokasai/IgakuQA@2bc4c3d; prohibited picks are not part of that script.
    """
    pieces = text.split(",")
    if item.ordered:
        correct = tuple(pieces) in _golds(item)
    else:
        correct = sorted(pieces) in [sorted(gold) for gold in _golds(item)]
    picks = [piece.replace(" ", "") for piece in pieces]
    readable = bool(NUMBER.fullmatch(text)) if item.is_numeric else set(picks) <= set(item.letters)
    return _verdict(item, correct, set(picks), unparsed=not readable)


def chance(item: Item, *, rotated: bool = False) -> float:
    """Probability of a right answer by guessing, the number of answers being known; 0 where there are no choices.

    rotated  it is asked once under every shift of its choices, and has to be guessed every time
    """
    if item.any_answer:
        return 1.0
    if item.kind != "choice":
        return 0.0
    ways = math.perm if item.ordered else math.comb
    guess = sum(1 / ways(len(item.choices), len(gold)) for gold in _golds(item))
    return float(guess ** len(item.choices)) if rotated else guess


def in_accuracy(answers: Iterable[tuple[str, Sequence[str]]]) -> list[bool]:
    """Which items of a set its accuracy counts: choices and numbers; of a set without any, all that have an answer.

    answers  kind and gold answer of each item

    Other kinds are graded by figures of their own (eval.metrics). In a set of such alone, accuracy is the share of them
    that were answered to the letter.
    """
    known = list(answers)
    kinds = _accuracy_kinds(kind for kind, _ in known)
    return [kind in kinds and (kind != "text" or bool(answer)) for kind, answer in known]


def not_graded(verdicts: Iterable[Verdict]) -> str:
    """Why there is no score where no item reached the model, such as "too long 8/8"; "" where one did."""
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    if not outcomes or not outcomes.keys() <= set(_UNSEEN):
        return ""
    items = outcomes.total()
    return ", ".join(f"{name.replace('_', ' ')} {count}/{items}" for name, count in sorted(outcomes.items()))


def aggregate(
    task: LoadedTask,
    items: Sequence[Item],
    verdicts: Sequence[Verdict],
    *,
    rotated: bool = False,
    resamples: int = intervals.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The scores of a task as plain numbers, ready for JSON.

    items      the items asked: all of task.items or a part of them
    verdicts   one for each item, in the same order
    rotated    an item was asked once under every shift of its choices, and chance is to guess right every time
    resamples  of the bootstrap over items behind the 95 % interval [low, high] of points; that of accuracy is Wilson's
               (statistics.intervals)

    Keys: items, accuracy_items (those of `in_accuracy`), correct (of these), accuracy(_interval), points, points_total,
    points_share(_interval), prohibited, prohibited_ids, outcomes (how many items had each of OUTCOMES), of these also
    unparsed, cut_off, not_asked and too_long by themselves, withdrawn, no_reference (open questions whose right answer
    nobody gave), chance, text_only, by_section, by_category, by_exam. Accuracy and its interval are None where it
    counts no item that reached the model; where none did at all, so are points_share and its interval, and not_graded
    says why. With required sections also required_points, required_total, general_points and general_total. Each entry
    of by_exam holds the same and the official `verdict`: "pass", "fail", "incomplete", or "none" when no pass mark is
    known, with the reasons. Incomplete is an exam of which some questions were left out, and one that those which the
    protocol cannot ask, or which are too long, would decide: they count as wrong, and `open` says what they are worth:
    required and general points, and prohibited, questions with a pick that is prohibited.
    """
    if len(items) != len(verdicts) or not items:
        raise ValueError(
            f"aggregate: got {len(items)} items and {len(verdicts)} verdicts, expected as many, at least one"
        )
    pairs = list(zip(items, verdicts, strict=True))
    kinds = _accuracy_kinds(str(item.kind) for item in items)
    score = _score(task, pairs, kinds, rotated, resamples, seed)
    score["by_exam"] = {}
    for exam, part in _groups(pairs, "exam").items():
        entry = _score(task, part, kinds, rotated, resamples, seed)
        score["by_exam"][exam] = {**entry, "verdict": _exam_verdict(task, exam, entry, part)}
    return score


def _score(
    task: LoadedTask, pairs: _Pairs, kinds: Container[str], rotated: bool, resamples: int, seed: int
) -> dict[str, Any]:
    score = _totals(pairs, kinds)
    score["accuracy_interval"] = None
    if score["accuracy"] is not None:
        interval = intervals.wilson(score["correct"], score["accuracy_items"])
        score["accuracy_interval"] = [interval.low, interval.high]
    reason = not_graded(verdict for _, verdict in pairs)
    if reason:
        score |= {"not_graded": reason, "points_share_interval": None}
    if score["points_total"] and not reason:
        won, worth = [verdict.points for _, verdict in pairs], [item.points for item, _ in pairs]
        interval = intervals.ratio_interval(won, worth, resamples=resamples, seed=seed)
        score["points_share_interval"] = [interval.low, interval.high]
    if task.required_sections:
        required = _totals([pair for pair in pairs if pair[0].section in task.required_sections], kinds)
        score["required_points"], score["required_total"] = required["points"], required["points_total"]
        score["general_points"] = score["points"] - required["points"]
        score["general_total"] = score["points_total"] - required["points_total"]
    score["prohibited_ids"] = [item.id for item, verdict in pairs if verdict.prohibited]
    score["prohibited"] = len(score["prohibited_ids"])
    score["outcomes"] = {name: sum(verdict.outcome == name for _, verdict in pairs) for name in OUTCOMES}
    score |= {name: score["outcomes"][name] for name in ("unparsed", "cut_off", "too_long")}
    score["not_asked"] = sum(not verdict.asked for _, verdict in pairs)
    score["withdrawn"] = sum(item.points == 0 for item, _ in pairs)
    score["no_reference"] = sum(_has_no_reference(item) for item, _ in pairs)
    guesses = [(item, chance(item, rotated=rotated)) for item, _ in pairs]
    score["chance"] = {
        "accuracy": math.fsum(g for item, g in guesses if _counts(item, kinds)) / max(score["accuracy_items"], 1),
        "points": math.fsum(guess * item.points for item, guess in guesses),
    }
    score["text_only"] = _totals([pair for pair in pairs if not pair[0].needs_image], kinds)
    for field in ("section", "category"):
        score[f"by_{field}"] = {key: _totals(part, kinds) for key, part in sorted(_groups(pairs, field).items())}
    return score


def _totals(pairs: _Pairs, kinds: Container[str]) -> dict[str, Any]:
    counted = [verdict for item, verdict in pairs if _counts(item, kinds)]
    correct = sum(verdict.correct for verdict in counted)
    points, total = sum(verdict.points for _, verdict in pairs), sum(item.points for item, _ in pairs)
    is_graded = bool(pairs) and not not_graded(verdict for _, verdict in pairs)
    return {
        "items": len(pairs),
        "accuracy_items": len(counted),
        "correct": correct,
        "accuracy": correct / len(counted) if counted and not not_graded(counted) else None,
        "points": points,
        "points_total": total,
        "points_share": points / total if total and is_graded else None,
    }


def _exam_verdict(task: LoadedTask, exam: str, score: dict[str, Any], pairs: _Pairs) -> dict[str, Any]:
    if exam not in task.cuts:
        return {"result": "none", "reasons": ["no pass mark is known for this exam"]}
    required_min, general_min = task.cuts[exam]
    limits = {"required_min": required_min, "general_min": general_min, "prohibited_max": task.prohibited_max}
    whole = task.exam_sizes[exam]
    if score["items"] < whole:
        verb = "was" if score["items"] == 1 else "were"
        reason = f"{score['items']} of the {whole} questions {verb} asked; the pass marks are for all of them"
        return {"result": "incomplete", "reasons": [reason], **limits}
    left = _left_open(task, pairs)
    lost, undecided = [], []
    for part, cut in (("required", required_min), ("general", general_min)):
        points, total = score[f"{part}_points"], score[f"{part}_total"]
        reason = f"{part} {points} of {total} points, {cut} needed"
        if points + left[part] < cut:
            lost.append(reason)
        elif points < cut:
            undecided.append(f"{reason}, and questions worth {left[part]} not asked")
    picks, most = score["prohibited"], task.prohibited_max
    reason = f"{picks} question{'' if picks == 1 else 's'} with a prohibited pick, at most {most} allowed"
    if picks > most:
        lost.append(reason)
    elif picks + left["prohibited"] > most:
        undecided.append(f"{reason}, and {left['prohibited']} with such a choice not asked")
    result = "fail" if lost else "incomplete" if undecided else "pass"
    opened = {"open": left} if any(left.values()) else {}
    return {"result": result, "reasons": lost or undecided, **limits, **opened}


def _left_open(task: LoadedTask, pairs: _Pairs) -> dict[str, Any]:
    """What the questions that were not asked, or too long, are worth: points by part, and possible prohibited picks."""
    left: dict[str, Any] = {"required": 0, "general": 0, "prohibited": 0}
    for item, verdict in pairs:
        if verdict.too_long or not verdict.asked:
            left["required" if item.section in task.required_sections else "general"] += item.points - verdict.points
            left["prohibited"] += bool(item.prohibited)
    return left


def _groups(pairs: _Pairs, field: str) -> dict[str, _Pairs]:
    groups: dict[str, _Pairs] = {}
    for pair in pairs:
        if label := getattr(pair[0], field):
            groups.setdefault(label, []).append(pair)
    return groups


def _golds(item: Item) -> tuple[tuple[str, ...], ...]:
    return item.accepted or (item.answer,)


def _verdict(item: Item, correct: bool, picks: set[str], *, unparsed: bool) -> Verdict:
    correct = correct or item.any_answer
    return Verdict(
        *(correct, item.points if correct else 0, bool(picks & set(item.prohibited)), unparsed),
        no_reference=_has_no_reference(item),
    )


def _accuracy_kinds(asked: Iterable[str]) -> frozenset[str]:
    kinds = frozenset(asked)
    return kinds & set(ACCURACY_KINDS) or kinds


def _counts(item: Item, kinds: Container[str]) -> bool:
    return str(item.kind) in kinds and not _has_no_reference(item)


def _has_no_reference(item: Item) -> bool:
    return item.kind == "text" and not item.answer
