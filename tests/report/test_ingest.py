"""The page of an ingest: every count and name that the report holds is on it, and nothing of it is live."""

import pytest
from report_pages import Page, cells, numbers

from medjax.data.ecg.leads import LEADS
from medjax.report.ingest import ingest_report

LEAD = {"measured": 9, "derived": 1, "missing": 0, "flat": 2}


def report(**more):
    """A report as medjax.ingest writes it."""
    return {
        **{"date": 1763755980.2, "name": "ward", "command": "python -m medjax.ingest ecg --source x --out ward"},
        **{"wall_seconds": 75.2, "versions": {"medjax": "0.1.0"}, "settings": {}, "digest": "ab" * 32},
        "identity": {"files": "cd" * 32, "labels": None},
        "files": {"found": 1234, "refused": 2, "with_refused_records": 2, "passed_over": {".h5": 1200, "none": 1}},
        "records": {"stored": 12, "dropped_copies": []},
        "formats": {"WFDB": {"files": 9, "records": 10}, "DICOM": {"files": 2, "records": 2}},
        "refused": {
            "count": 2,
            "reasons": {"truncated": 1, "no XML": 1},
            "list": [
                {"file": "a<b>.hea", "reason": "truncated", "record": "a", "field": "signal"},
                {"file": "c.xml", "reason": "no XML", "record": "", "field": ""},
            ],
        },
        "leads": dict.fromkeys(LEADS, LEAD),
        "incomplete_records": 2,
        **{
            "rates_hz": {"400": 2, "500": 10},
            "seconds": {f"{s}": 1 for s in range(1, 13)},
            "mains_hz": {"0": 11, "50": 1},
        },
        "einthoven": {"checked": 12, "limit_mv": 0.02, "off": 1, "worst": [{"id": "r7", "mv": 0.25}]},
        "ages": {
            **{"known": 10, "unknown": 2, "quartiles": [40.0, 55.5, 70.0]},
            "decades": {"30": {"female": 4}, "50": {"female": 1, "male": 3}, "60": {"unknown": 2}},
        },
        "sexes": {"female": 5, "male": 3, "unknown": 4},
        "devices": {"unknown": 12},
        "patients": {
            **{"institution": "north", "named": 3, "records_without": 4, "several": 1},
            "list": [{"patient": "P<1>", "records": ["r1", "r2"], "count": 25}],
        },
        "duplicates": {
            "exact": [{"first": "r1", "second": "r2", "correlation": 1.0, "lag_s": 0.0, "patients_differ": True}],
            "near": [{"first": "r3", "second": "r4", "correlation": 0.9912, "lag_s": 0.8, "patients_differ": False}],
            **{"compared": 17, "crowded": 6, "recordings": 10},
        },
        "renamed": {"count": 60, "list": {f"w{i}/r": "r" for i in range(60)}},
        "labels": {
            **{"file": "l.csv", "labelled": 8, "lines": 11, "unknown": 2, "unknown_list": ["x1", "x2"]},
            **{"ambiguous": 1, "ambiguous_list": ["r"], "not_numbers": {"AF": {"count": 1, "first": "line 3: 'so<'"}}},
            "columns": {
                "AF": {"known": 8, "binary": True, "mean": 0.25, "positive": 2},
                "EF": {"known": 5, "binary": False, "mean": 50.25, "sd": 9.5, "least": 20.0, "most": 65.0},
                "none": {"known": 0},
            },
        },
        "codes": {f"code{i}": 20 - i for i in range(20)},
        "notes": {"lead V1: flat": 2},
        **more,
    }


def page(*arguments):
    parsed = Page(ingest_report(*arguments))
    assert parsed.at is parsed.root, "an element is left open"
    return parsed.root


def test_refused_files_with_their_reasons():
    refused = page(report()).one("section", id="refused")
    assert cells(refused.one("table", class_="results")) == [
        ["a<b>.hea", "a, signal", "truncated"],
        ["c.xml", "", "no XML"],
    ]
    lines = [{"file": f"{i}.hea", "reason": "cut", "record": "", "field": ""} for i in range(200)]
    many = page(report(refused={"count": 5000, "reasons": {"cut": 4999, "odd": 1}, "list": lines})).one(
        "section", id="refused"
    )
    assert len(cells(many.one("table", class_="results"))) == 40
    assert "40 of 5,000; all are in refused.jsonl." in many.text
    assert [cells(table) for table in many.all("table", class_="counts")] == [
        [["cut", "4,999"], ["odd", "1"]],
        [[".h5", "1,200"], ["none", "1"]],
    ]
    assert "Passed over, by the end of the name" in many.text
    files = {"found": 1, "refused": 0, "with_refused_records": 0, "passed_over": {}}
    none = page(report(refused={"count": 0, "reasons": {}, "list": []}, files=files)).one("section", id="refused")
    assert none.text == "Refused No file was refused."


