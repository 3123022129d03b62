"""The page of an audit: differences of the parts as its tables say them, and on a phone."""

import pytest
from chromium import Browser, found
from report_pages import Page, cells

from medjax.report.audit import audit_report


def part(items, value, **metrics):
    graded = {name: {"value": each, "interval": [each - 0.1, each + 0.1]} for name, each in metrics.items()}
    return {
        **{"items": items, "accuracy": value, "accuracy_interval": [value / 2, (1 + value) / 2]},
        **{"points": items * value, "points_total": items, "metrics": graded},
    }


def sure(items, value, figure, reason):
    """A part of which every resample gives the same."""
    whole = part(items, value, **{figure: value})
    whole["metrics"][figure] |= {"interval": None, "no_interval": reason}
    return whole


def moved(value, interval, reason=""):
    return {"value": value, "interval": interval, "no_interval": reason}


def an_audit():
    figure = "entity_partial_f1"
    place = {"task": "a-set-with-a-long-name", "language": "ja"}
    run = {
        **{"label": "runs/eval/a_model_with_a_long_name", "evaluation": "a-set-with-a-long-name (ja) strict-0shot"},
        **{"all": part(10, 0.5, **{figure: 0.6}), "without": part(6, 0.4, **{figure: 0.5})},
        **{"matched": sure(4, 0.65, figure, "the same on every resample")},
        "differences": [
            {
                "metric": "accuracy",
                "matched_minus_without": moved(0.25, [-0.3, 0.65]),
                "all_minus_without": moved(0.0, [-0.125, 0.25]),
            },
            {
                "metric": figure,
                "matched_minus_without": moved(0.3, None, "the same on every resample"),
                "all_minus_without": moved(None, None, "not defined on these items"),
            },
        ],
    }
    counts = {"items": 10, "exact": 4, "normalised": 0, "near": 0, "records": 4, "unchecked": 1, "unchecked_ids": ["q"]}
    counts |= {"context": 0, "contexts": 0, "not_alone": 2, "not_alone_ids": ["r", "s"]}
    return {
        **{"train": ["notes.jsonl"], "records": 1, "letters": 1234, "tasks": [place | counts], "matches": []},
        "thresholds": {"containment": 0.35, "jaccard": 0.2, "ngram_japanese": 5, "ngram": 6, "sketch": 64},
        "runs": [run],
    }


def test_differences_stand_under_the_scores():
    root = Page(audit_report(an_audit())).root
    rows = cells(root.one("table", class_="scores"))
    assert [row[0] for row in rows] == [
        *("all items", "without those found", "those found"),
        *("found − others", "all − others"),
    ]
    assert rows[0] == [
        "all items",
        "10",
        "50.0 %",
        "25.0 – 75.0",
        "",
        "5 / 10",
        "entity partial F1 0.600 0.500 – 0.700",
    ]
    assert rows[2][-1] == "entity partial F1 0.650 no interval: the same on every resample"
    assert rows[3][2:4] == ["+25.0", "−30.0 to +65.0"]
    assert rows[3][-1] == "entity partial F1 +0.300 no interval: the same on every resample"
    assert rows[4][2:4] == ["0.0", "−12.5 to +25.0"]
    assert rows[4][-1] == "entity partial F1 –"
    facts = dict(zip([n.text for n in root.all("dt")], [n.text for n in root.all("dd")], strict=True))
    assert facts["Letters"] == "1,234"
    assert [summary.text for summary in root.all("summary")] == [
        "1 item of a-set-with-a-long-name (ja) too short to tell",
        "2 questions of a-set-with-a-long-name (ja) too short to be looked for without choices or context",
    ]


@pytest.mark.skipif(found() is None, reason="no chromium on the path: install it to test the page")
def test_a_phone_shows_the_tables_whole(tmp_path):
    page = tmp_path / "audit.html"
    page.write_text(audit_report(an_audit()), "utf-8")
    with Browser(tmp_path / "profile") as browser:
        browser.resize(390, 844, phone=True)
        browser.open(page)
        assert browser.value("document.documentElement.scrollWidth") <= 390
        cut = "[...document.querySelectorAll('.scores td')].filter((cell) => cell.scrollWidth > cell.clientWidth + 1)"
        assert browser.value(f"{cut}.length") == 0
        assert browser.errors == []
