"""The page of an ingest: what was read, what was refused and why, and what the records are like.

One file that loads nothing and runs no script; names and reasons from files are escaped.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from medjax.report import drawing
from medjax.report.pages import compact, flat, render

_SHOWN = 40  # lines of a table; more are in the files beside the page
_SEXES = ("female", "male", "unknown")
_TONES = {"female": "held", "male": "accent", "unknown": "light"}
_COLOURS = {"held": "#c2570c", "accent": drawing.ACCENT, "light": "#9cc7d6"}
_BARS = (360, 128, 22)  # pixels of the histogram: width, height of the tallest, foot

Report = Mapping[str, Any]


def ingest_report(report: Report, examples: Sequence[tuple[str, str]] = ()) -> str:
    """Return the HTML page.

    report    as medjax.ingest writes it into report.json
    examples  title and SVG of recordings
    """
    return render(
        "ingest.html",
        {
            "name": report["name"],
            "date": drawing.date(report["date"]),
            "facts": [(name, value) for name, value in _facts(report) if value],
            "warnings": list(_warnings(report)),
            "refused": report["refused"],
            "passed_over": list(report["files"]["passed_over"].items())[:_SHOWN],
            "refused_list": report["refused"]["list"][:_SHOWN],
            "formats": report["formats"],
            "leads": _leads(report),
            "tables": [table for table in _tables(report) if table["rows"]],
            "ages": _histogram(report["ages"]["decades"]),
            "age_line": _age_line(report),
            "copies": _copies(report),
            "compared": report["duplicates"]["compared"],
            "crowded": report["duplicates"]["crowded"],
            "patients": report["patients"],
            "patient_list": report["patients"]["list"][:_SHOWN],
            "labels": report["labels"],
            "label_rows": [_label(name, column) for name, column in report["labels"]["columns"].items()],
            "label_remarks": list(_label_remarks(report["labels"])),
            "renamed": report["renamed"],
            "renamed_list": list(report["renamed"]["list"].items())[:_SHOWN],
            "einthoven": report["einthoven"],
            "examples": [(title, Markup(svg)) for title, svg in examples],
            "command": report["command"],
            "record": list(flat({k: report[k] for k in ("digest", "identity", "versions")}, shown=compact)),
        },
    )


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    yield "Records", f"{report['records']['stored']:,}"
    yield "Recordings, copies counted once", f"{report['duplicates']['recordings']:,}"
    yield "Patients with a name", f"{report['patients']['named']:,}"
    yield "Institution of the patients", report["patients"]["institution"]
    yield "Files", f"{report['files']['found']:,}"
    yield "Refused", f"{report['refused']['count']:,}"
    yield "Passed over", f"{sum(report['files']['passed_over'].values()):,}"
    yield "Time", drawing.duration(report["wall_seconds"])


def _warnings(report: Report) -> Iterator[str]:
    """What somebody must know before training on this."""
    patients, copies, labels = report["patients"], report["duplicates"], report["labels"]
    if patients["records_without"]:
        count = patients["records_without"]
        yield (
            f"{_plural(count, 'record names', 'records name')} no patient. Each counts as a patient of its own: that "
            "nobody is both in training and in test cannot be proved for them, and one may change sides when a copy of "
            "it is added."
        )
    if clash := sum(pair["patients_differ"] for pair in (*copies["exact"], *copies["near"])):
        yield (f"{_plural(clash, 'pair', 'pairs')} of copies carry different patients: one of the two names is wrong.")
    if report["einthoven"]["off"]:
        yield (
            f"{_plural(report['einthoven']['off'], 'record breaks', 'records break')} I + III = II by more than "
            f"{report['einthoven']['limit_mv']} mV: gains or leads may be mixed up."
        )
    if labels["file"] and not labels["labelled"]:
        yield f"No line of {labels['file']} names a record."
    if report["records"]["dropped_copies"]:
        yield f"{_plural(len(report['records']['dropped_copies']), 'exact copy', 'exact copies')} left out."


def _leads(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "lead": lead,
            "counts": [counts[status] for status in ("measured", "derived", "flat", "missing")],
        }
        for lead, counts in report["leads"].items()
    ]


def _tables(report: Report) -> Iterator[dict[str, Any]]:
    """Small tables of counts: title, and rows of name and count."""
    yield {"title": "Sampling rate, Hz", "rows": _most(report["rates_hz"])}
    yield {"title": "Length, s", "rows": _most(report["seconds"])}
    mains = {"none seen" if name == "0" else f"{name} Hz": count for name, count in report["mains_hz"].items()}
    yield {"title": "Hum of the mains", "rows": _most(mains)}
    yield {"title": "Device", "rows": _most(report["devices"]) if set(report["devices"]) != {"unknown"} else []}
    yield {"title": "Codes in the files, most frequent", "rows": _most(report["codes"], 15)}
    yield {"title": "Marked or corrected", "rows": _most(report["notes"], 15)}


def _most(counts: Mapping[str, int], shown: int = 8) -> list[tuple[str, int]]:
    rows = sorted(counts.items(), key=lambda pair: -pair[1])
    rest = sum(count for _, count in rows[shown:])
    return rows[:shown] + ([(_plural(len(rows) - shown, "other", "others"), rest)] if rest else [])


def _age_line(report: Report) -> str:
    ages, sexes = report["ages"], report["sexes"]
    parts = [f"{sexes[sex]:,} {sex if sex != 'unknown' else 'of unknown sex'}" for sex in _SEXES if sexes.get(sex)]
    if ages["quartiles"]:
        low, middle, high = ages["quartiles"]
        parts.append(f"median age {middle:g} years, quartiles {low:g} and {high:g}")
    if ages["unknown"]:
        parts.append(f"age unknown in {ages['unknown']:,}")
    return "; ".join(parts) + "."


def _histogram(decades: Mapping[str, Mapping[str, int]]) -> Markup:
    """Records by decade of age, sexes on top of each other; nothing where no age is known."""
    if not decades:
        return Markup("")
    width, height, foot = _BARS
    first, last = int(next(iter(decades))) // 10, int(list(decades)[-1]) // 10
    tallest = max(sum(counts.values()) for counts in decades.values())
    step = width / (last - first + 1)
    parts = []
    for number in range(first, last + 1):
        counts, left, base = decades.get(str(10 * number), {}), step * (number - first), height + 16.0
        for sex in _SEXES:
            tall = height * counts.get(sex, 0) / tallest
            base -= tall
            if tall:
                parts.append(
                    Markup(
                        '<rect class="area {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"/>'
                    ).format(_TONES[sex], left + 1.5, base, step - 3, tall, _COLOURS[_TONES[sex]])
                )
        middle = left + step / 2
        total = sum(counts.values())
        if total:
            parts.append(_text(middle, base - 4, f"{total:,}", "muted"))
        parts.append(_text(middle, height + 16 + foot - 7, f"{10 * number}s", "muted"))
    label = "; ".join(f"{name} to {int(name) + 9} years: {sum(counts.values())}" for name, counts in decades.items())
    return Markup(
        '<svg class="figure ages" viewBox="0 0 {} {}" role="img" aria-label="Records by age: {}">{}</svg>'
    ).format(width, height + 16 + foot, label, Markup("").join(parts))


def _text(x: float, y: float, text: str, kind: str) -> Markup:
    return Markup(
        '<text class="{}" x="{:.1f}" y="{:.1f}" font-size="10.5" text-anchor="middle" fill="{}">{}</text>'
    ).format(kind, x, y, drawing.MUTED, text)


def _copies(report: Report) -> list[dict[str, Any]]:
    copies = report["duplicates"]
    rows = [{**pair, "kind": "exact"} for pair in copies["exact"]] + [
        {**pair, "kind": "altered"} for pair in copies["near"]
    ]
    return rows[:_SHOWN]


def _label(name: str, column: Mapping[str, Any]) -> dict[str, Any]:
    if not column["known"]:
        return {"name": name, "known": 0, "positive": "", "share": None, "rest": "no value"}
    if column["binary"]:
        return {
            **{"name": name, "known": column["known"], "positive": f"{column['positive']:,}"},
            **{"share": column["mean"], "rest": drawing.percent(column["mean"])},
        }
    mean, sd, least, most = (compact(column[key]) for key in ("mean", "sd", "least", "most"))
    rest = f"mean {mean}, SD {sd}, {least} to {most}"
    return {"name": name, "known": column["known"], "positive": "", "share": None, "rest": rest}


def _label_remarks(labels: Mapping[str, Any]) -> Iterator[str]:
    if labels["file"]:
        labelled = _plural(labels["labelled"], "record", "records")
        yield f"{labels['lines']:,} lines of {labels['file']}; {labelled} labelled."
    for kind, what in (
        ("unknown", "for records that are not here, left out"),
        ("ambiguous", "for an id that several records have, left out; a column path tells them apart"),
    ):
        if labels[kind]:
            some = ", ".join(map(str, labels[f"{kind}_list"][:8])) + (" …" if labels[kind] > 8 else "")
            yield f"{_plural(labels[kind], 'line', 'lines')} {what}: {some}."
    for name, told in labels["not_numbers"].items():
        cells = _plural(told["count"], "cell is", "cells are")
        yield f"{name}: {cells} no number and left unknown, the first in {told['first']}."


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
