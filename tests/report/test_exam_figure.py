"""The figure of a summary: a panel for each scale, and every mark where its number is."""

from xml.etree import ElementTree

import pytest
from report_pages import SVG, evaluation, results
from test_differences import comparison
from test_headlines import BLEU, F1, JUDGED, KAPPA, MAE, UNDEFINED

from medjax.report.exam_figure import summary_figure


def parts(made):
    figure = ElementTree.fromstring(summary_figure(made))
    texts = [(t.text, float(t.get("x")), float(t.get("y"))) for t in figure.findall(f"{SVG}text")]
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in figure.findall(f"{SVG}circle")]
    return figure, texts, dots


def axis(texts, below, first, last):
    """Ends of the axis whose labels stand next below a height."""
    at = min(y for text, _, y in texts if y > below and text == last)
    return [next(x for text, x, y in texts if y == at and text == label) for label in (first, last)]


def test_each_scale_has_a_panel_of_its_own():
    figure, texts, dots = parts(results(KAPPA, F1, evaluation(), UNDEFINED, BLEU, MAE, JUDGED))
    titles = ["share of questions answered correctly", "kappa linear, Pearson", "entity partial F1", "BLEU"]
    titles.append("MAE (lower is better)")
    found = [(text, y) for text, x, y in texts if text in titles]
    assert [text for text, _ in found] == titles
    assert [y for _, y in found] == sorted(y for _, y in found)
    expected = [
        ("0 %", "100 %", 46 / 120),
        ("−1", "1", (0.12 + 1) / 2),
        ("0", "1", 0.3),
        ("0", "100", 0.12345),
        ("0", "5", 0.25),
    ]
    assert len(dots) == len(expected)  # what is undefined has none
    for (x, y), (first, last, share) in zip(dots, expected, strict=True):
        left, right = axis(texts, y, first, last)
        assert x == pytest.approx(left + share * (right - left), abs=0.01)
    dashed = [line for line in figure.findall(f"{SVG}line") if line.get("stroke-dasharray")]
    assert len(dashed) == 3  # accuracy, kappa and the correlation
    shown = {text for text, _, _ in texts}
    assert {"0.120", "−0.020 to 0.250", "12.3", "1.25", "undefined"} <= shown
    # a panel of one figure says it once, one of several on each row
    assert {"100 items · kappa linear · strict-0shot", "100 items · Pearson · strict-0shot"} <= shown
    assert {"100 items · strict-0shot", "1,000 items · strict-0shot"} <= shown
    assert "clinic · ja · strict-0shot: for people to judge" in shown
    height = float(figure.get("height"))
    assert max(y for _, _, y in texts) < height - 8


def test_differences_stand_on_the_scale_of_their_figure():
    made = {"metric": "kappa", "items": 100, "first": 0.1, "second": 0.3, "difference": 0.2, "p_value": 0.01}
    made |= {"difference_interval": [0.05, 0.35], "bounds": [-1, 1], "higher_is_better": True, "left_out": 0}
    compared = [comparison(metrics=[made], has_answers=True, task="crade"), comparison()]
    variants = [evaluation(variant=name, id=name) for name in ("base", "adapter")]
    _, texts, dots = parts(results(*variants, comparisons=compared))
    titles = [text for text, _, _ in texts if text.startswith("adapter minus base")]
    assert titles == [
        "adapter minus base, percentage points, same questions",
        "adapter minus base, kappa, same questions",
    ]
    # a set with a figure of its own is shown by that alone
    assert len(dots) == 2 + 2
    x, y = dots[-1]
    left, right = axis(texts, y, "−0.4", "+0.4")
    assert x == pytest.approx((left + right) / 2 + 0.2 / 0.4 * (right - left) / 2, abs=0.01)
    assert {"+0.200", "+0.050 to +0.350"} <= {text for text, _, _ in texts}


def test_a_run_that_people_judge_has_a_figure_that_says_so():
    _, texts, dots = parts(results(JUDGED))
    assert dots == []
    assert [text for text, _, _ in texts] == [
        "SmolLM2-135M-Instruct",
        "clinic · ja · strict-0shot: for people to judge",
    ]
