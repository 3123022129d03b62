"""Counts and gauges: widths are the shares they stand for, and a cut is kept or missed as the numbers say."""

import json
import re
from xml.etree import ElementTree

import pytest
from exam_samples import doc, sample
from report_pages import FAIL, Page, evaluation, page, results, score

from medjax.report.exam import exam_report
from medjax.report.outcomes import cards, stack, table

COUNTS = {"right": 46, "wrong": 61, "unparsed": 6, "cut_off": 3, "not_asked": 4, "too_long": 0}


def test_bar_is_cut_in_proportion():
    drawn = ElementTree.fromstring(stack(COUNTS))
    parts = [(r.get("class"), float(r.get("x")[:-1]), float(r.get("width")[:-1])) for r in drawn]
    assert [name for name, _, _ in parts] == ["right", "wrong", "unparsed", "cut_off", "not_asked"]
    begin = 0.0
    for name, x, width in parts:
        assert (x, width) == (pytest.approx(begin, abs=5e-3), pytest.approx(100 * COUNTS[name] / 120, abs=1e-3))
        begin += width
    assert begin == pytest.approx(100, abs=0.01)
    assert drawn.get("aria-label") == "46 right, 61 wrong, 6 unparsed, 3 cut off, 4 not asked"
    assert stack({"right": 0}).count("<rect") == 0


def test_columns_are_the_outcomes_that_were_met():
    entries = [
        ("a", "strict", {"outcomes": COUNTS}),
        ("b", "strict", {"outcomes": {"right": 2, "wrong": 0}}),
        ("c", "", {}),
    ]
    found = table(entries)
    names = ["right", "wrong", "unparsed", "cut_off", "not_asked"]
    assert found["outcomes"] == [(name, name.replace("_", " ")) for name in names]
    assert [row["counts"] for row in found["rows"]] == [[46, 61, 6, 3, 4], [2, 0, 0, 0, 0]]
    assert table([("c", "", {})]) is None


def test_the_order_is_that_of_the_scores_and_a_new_outcome_is_shown():
    counts = {"wrong": 1, "refused_by_all": 2, "right": 0, "no_reference": 5}
    found = table([("a", "", {"outcomes": {"wrong": 3}}), ("b", "", {"outcomes": counts})])
    assert found["outcomes"] == [
        *(("wrong", "wrong"), ("refused_by_all", "refused by all"), ("right", "right")),
        ("no_reference", "for people to judge"),
    ]
    assert [row["counts"] for row in found["rows"]] == [[3, 0, 0, 0], [1, 2, 0, 5]]
    drawn = ElementTree.fromstring(stack(counts))
    assert [r.get("class") for r in drawn] == ["wrong", "refused_by_all", "no_reference"]
    assert drawn.get("aria-label") == "1 wrong, 2 refused by all, 5 for people to judge"


def test_the_page_filters_by_the_outcomes_that_happened():
    made = evaluation(scores=score(outcomes=COUNTS | {"no_reference": 1}, by_exam={}))
    answer = sample(made["id"], doc(1, answer=[], choices=[], kind="text"), "no_reference")
    root = Page(exam_report(results(made), [answer])).root
    chips = root.one("fieldset", class_="chips").all("input")
    names = [chip.attributes["value"] for chip in chips]
    assert names == ["all", *(name for name in COUNTS if name != "too_long"), "no_reference", "prohibited"]
    (store, _) = root.all("script")
    assert json.loads(store.children[0])["outcomes"] == {
        "no_reference": {"label": "for people to judge", "tone": "none"}
    }
    assert "For people to judge: an open question" in [p.text for p in root.all("p", class_="legend")][1]


def gauges(card):
    found = []
    for gauge in card["gauges"]:
        drawn = ElementTree.fromstring(gauge["bar"])
        _, bar = drawn.findall("rect")
        cut = drawn.find("line")
        found.append(
            (gauge["name"], gauge["tone"], float(bar.get("width")[:-1]), cut is not None and float(cut.get("x1")[:-1]))
        )
    return found


