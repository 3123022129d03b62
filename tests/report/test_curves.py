"""Figures of a detector: curves, bands and points stand where their numbers are, read off the labels of the axes."""

import re
from xml.etree import ElementTree

import pytest
from detector_results import UNDEFINED, detector, number
from report_pages import SVG

from medjax.report import curves

TARGET = detector()
CURVES, POINT = TARGET["curves"], TARGET["operating_points"][0]


class Figure:
    """A figure whose pixels are read back as the numbers of its axes."""

    def __init__(self, svg, shown=100.0):
        self.root, self.shown = ElementTree.fromstring(svg), shown
        group = self.root.find(f"{SVG}g")
        self.shift = float(re.search(r"translate\(0 ([\d.]+)\)", group.get("transform")).group(1))
        labels = [(t.text, float(t.get("x")), float(t.get("y"))) for t in self.root.findall(f"{SVG}text")]
        values = [
            (float(t.replace("−", "-")) / shown, x, y) for t, x, y in labels if re.fullmatch(r"−?[\d.]+", t or "")
        ]
        self.x = self.scale([(v, x) for v, x, y in values if y > self.shift + 10])
        self.y = self.scale([(v, y - 4) for v, x, y in values if x < 46])
        self.texts = [t.text for t in self.root.iter(f"{SVG}text")]

    @staticmethod
    def scale(pairs):
        (v0, p0), (v1, p1) = min(pairs), max(pairs)
        return lambda pixel: v0 + (v1 - v0) * (pixel - p0) / (p1 - p0)

    def curves(self, kind, shape="curve"):
        marks = self.root.iter(f"{SVG}path")
        found = [
            m.get("d").rstrip("Z")[1:].split(" ") for m in marks if {kind, shape} <= set(m.get("class", "").split())
        ]
        numbers = [[tuple(map(float, point.split(","))) for point in points] for points in found]
        inside = [points for points in numbers if all(y <= 0 for _, y in points)]  # not those of the legend
        return [[(self.x(x), self.y(y + self.shift)) for x, y in points] for points in inside]

    def dots(self, kind):
        circles = [c for c in self.root.find(f"{SVG}g").iter(f"{SVG}circle") if kind in c.get("class").split()]
        return [(self.x(float(c.get("cx"))), self.y(float(c.get("cy")) + self.shift)) for c in circles]


def near(points, expected, abs=0.003):
    assert len(points) == len(expected)
    for point, other in zip(points, expected, strict=True):
        assert point == pytest.approx(other, abs=abs)


def test_the_roc_curve_its_band_and_its_operating_point():
    figure = Figure(curves.roc_figure(CURVES["roc"], TARGET["discrimination"]["auroc"], [POINT]))
    roc = CURVES["roc"]
    near(max(figure.curves("accent"), key=len), list(zip(roc["fpr"], roc["tpr"], strict=True)))
    (band,) = figure.curves("accent", "area")
    near(band[:101], list(zip(roc["fpr"], roc["high"], strict=True)))
    near(band[101:], list(zip(roc["fpr"], roc["low"], strict=True))[::-1])
    near(figure.dots("held"), [(1 - POINT["specificity"]["value"], POINT["sensitivity"]["value"])])
    span = max(figure.curves("held"), key=lambda points: abs(points[0][1] - points[1][1]))
    near(span, [(span[0][0], POINT["sensitivity"]["low"]), (span[0][0], POINT["sensitivity"]["high"])])
    auroc = TARGET["discrimination"]["auroc"]
    assert f"AUROC {auroc['value']:.3f} ({auroc['low']:.3f}–{auroc['high']:.3f})" in figure.texts
    assert figure.curves("muted") == [[pytest.approx((0, 0), abs=1e-6), pytest.approx((1, 1), abs=1e-6)]]


def test_precision_and_recall_with_the_prevalence():
    figure = Figure(
        curves.precision_recall_figure(CURVES["precision_recall"], number(0.7, 0.05), 0.12, [POINT]), shown=100
    )
    curve = CURVES["precision_recall"]
    near(max(figure.curves("accent"), key=len), list(zip(curve["recall"], curve["precision"], strict=True)))
    near(figure.curves("muted")[0], [(0, 0.12), (1, 0.12)])
    near(figure.dots("held"), [(POINT["sensitivity"]["value"], POINT["ppv"]["value"])])
    assert "prevalence 12.0\u00a0%" in figure.texts


