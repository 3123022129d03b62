"""The page of an evaluation: every number comes from the dict with its interval or its reason, and nothing can act."""

import copy
import re

import pytest
from detector_results import UNDEFINED, detector, number, ordinal, regression, results
from report_pages import Page, cells, numbers

from medjax.report.detector import detector_report

HOSTILE = "</style></title><script>alert('x')</script>{{ 7 * 7 }}"


def page(found):
    parsed = Page(detector_report(found))
    assert parsed.at is parsed.root, "an element is left open"
    return parsed.root


def table(root, title):
    for section in root.all("section", class_="table"):
        if section.one("h3").text == title:
            return cells(section)
    raise AssertionError(f"no table {title}")


def facts(root):
    return {
        pair.one("dt").text: pair.one("dd").text for pair in root.all("div") if pair.all("dt") and not pair.all("div")
    }


@pytest.fixture(scope="module")
def one():
    return page(results())


def shown(entry, digits=1, scale=100):
    return [round(scale * entry[key], digits) for key in ("value", "low", "high")]


def test_the_verdict_comes_first(one):
    target = detector()
    auroc, counts = target["discrimination"]["auroc"], target["counts"]
    headline = one.one("p", class_="headline").text
    assert headline.startswith("AUROC ")
    assert numbers(headline) == pytest.approx(shown(auroc, 3, 1))
    said = one.one("div", class_="said").text
    assert f"{counts['positive']} of 2,000 records of 1,850 patients are positive" in said
    assert "37 more have no label" in said
    assert "Decision: positive from a probability of 16.0 % on, chosen on validation: Youden." in said
    found, point = facts(one), target["operating_points"][0]
    for name, key in (
        *(("Sensitivity", "sensitivity"), ("Specificity", "specificity"), ("Called positive", "flagged")),
        *(("Positive predictive value", "ppv"), ("Negative predictive value", "npv")),
    ):
        assert numbers(found[name]) == pytest.approx(shown(point[key]))
    confusion = point["confusion"]
    sentence = next(p.text for p in one.all("p", class_="muted") if "missed" in p.text)
    assert numbers(sentence) == [confusion[key] for key in ("tp", "fn", "tn", "fp")]


def test_facts_notes_and_figures(one):
    found = facts(one)
    assert (found["Records"], found["Patients"], found["Split"]) == ("2,037", "1,880", "test")
    assert (found["Parameters"], found["Intervals"]) == ("21.6 M", "95 %, resampled by patient")
    assert [li.text for li in one.all("li")] == ["38 records name no patient; each counts as its own patient."]
    titles = [svg.one("title").text for svg in one.all("svg", class_="figure")]
    assert titles == [
        *("ROC curve", "Precision and recall", "Reliability", "Predicted probabilities", "Decision curve"),
        *("Leaving the unsure to a human", "AUROC by subgroup"),
    ]


def test_subgroups_are_grouped_and_small_ones_marked(one):
    rows = table(one, "Subgroups")
    assert [row[0] for row in rows if len(row) == 1] == ["age band", "sex", "device"]
    groups = detector()["subgroups"]
    for row, group in zip([row for row in rows if len(row) > 1], groups, strict=True):
        assert row[0] == group["value"] + (" *" if group["small"] else "")
        assert (numbers(row[1]), numbers(row[2])) == ([group["records"]], [group["positive"]])
        for cell, key in zip(row[3:], ("sensitivity", "specificity", "prevalence"), strict=True):
            if group[key]["value"] is None:
                assert cell == "– all 4 records are negative"
            else:
                assert numbers(cell) == pytest.approx(shown(group[key]))