def test_cards_of_a_failed_a_passed_and_an_unfinished_exam():
    cut = {"required_min": 24, "general_min": 51, "prohibited_max": 3}
    by_exam = {
        "2018": score(verdict=FAIL),
        "2019": score(verdict={"result": "pass", "reasons": [], **cut}, general_points=72, prohibited=0),
        "2020": score(verdict={"result": "incomplete", "reasons": ["asked in part"], **cut, "general_min": 210}),
        "2021": score(verdict={"result": "none", "reasons": ["no pass mark"]}),
        "2022": score(verdict={"result": "fail", "reasons": [], **cut}, prohibited=9),
    }
    failed, passed, unfinished, harmful = cards(by_exam)
    assert [card["exam"] for card in (failed, passed, unfinished, harmful)] == ["2018", "2019", "2020", "2022"]
    # 30 of 72 points with 58 needed, 27.5 with 51 needed, 2 picks of 6 drawn with the line after the third
    picks = ("prohibited picks", "pass", pytest.approx(100 * 2 / 6, abs=0.01), pytest.approx(100 * 3.5 / 6, abs=0.01))
    assert gauges(failed) == [
        ("required", "fail", pytest.approx(100 * 30 / 72, abs=0.01), pytest.approx(100 * 58 / 72, abs=0.01)),
        ("general", "fail", pytest.approx(100 * 27.5 / 72, abs=0.01), pytest.approx(100 * 51 / 72, abs=0.01)),
        picks,
    ]
    assert [tone for _, tone, _, _ in gauges(passed)] == ["pass", "pass", "pass"]
    assert gauges(passed)[1][2] == 100
    # the cuts are for the whole exam: they say nothing of a part
    assert [(tone, line) for _, tone, _, line in gauges(unfinished)] == [("incomplete", False)] * 3
    assert [gauge["needed"] for gauge in unfinished["gauges"]] == [""] * 3
    assert 'aria-label="general: 27.5 of 72 points"' in unfinished["gauges"][1]["bar"]
    assert gauges(harmful)[2][1:] == ("fail", 100, pytest.approx(100 * 3.5 / 9, abs=0.01))


def test_a_card_shows_what_was_not_asked():
    cut = {"required_min": 32, "general_min": 51, "prohibited_max": 3}
    left = {"required": 2, "general": 6, "prohibited": 2}
    made = {"2018": score(verdict={"result": "incomplete", "reasons": ["because"], **cut, "open": left})}
    (card,) = cards(made)
    # required 30 of 72 and 2 open reach 32, general 27.5 and 6 do not reach 51, 2 picks and 2 may be more than 3
    assert [(gauge["tone"], gauge["needed"]) for gauge in card["gauges"]] == [
        ("incomplete", "32 needed, 2 not asked"),
        ("fail", "51 needed, 6 not asked"),
        ("incomplete", "3 allowed, 2 not asked"),
    ]
    for gauge, reached, more in zip(card["gauges"], (30 / 72, 27.5 / 72, 2 / 6), (2 / 72, 6 / 72, 2 / 6), strict=True):
        _, bar, rest = ElementTree.fromstring(gauge["bar"]).findall("rect")
        assert float(bar.get("width")[:-1]) == pytest.approx(100 * reached, abs=0.01)
        assert rest.get("class") == "open"
        assert float(rest.get("x")[:-1]) == pytest.approx(100 * reached, abs=0.01)
        assert float(rest.get("width")[:-1]) == pytest.approx(100 * more, abs=0.01)
    # one point less is out of reach
    made["2018"]["verdict"]["required_min"] = 33
    assert cards(made)[0]["gauges"][0]["tone"] == "fail"


def test_a_page_leaves_the_pass_marks_out_of_an_exam_that_was_asked_in_part():
    cut = {"required_min": 58, "general_min": 51, "prohibited_max": 3}
    made = score(verdict={"result": "incomplete", "reasons": ["4 of the 120 questions were asked"], **cut})
    root = page(results(evaluation(scores=score(by_exam={"mini": made}))))
    assert "needed" not in root.text
    assert "allowed" not in root.text
    assert "4 of the 120 questions were asked" in root.text


def test_cards_and_outcomes_of_the_page():
    made = score(outcomes=COUNTS, by_exam={"mini": score(verdict=FAIL)})
    root = page(results(evaluation(scores=made)))
    card = root.one("li", class_="card")
    assert card.one("h3").text == "mini fail"
    assert re.sub(r"\s+", " ", card.one("dl").text) == (
        "Required 30 of 72 points 58 needed General 27.5 of 72 points 51 needed Prohibited picks 2 3 allowed"
    )
    counted = root.one("table", class_="counts")
    assert [cell.text for cell in counted.one("tbody").all("td")][1:] == ["46", "61", "6", "3", "4"]
    assert page(results()).all("table", class_="counts") == []
