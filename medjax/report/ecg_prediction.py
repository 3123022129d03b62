"""The page of one ECG that a model was shown: what it says, how sure it is, and on what of the trace that rests.

The trace stands on ECG paper at true scale, one sheet a target with its attribution, or one sheet where there is none.
Beside an attribution stand its two checks and the sentence that says whether it may be believed; where a check failed,
the map is shown under that sentence and never without it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from medjax.report import drawing, pages
from medjax.report.attribution import Attribution
from medjax.report.curves import with_interval
from medjax.report.ecg_paper import LEADS, Header, ecg_sheet
from medjax.report.sheet import Sheet
from medjax.report.soundness import deletion_figure, randomisation_figure

Prediction = Mapping[str, Any]

_KINDS = {
    "binary": ("probability", "threshold", "threshold_origin", "decision"),
    "regression": ("unit", "value"),
    "ordinal": ("classes", "probabilities", "decision"),
}
_RECORD = ("id", "signal", "sampling_rate_hz")


def prediction_report(prediction: Prediction) -> str:
    """Return the HTML page of one record.

    prediction  "record": id, signal [12, samples] mV with NaN, sampling_rate_hz, and as far as known status (a word a
                lead), source, format, age_years, sex, patient, device, time, heart_rate_bpm, filters (of the signal
                that is drawn), notes (sentences on its quality);
                "predictions": of each target name, kind and
                  binary      probability {value, low, high}, threshold, threshold_origin, decision (bool), and if known
                              set (of the names) with its confidence, and classes: names of the negative and the
                              positive one instead of these words
                  regression  value {value, low, high}, unit, and if known true and corrected
                  ordinal     classes, probabilities, decision
                and explanation or None: method, weights [12, stretches] in [-1, 1], seconds of a stretch, form, and
                  deletion, randomisation and verdict as infer.soundness gives them, gap and explained;
                and as far as known "date", "command", "model", "versions", "evaluated" (a sentence), "layout",
                "speed_mm_s", "gain_mm_mv"

    Raises ValueError for a missing field and for a kind of target that is unknown.
    """
    _check(prediction)
    record, found = prediction["record"], prediction["predictions"]
    explained = [entry for entry in found if entry.get("explanation")]
    shown = [
        _shown(entry, _embedded(prediction_sheet(prediction, entry)) if entry in explained else "") for entry in found
    ]
    values = {
        "id": record["id"],
        "date": drawing.date(prediction.get("date")),
        "facts": [(name, value) for name, value in _facts(prediction) if value],
        "predictions": shown,
        "sheet": "" if explained else _embedded(prediction_sheet(prediction)),
        "quality": list(_quality(record)),
        "evaluated": prediction.get("evaluated", ""),
        "record": list(pages.flat(_details(prediction), shown=pages.compact)),
        "command": prediction.get("command", ""),
    }
    return pages.render("ecg_prediction.html", values)


def prediction_sheet(prediction: Prediction, target: Mapping[str, Any] | None = None) -> Sheet:
    """Lay out the trace of the record, with the attribution of one of its predictions where a target is given.

    Save it as SVG, PDF or PNG. Takes the same dict as `prediction_report` and raises the errors of `ecg_sheet`.
    """
    record = prediction["record"]
    explanation = target.get("explanation") if target else None
    attribution = None
    if target and explanation:
        raises, lowers = _words(target, bool((np.nan_to_num(np.asarray(explanation["weights"], float)) < 0).any()))
        attribution = Attribution(
            *(np.asarray(explanation["weights"], float), explanation["seconds"]),
            form=explanation.get("form", "bands"),
            raises=raises,
            lowers=lowers,
        )
    header = Header(
        record["id"],
        **{key: record.get(key) for key in ("age_years", "sex", "heart_rate_bpm", "device")},
        time=_time(record),
        filters=record.get("filters", ""),
        remarks=_remarks(target) if target else (),
    )
    return ecg_sheet(
        record["signal"],
        record["sampling_rate_hz"],
        header,
        status=record.get("status"),
        layout=prediction.get("layout", "3x4"),
        speed_mm_s=prediction.get("speed_mm_s", 25.0),
        gain_mm_mv=prediction.get("gain_mm_mv", 10.0),
        attribution=attribution,
    )


def _words(target: Mapping[str, Any], signed: bool) -> tuple[str, str]:
    if not signed:
        return "looked at most", ""
    what = {"binary": "the probability", "regression": f"the {target['name']}", "ordinal": "the class"}[target["kind"]]
    return f"raises {what}", "lowers it"


def _time(record: Mapping[str, Any]) -> str:
    return (record.get("time") or "").replace("T", " ")


def _remarks(target: Mapping[str, Any]) -> tuple[str, ...]:
    """What goes with the paper wherever it goes: the prediction, and whether its map may be believed."""
    shown = _explanation(target)
    if shown is None or shown["believed"]:
        return (_line(target),)
    return _line(target), "DO NOT REST ON THE MAP: it did not pass its checks"


def _line(target: Mapping[str, Any]) -> str:
    """The prediction in one line for the paper."""
    if target["kind"] == "binary":
        called = _names(target)[bool(target["decision"])]
        return (
            f"{target['name']}: {_percent(target['probability'])}, {called} at {drawing.percent(target['threshold'])}"
        )
    if target["kind"] == "regression":
        return f"{target['name']}: {with_interval(target['value'], 1)} {target['unit']}"
    return f"{target['name']}: {target['decision']}"


def _percent(number: Mapping[str, Any]) -> str:
    shown = drawing.percent(number["value"])
    if number.get("low") is None:
        return shown
    return f"{shown} ({100 * number['low']:.1f}–{100 * number['high']:.1f})"


def _embedded(sheet: Sheet) -> Markup:
    return Markup(sheet.svg())


def _check(prediction: Prediction) -> None:
    record, found = prediction.get("record") or {}, prediction.get("predictions") or ()
    if missing := [key for key in _RECORD if key not in record]:
        raise ValueError(f"prediction: record: got no {', '.join(missing)}, expected {', '.join(_RECORD)}; add them.")
    if not found:
        raise ValueError("prediction: got no entry under 'predictions', expected one a target of the model; add them.")
    for number, entry in enumerate(found):
        kind = entry.get("kind")
        if kind not in _KINDS:
            raise ValueError(
                f"prediction: predictions[{number}].kind: got {kind!r}, expected one of {', '.join(_KINDS)}; "
                "correct it."
            )
        if missing := [key for key in ("name", *_KINDS[kind]) if key not in entry]:
            raise ValueError(
                f"prediction: predictions[{number}]: got no {', '.join(missing)}, expected {', '.join(_KINDS[kind])}; "
                "add them."
            )


def _shown(entry: Mapping[str, Any], sheet: Markup | str) -> dict[str, Any]:
    parts = {"binary": _binary, "regression": _regression, "ordinal": _ordinal}[entry["kind"]](entry)
    return {"name": entry["name"], "sheet": sheet, "explanation": _explanation(entry), "plot": "", **parts}


def _binary(entry: Mapping[str, Any]) -> dict[str, Any]:
    probability, threshold = entry["probability"], entry["threshold"]
    sentences = [f"Threshold {drawing.percent(threshold)}, chosen on {entry['threshold_origin']}."]
    if possible := entry.get("set"):
        confidence = drawing.percent(entry.get("confidence"))
        sentences.append(
            f"At {confidence} confidence the answer is {possible[0]}."
            if len(possible) == 1
            else f"At {confidence} confidence it may be {' or '.join(possible)}: for a human to decide."
        )
    elif possible is not None:
        sentences.append("Unlike the records the model was calibrated on: no answer at the confidence asked for.")
    low, high = (probability.get(key) for key in ("low", "high"))
    bounds = (
        probability["value"],
        probability["value"] if low is None else low,
        probability["value"] if high is None else high,
    )
    return {
        "headline": drawing.percent(probability["value"]),
        "interval": "no interval" if low is None else f"{100 * low:.1f} – {100 * high:.1f}",
        "label": f"Probability of {entry['name']}{f': {_names(entry)[1]}' if entry.get('classes') else ''}",
        "decision": _names(entry)[bool(entry["decision"])],
        "tone": "none" if entry.get("classes") else "fail" if entry["decision"] else "pass",
        "plot": drawing.marks(bounds, threshold, f"{_percent(probability)}, threshold {drawing.percent(threshold)}"),
        "sentences": sentences,
    }


def _names(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Of the negative and the positive class of a binary target."""
    negative, positive = entry.get("classes") or ("negative", "positive")
    return negative, positive


