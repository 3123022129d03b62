"""Adapter against base in the page and the figure: every mark stands where its number is."""

import re
from xml.etree import ElementTree

import pytest
from report_pages import SVG, Node, cells, evaluation, page, results

from medjax.report.comparison import comparison_report
from medjax.report.exam_figure import summary_figure


def comparison(value=0.05, low=-0.0125, high=0.1125, **more):
    return {
        **{"task": "mini", "language": "ja", "protocol": "strict-0shot", "first": "x", "second": "x_adapter"},
        **{"items": 80, "first_accuracy": 0.4, "second_accuracy": 0.4 + value},
        **{"accuracy_difference": value, "accuracy_difference_interval": [low, high]},
        **{"points_difference": 6, "points_difference_interval": [-2.0, 14.0]},
        **{"only_first": 3, "only_second": 7, "p_value": 0.34375, **more},
    }


def both(*comparisons):
    graded = [evaluation(variant="base"), evaluation(id="mini_ja_strict-0shot_adapter", variant="adapter")]
    adapter = {"name": "runs/train/ward", "rank": 16, "digest": "56" * 32}
    return results(*graded, comparisons=list(comparisons), adapter=adapter)


def test_the_page_shows_the_numbers_of_the_record():
    root = page(both(comparison(), comparison(-0.2, -0.31, -0.1, task="igakuqa", p_value=1e-7)))
    first, second = cells(root.one("table", id="comparisons"))
    assert first == [
        *("mini · ja strict-0shot", "80", "40.0 %", "45.0 %", "+5.0 −1.2 to +11.2", "", "3", "7", "0.34"),
    ]
    assert second[:5] == ["igakuqa · ja strict-0shot", "80", "40.0 %", "20.0 %", "−20.0 −31.0 to −10.0"]
    assert second[-1] == "1e-07"
    rows = cells(root.one("table", id="summary"))
    assert [row[0] for row in rows if len(row) > 1] == [
        "mini · ja · base strict-0shot",
        "mini · ja · adapter strict-0shot",
    ]
    facts = dict(zip([n.text for n in root.all("dt")], [n.text for n in root.all("dd")], strict=True))
    assert facts["Adapter"] == "runs/train/ward, rank 16"
    (run, *_) = (cells(table) for table in root.all("table", class_="record"))
    assert ["adapter.digest", "56" * 32] in run
    assert not [key for key, _ in run if key.startswith("comparisons")]


@pytest.mark.parametrize(
    ("low", "high", "limit"), [(-0.01, 0.05, 5), (-0.051, 0.02, 10), (0.0, 0.15, 20), (0.3, 0.5, 50), (-0.6, 0.6, 100)]
)
def test_the_axis_of_the_page_holds_every_interval(low, high, limit):
    value = (low + high) / 2
    table = page(both(comparison(value, low, high), comparison(0.0, 0.0, 0.0))).one("table", id="comparisons")
    assert [text.text for text in table.one("svg", class_="axis").all("text")] == [f"−{limit}", "0", f"+{limit}"]
    plot, still = table.all("svg", class_="plot")
    span = plot.one("line", class_="interval").attributes
    at = [float(text.rstrip("%")) for text in (span["x1"], plot.one("circle").attributes["cx"], span["x2"])]
    assert at == [pytest.approx(50 + 50 * 100 * share / limit, abs=0.006) for share in (low, value, high)]
    assert plot.one("line", class_="chance").attributes["x1"] == "50.00%"
    assert still.one("circle").attributes["cx"] == "50.00%"
    assert still.attributes["aria-label"] == "0.0 percentage points, 95 % interval 0.0 to 0.0"


def test_the_figure_maps_differences_to_its_axis():
    made = both(comparison(), comparison(-0.2, -0.31, -0.1, task="igakuqa"))
    figure = ElementTree.fromstring(summary_figure(made))
    plain = ElementTree.fromstring(summary_figure(results(*made["medjax"]["evaluations"])))
    height = float(figure.get("height"))
    assert figure.get("viewBox").split()[3] == f"{height:g}"
    assert height > float(plain.get("height")) + 2 * 42
    texts = figure.findall(f"{SVG}text")
    ticks = {t.text: float(t.get("x")) for t in texts if re.fullmatch(r"[+−]\d+", t.text)}
    zero = (ticks["−50"] + ticks["+50"]) / 2
    points = (ticks["+50"] - ticks["−50"]) / 100
    assert ticks == {
        f"{n:+d}".replace("-", "−"): pytest.approx(zero + n * points, abs=0.01) for n in (-50, -25, 25, 50)
    }
    dots = figure.findall(f"{SVG}circle")[2:]
    spans = [line for line in figure.findall(f"{SVG}line") if line.get("stroke-width") == "3"][2:]
    for dot, span, numbers in zip(dots, spans, [(5, -1.25, 11.25), (-20, -31, -10)], strict=True):
        at = [float(value) for value in (dot.get("cx"), span.get("x1"), span.get("x2"))]
        assert at == [pytest.approx(zero + number * points, abs=0.011) for number in numbers]
    lowest = max(float(t.get("y")) for t in texts)
    assert lowest < height - 10
    assert {"+5.0", "−20.0", "−1.2 to +11.2", "−31.0 to −10.0"} <= {t.text for t in texts}


