"""Axes of a figure: numbers stand where the ticks say, and long curves keep their extremes."""

import math
import re
from xml.etree import ElementTree

import pytest

from medjax.report import plane
from medjax.report.certainty import position_figure
from medjax.report.curves import histogram_figure
from medjax.report.plan import pareto_figure
from medjax.report.plane import Plane
from medjax.report.soundness import deletion_figure

SVG = "{http://www.w3.org/2000/svg}"


def test_a_long_run_keeps_its_extremes_in_few_points():
    points = [(float(step), math.sin(step) + (9.0 if step == 33_333 else 0.0)) for step in range(100_000)]
    kept = plane.thinned(points)
    assert len(kept) <= plane.MOST_POINTS
    assert kept == sorted(kept)
    assert max(loss for _, loss in kept) == max(loss for _, loss in points)
    assert set(kept) <= set(points)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1200, [0, 200, 400, 600, 800, 1000, 1200]),
        (1.31, 2.6, [1.5, 2, 2.5]),
        (0.02, 0.06, [0.02, 0.03, 0.04, 0.05, 0.06]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert plane.ticks(low, high, 6 if high > 100 else 4) == expected


def figure(**more):
    given = {"x_range": (0.0, 2.0), "y_range": (-1.0, 3.0)} | more
    return Plane("a title", "what it shows", "time, s", "height, m", **given)


def test_marks_stand_where_the_ticks_say():
    made = figure()
    made.dot(0.5, 2.0, "held")
    made.curve((0, 1, 2), (-1, 0, 3), "accent")
    root = ElementTree.fromstring(made.svg())
    shift = float(re.search(r"translate\(0 ([\d.]+)\)", root.find(f"{SVG}g").get("transform")).group(1))
    ticks = [(t.text, float(t.get("x")), float(t.get("y"))) for t in root.iter(f"{SVG}text")]
    dot = root.find(f"{SVG}g/{SVG}circle")
    (half,) = [x for text, x, _ in ticks if text == "0.5"]
    (two,) = [y for text, x, y in ticks if text == "2" and x < 46]  # the label stands 4 pixels below its line
    assert float(dot.get("cx")) == pytest.approx(half, abs=0.06)
    assert float(dot.get("cy")) + shift == pytest.approx(two - 4, abs=0.06)
    points = root.find(f"{SVG}g/{SVG}path").get("d")[1:].split(" ")
    first, last = (tuple(map(float, points[i].split(","))) for i in (0, -1))
    assert (first, last) == ((46.0, 0.0), (384.0, -230.0))
    assert [t.text for t in root.iter(f"{SVG}text")][:2] == ["a title", "height, m"]
    assert root.find(f"{SVG}desc").text == "what it shows"


def test_what_lies_beyond_the_axis_stands_at_its_end():
    made = figure()
    assert (made.x(-5), made.x(9)) == (46, 384)
    assert (made.y(-5), made.y(9)) == (0, -230)


def test_a_long_legend_takes_more_rows_and_moves_the_axes_down():
    short, long = figure(), figure()
    short.explain("line", "accent", "one")
    for index in range(4):
        long.explain("dot", "held", f"a rather long entry {index}")
    assert long.top - short.top == 18 * 3 - 18 + 18 * (len(long._rows()) - 3)
    rows = long._rows()
    assert [entry[2][-1] for row in rows for entry in row] == ["0", "1", "2", "3"]
    for row in rows:
        assert sum(34 + 7.2 * len(label) for _, _, label, _ in row) <= 384 - 46 + 40


def _drawn_and_explained(svg):
    """Class and opacity of all areas and dots of the plane, and those of its legend."""
    root = ElementTree.fromstring(svg)

    def looks(parent):
        found = [mark for name in ("path", "circle") for mark in parent.findall(f"{SVG}{name}")]
        filled = [mark for mark in found if mark.get("class").split()[-1] in ("area", "dot")]
        return {(mark.get("class"), float(mark.get("fill-opacity", 1))) for mark in filled}

    return looks(root.find(f"{SVG}g")), looks(root)


def _figures():
    bins = {"edges": [0.0, 0.5, 1.0], "positive": [1, 3], "negative": [4, 2]}
    counts = {"picked": {"a": 3, "b": 1}, "gold": {"a": 2, "b": 2}}
    check = {"shares": [0, 0.5], "ordered": [0.9, 0.1], "random": [[0.9, 0.5], [0.8, 0.6]]}
    return [
        position_figure(counts),
        histogram_figure(bins),
        deletion_figure(check, "probability"),
        pareto_figure([(1.0, 1.0), (2.0, 1.5)], [(1.0, 1.0)], [(1.0, 1.2)], (1.0, 1.1), 4.0, "a slice"),
    ]


@pytest.mark.parametrize("number", range(4))
def test_a_legend_shows_what_it_explains_as_it_is_drawn(number):
    drawn, explained = _drawn_and_explained(_figures()[number])
    assert explained
    assert explained <= drawn


def test_notes_turn_back_where_the_figure_ends():
    made = figure()
    made.note(0.0, 0.0, "left", "ink", dx=4)
    made.note(2.0, 0.0, "right", "ink", dx=4)
    assert [re.search(r'text-anchor="(\w+)"', mark).group(1) for mark in made.marks] == ["start", "end"]


@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 1.0], (-0.06, 1.06)), ([5.0], (4.75, 5.25)), ([0.0], (-0.5, 0.5))]
)
def test_ranges_are_a_little_wider_than_their_values(values, expected):
    assert plane.padded(values) == pytest.approx(expected)
