"""Models side by side: each mark stands where its number is, and a model that was not asked leaves its place empty."""

from xml.etree import ElementTree

import pytest
from report_pages import cells, evaluation, page, results, score

from medjax.report.variants import rows, variants


def entry(variant, correct, low, high, **more):
    scores = score(correct, 100, (low, high), by_exam={})
    return evaluation(scores=scores, id=f"{more}{variant}", variant=variant, **more)


ENTRIES = [
    *(entry("base", 30, 0.2, 0.4), entry("adapter", 55, 0.45, 0.65)),
    *(entry("base", 10, 0.05, 0.2, protocol="cot-0shot"), entry("adapter", 20, 0.1, 0.3, protocol="cot-0shot")),
    entry("base", 70, 0.6, 0.8, task="alone"),
]


def test_marks_stand_where_their_numbers_are():
    found = rows(ENTRIES)
    assert variants(ENTRIES) == ["base", "adapter"]
    assert [(row.name, row.protocol) for row in found] == [
        ("mini · ja", "strict-0shot"),
        ("mini · ja", "cot-0shot"),
    ]
    drawn = ElementTree.fromstring(found[0].plot())
    assert drawn.find("line[@class='chance']").get("x1") == "17.00%"
    marks = [
        [part.get("y"), part.find("circle").get("cx"), part.find("line").get("x1"), part.find("line").get("x2")]
        for part in drawn.findall("svg")
    ]
    assert marks == [["33.3%", "30.00%", "20.00%", "40.00%"], ["66.7%", "55.00%", "45.00%", "65.00%"]]
    kinds = [part.find("circle").get("class") for part in drawn.findall("svg")]
    assert kinds == ["dot muted", "dot accent"]
    assert "base 30.0\u00a0%, 95 % interval 20.0\u00a0% to 40.0\u00a0%; adapter 55.0" in drawn.get("aria-label")


def test_table_of_the_page():
    table = page(results(*ENTRIES)).one("table", id="variants")
    assert cells(table) == [
        ["mini · ja strict-0shot", "30.0 % 20.0 – 40.0", "55.0 % 45.0 – 65.0", ""],
        ["mini · ja cot-0shot", "10.0 % 5.0 – 20.0", "20.0 % 10.0 – 30.0", ""],
    ]
    assert page(results()).all("table", id="variants") == []


@pytest.mark.parametrize("names", [("", ""), ("base", "base")])
def test_a_run_of_one_model_has_none(names):
    made = [entry(name, 30, 0.2, 0.4, task=f"t{n}") for n, name in enumerate(names)]
    assert page(results(*made)).all("table", id="variants") == []