def test_baselines_calibration_and_the_rest(one):
    target = detector()
    for row, entry in zip(table(one, "What a trivial model gets"), target["baselines"], strict=True):
        assert row[0] == entry["name"]
        assert numbers(row[1]) == pytest.approx(shown(entry["auroc"], 3, 1))
        assert numbers(row[2]) == pytest.approx(shown(entry["difference"], 3, 1))
        assert row[2].startswith("+")
    rows = {row[0]: row[1:] for row in table(one, "Calibration")}
    assert numbers(rows["Brier score"][0])[0] == 0.12
    assert numbers(rows["Brier score"][1])[0] == 0.071
    assert rows["calibration intercept (0 is best)"][0].startswith("−0.040")
    assert numbers(table(one, "Where it would be used")[1][0]) == [2.0]
    assert table(one, "Where it would be used")[0][3] == "5.2"
    level = table(one, "Conformal sets")[1]
    assert (level[0], level[-1]) == ("90.0 %", "620 / 0")
    assert numbers(level[2]) == [89.0, 85.0, 93.0]
    held = table(one, "At a fixed sensitivity or specificity")
    assert held[0][0] == "specificity 90.0 %"
    assert held[0][1].startswith("sensitivity 62.0 %")


def test_what_is_not_known_leaves_its_place_empty():
    target = detector()
    for key in ("subgroups", "baselines", "at_fixed", "predictive_values"):
        target[key] = []
    target["conformal"] = None
    target["calibration"]["method"] = "none"
    target["discrimination"]["auroc"] = UNDEFINED
    target["operating_points"][0]["ppv"] = number(0.4) | {"reason": "too few"}
    root = page(results(target))
    assert [s.one("h3").text for s in root.all("section", class_="table")] == ["Calibration"]
    assert root.one("p", class_="headline").text == "AUROC – all 4 records are negative"
    assert facts(root)["Positive predictive value"] == "40.0 % too few"
    assert "Calibrated" not in root.text


def test_records_of_one_class_give_a_page_with_reasons():
    target = detector()
    target["discrimination"] = dict.fromkeys(("auroc", "auroc_bootstrap", "auprc"), UNDEFINED)
    target["operating_points"][0] |= dict.fromkeys(("sensitivity", "ppv"), UNDEFINED)
    nothing = {"roc": ("fpr", "tpr", "low", "high"), "precision_recall": ("recall", "precision")}
    nothing |= {"decision": ("threshold", "model", "low", "high", "all", "none")}
    target["curves"] |= {name: {key: [] for key in keys} for name, keys in nothing.items()}
    target["curves"] |= {"reliability": {"raw": [], "calibrated": []}}
    target["abstention"] = {"aurc": UNDEFINED, "curve": {key: [] for key in ("coverage", "risk", "low", "high")}}
    root = page(results(target))
    assert facts(root)["Sensitivity"] == "– all 4 records are negative"
    assert len(root.all("svg", class_="figure")) == 7


def test_cautions_and_leaks_are_said_before_the_figures():
    target = detector()
    target["discrimination"]["auroc"]["reason"] = "73 of 2000 resamples had one class only and were left out"
    target["baselines"][1]["difference"]["reason"] = "no variance"
    found = results(target)
    found["protocol"]["data"]["leaks"] = {"patients": 3, "waveforms": 1, "allowed": True}
    found["protocol"]["data"]["split"] = "all"
    said = [li.text for li in page(found).all("li")]
    assert said[1].startswith("3 patients and 1 recordings were in the training data as well")
    assert said[2].startswith("Evaluated on all: records that trained the model may be among them")
    assert said[3:] == [
        "discrimination, auroc: 73 of 2000 resamples had one class only and were left out",
        "baselines, age and sex, difference: no variance",
    ]


def test_records_that_were_left_out_flatter_no_score():
    found = results(detector())
    found["protocol"]["data"] |= {"split": "all"}
    found["protocol"]["data"]["leaks"] = {"patients": 3, "waveforms": 1, "allowed": False, "checked": True}
    said = [li.text for li in page(found).all("li")]
    leaks = [line for line in said if "recordings were in" in line]
    assert leaks == ["3 patients and 1 recordings were in the training data as well, and were left out."]
    assert not [line for line in said if "too good" in line or "may be among them" in line]


