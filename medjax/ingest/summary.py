"""report.json of an ingest: what was read, what was refused, and what the records are like, as plain values.

Counts are over the records that are stored. Lists that can be long are cut; what was refused is whole in refused.jsonl
and everything about each record in index.parquet.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.data.ecg.index import Facts
from medjax.data.ecg.labels import Labels
from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.record import STATUSES
from medjax.ingest.decisions import Decided
from medjax.ingest.reading import Refusal

LISTED = 200  # lines of a list, at most
EINTHOVEN_MV = 0.02  # rounding of three leads stays below
_COMMON = 30  # codes and notes
_ODD = 0.02  # share of a label's values
_NUMBER = re.compile(r"(?<![A-Za-z0-9])[-+]?\d+(\.\d+)?(e[-+]?\d+)?")  # not the 1 of V1


def summarise(
    decided: Decided,
    refused: Sequence[Refusal],
    *,
    files: int,
    passed_over: Mapping[str, int],
    labels: Labels | None,
) -> dict[str, Any]:
    """The report's values, JSON-able.

    files        that were found
    passed_over  ending of a name -> files that are no ECG by name or content
    """
    facts = decided.facts
    without = Counter(refusal.file for refusal in refused)
    stored = {fact.source for fact in facts}
    return {
        "files": {
            "found": files,
            "refused": len(set(without) - stored),
            "with_refused_records": len(set(without)),
            "passed_over": dict(sorted(passed_over.items(), key=lambda pair: (-pair[1], pair[0]))[:LISTED]),
        },
        "records": {"stored": len(facts), "dropped_copies": decided.dropped[:LISTED]},
        "formats": _formats(facts),
        "refused": {
            "count": len(refused),
            "reasons": _common(_without_names(refusal) for refusal in refused),
            "list": [refusal.to_json() for refusal in refused[:LISTED]],
        },
        "leads": {
            lead: {status: sum(fact.status[row] == status for fact in facts) for status in STATUSES}
            for row, lead in enumerate(LEADS)
        },
        "incomplete_records": sum(not set(fact.status) <= {"measured", "derived"} for fact in facts),
        "rates_hz": _counted(fact.sampling_rate_hz for fact in facts),
        "seconds": _counted(_length(fact) for fact in facts),
        "mains_hz": _counted(fact.mains_hz for fact in facts),
        "einthoven": _einthoven(facts),
        "ages": _ages(facts),
        "sexes": dict(Counter(fact.sex or "unknown" for fact in facts)),
        "devices": _common(fact.device or "unknown" for fact in facts),
        "patients": _patients(decided),
        "duplicates": _duplicates(decided),
        "renamed": {"count": len(decided.renamed), "list": dict(list(decided.renamed.items())[:LISTED])},
        "labels": _labels(decided, labels),
        "codes": _common(code for fact in facts for code in fact.codes),
        "notes": _common(_without(note, fact.source, fact.id) for fact in facts for note in fact.notes),
    }


def _common(texts: Any) -> dict[str, int]:
    return dict(Counter(texts).most_common(_COMMON))


def _counted(values: Any) -> dict[str, int]:
    """How often each number occurs, in rising order; JSON has text for keys only."""
    return {f"{value:g}": count for value, count in sorted(Counter(values).items())}


def _without_names(refusal: Refusal) -> str:
    """A reason with the file's own name and numbers taken out, so that equal reasons are counted together."""
    text = f"{refusal.field}: {refusal.reason}" if refusal.field else refusal.reason
    return _without(text, refusal.file, refusal.record)


def _without(text: str, file: str, record: str) -> str:
    for name in sorted({file, file.rpartition("/")[2], record}, key=len, reverse=True):
        text = text if not name or name.isdigit() else text.replace(name, "…")  # numbers go below
    return _NUMBER.sub("…", text)


def _length(fact: Facts) -> float:
    seconds = fact.samples / fact.sampling_rate_hz
    return round(seconds, 1) if seconds < 60 else float(round(seconds))


def _formats(facts: Sequence[Facts]) -> dict[str, dict[str, int]]:
    records = Counter(fact.format for fact in facts)
    files = Counter(form for form, _ in {(fact.format, fact.source) for fact in facts})
    return {form: {"files": files[form], "records": count} for form, count in records.most_common()}