def _regression(entry: Mapping[str, Any]) -> dict[str, Any]:
    value, unit = entry["value"], entry["unit"]
    sentences = []
    if entry.get("true") is not None:
        gap = f"{value['value'] - entry['true']:+.1f}".replace("-", "−")
        sentences.append(f"The file says {entry['true']:g} {unit}: a gap of {gap}.")
        if entry.get("corrected") is not None:
            gap = f"{entry['corrected'] - entry['true']:+.1f}".replace("-", "−")
            sentences.append(f"Corrected for regression to the mean {entry['corrected']:.1f} {unit}, a gap of {gap}.")
    low, high = value.get("low"), value.get("high")
    return {
        "headline": f"{value['value']:.1f} {unit}",
        "interval": "no interval" if low is None else drawing.between(f"{low:.1f}", f"{high:.1f}"),
        "label": f"Predicted {entry['name']}",
        **{"decision": "", "tone": "none", "sentences": sentences},
    }


def _ordinal(entry: Mapping[str, Any]) -> dict[str, Any]:
    shares = ", ".join(
        f"{name} {drawing.percent(share)}" for name, share in zip(entry["classes"], entry["probabilities"], strict=True)
    )
    return {
        **{"headline": entry["decision"], "interval": "", "label": entry["name"], "decision": "", "tone": "none"},
        "sentences": [f"{shares}."],
    }