def test_several_targets_have_an_overview_and_are_folded():
    macro = {"auroc": number(0.9, 0.02), "auprc": number(0.7, 0.04), "targets": ["LVSD", "AF"]}
    af = detector(300, 5, "AF")
    root = page(results(detector(), af, regression(60), ordinal(), macro=macro))
    rows = cells(root.one("section", id="overview").one("table"))
    assert [row[0] for row in rows] == ["LVSD", "AF", "mean over targets"]
    assert numbers(rows[1][3]) == pytest.approx(shown(af["discrimination"]["auroc"], 3, 1))
    plots = root.one("section", id="overview").all("svg", class_="plot")
    place = float(plots[2].one("circle").attributes["cx"].rstrip("%"))
    assert place == pytest.approx(100 * (0.9 - 0.5) / 0.5)
    assert [s.one("h2").text for s in root.all("section", class_="target")] == ["LVSD", "AF", "age", "NYHA"]
    assert [s.text for s in root.all("summary")][:4] == [
        f"Figures and tables of {name}" for name in ("LVSD", "AF", "age", "NYHA")
    ]
    assert root.one("a", href="#target-2").text == "AF"


def test_an_age_regression():
    age = regression(300)
    root = page(results(age))
    headline = root.one("p", class_="headline").text
    assert headline.startswith("Mean absolute error, years")
    assert numbers(headline) == pytest.approx(shown(age["errors"]["mae"], 2, 1))
    assert "Telling everybody the mean of the training set errs by 17.90 (17.20–18.60) years." in root.text
    found = facts(root)
    assert found["Bias (predicted − true)"][0] in "+−"
    gap = table(root, "Gap of predicted and true age")
    assert [row[0] for row in gap] == ["as predicted", "corrected"]
    assert gap[0][3].startswith("−0.67")
    assert "predicted = 0.7 × true + 16.5, fitted on validation, 300 records" in root.text
    decades = table(root, "By decade of age")
    assert len(decades) == len(age["by_decade"])
    for row, decade in zip(decades, age["by_decade"], strict=True):
        assert row[0].endswith(" *") == decade["small"]
        assert numbers(row[1]) == [decade["records"]]
    assert [svg.one("title").text for svg in root.all("svg", class_="figure")] == [
        *("Predicted and true age", "Bland–Altman", "Bias by decade", "Error, years, by subgroup")
    ]


def test_classes_in_order():
    root = page(results(ordinal()))
    rows = cells(root.one("table", class_="matrix"))
    assert rows == [["I", "22", "7", "1"], ["II", "5", "12", "3"], ["III", "1", "4", "5"]]
    assert numbers(root.one("p", class_="headline").text) == [0.61, 0.51, 0.71]
    assert "60 records of 58 patients: 30 I, 20 II, 10 III; 2 more have no label." in root.text


def test_the_protocol_stands_whole_at_the_end(one):
    pairs = dict(row for table in one.all("table", class_="record") for row in cells(table))
    assert pairs["model.digest"] == "12" * 32
    assert pairs["model.preprocessing.sampling_rate_hz"] == "250"
    assert pairs["split_rule.fractions"] == "0.7, 0.15, 0.15"
    assert pairs["bootstrap.resamples"] == "2,000"
    assert pairs["kind"] == "ecg_predictor"
    assert one.one("code").text == "python -m medjax.eval --model runs/train/lvsd --data ecgs"
    unknown = results(surprise={"a": 1})
    assert ["surprise.a", "1"] in [row for t in page(unknown).all("table", class_="record") for row in cells(t)]


def test_the_page_loads_nothing_and_nothing_in_it_acts():
    found = copy.deepcopy(results(detector(name=HOSTILE), notes=[HOSTILE]))
    found["protocol"]["model"]["name"] = HOSTILE
    found["targets"][0]["subgroups"][0] |= {"by": HOSTILE, "value": HOSTILE}
    found["targets"][0]["baselines"][0]["name"] = HOSTILE
    html = detector_report(found)
    root = Page(html).root
    assert root.all("script") == root.all("img") == root.all("link") == []
    assert not re.search(r"src=|url\(|@import|href=\"[^#]", html)
    assert "default-src 'none'" in html
    assert root.one("h1").text == " ".join(HOSTILE.split())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"kind": "x"}, r"results: got the keys kind, expected 'targets' with at least one"),
        ({"targets": [{"kind": "survival"}]}, r"targets\[0\].kind: got 'survival', expected one of binary, regression"),
        (
            {"targets": [{"kind": "ordinal", "name": "a", "classes": []}]},
            r"targets\[0\]: got no counts, errors, confusion",
        ),
    ],
)
def test_what_is_no_evaluation_is_refused(found, message):
    with pytest.raises(ValueError, match=message):
        detector_report(found)
