"""What sets are graded by first, in the summary, the models side by side and the differences: each on its own scale."""

from xml.etree import ElementTree

import pytest
from report_pages import FAIL, SVG, Node, cells, evaluation, page, results, score

from medjax.report.exam_figure import summary_figure
from medjax.report.headlines import SHARE, Scale, by_scale, headlines, metric_label


def metric(value, interval, *, bounds=(-1, 1), chance=0, items=100, unparsed=3, higher_is_better=True):
    """A figure as medjax.eval.metrics.grade writes it."""
    return {
        **{"value": value, "interval": interval, "items": items, "unparsed": unparsed, "chance": chance},
        **{"bounds": list(bounds), "higher_is_better": higher_is_better},
    }


def entry(task, headline, metrics, **more):
    made = {"task": task, "id": f"{task}{more.get('variant', '')}", "headline": headline, "metrics": metrics}
    return evaluation(scores=more.pop("scores", None) or score(by_exam={}), **made, **more)


KAPPA = entry("crade", ["kappa_linear"], {"kappa_linear": metric(0.12, [-0.02, 0.25]), "accuracy": metric(0.4, [0, 1])})
F1 = entry("mrner", ["entity_partial_f1"], {"entity_partial_f1": metric(0.3, [0.2, 0.4], bounds=(0, 1), chance=None)})
BLEU = entry("ejmmt", ["bleu"], {"bleu": metric(12.345, [10, 15], bounds=(0, 100), chance=None, items=1000)})
MAE = entry("sts", ["mae"], {"mae": metric(1.25, [1, 1.5], bounds=(0, 5), chance=None, higher_is_better=False)})
UNDEFINED = entry("flat", ["pearson"], {"pearson": metric(None, None)})
JUDGED = entry("clinic", [], {}, scores=score(0, 25, (0, 0.1), by_exam={}, no_reference=25))


@pytest.mark.parametrize(
    ("scale", "value", "place", "shown", "ticks"),
    [
        (SHARE, 0.25, 0.25, "25.0\u00a0%", ["0 %", "25 %", "50 %", "75 %", "100 %"]),
        (Scale(-1, 1), -0.5, 0.25, "−0.500", ["−1", "−0.5", "0", "0.5", "1"]),
        (Scale(0, 1), 0.3, 0.3, "0.300", ["0", "0.25", "0.5", "0.75", "1"]),
        (Scale(0, 100), 12.345, 0.12345, "12.3", ["0", "25", "50", "75", "100"]),
        (Scale(0, 5), 1.25, 0.25, "1.25", ["0", "1.25", "2.5", "3.75", "5"]),
    ],
)
def test_scales(scale, value, place, shown, ticks):
    assert scale.place(value) == pytest.approx(place)
    assert (scale.shown(value), scale.ticks()) == (shown, ticks)
    assert (scale.shown(None), scale.interval(None, None)) == ("–", "–")


def test_the_headline_of_a_set_of_several_kinds_is_one_figure_for_each():
    mixed = entry(
        "ward",
        ["accuracy", "entity_partial_f1"],
        {"accuracy": metric(0.5, [0.3, 0.7], bounds=(0, 1), chance=0.2, items=10), **F1["metrics"]},
    )
    right, found = headlines(mixed)
    # the accuracy of the questions that have one, not that of the scores, in which lists count as wrong
    assert (right.value, right.items, right.scale, right.chance) == (0.5, 10, SHARE, 0.2)
    assert (found.value, found.items, found.scale) == (0.3, 100, Scale(0, 1))
    (plain,) = headlines(evaluation())
    assert (plain.name, plain.low, plain.high, plain.chance) == ("accuracy", 0.3, 0.475, 0.17)
    assert plain.unread == {"unparsed": 3, "cut_off": 0, "too_long": 0}
    assert headlines(JUDGED) == []
    assert metric_label("entity_partial_f1") == "entity partial F1"
    assert [scale for scale, _ in by_scale([found, right])] == [SHARE, Scale(0, 1)]
    row, graded = (cells(page(results(mixed)).one("table", id=name))[0] for name in ("summary", "summary-graded"))
    assert (row[1], row[2]) == ("10", "50.0 % 30.0 – 70.0")
    assert graded[1:4] == ["entity partial F1", "100", "0.300 0.200 – 0.400"]


