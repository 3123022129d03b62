"""The report of an audit: exam items found in training data, both texts side by side with what agrees marked.

It takes what eval.audit.audit returns. The page loads nothing and runs no script; text of items and training data is
escaped.
"""

from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any

from markupsafe import Markup

from medjax.report import drawing, pages
from medjax.report.headlines import metric_label, no_interval
from medjax.report.outcomes import accuracy_items

MOST_MATCHES = 500  # that the page shows, the surest first; all stand in audit.json
_LEVELS = {"exact": "to the letter", "normalised": "same letters", "near": "near duplicate", "context": "context alone"}
_CONTEXTS = {
    "same record": "with its context",
    "another record": "its context in another",
    "not found": "without its context",
}
_MOVED = {"matched_minus_without": "found − others", "all_minus_without": "all − others"}
_PARTS = {"all": "all items", "without": "without those found", "matched": "those found"}


def audit_report(found: Mapping[str, Any]) -> str:
    """Return the HTML page."""
    levels = list(_LEVELS)
    order = sorted(found["matches"], key=lambda match: (levels.index(match["level"]), -match["containment"]))
    values = {
        "train": found["train"],
        "tasks": found["tasks"],
        "contexts": any(task["contexts"] for task in found["tasks"]),
        "records": found["records"],
        "letters": f"{found['letters'] / 1e6:,.1f} million" if found["letters"] >= 1e5 else f"{found['letters']:,}",
        "thresholds": found["thresholds"],
        "axis": drawing.axis("0", "50", "100 %"),
        "runs": [_run(run) for run in found["runs"]],
        "matches": [_match(match) for match in order[:MOST_MATCHES]],
        "count": len(order),
        "unchecked": [task for task in found["tasks"] if task["unchecked"]],
        "not_alone": [task for task in found["tasks"] if task["not_alone"]],
    }
    return pages.render("audit.html", values)


def marked(text: str, spans: Sequence[Sequence[int]]) -> Markup:
    """The text, escaped, with a <mark> around each span.

    spans  first character and last + 1 of each, in order and apart
    """
    parts, done = [], 0
    for first, last in spans:
        parts.append(Markup("{}<mark>{}</mark>").format(text[done:first], text[first:last]))
        done = last
    return Markup("").join([*parts, text[done:]])


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    parts = _PARTS if run["matched"]["items"] else {"all": "all items, none found"}
    for part, name in parts.items():
        score = run[part]
        low, high = score["accuracy_interval"] or (0.0, 0.0)
        rows.append(
            {
                "name": name,
                "count": score["items"],
                "accuracy": score["accuracy"],
                "of": f" of {drawing.number(counted)}" if (counted := accuracy_items(score)) < score["items"] else "",
                "interval": f"{100 * low:.1f} – {100 * high:.1f}" if score["accuracy_interval"] else "",
                # no guess is marked: the line stands at the edge
                "plot": drawing.marks((score["accuracy"], low, high), 0.0, name) if score["accuracy_interval"] else "",
                "points": f"{drawing.number(score['points'])} / {drawing.number(score['points_total'])}",
                "graded": [_graded(name, metric) for name, metric in score["metrics"].items()],
            }
        )
    has_metrics = any(row["graded"] for row in rows)
    return {
        **{"name": run["label"], "evaluation": run["evaluation"], "rows": rows, "has_metrics": has_metrics},
        "differences": [_difference(run["differences"], *part) for part in _MOVED.items()]
        if run["differences"]
        else [],
    }


def _difference(entries: Sequence[Mapping[str, Any]], key: str, name: str) -> dict[str, Any]:
    """By how much two of the scores above are apart."""
    by_metric = {entry["metric"]: entry[key] for entry in entries}
    accuracy = _signed(by_metric.pop("accuracy"), 100, 1)
    graded = [{"name": metric_label(metric), **_signed(each, 1, 3)} for metric, each in by_metric.items()]
    return {"name": name, "accuracy": accuracy, "graded": graded}


def _signed(difference: Mapping[str, Any], factor: int, digits: int) -> dict[str, str]:
    def shown(value: float) -> str:
        text = f"{factor * value:+.{digits}f}"
        return text.replace("-", "\u2212") if float(text) else text.lstrip("+-")

    if difference["value"] is None:
        return {"value": "–", "interval": ""}
    ends = drawing.between(*map(shown, difference["interval"])) if difference["interval"] else ""
    return {"value": shown(difference["value"]), "interval": ends or f"no interval: {difference['no_interval']}"}


def _graded(name: str, metric: Mapping[str, Any]) -> dict[str, str]:
    """What a set is graded by besides accuracy, over some of its items."""
    value, ends = metric["value"], metric["interval"]
    return {
        "name": metric_label(name),
        "value": "–" if value is None else f"{value:.3f}".replace("-", "\u2212"),
        "interval": drawing.between(*(f"{end:.3f}" for end in ends)) if ends else no_interval(metric),
    }


def _match(match: Mapping[str, Any]) -> dict[str, Any]:
    asked, excerpt = match["asked"], match["excerpt"]
    before, after = excerpt["cut"]
    place = " · ".join(part for part in (match["task"], match["language"], match["exam"]) if part)
    return {
        **{key: match[key] for key in ("item", "record", "where", "level", "others")},
        "place": place,
        "lang": match["language"],
        "label": _LEVELS[match["level"]],
        "beside": _CONTEXTS.get(match["context"], ""),
        "containment": f"{100 * match['containment']:.0f} %",
        "jaccard": f"{match['jaccard']:.2f}",
        "more": match["records"] - 1,
        "context": marked(**_spans(asked["context"])) if "context" in asked else "",
        "question": marked(**_spans(asked["question"])),
        "choices": list(zip(ascii_lowercase, (marked(**_spans(choice)) for choice in asked["choices"]), strict=False)),
        "text": Markup("{}{}{}").format(
            "…" if before else "", marked(excerpt["text"], excerpt["marks"]), "…" if after else ""
        ),
    }


def _spans(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": part["text"], "spans": part["marks"]}