def graded(name="kappa", difference=0.2, interval=(0.05, 0.35), *, bounds=(-1, 1), higher_is_better=True):
    first = None if difference is None else 0.1
    return {
        **{"metric": name, "items": 90, "first": first, "second": 0.1 + (difference or 0), "difference": difference},
        **{"difference_interval": interval and list(interval), "p_value": interval and 0.0123, "left_out": 0},
        **{"bounds": list(bounds), "higher_is_better": higher_is_better},
    }


def test_other_figures_than_accuracy_have_a_table_on_their_scales():
    mae = graded("mae", -0.3, (-0.6, 0.1), bounds=(0, 5), higher_is_better=False)
    root = page(
        both(
            comparison(metrics=[graded()], has_answers=True),
            comparison(metrics=[mae], has_answers=False, task="sts"),
            comparison(metrics=[graded("pearson", None, None)], has_answers=False, task="flat"),
        )
    )
    # right and wrong are no test of lists and similarities
    assert [row[0] for row in cells(root.one("table", id="comparisons"))] == ["mini · ja strict-0shot"]
    table = root.one("table", id="graded-comparisons")
    first, second = table.all("tbody")
    rows = [[c.text for c in row.children if isinstance(c, Node)] for row in [*first.all("tr"), *second.all("tr")]]
    assert rows == [
        ["mini · ja strict-0shot", "kappa", "90", "0.100", "0.300", "+0.200 +0.050 to +0.350", "", "0.012"],
        ["flat · ja strict-0shot", "Pearson", "90", "–", "0.100", "–", "", "–"],
        ["", "−1 0 +1", ""],
        ["sts · ja strict-0shot", "MAE (lower is better)", "90", "0.10", "−0.20", "−0.30 −0.60 to +0.10", "", "0.012"],
    ]
    drawn = table.all("svg", class_="plot")
    assert [[c.attributes["cx"] for c in plot.all("circle")] for plot in drawn] == [["75.00%"], [], ["35.00%"]]
    span = drawn[0].one("line", class_="interval").attributes
    assert (span["x1"], span["x2"]) == ("56.25%", "93.75%")  # of an axis from -0.4 to 0.4
    assert drawn[0].attributes["aria-label"] == "kappa +0.200, 95 % interval +0.050 to +0.350"


def test_an_interval_that_cannot_be_had_is_said():
    same = graded("kappa", 0.0, None) | {"no_interval": "the same on every resample", "p_value": 1.0}
    made = both(comparison(metrics=[same], has_answers=True))
    (row,) = cells(page(made).one("table", id="graded-comparisons"))
    assert row[5:] == ["0.000 no interval: the same on every resample", "", "1"]
    # beside the axis of the figure there is room for two words
    figure = summary_figure(made)
    assert "no interval<" in figure
    assert "the same on every" not in figure
    assert "Tango's 95 % score interval" in page(both(comparison())).text


def test_two_languages_are_compared_by_what_the_set_is_graded_by():
    pair = comparison() | {"first": "ja", "second": "en", "both": 1, "neither": 1}
    made = results(
        languages=[
            pair | {"metrics": [], "has_answers": True},
            pair | {"metrics": [graded()], "has_answers": False, "task": "lists"},
        ]
    )
    root = page(made)
    assert [row[0] for row in cells(root.one("table", id="language-pairs"))] == ["mini · ja, en strict-0shot"]
    (row,) = cells(root.one("table", id="graded-language-pairs"))
    assert row[:6] == ["lists · ja, en strict-0shot", "kappa", "90", "0.100", "0.300", "+0.200 +0.050 to +0.350"]


def test_what_nobody_knows_is_not_compared():
    root = page(both(comparison(metrics=[], has_answers=False)))
    assert root.all("table", id="comparisons") == root.all("table", id="graded-comparisons") == []
    assert "people have to judge" in root.text


def test_nothing_of_it_without_a_comparison():
    root = page(results())
    assert [table for table in root.all("table") if table.attributes.get("id") == "comparisons"] == []
    assert "percentage points" not in summary_figure(results())


def test_a_range_of_the_table_of_models_that_may_be_negative_is_written_with_to():
    row = {"task": "crade", "language": "ja", "protocol": "strict-0shot", "metric": "kappa", "items": 80, "chance": ""}
    row["values"] = {"one": "-0.020 (-0.110 to 0.080)", "two": "0.300 (0.200 to 0.400)", "three": "not graded: cut-off"}
    empty = dict.fromkeys(("runs", "comparisons", "differences", "notes", "exams"), ())
    html = comparison_report(empty | {"resamples": 9, "seed": 0}, [], [row], ["one", "two", "three"])
    assert "<strong>−0.020</strong><small>−0.110 to 0.080</small>" in html
    assert "<strong>0.300</strong><small>0.200 – 0.400</small>" in html
    assert "<strong>not graded: cut-off</strong>" in html
