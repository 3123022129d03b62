"""What a model says of one ECG: its outputs made into probabilities, decisions and numbers that can be acted on.

  outputs of the windows -> their mean
  binary      logit -> calibrated probability with interval, decision at the stored threshold, conformal set of labels
  regression  -> value in its unit with the sd of the errors; of an age also the gap to the true one, raw and corrected
              for regression to the mean
  ordinal     -> probability of each class

What was not fitted on validation data is not made up: the field is None and a note says so.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.record import EcgRecord
from medjax.data.ecg.signal import MOST_WINDOWS, Preprocessing
from medjax.models.predictor import PredictorConfig, Target
from medjax.statistics.agreement import LIMIT, GapCorrection
from medjax.statistics.calibration import sigmoid
from medjax.statistics.detector import DetectorRule

CONFIDENCE = 0.9  # of conformal sets, where the checkpoint holds it
NO_YES = ("no", "yes")


@dataclass(frozen=True)
class Output:
    """What is said of one target; fields that its kind does not have, or nothing was stored for, are None.

    raw               mean over the windows of what the model gives: logits, or (value - mean) / sd
    probability       binary: of yes, calibrated where a calibration is stored
    value, unit       regression: the number; ordinal: the place of the most probable class
    low, high         95 % interval: of the probability as far as the calibration is uncertain; of the value by its sd
    decision          binary: yes or no; ordinal: the most probable class; by name
    positive          binary: whether the probability reaches the threshold
    threshold         of the probability, and how it was chosen
    possible          labels that cannot be ruled out at this confidence; several or none: the model cannot tell
    probabilities     ordinal: class -> probability
    sd                of the errors of the value on validation data
    gap               value minus true age, and the same corrected for regression to the mean; years
    notes             what must be known to read this
    """

    name: str
    kind: str
    raw: tuple[float, ...]
    probability: float | None = None
    value: float | None = None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    decision: str | None = None
    positive: bool | None = None
    threshold: float | None = None
    threshold_origin: str = ""
    possible: tuple[str, ...] | None = None
    confidence: float | None = None
    probabilities: Mapping[str, float] | None = None
    sd: float | None = None
    gap: float | None = None
    corrected_gap: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """What is said of one record.

    id, source  of the record
    refused     why it was not judged, one sentence; None when it was
    leads       that the model used
    windows     how many stretches of the record were judged and averaged
    outputs     target -> Output; empty when refused
    notes       what of the record the model could not use as it should
    """

    id: str
    source: str
    refused: str | None
    leads: tuple[str, ...]
    windows: int
    outputs: Mapping[str, Output]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; fields of an output that its kind does not have are left out."""
        outputs = {
            name: {key: value for key, value in asdict(output).items() if value not in (None, "", ()) and key != "name"}
            for name, output in self.outputs.items()
        }
        return {**asdict(self), "leads": list(self.leads), "notes": list(self.notes), "outputs": outputs}


