"""Figures of calibration, difficulty and position bias: marks at their numbers, notes that say them."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from report_pages import SVG, evaluation, page, results

from medjax.report.certainty import difficulty_figure, figures

CURVE = [
    {"mean_predicted": 0.3, "observed": 0.25, "low": 0.15, "high": 0.4, "records": 40},
    {"mean_predicted": 0.8, "observed": 0.55, "low": 0.4, "high": 0.7, "records": 40},
]
ESTIMATE = {"value": 0.15, "low": 0.1, "high": 0.2, "method": "", "reason": ""}
CALIBRATION = {
    **{"picks": 80, "left_out": 40, "confidence": 0.55, "accuracy": 0.4, "curve": CURVE},
    **dict.fromkeys(("ece", "brier", "slope", "intercept"), ESTIMATE),
}
DIFFICULTY = {
    **{"items": 100, "human_accuracy": 0.83, "accuracy": 0.46},
    "bins": [
        {"from": 0.4, "to": 0.5, "human_accuracy": 0.45, "items": 20, "correct": 5}
        | {"accuracy": 0.25, "low": 0.11, "high": 0.47},
        {"from": 0.9, "to": 1.0, "human_accuracy": 0.95, "items": 80, "correct": 41}
        | {"accuracy": 0.5125, "low": 0.4, "high": 0.62},
    ],
}
BIAS = {
    **{"picked": {"a": 60, "b": 20, "c": 20}, "gold": {"a": 30, "b": 30, "c": 30}},
    **{"asks": 112, "unread": 12, "chi_square": 32.0, "p_value": 0.0001, "permutations": 10_000},
}
ROTATION = {"position_bias": BIAS, "mean_accuracy": 0.4, "consistent": 0.25}
ENTRY = evaluation(calibration=CALIBRATION, difficulty=DIFFICULTY, rotation=ROTATION)


def drawn(number):
    return ElementTree.fromstring(figures(ENTRY)[number]["figure"])


def places(figure):
    """Dots of the plane as shares of its axes, legend left out."""
    group = figure.find(f"{SVG}g")
    return [((float(c.get("cx")) - 46) / 338, -float(c.get("cy")) / 338) for c in group.findall(f"{SVG}circle")]


def test_dots_stand_at_their_numbers():
    assert places(drawn(0)) == [pytest.approx(pair, abs=1e-3) for pair in ((0.3, 0.25), (0.8, 0.55))]
    assert places(drawn(1)) == [pytest.approx(pair, abs=1e-3) for pair in ((0.45, 0.25), (0.95, 0.5125))]


def test_every_bin_of_difficulty_says_how_many_questions_it_holds():
    group = drawn(1).find(f"{SVG}g")
    said = [(text.text, float(text.get("x")), float(text.get("y"))) for text in group.findall(f"{SVG}text")]
    assert [count for count, _, _ in said] == ["20", "80"]
    # two digits of 7.2 pixels, centred on the bins, above the upper end of the axis
    assert [x + 7.2 for _, x, _ in said] == [pytest.approx(46 + 338 * middle, abs=0.1) for middle in (0.45, 0.95)]
    assert {y for _, _, y in said} == {-342}


def test_counts_of_ten_full_bins_do_not_touch():
    full = {"human_accuracy": 0.5, "items": 2720, "correct": 5, "accuracy": 0.25, "low": 0.11, "high": 0.47}
    bins = [full | {"from": n / 10, "to": (n + 1) / 10} for n in range(10)]
    figure = ElementTree.fromstring(difficulty_figure({**ENTRY["difficulty"], "bins": bins}, 0.2))
    texts = figure.find(f"{SVG}g").findall(f"{SVG}text")
    # the last is set from its right end
    begins = [float(t.get("x")) - (t.get("text-anchor") == "end") * 7.2 * len(t.text) for t in texts]
    assert [t.text for t in texts] == ["2720"] * 10
    assert all(one + 7.2 * 4 < other for one, other in pairwise(begins))


def test_the_number_of_picks_stands_above_the_axes_where_no_bar_is():
    (note,) = drawn(0).find(f"{SVG}g").findall(f"{SVG}text")
    assert note.text.endswith(" picks a point")
    assert (float(note.get("y")), float(note.get("x")), note.get("text-anchor")) == (-338 - 4, 384, "end")


def test_bars_of_positions_are_shares():
    paths = [path.get("d") for path in drawn(2).find(f"{SVG}g").findall(f"{SVG}path")]
    heights = [-min(float(point.split(",")[1]) for point in path.strip("MZ").split()) for path in paths]
    top = 1.08 * 0.6
    shares = [0.6, 1 / 3, 0.2, 1 / 3, 0.2, 1 / 3]
    assert heights == [pytest.approx(230 * share / top, abs=0.06) for share in shares]


def test_notes_say_the_numbers():
    calibration, difficulty, bias = (part["note"].replace("\u00a0", " ") for part in figures(ENTRY))
    assert calibration == (
        "Mean probability 55.0 %, right 40.0 % of 80 picks. Expected calibration error 0.150 (0.100–0.200), "
        "Brier score 0.150 (0.100–0.200), slope 0.15 (0.10–0.20) (below 1: too sure); left out: 40 answers "
        "without one scored pick."
    )
    assert difficulty == (
        "100 questions of which it is known how many examinees were right: 83.0 % of them on average, the model 46.0 %."
    )
    assert bias == (
        "100 picks; 12 of 112 asks could not be read. χ² 32.0, p = 0.0001 that it does not matter where a choice "
        "stands, from permutations of the answers to a question among its shifts (10,000 drawn)."
    )


def test_figures_of_the_page_are_those_of_its_numbers():
    root = page(results(ENTRY, evaluation(1)))
    first, second = root.all("section", class_="evaluation")
    titles = [figure.one("title").text for figure in first.all("figure")]
    assert titles == ["Calibration of the picks", "Accuracy by how hard the question is to people", "Picks by position"]
    assert second.all("figure") == []
    said = "right means under every shift of the choices; 40.0 % on average over shifts"
    assert "25.0 % of the questions asked under several shifts answered alike under all" in (
        first.one("p", class_="remarks").text
    )
    assert said in first.one("p", class_="remarks").text
    assert "12 of 112 asks could not be read" in first.one("p", class_="remarks").text
    exact = figures(evaluation(rotation={"position_bias": {**BIAS, "permutations": None}}))
    assert exact[0]["note"].endswith("(all counted).")
    nothing = {"picked": {}, "gold": {}, "asks": 5, "unread": 5, "chi_square": None, "p_value": None}
    unread = evaluation(rotation={**ROTATION, "position_bias": nothing})
    assert figures(unread) == []
    assert "5 of 5 asks could not be read" in page(results(unread)).one("p", class_="remarks").text