def test_reliability_with_intervals_and_counts():
    bins, raw = CURVES["reliability"]["calibrated"], CURVES["reliability"]["raw"]
    figure = Figure(curves.reliability_figure(bins, raw))
    near(figure.dots("accent"), [(b["mean_predicted"], b["observed"]) for b in bins])
    near(figure.dots("light"), [(b["mean_predicted"], b["observed"]) for b in raw])
    spans = [c for c in figure.curves("accent") if abs(c[0][0] - c[1][0]) < 1e-6]
    near([(c[0][1], c[1][1]) for c in spans if c[0] != c[1]], [(b["low"], b["high"]) for b in bins if b["high"] > 0])
    assert "200 records a point" in figure.texts
    few = Figure(curves.reliability_figure([bins[0] | {"high": 0.08, "records": 30}, bins[1] | {"high": 0.09}]))
    assert "30 to 200 records a point" in few.texts
    assert "10" in few.texts  # the axis ends where a rare finding does
    assert "20" not in few.texts


def test_net_benefit_against_acting_on_all():
    figure = Figure(curves.decision_figure(CURVES["decision"], 0.16))
    curve = CURVES["decision"]
    near(max(figure.curves("accent"), key=len), list(zip(curve["threshold"], curve["model"], strict=True)))
    shown = next(c for c in figure.curves("muted") if abs(c[0][1] - c[-1][1]) > 0.01)
    for at, gain in shown:
        prevalence = TARGET["counts"]["positive"] / TARGET["counts"]["records"]
        assert gain == pytest.approx(prevalence - (1 - prevalence) * at / (1 - at), abs=0.003)
    assert {round(x, 3) for x, _ in figure.curves("held")[0]} == {0.16}


def test_risk_over_coverage():
    curve = TARGET["abstention"]["curve"]
    figure = Figure(curves.risk_coverage_figure(curve, number(0.05, 0.01)))
    near(max(figure.curves("accent"), key=len), list(zip(curve["coverage"], curve["risk"], strict=True)))
    near(figure.curves("muted")[0], [(0, curve["risk"][-1]), (1, curve["risk"][-1])])
    assert f"all decided: {100 * curve['risk'][-1]:.1f}\u00a0%" in figure.texts


def test_the_histogram_shows_each_class_in_shares_of_its_own():
    bins = {"edges": [0, 0.25, 0.5, 0.75, 1], "positive": [0, 1, 0, 3], "negative": [60, 20, 20, 0]}
    figure = Figure(curves.histogram_figure(bins, 0.3))
    # both halves of the axis are labelled in shares; the reader of the axis takes the lower one
    bars = [(c[0][0], c[1][0], -c[2][1]) for c in figure.curves("held", "area")]
    near(bars, [(0.25, 0.5, 0.25), (0.75, 1.0, 0.75)], abs=0.01)
    negative = [(c[0][0], c[1][0], c[2][1]) for c in figure.curves("accent", "area")]
    near(negative, [(0, 0.25, 0.6), (0.25, 0.5, 0.2), (0.5, 0.75, 0.2)], abs=0.01)
    assert {"positive (4)", "negative (100)"} <= set(figure.texts)


def test_a_number_that_is_not_defined_is_a_dash_and_draws_nothing():
    point = POINT | {"sensitivity": UNDEFINED, "ppv": UNDEFINED}
    assert curves.with_interval(UNDEFINED) == "–"
    assert curves.with_interval(number(-0.5)) == "−0.500"
    slope = {"value": -4.04, "low": -7.0, "high": -3.07}
    assert curves.with_interval(slope, 2) == "−4.04 (−7.00 to −3.07)"
    assert curves.with_interval({"value": 0.5, "low": -0.25, "high": 1.25}, 2) == "0.50 (−0.25 to 1.25)"
    for svg in (
        curves.roc_figure(CURVES["roc"], UNDEFINED, [point]),
        curves.precision_recall_figure(CURVES["precision_recall"], UNDEFINED, None, [point]),
    ):
        figure = Figure(svg)
        assert figure.dots("held") == []
        assert any(text.endswith(" –") for text in figure.texts)


def test_figures_have_a_title_a_description_and_fit_a_phone():
    for svg in (
        curves.roc_figure(CURVES["roc"], number(0.9, 0.1)),
        curves.decision_figure(CURVES["decision"]),
        curves.histogram_figure(CURVES["histogram"]),
    ):
        root = ElementTree.fromstring(svg)
        assert root.get("width") == "400"
        assert root.get("role") == "img"
        assert root.find(f"{SVG}title").text
        assert root.find(f"{SVG}desc").text
        assert min(float(t.get("font-size")) for t in root.iter(f"{SVG}text")) >= 11