@dataclass(frozen=True)
class Reading:
    """How outputs are read.

    leads      that the model may use: those of its preprocessing that training saw
    detectors  target -> its rule
    gaps       target -> how its gap to the true age is corrected
    sds        target -> sd of its errors on validation data
    areas      target -> AUROC on validation data as stored: value, low, high, records, positive
    """

    config: PredictorConfig
    leads: tuple[str, ...]
    detectors: Mapping[str, DetectorRule]
    gaps: Mapping[str, GapCorrection]
    sds: Mapping[str, float]
    areas: Mapping[str, Mapping[str, Any]]

    @classmethod
    def from_facts(cls, config: PredictorConfig, facts: Mapping[str, Any]) -> "Reading":
        """Raises KeyError, TypeError or ValueError for facts that are not as infer.ecg describes them."""
        kinds = {target.name: target.kind for target in config.targets}
        rules, errors = facts.get("rules", {}), facts.get("errors", {})
        if unknown := sorted({*rules, *errors} - set(kinds)):
            raise ValueError(f"rules: got {', '.join(unknown)}, expected the targets {', '.join(kinds)}")
        preprocessed = tuple(facts["preprocessing"]["leads"])
        trained = facts.get("leads", preprocessed)
        leads = tuple(lead for lead in preprocessed if lead in trained)
        if not leads or not set(trained) <= set(LEADS):
            raise ValueError(
                f"leads: got {' '.join(trained) or 'none'}, expected some of those of the preprocessing, "
                f"{' '.join(preprocessed)}"
            )
        return cls(
            config,
            leads,
            {name: DetectorRule.from_json(rule) for name, rule in rules.items() if kinds[name] == "binary"},
            {name: GapCorrection.from_json(rule) for name, rule in rules.items() if kinds[name] == "regression"},
            {name: float(error["sd"]) for name, error in errors.items()},
            facts.get("validation", {}),
        )

    @property
    def worth(self) -> str:
        """How well detectors told the classes apart on validation data, in a sentence; "" where nothing is stored."""
        parts = []
        for name, area in self.areas.items():
            if area["value"] is None:
                parts.append(f"{name} not known ({area['reason']})")
                continue
            between = f" ({area['low']:.2f}–{area['high']:.2f})" if area["low"] is not None else ""
            parts.append(
                f"{name} AUROC {area['value']:.2f}{between}, {area['records']:,} records, {area['positive']:,} positive"
            )
        return f"On the validation patients of training: {'; '.join(parts)}. 0.5 is guessing." if parts else ""

    def read(self, record: EcgRecord, outputs: np.ndarray, used: np.ndarray, p: Preprocessing) -> Prediction:
        """Make a prediction.

        outputs  [windows, width] of the model
        used     [leads] bool, leads of p that hold something
        """
        leads = tuple(lead for lead, there in zip(p.leads, used, strict=True) if there)
        if not np.isfinite(outputs).all():
            return refused(record, "got no finite number from the model, expected one; its weights are damaged.")
        found = {
            target.name: self.of_target(target, outputs[:, self.config.columns[target.name]], record.age_years)
            for target in self.config.targets
        }
        notes = self._notes(record, leads, len(outputs), p)
        return Prediction(record.id, record.source, None, leads, len(outputs), found, tuple(notes))

    def of_target(self, target: Target, outputs: np.ndarray, age_years: float | None) -> Output:
        """What is said of one target by its outputs [windows, width of the target]."""
        mean = outputs.mean(0)
        raw = tuple(float(value) for value in mean)
        if target.kind == "binary":
            return self._binary(target, raw, outputs[:, 0])
        if target.kind == "regression":
            return self._regression(target, raw, age_years)
        above = sigmoid(mean)
        shares = np.concatenate([[1.0], above]) - np.concatenate([above, [0.0]])
        place = int(shares.argmax())
        return Output(
            target.name,
            target.kind,
            raw,
            value=float(place),
            decision=target.classes[place],
            probabilities=dict(zip(target.classes, shares.tolist(), strict=True)),
            notes=("not calibrated: a calibration of ordered classes is not made",),
        )

    def shown(self, target: Target, raw: np.ndarray) -> np.ndarray:
        """Mean outputs [...] of a target of one output as they are shown: probabilities, or values in their unit."""
        if target.kind == "binary":
            rule = self.detectors.get(target.name)
            return rule.probability(raw) if rule else sigmoid(raw)
        return raw * (target.sd or 1.0) + (target.mean or 0.0)

    def _binary(self, target: Target, raw: tuple[float, ...], logits: np.ndarray) -> Output:
        rule, names = self.detectors.get(target.name), target.classes or NO_YES
        probability = float(self.shown(target, np.array(raw[0])))
        threshold = rule.threshold.value if rule else 0.5
        positive = probability >= threshold
        notes = []
        ends = rule.interval(raw[0]) if rule else None
        if rule is None or rule.calibration.method == "none":
            why = f": {rule.calibration.reason}" if rule and rule.calibration.reason else ""
            notes.append(f"not calibrated{why or ': nothing is stored'}; the probability is the bare sigmoid")
        elif rule.calibration.reason:
            notes.append(f"calibration: {rule.calibration.reason}")
        if rule is None or rule.threshold.reason:
            notes.append(f"threshold {threshold:g}: {rule.threshold.reason if rule else 'none is stored'}")
        each = self.shown(target, logits) >= threshold
        if each.any() and not each.all():
            notes.append(f"{int(each.sum())} of {len(each)} windows alone are called {names[1]}")
        possible, confidence = None, None
        if rule and rule.conformal:
            confidence = min(rule.conformal.confidences, key=lambda known: abs(known - CONFIDENCE))
            inside = rule.conformal.apply([probability], confidence)[0]
            possible = tuple(name for name, there in zip(names, inside, strict=True) if there)
        return Output(
            target.name,
            target.kind,
            raw,
            probability=probability,
            low=float(ends[0]) if ends else None,
            high=float(ends[1]) if ends else None,
            decision=names[int(positive)],
            positive=bool(positive),
            threshold=threshold,
            threshold_origin=rule.threshold.story if rule else "",
            possible=possible,
            confidence=confidence,
            notes=tuple(notes),
        )

    def _regression(self, target: Target, raw: tuple[float, ...], age_years: float | None) -> Output:
        value, sd = float(self.shown(target, np.array(raw[0]))), self.sds.get(target.name)
        notes = [] if sd is not None else ["no interval: the sd of its errors on validation data is not stored"]
        gap = corrected = None
        if target.name == "age" and age_years is not None:
            correction, gap = self.gaps.get(target.name), value - age_years
            if correction and not correction.reason:
                corrected = float(correction.apply(value, age_years)) - age_years
            else:
                why = correction.reason if correction else "no correction is stored"
                notes.append(f"gap not corrected for regression to the mean: {why}")
        return Output(
            target.name,
            target.kind,
            raw,
            value=value,
            unit=target.unit,
            low=None if sd is None else value - LIMIT * sd,
            high=None if sd is None else value + LIMIT * sd,
            sd=sd,
            gap=gap,
            corrected_gap=corrected,
            notes=tuple(notes),
        )

    def _notes(self, record: EcgRecord, leads: tuple[str, ...], windows: int, p: Preprocessing) -> list[str]:
        notes, seconds = [], p.samples / p.sampling_rate_hz
        if absent := [lead for lead in self.leads if lead not in leads]:
            notes.append(f"judged by {len(leads)} of {len(self.leads)} leads; without {' '.join(absent)}")
        measured = {lead for lead, usable in zip(LEADS, record.usable, strict=True) if usable}
        if untrained := [lead for lead in p.leads if lead in measured and lead not in self.leads]:
            notes.append(f"leads {' '.join(untrained)} left out: the model was not trained on them")
        if record.sampling_rate_hz < p.sampling_rate_hz:
            notes.append(
                f"recorded at {record.sampling_rate_hz:g} Hz, the model expects {p.sampling_rate_hz:g} Hz or more: "
                f"what lies above {record.sampling_rate_hz / 2:g} Hz is not in it"
            )
        if record.duration_s < 0.95 * seconds:
            notes.append(f"{record.duration_s:.3g} s, the model expects {seconds:.3g} s: the rest is empty")
        if record.duration_s > 1.05 * MOST_WINDOWS * seconds:
            notes.append(f"judged by {windows} stretches of {seconds:.3g} s out of {record.duration_s:.4g} s")
        return notes


def refused(record: EcgRecord, reason: str) -> Prediction:
    """The prediction of a record that was not judged; reason: one sentence, got … expected …"""
    return Prediction(record.id, record.source, reason, (), 0, {})