def test_counts_of_records():
    tables = page(report()).one("section", id="records").all("table", class_="counts")
    rows = [cells(table) for table in tables]
    assert rows[0] == [["WFDB", "9", "10"], ["DICOM", "2", "2"]]
    assert rows[1] == [["500", "10"], ["400", "2"]]
    assert rows[2][-1] == ["4 others", "4"]
    assert rows[3] == [["none seen", "11"], ["50 Hz", "1"]]
    assert rows[4][0] == ["code0", "20"]
    assert rows[4][-1] == ["5 others", "15"]
    assert len(rows) == 6  # devices are all unknown: no table


def test_leads_and_their_laws():
    leads = page(report()).one("section", id="leads")
    assert cells(leads.one("table")) == [[lead, "9", "1", "2", "0"] for lead in LEADS]
    assert "tried on 12 records and holds within 0.02 mV in 11; farthest off: r7 (0.25 mV)." in leads.text


def test_ages_are_drawn_to_scale():
    patients = page(report()).one("section", id="patients")
    line = "5 female; 3 male; 4 of unknown sex; median age 55.5 years, quartiles 40 and 70; age unknown in 2."
    assert line in patients.text
    figure = patients.one("svg", class_="ages")
    bars = figure.all("rect")
    assert [bar.attributes["class"].split()[1] for bar in bars] == ["held", "held", "accent", "light"]
    heights = [float(bar.attributes["height"]) for bar in bars]
    assert heights == pytest.approx([128, 32, 96, 64])
    lefts = [float(bar.attributes["x"]) for bar in bars]
    assert [(x - lefts[0]) / 90 for x in lefts] == [0, 2, 2, 3]  # nobody in the forties, whose place is kept
    assert [text.text for text in figure.all("text")] == ["4", "30s", "40s", "4", "50s", "2", "60s"]
    assert cells(patients.one("table")) == [["P<1>", "25", "r1, r2 …"]]
    unknown = report(ages={"known": 0, "unknown": 12, "quartiles": [], "decades": {}})
    assert page(unknown).one("section", id="patients").all("svg", class_="ages") == []


def test_copies():
    copies = page(report()).one("section", id="duplicates")
    assert cells(copies.one("table")) == [
        ["r2", "r1", "exact", "1.0000", "0", "differ"],
        ["r4", "r3", "altered", "0.9912", "0.8", ""],
    ]
    assert 17 in numbers(copies.all("p")[-1].text)
    assert "6 records have more look-alikes than were compared" in copies.text


def test_labels():
    labels = page(report()).one("section", id="labels")
    assert cells(labels.one("table")) == [
        ["AF", "8", "2", "", "25.0 %"],
        ["EF", "5", "", "", "mean 50.25, SD 9.5, 20 to 65"],
        ["none", "0", "", "", "no value"],
    ]
    assert [p.text for p in labels.all("p")] == [
        "11 lines of l.csv; 8 records labelled.",
        "2 lines for records that are not here, left out: x1, x2.",
        "1 line for an id that several records have, left out; a column path tells them apart: r.",
        "AF: 1 cell is no number and left unknown, the first in line 3: 'so<'.",
    ]
    (bar,) = labels.all("rect", class_="part")
    assert bar.attributes["width"] == "25.0%"


def test_what_one_must_know_stands_on_top():
    warnings = [line.text for line in page(report()).one("ul", class_="warnings").all("li")]
    assert [line.split(".")[0] for line in warnings] == [
        "4 records name no patient",
        "1 pair of copies carry different patients: one of the two names is wrong",
        "1 record breaks I + III = II by more than 0",
    ]
    calm = report(
        patients={"institution": "", "named": 3, "records_without": 0, "several": 0, "list": []},
        duplicates={"exact": [], "near": [], "compared": 0, "crowded": 0, "recordings": 12},
        einthoven={"checked": 12, "limit_mv": 0.02, "off": 0, "worst": []},
    )
    assert page(calm).all("ul", class_="warnings") == []


def test_names_are_escaped_and_nothing_is_loaded():
    html = ingest_report(report(), [("r1 <script>", '<svg viewBox="0 0 1 1"><path d="M0,0"/></svg>')])
    root = Page(html).root
    assert "<script" not in html
    assert "default-src 'none'" in html
    assert not [node for node in root.all("*") if {"src", "href", "onload"} & set(node.attributes)]
    (figure,) = root.all("figure")
    assert figure.one("figcaption").text == "r1 <script>"
    assert figure.all("path")
    assert "40 of 60." in root.one("section", id="renamed").text
    assert "python -m medjax.ingest ecg --source x --out ward" in root.one("section", id="record").text
