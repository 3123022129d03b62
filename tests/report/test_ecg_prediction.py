"""The page of one ECG: what the model says with its interval, the trace, and whether its map may be believed."""

import re

import numpy as np
import pytest
from predictions import age, binary, explanation, prediction
from report_pages import Page, cells, numbers

from medjax.report.ecg_prediction import prediction_report, prediction_sheet

HOSTILE = "</style></title><script>alert('x')</script>{{ 7 * 7 }}"


def page(found):
    parsed = Page(prediction_report(found))
    assert parsed.at is parsed.root, "an element is left open"
    return parsed.root


def sheets(root):
    return root.all("svg", class_="sheet")


def words(sheet):
    return [text.text for text in sheet.all("text")]


def test_probability_interval_threshold_and_decision():
    root = page(prediction())
    lvsd, years = root.all("section", class_="answer")
    assert lvsd.one("b").text == "81.0 %"
    assert lvsd.one("span", class_="tag").text == "positive"
    assert numbers(lvsd.one("small").text) == [95, 69.0, 89.0]
    sentences = [p.text for p in lvsd.all("p")]
    assert sentences == [
        "Threshold 16.0 %, chosen on validation: Youden.",
        "At 90.0 % confidence the answer is positive.",
    ]
    plot = lvsd.one("svg", class_="plot")
    assert plot.one("circle").attributes["cx"] == "81.00%"
    assert plot.one("line", class_="chance").attributes["x1"] == "16.00%"
    assert years.one("b").text == "71.4 years"
    assert [p.text for p in years.all("p")] == [
        "The file says 63 years: a gap of +8.4.",
        "Corrected for regression to the mean 69.0 years, a gap of +6.0.",
    ]


def test_classes_with_names_are_called_by_them():
    named = binary(name="sex", classes=("female", "male"), set=["male"])
    (sex,) = page(prediction(named)).all("section", class_="answer")
    assert sex.one("span", class_="tag").text == "male"
    assert "Probability of sex: male" in sex.text
    assert "At 90.0 % confidence the answer is male." in [p.text for p in sex.all("p")]
    assert "sex: 81.0\u00a0% (69.0–89.0), male at 16.0\u00a0%" in prediction_sheet(prediction(named), named).svg()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"set": ["negative", "positive"]},
            "At 90.0 % confidence it may be negative or positive: for a human to decide.",
        ),
        ({"set": []}, "Unlike the records the model was calibrated on: no answer at the confidence asked for."),
        ({"set": None}, None),
    ],
)
def test_sets_are_put_into_words(change, expected):
    said = [p.text for p in page(prediction(binary(**change))).one("section", class_="answer").all("p")]
    assert said[1:] == ([expected] if expected else [])


def test_without_an_interval_the_page_says_so():
    answer = page(prediction(binary(decision=False, probability={"value": 0.02, "low": None, "high": None}))).one(
        "section", class_="answer"
    )
    assert answer.one("small").text == "no interval"
    assert answer.one("span", class_="tag").text == "negative"


def test_classes_in_order():
    entry = {"name": "NYHA", "kind": "ordinal", "classes": ["I", "II"], "probabilities": [0.3, 0.7], "decision": "II"}
    answer = page(prediction(entry)).one("section", class_="answer")
    assert answer.one("b").text == "II"
    assert answer.one("p").text == "I 30.0 %, II 70.0 %."


def test_facts_and_quality_of_the_record():
    root = page(prediction())
    facts = {pair.one("dt").text: pair.one("dd").text for pair in root.one("dl").all("div")}
    assert facts == {
        **{"Age": "63 years", "Sex": "female", "Recorded": "2024-03-02 10:15:00", "Device": "MAC 5500"},
        **{"Length": "10 s at 500 Hz", "File": "a.xml, GE MUSE XML", "Model": "runs/train/lvsd"},
    }
    assert [li.text for li in root.all("li")] == [
        *("V3: not recorded.", "aVR: derived.", "50 Hz mains seen; a notch was applied.")
    ]
    assert "Not a medical device." in root.one("p", class_="device").text
    assert root.one("code").text == "python -m medjax.infer a.xml --model runs/train/lvsd"
    assert ["model.digest", "12" * 32] in cells(root.one("table", class_="record"))