def bodies(table):
    """Rows of each body of a table, without those that hold a scale; and the scales."""
    found = [body.all("tr") for body in table.all("tbody")]
    shown = [
        [
            [c.text for c in row.children if isinstance(c, Node)]
            for row in rows
            if "scale" not in row.attributes.get("class", "")
        ]
        for rows in found
    ]
    axes = [[text.text for text in axis.all("text")] for axis in table.all("svg", class_="axis")]
    return shown, axes


def test_sets_that_are_not_graded_by_accuracy_show_their_figure_in_the_summary():
    root = page(results(evaluation(), KAPPA, F1, UNDEFINED, BLEU, MAE, JUDGED))
    assert [row[0] for row in cells(root.one("table", id="summary")) if len(row) > 1] == ["mini · ja strict-0shot"]
    table = root.one("table", id="summary-graded")
    shown, axes = bodies(table)
    assert shown == [
        [
            ["crade · ja strict-0shot", "kappa linear", "100", "0.120 −0.020 to 0.250", "", "0.000", "3"],
            ["flat · ja strict-0shot", "Pearson", "100", "undefined", "", "0.000", "3"],
        ],
        [["mrner · ja strict-0shot", "entity partial F1", "100", "0.300 0.200 – 0.400", "", "–", "3"]],
        [["ejmmt · ja strict-0shot", "BLEU", "1,000", "12.3 10.0 – 15.0", "", "–", "3"]],
        [["sts · ja strict-0shot", "MAE lower is better", "100", "1.25 1.00 – 1.50", "", "–", "3"]],
    ]
    assert axes == [["−1", "0", "1"], ["0", "0.5", "1"], ["0", "50", "100"], ["0", "2.5", "5"]]
    drawn = table.all("svg", class_="plot")
    places = [[dot.attributes["cx"] for dot in plot.all("circle")] for plot in drawn]
    assert places == [["56.00%"], [], ["30.00%"], ["12.35%"], ["25.00%"]]
    span = drawn[0].one("line", class_="interval").attributes
    assert (span["x1"], span["x2"]) == ("49.00%", "62.50%")
    dashed = [[line.attributes["x1"] for line in plot.all("line", class_="chance")] for plot in drawn]
    assert dashed == [["50.00%"], ["50.00%"], [], [], []]
    assert drawn[0].attributes["aria-label"] == "0.120, 95 % interval −0.020 to 0.250, 0.000 by guessing"
    assert drawn[1].attributes["aria-label"] == "undefined, 0.000 by guessing"
    # nobody knows what is right: no accuracy of 0 % is shown
    assert root.one("p", class_="judge").text == (
        "clinic · ja , strict-0shot: for people to judge , 25 open questions without a reference answer."
    )
    links = [link.attributes["href"] for link in [*table.all("a"), root.one("p", class_="judge").one("a")]]
    assert links == [f"#evaluation-{number}" for number in (2, 4, 3, 5, 6, 7)]
    remarks = root.one("section", id="evaluation-7").one("p", class_="remarks").text
    assert remarks.startswith("25 open questions without a reference answer, for people to judge; 1,234,567 tokens")


def test_a_run_without_accuracy_has_no_table_of_it():
    root = page(results(F1))
    assert root.all("table", id="summary") == []
    assert len(root.one("table", id="summary-graded").all("tbody")) == 1


def test_a_figure_that_no_resample_moves_says_so_wherever_it_stands():
    why = "the same on every resample"
    made = [
        entry("crade", ["kappa"], {"kappa": metric(1.0, None) | {"no_interval": why}}, variant=name)
        for name in ("base", "adapter")
    ]
    root = page(results(*made))
    ((row, _),), _ = bodies(root.one("table", id="summary-graded"))
    assert row[3] == f"1.000 no interval: {why}"
    ((shown,),), _ = bodies(root.one("table", id="variants"))
    assert shown[1:3] == [f"1.000 no interval: {why}"] * 2
    assert f"no interval: {why}" in root.one("section", id="evaluation-1").text
    figure = summary_figure(results(*made))
    assert "no interval<" in figure
    assert why not in figure