def _explanation(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    explanation = entry.get("explanation")
    if not explanation:
        return None
    deletion, randomisation = explanation.get("deletion"), explanation.get("randomisation")
    believed = bool(deletion and deletion["passed"] and randomisation and randomisation["passed"])
    share = entry["kind"] == "binary"
    return {
        "method": explanation.get("method", "attribution"),
        "verdict": explanation.get("verdict") or "Not checked: whether this map means anything is not known.",
        "believed": believed,
        "figures": [
            *([deletion_figure(deletion, "probability" if share else entry["name"], share=share)] if deletion else []),
            *([randomisation_figure(randomisation)] if randomisation else []),
        ],
        "completeness": _completeness(explanation.get("explained"), explanation.get("gap")),
    }


def _completeness(explained: float | None, gap: float | None) -> str:
    if not explained or gap is None:
        return ""
    missed = abs(gap / explained)
    share = "less than 0.01" if missed < 1e-4 else f"{100 * missed:.2g}"
    return f"The map shares {explained:+.3g} out among the samples and misses {share} % of it.".replace("-", "−")


def _quality(record: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the record: its leads first, then its notes."""
    status = record.get("status") or ()
    for state, words in (("missing", "not recorded"), ("flat", "flat, taken as not recorded"), ("derived", "derived")):
        if leads := [lead for lead, word in zip(LEADS, status, strict=False) if word == state]:
            yield f"{', '.join(leads)}: {words}."
    yield from record.get("notes") or ()


def _facts(prediction: Prediction) -> Iterator[tuple[str, str]]:
    record = prediction["record"]
    signal = np.asarray(record["signal"])
    age = record.get("age_years")
    yield "Age", "" if age is None else f"{age:g} years"
    yield "Sex", record.get("sex") or ""
    yield "Recorded", _time(record)
    yield "Device", record.get("device") or ""
    yield "Length", f"{signal.shape[1] / record['sampling_rate_hz']:.4g} s at {record['sampling_rate_hz']:g} Hz"
    yield "File", ", ".join(part for part in (record.get("source"), record.get("format")) if part)
    yield "Model", str(prediction.get("model", {}).get("name", ""))


def _details(prediction: Prediction) -> dict[str, Any]:
    return {key: prediction[key] for key in ("model", "versions") if prediction.get(key)}
