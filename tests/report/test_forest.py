"""Forest plot: estimates and intervals on one axis, groups under what they are grouped by, small ones marked."""

from xml.etree import ElementTree

import pytest
from detector_results import UNDEFINED, number
from report_pages import SVG

from medjax.report.forest import Group, forest_figure

GROUPS = [
    Group("age band", "40-59", 700, False, number(0.9, 0.03)),
    Group("age band", "60-79", 1820, False, number(0.8, 0.02)),
    Group("sex", "female", 30, True, number(0.7, 0.4)),
    Group("sex", "unknown", 4, True, UNDEFINED),
]


@pytest.fixture(scope="module")
def root():
    return ElementTree.fromstring(forest_figure(GROUPS, number(0.85, 0.01), "AUROC", limits=(0, 1)))


def axis(root):
    """From pixels to the numbers of the axis, by its labels."""
    labels = [t for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "middle"]
    pairs = sorted((float(t.text), float(t.get("x"))) for t in labels)
    (v0, p0), (v1, p1) = pairs[0], pairs[-1]
    return lambda pixel: v0 + (v1 - v0) * (pixel - p0) / (p1 - p0)


def test_estimates_and_intervals_stand_where_their_numbers_are(root):
    read = axis(root)
    dots = [(c.get("class").split()[0], read(float(c.get("cx")))) for c in root.iter(f"{SVG}circle")]
    assert [kind for kind, _ in dots] == ["accent", "accent", "light"]
    assert [value for _, value in dots] == pytest.approx([0.9, 0.8, 0.7], abs=0.003)
    lines = [p for p in root.iter(f"{SVG}path") if p.get("stroke-width") == "2"]
    ends = [[read(float(point.split(",")[0])) for point in p.get("d")[1:].split(" ")] for p in lines]
    assert ends[:2] == [pytest.approx([0.87, 0.93], abs=0.003), pytest.approx([0.78, 0.82], abs=0.003)]
    dashed = next(p for p in root.iter(f"{SVG}path") if p.get("stroke-dasharray"))
    assert read(float(dashed.get("d")[1:].split(",")[0])) == pytest.approx(0.85, abs=0.003)


def test_an_interval_that_leaves_the_axis_ends_in_arrows(root):
    arrows = [p for p in root.iter(f"{SVG}path") if p.get("stroke-width") == "1.5" and p.get("d").count(" ") == 2]
    assert [a.get("class").split()[0] for a in arrows] == ["light", "light"]


def test_groups_stand_under_what_they_are_grouped_by_and_small_ones_are_marked(root):
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert [t for t in texts if t in ("age band", "40-59", "60-79", "sex", "female", "unknown")] == [
        *("age band", "40-59", "60-79", "sex", "female", "unknown")
    ]
    assert {"700", "1,820", "30 *", "4 *", "0.90 (0.87–0.93)", "–"} <= set(texts)
    assert "number: records   * few of one class or in all: read with care" in texts
    assert root.get("width") == "400"


def test_without_small_groups_there_is_no_remark():
    svg = forest_figure(GROUPS[:1], UNDEFINED, "MAE")
    assert "read with care" not in svg
    assert "dashed: everybody, –" in svg