def test_models_stand_side_by_side_on_the_scale_of_the_figure():
    made = [
        entry("crade", ["kappa"], {"kappa": metric(value, [value - 0.1, value + 0.1])}, variant=name)
        for name, value in (("base", 0.0), ("adapter", 0.5))
    ]
    plain = [evaluation(variant=name, id=name) for name in ("base", "adapter")]
    table = page(results(*made, *plain)).one("table", id="variants")
    shown, axes = bodies(table)
    assert [[row[0] for row in rows] for rows in shown] == [
        ["mini · ja strict-0shot"],
        ["crade · ja kappa · strict-0shot"],
    ]
    assert shown[1][0][1:3] == ["0.000 −0.100 to 0.100", "0.500 0.400 – 0.600"]
    assert axes == [["0", "50", "100 %"], ["−1", "0", "1"]]
    drawn = table.all("svg", class_="plot")[1]
    assert [dot.attributes["cx"] for dot in drawn.all("circle")] == ["50.00%", "75.00%"]


UNSEEN = {"accuracy": None, "accuracy_interval": None, "points_share": None, "not_graded": "too long 8/8"}
UNSEEN |= {"points": 0, "unparsed": 0, "too_long": 8, "outcomes": {"right": 0, "wrong": 0, "too_long": 8}}


def test_what_no_model_has_seen_has_no_score_anywhere():
    unseen = score(0, 8, by_exam={}, **UNSEEN)
    unseen["by_category"] = {"免疫": {"items": 8, "correct": 0, "accuracy": None}}
    kappa = metric(None, None, unparsed=0) | {"too_long": 8, "cut_off": 0, "not_graded": "too long 8/8"}
    made = results(
        evaluation(scores=unseen | {"by_exam": {"2018": unseen | {"verdict": FAIL}}}),
        entry("crade", ["kappa"], {"kappa": kappa}, scores=unseen),
    )
    root = page(made)
    (row, _) = cells(root.one("table", id="summary"))
    assert row[:5] == ["mini · ja strict-0shot", "8", "not graded too long 8/8", "", "– / 144"]
    (graded,) = cells(root.one("table", id="summary-graded"))
    assert graded[3:5] == ["not graded too long 8/8", ""]
    assert (row[-3:-1], graded[-2:]) == (["0", "8"], ["0", "8"])
    assert row[5:7] == ["– / 72 58 needed", "– / 72 51 needed"]
    detail = root.one("section", id="evaluation-1")
    assert detail.one("p", class_="remarks").text.startswith(
        "not graded: too long 8/8; 8 questions longer than the model's context, not sent; 1,234,567 tokens"
    )
    card = detail.one("li", class_="card")
    assert (card.one("p").text, card.all("svg", class_="gauge")) == ("not graded: too long 8/8", [])
    assert cells(detail.all("table", class_="bars")[-1]) == [["免疫", "– / 8", "", "–", ""]]
    shown = [text for table in root.all("table", class_="results") for line in cells(table) for text in line]
    assert not [text for text in shown if text.startswith(("0.0\u00a0", "0.0 "))]
    drawn = root.one("table", id="summary").one("svg", class_="plot")
    assert drawn.attributes["aria-label"] == "not graded: too long 8/8, 17.0\u00a0% by guessing"
    assert drawn.all("circle") == drawn.all("line", class_="interval") == []
    figure = ElementTree.fromstring(summary_figure(made))
    texts = [element.text for element in figure.iter(f"{SVG}text")]
    assert (texts.count("not graded"), texts.count("too long 8/8")) == (2, 2)


def test_counts_of_what_could_not_be_read_have_columns_where_some_happened():
    def heads(*evaluations):
        root = page(results(*evaluations))
        return [[head.text for head in table.one("thead").all("th")] for table in root.all("table", class_="results")]

    for table in heads(KAPPA, evaluation()):
        assert ("Unparsed" in table, "Cut off" in table, "Too long" in table) == (True, False, False)
    some = entry("f", ["kappa"], {"kappa": metric(0.1, [0, 1]) | {"cut_off": 4, "too_long": 1200}})
    tables = heads(some, evaluation())
    assert len(tables) == 3  # both summaries, and what the set is graded by
    for table in tables:
        at = table.index("Unparsed")
        assert table[at : at + 3] == ["Unparsed", "Cut off", "Too long"]
    (row,) = cells(page(results(some, evaluation())).one("table", id="summary-graded"))
    assert row[-3:] == ["3", "4", "1,200"]
