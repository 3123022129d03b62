"""How sure a model is, how hard its questions are to people, and which positions it likes: figures of an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

from medjax.report import drawing
from medjax.report.curves import reliability_figure, with_interval
from medjax.report.plane import LETTER, Plane, as_percent

_PICKED, _RIGHT = 0.75, 0.45  # opacities of the bars by position


def figures(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Title, figure and note of each that the entry of medjax.evaluations holds numbers for."""
    found = []
    if calibration := entry.get("calibration"):
        found.append({"figure": calibration_figure(calibration), "note": _calibration_note(calibration)})
    if difficulty := entry.get("difficulty"):
        chance = entry["scores"]["chance"]["accuracy"]
        found.append({"figure": difficulty_figure(difficulty, chance), "note": _difficulty_note(difficulty)})
    bias = (entry.get("rotation") or {}).get("position_bias")
    if bias and bias["picked"]:  # no answer may have been readable
        found.append({"figure": position_figure(bias), "note": _position_note(bias)})
    return found


def calibration_figure(calibration: Mapping[str, Any]) -> str:
    """Share of picks that are right over the probability they were made with (medjax.eval.certainty)."""
    return reliability_figure(
        calibration["curve"],
        title="Calibration of the picks",
        axes=("probability of the picked choice, %", "right, %; bars: picks"),
        records="picks",
    )


def difficulty_figure(difficulty: Mapping[str, Any], chance: float) -> str:
    """Accuracy over the share of examinees who were right."""
    plane = Plane(
        "Accuracy by how hard the question is to people",
        "Accuracy of the model in bins of the share of examinees who were right, with 95 % intervals",
        *("examinees who were right, %", "model right, %; bars, and numbers on top: questions"),
        (0.0, 1.0),
        (0.0, 1.0),
        as_percent,
        as_percent,
        square=True,
    )
    plane.explain("dot", "accent", "model, 95 % interval")
    plane.explain("dashed", "muted", "as the examinees")
    plane.explain("dashed", "held", "by guessing")
    most = max(part["items"] for part in difficulty["bins"])
    for part in difficulty["bins"]:
        plane.bar(part["from"] + 0.01, part["to"] - 0.01, 0, 0.14 * part["items"] / most, "muted", opacity=0.25)
        # ten bins leave room for four digits, without a comma
        count = str(part["items"]) if part["items"] < 10_000 else drawing.magnitude(round(part["items"], -3))
        # above the axes, where no interval crosses it
        plane.note((part["from"] + part["to"]) / 2, 1.0, count, "muted", dx=-LETTER * len(count) / 2, dy=-4)
    plane.curve((0, 1), (0, 1), "muted", width=1.2, dashed=True)
    plane.curve((0, 1), (chance, chance), "held", width=1.2, dashed=True)
    for part in difficulty["bins"]:
        plane.span(part["human_accuracy"], part["low"], part["high"], "accent")
        plane.dot(part["human_accuracy"], part["accuracy"], "accent")
    return plane.svg()


def position_figure(bias: Mapping[str, Any]) -> str:
    """How often each position was picked beside how often a right choice stood there."""
    shares = {name: _shares(bias[name]) for name in ("gold", "picked")}
    letters = list(bias["picked"])
    most = max([*shares["gold"], *shares["picked"], 1e-9])
    plane = Plane(
        "Picks by position",
        "Share of picks at each position beside the share of right choices there",
        *("position of the choice as shown", "share, %"),
        (0.0, float(len(letters))),
        (0.0, 1.08 * most),
        lambda place: "",
        as_percent,
    )
    plane.explain("bar", "accent", "picked", opacity=_PICKED)
    plane.explain("bar", "muted", "right choice stood there", opacity=_RIGHT)
    for place, letter in enumerate(letters):
        plane.bar(place + 0.14, place + 0.49, 0, shares["picked"][place], "accent", opacity=_PICKED)
        plane.bar(place + 0.51, place + 0.86, 0, shares["gold"][place], "muted", opacity=_RIGHT)
        plane.note(place + 0.5, 0.0, letter, "ink", dx=-4, dy=17)
    return plane.svg()


def _shares(counts: Mapping[str, int]) -> Sequence[float]:
    total = max(1, sum(counts.values()))
    return [count / total for count in counts.values()]


def _calibration_note(calibration: Mapping[str, Any]) -> str:
    sure, right = drawing.percent(calibration["confidence"]), drawing.percent(calibration["accuracy"])
    note = (
        f"Mean probability {sure}, right {right} of {drawing.counted(calibration['picks'], 'pick')}. Expected "
        f"calibration error {with_interval(calibration['ece'])}, Brier score {with_interval(calibration['brier'])}"
    )
    if calibration["slope"].get("value") is not None:
        note += f", slope {with_interval(calibration['slope'], 2)} (below 1: too sure)"
    if calibration["left_out"]:
        note += f"; left out: {drawing.counted(calibration['left_out'], 'answer')} without one scored pick"
    return note + "."


def _difficulty_note(difficulty: Mapping[str, Any]) -> str:
    return (
        f"{drawing.counted(difficulty['items'], 'question')} of which it is known how many examinees were right: "
        f"{drawing.percent(difficulty['human_accuracy'])} of them on average, the model "
        f"{drawing.percent(difficulty['accuracy'])}."
    )


def _position_note(bias: Mapping[str, Any]) -> str:
    picks, asks = drawing.counted(sum(bias["picked"].values()), "pick"), drawing.counted(bias["asks"], "ask")
    how = f"{drawing.number(bias['permutations'])} drawn" if bias["permutations"] else "all counted"
    return (
        f"{picks}; {drawing.number(bias['unread'])} of {asks} could not be read. χ² {bias['chi_square']:.1f}, "
        f"p = {bias['p_value']:.2g} that it does not matter where a choice stands, from permutations of the answers to "
        f"a question among its shifts ({how})."
    )