def _einthoven(facts: Sequence[Facts]) -> dict[str, Any]:
    """How well I + III = II holds: records it could be tried on, and those off by more than rounding."""
    errors = [(fact.einthoven_mv, fact.id) for fact in facts if not np.isnan(fact.einthoven_mv)]
    off = sorted((pair for pair in errors if pair[0] > EINTHOVEN_MV), reverse=True)
    return {
        "checked": len(errors),
        "limit_mv": EINTHOVEN_MV,
        "off": len(off),
        "worst": [{"id": name, "mv": round(error, 3)} for error, name in off[:10]],
    }


def _ages(facts: Sequence[Facts]) -> dict[str, Any]:
    ages = np.array([fact.age_years for fact in facts], float)
    decades: dict[str, Counter[str]] = {}
    for fact in facts:
        if not np.isnan(fact.age_years):
            decade = f"{int(fact.age_years // 10) * 10}"
            decades.setdefault(decade, Counter())[fact.sex or "unknown"] += 1
    known = ages[~np.isnan(ages)]
    quartiles = np.percentile(known, (25, 50, 75)).round(1).tolist() if len(known) else []
    ordered = {name: dict(decades[name]) for name in sorted(decades, key=int)}
    return {"known": len(known), "unknown": len(ages) - len(known), "quartiles": quartiles, "decades": ordered}


def _patients(decided: Decided) -> dict[str, Any]:
    facts = decided.facts
    records: dict[str, list[str]] = {}
    for fact in facts:
        if fact.patient:
            records.setdefault(fact.patient, []).append(fact.id)
    several = sorted((pair for pair in records.items() if len(pair[1]) > 1), key=lambda pair: -len(pair[1]))
    return {
        "institution": str(decided.index["institution"][0]) if facts else "",
        "named": len(records),
        "records_without": sum(not fact.patient for fact in facts),
        "several": len(several),
        "list": [{"patient": name, "records": ids[:20], "count": len(ids)} for name, ids in several[:LISTED]],
    }


def _duplicates(decided: Decided) -> dict[str, Any]:
    def lines(exact: bool) -> list[dict[str, Any]]:
        return [
            {
                "first": decided.facts[pair.first].id,
                "second": decided.facts[pair.second].id,
                "correlation": round(pair.correlation, 4),
                "lag_s": round(pair.lag_s, 3),
                "patients_differ": _differ(decided.facts[pair.first].patient, decided.facts[pair.second].patient),
            }
            for pair in decided.twins.pairs
            if pair.exact == exact
        ]

    return {
        "exact": lines(True),
        "near": lines(False),
        "compared": decided.twins.checked,
        "crowded": decided.twins.crowded,
        "recordings": len(set(decided.twins.recording)),
    }


def _differ(first: str, second: str) -> bool:
    return bool(first and second and first != second)


def _labels(decided: Decided, labels: Labels | None) -> dict[str, Any]:
    found = decided.match
    columns = {name: _column(values) for name, values in decided.index["labels"].items()}
    told: dict[str, Any] = {"file": labels.path.name if labels else None, "columns": columns}
    told |= {"labelled": found.labelled if found else 0, "lines": len(labels.keys) if labels else 0}
    for name in ("unknown", "ambiguous"):
        keys = getattr(found, name) if found else []
        told |= {name: len(keys), f"{name}_list": keys[:LISTED]}
    strange: Mapping[str, tuple[int, str]] = labels.strange if labels else {}
    told["not_numbers"] = {name: {"count": count, "first": first} for name, (count, first) in strange.items()}
    return told


def _column(values: np.ndarray) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    if not len(known):
        return {"known": 0}
    binary = bool(np.isin(known, (0, 1)).all())
    told: dict[str, Any] = {"known": len(known), "binary": binary, "mean": float(known.mean())}
    if binary:
        return told | {"positive": int(known.sum())}
    others = known[~np.isin(known, (0, 1))]
    # a handful beside zeros and ones: slips, or rare classes
    told["odd"] = sorted({float(value) for value in others}) if len(others) <= max(1, _ODD * len(known)) else []
    told["odd_count"] = len(others) if told["odd"] else 0
    return told | {"sd": float(known.std()), "least": float(known.min()), "most": float(known.max())}
