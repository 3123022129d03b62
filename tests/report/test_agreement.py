"""Figures of a regression: points, lines and intervals stand where their numbers are."""

from detector_results import number, regression
from report_pages import SVG
from test_curves import Figure, near

from medjax.report.agreement import agreement_figure, decade_figure, predicted_figure

AGE = regression(150)


def test_predicted_over_true_with_the_line_that_fits():
    points = {"true": [20.0, 40.0, 60.0], "predicted": [30.0, 40.0, 50.0]}
    errors = {"mae": number(6.67, 1.0), "slope": number(0.5, 0.1), "bias": number(0.0, 1.0)}
    figure = Figure(predicted_figure(points, errors, "age", "years"), shown=1)
    near(figure.dots("accent"), [(20, 30), (40, 40), (60, 50)], abs=0.1)
    near(figure.curves("held")[0], [(20, 30), (60, 50)], abs=0.1)
    ends = figure.curves("muted")[0]
    assert all(abs(x - y) < 0.1 for x, y in ends)  # the line of equality
    assert "fit, slope 0.50" in figure.texts


def test_bland_and_altman_with_limits_and_their_intervals():
    found = {
        **{"bias": number(1.0, 0.5), "lower_limit": number(-10.0, 2.0), "upper_limit": number(12.0, 2.0)},
        "points": {"mean": [40.0, 50.0, 60.0], "difference": [-9.0, 1.0, 11.0]},
    }
    figure = Figure(agreement_figure(found, "age", "years"), shown=1)
    near(figure.dots("accent"), [(40, -9), (50, 1), (60, 11)], abs=0.15)
    assert [round(c[0][1]) for c in figure.curves("held")] == [12, 1, -10]
    bands = [sorted({round(y, 1) for _, y in c}) for c in figure.curves("held", "area")]
    assert bands == [[10.0, 14.0], [0.5, 1.5], [-12.0, -8.0]]
    assert {"+12.0", "+1.0", "−10.0"} <= set(figure.texts)


def test_bias_by_decade_with_small_groups_apart():
    decades = [
        {"from": 40, "to": 50, "records": 100, "small": False, "bias": number(3.0, 1.0)},
        {"from": 50, "to": 60, "records": 80, "small": False, "bias": number(-1.0, 1.0)},
        {"from": 60, "to": 70, "records": 4, "small": True, "bias": number(-5.0, 4.0)},
        {"from": 70, "to": 80, "records": 1, "small": True, "bias": number(None)},
    ]
    figure = Figure(decade_figure(decades, "years"), shown=1)
    near(figure.dots("accent"), [(45, 3), (55, -1)], abs=0.1)
    near(figure.dots("light"), [(65, -5)], abs=0.1)
    spans = [c for c in figure.curves("light") if abs(c[0][1] - c[1][1]) > 0.1]
    near(spans[0], [(65, -9), (65, -1)], abs=0.1)
    assert {"100", "80", "4", "few records"} <= set(figure.texts)


def test_figures_of_drawn_ages_hold_every_point():
    svg = predicted_figure(AGE["points"], AGE["errors"], "age", "years")
    assert len(Figure(svg, shown=1).dots("accent")) == 150
    root = Figure(agreement_figure(AGE["agreement"], "age", "years"), shown=1).root
    assert "limits of agreement −18.0 (−19.0 to −17.0) to 18.4 (17.4–19.4) years" in root.find(f"{SVG}desc").text