def test_a_sound_map_is_drawn_with_its_checks():
    root = page(prediction())
    (sheet,) = sheets(root)
    assert "LVSD: 81.0\u00a0% (69.0–89.0), positive at 16.0\u00a0%" in [
        " ".join([t]) for t in sheet_texts(prediction())
    ]
    assert {"raises the probability", "lowers it", "V3 not recorded", "aVR derived"} <= set(words(sheet))
    trust = root.one("p", class_="trust")
    assert trust.attributes["class"] == "trust pass"
    assert trust.text == "✓ Both checks passed: taking away what is marked moves the output sooner."
    checks = [svg.one("title").text for svg in root.one("div", class_="checks").all("svg")]
    assert checks == ["Taking away what is marked", "Shuffling the weights"]
    assert "The map shares +1.93 out among the samples and misses 0.11 % of it." in root.text


def sheet_texts(found):
    return re.findall(r"<text[^>]*>([^<]*)</text>", prediction_sheet(found, found["predictions"][0]).svg())


def test_a_map_that_failed_says_so_on_the_page_and_on_the_paper():
    found = prediction(binary(passed=False))
    trust = page(found).one("p", class_="trust")
    assert trust.attributes["class"] == "trust"
    assert trust.text.startswith("✕ Do not rest on this map")
    assert any("DO NOT REST ON THE MAP: it did not pass its checks" in text for text in sheet_texts(found))
    assert not any("DO NOT REST" in text for text in sheet_texts(prediction()))


def test_a_map_without_checks_is_not_believed():
    unchecked = {key: value for key, value in explanation().items() if key in ("method", "weights", "seconds")}
    root = page(prediction(binary(explanation=unchecked)))
    assert root.one("p", class_="trust").text == "✕ Not checked: whether this map means anything is not known."
    assert root.all("div", class_="checks") == []
    assert len(sheets(root)) == 1


def test_a_map_without_a_sign_claims_no_direction():
    unsigned = explanation() | {"weights": np.abs(explanation()["weights"]), "method": "attention rollout", "gap": None}
    found = prediction(binary(explanation=unsigned))
    assert "looked at most" in sheet_texts(found)
    assert not {"lowers it", "raises the probability"} & set(sheet_texts(found))


def test_without_a_map_the_trace_stands_alone():
    root = page(prediction(binary(explained=False), age()))
    (sheet,) = sheets(root)
    assert "raises the probability" not in words(sheet)
    assert [h.text for h in root.all("h2")] == ["Trace", "How to repeat this prediction"]
    assert "25 mm/s · 10 mm/mV" in words(sheet)
    other = page(prediction(binary(explained=False), layout="12x1", speed_mm_s=50.0, gain_mm_mv=5.0))
    assert "50 mm/s · 5 mm/mV" in words(sheets(other)[0])


def test_the_page_loads_nothing_and_nothing_in_it_acts():
    found = prediction(binary(name=HOSTILE, threshold_origin=HOSTILE), command=HOSTILE, evaluated=HOSTILE)
    found["record"] |= {"id": HOSTILE, "device": HOSTILE, "notes": [HOSTILE], "source": HOSTILE}
    html = prediction_report(found)
    root = Page(html).root
    assert root.all("script") == root.all("img") == root.all("link") == []
    assert not re.search(r"(src|href)=|url\(|@import", html)
    assert "default-src 'none'" in html
    assert root.one("h1").text == " ".join(HOSTILE.split())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, r"prediction: record: got no id, signal, sampling_rate_hz"),
        (prediction() | {"predictions": []}, r"prediction: got no entry under 'predictions'"),
        (prediction({"kind": "mood"}), r"predictions\[0\].kind: got 'mood', expected one of binary"),
        (prediction({"kind": "binary", "name": "a"}), r"predictions\[0\]: got no probability, threshold,"),
    ],
)
def test_what_is_no_prediction_is_refused(found, message):
    with pytest.raises(ValueError, match=message):
        prediction_report(found)
