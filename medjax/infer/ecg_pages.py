"""The page of one judged ECG, and its sheets of ECG paper as files of their own."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax.data.ecg.record import EcgRecord
from medjax.data.ecg.rhythm import heart_rate_bpm
from medjax.infer.ecg import EcgModel
from medjax.infer.ecg_settings import EcgPageSettings
from medjax.infer.explanation import Explanation
from medjax.infer.prediction import NO_YES, Output, Prediction
from medjax.models.predictor import Target
from medjax.report.ecg_prediction import prediction_report, prediction_sheet
from medjax.store.runs import shortened

_METHODS = {"gradients": "integrated gradients", "rollout": "attention rollout"}
_SHOWN = ("id", "signal", "sampling_rate_hz", "status", "age_years", "sex", "patient", "device", "time")


class EcgPages:
    """Writes pages into a folder, each under a name of its own.

    facts  "model", "versions" and "command", which every page shows
    """

    def __init__(self, settings: EcgPageSettings, model: EcgModel, facts: Mapping[str, Any], folder: Path):
        self._settings = settings
        self._model = model
        self._facts = facts
        self._folder = folder
        self._taken: set[str] = set()

    def write(self, record: EcgRecord, prediction: Prediction, explanations: Sequence[Explanation]) -> list[str]:
        """Write the page of a record, or one for each method that explained it; returns the names of the files."""
        name, methods = self._name(record), self._settings.methods
        written = []
        for method in methods or ("",):
            stem = f"{name}.{method}" if len(methods) > 1 else name
            page = self._page(record, prediction, {e.target: e for e in explanations if e.method == method})
            for form in self._settings.formats:
                if form == "html":
                    written.append(f"{stem}.html")
                    (self._folder / written[-1]).write_text(prediction_report(page), "utf-8")
                    continue
                explained = [entry for entry in page["predictions"] if entry["explanation"]]
                for entry in explained or (None,):
                    of = f".{_plain(entry['name'])}" if entry and len(explained) > 1 else ""
                    written.append(f"{stem}{of}.{form}")
                    prediction_sheet(page, entry).save(self._folder / written[-1])
        return written

    def _page(
        self, record: EcgRecord, prediction: Prediction, explanations: Mapping[str, Explanation]
    ) -> dict[str, Any]:
        """What report.ecg_prediction asks for."""
        outputs = prediction.outputs.values()
        own = [f"{output.name}: {note}" for output in outputs for note in output.notes]
        targets = {target.name: target for target in self._model.config.targets}
        return {
            "record": {
                **{key: getattr(record, key) for key in (*_SHOWN, "source", "format")},
                "heart_rate_bpm": heart_rate_bpm(record),
                "filters": "as recorded",  # the model's own filters are among its facts
                "notes": [*record.notes, *prediction.notes, *own],
            },
            "predictions": [
                _entry(output, targets[output.name], record.age_years) | _explained(explanations.get(output.name))
                for output in outputs
            ],
            **self._facts,
            "date": time.time(),
            "evaluated": self._model.reading.worth,
            "layout": self._settings.layout,
            "speed_mm_s": self._settings.speed_mm_s,
            "gain_mm_mv": self._settings.gain_mm_mv,
        }

    def _name(self, record: EcgRecord) -> str:
        """The name of the record's file, with that of the record where it differs, and a number where it is taken."""
        stem = Path(record.source).name.partition(".")[0] or "ecg"
        base = _plain(stem if record.id == stem else f"{stem}-{record.id}")
        name, number = base, 1
        while name.lower() in self._taken:
            number += 1
            name = f"{base}-{number}"
        self._taken.add(name.lower())
        return name


def _entry(output: Output, target: Target, age_years: float | None) -> dict[str, Any]:
    """What is said of a target, without its explanation."""
    entry: dict[str, Any] = {"name": output.name, "kind": output.kind}
    bounds = {"low": output.low, "high": output.high}
    if output.kind == "binary":
        entry |= {
            "probability": {"value": output.probability, **bounds},
            "threshold": output.threshold,
            "threshold_origin": output.threshold_origin or "nothing: none is stored",
            "decision": output.positive,
            "classes": target.classes or None,
        }
        if output.possible is not None:
            words = dict(zip(target.classes or NO_YES, target.classes or ("negative", "positive"), strict=True))
            entry |= {"set": [words[label] for label in output.possible], "confidence": output.confidence}
    elif output.kind == "regression":
        entry |= {"value": {"value": output.value, **bounds}, "unit": output.unit}
        if output.gap is not None and age_years is not None:
            entry["true"] = age_years
            entry["corrected"] = None if output.corrected_gap is None else age_years + output.corrected_gap
    else:
        shares = dict(output.probabilities or {})
        entry |= {"classes": list(shares), "probabilities": list(shares.values()), "decision": output.decision}
    return entry


def _explained(explanation: Explanation | None) -> dict[str, Any]:
    if explanation is None:
        return {"explanation": None}
    output, baseline = explanation.output, explanation.baseline
    return {
        "explanation": {
            "method": _METHODS[explanation.method],
            "weights": explanation.weights,
            "seconds": 1 / explanation.sampling_rate_hz,
            "form": "trace" if explanation.method == "gradients" else "bands",
            "deletion": explanation.deletion.to_json(),
            "randomisation": explanation.randomisation.to_json(),
            "verdict": explanation.verdict,
            "gap": explanation.gap,
            "explained": None if output is None or baseline is None else output - baseline,
        }
    }


def _plain(text: str) -> str:
    """A text as part of a file name on any system."""
    return shortened(re.sub(r"[^\w\-]+", "_", text).strip("_") or "ecg")
