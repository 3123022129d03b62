"""The report of an exam run: a page of one file, and a figure of its summary.

Both take the dict that stands in results.json and draw every proportion on the same axis from 0 to 100 %:

  ├────┆──●────┼─────────┼─────────┤     ● accuracy   ── 95 % interval   ┆ accuracy by guessing

Intervals of whole evaluations and exams are those of the dict (bootstrap over items). For sections and categories,
which may hold a handful of items, the Wilson interval is computed here. The page loads nothing, runs no script, and
shows every key of the record, those it does not know included; text of models and items is escaped.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from string import ascii_lowercase
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medjax.report.table import display_width

MOST_EXAMPLES = 12
_Z = 1.959963984540054  # two-sided 95 % point of the normal distribution
_FOLD_ABOVE = 4  # evaluations whose breakdowns are shown unfolded
_COLUMN = 14  # categories that stand in one column
_NEEDED = ("id", "task", "language", "protocol", "scores")
_NORMALISATIONS = {"sum": "sum", "token": "per token", "byte": "per byte", "character": "per character"}

# light colours; the page overrides them by class to follow the reader's colour scheme
_INK, _MUTED, _RULE, _ACCENT = "#1c2430", "#5b6675", "#d5dbe3", "#0b6b8f"
_TONES = {"pass": "#17733a", "fail": "#b3261e", "incomplete": "#8a5a00", "none": _MUTED}
_FONT = "system-ui, 'Segoe UI', 'Hiragino Sans', 'Noto Sans CJK JP', 'Noto Sans JP', sans-serif"

_WIDTH, _ROW, _TOP = 820, 42, 74  # of the figure, pixels


def wilson_interval(correct: int, items: int) -> tuple[float, float]:
    """95 % score interval of a proportion.

    Raises ValueError unless 0 <= correct <= items and items > 0.
    Source: Wilson, Journal of the American Statistical Association 22 (1927) 209.
    """
    if not 0 <= correct <= items or items == 0:
        raise ValueError(f"wilson_interval: got {correct} of {items} items, expected 0 <= correct <= items, items > 0")
    share, spread = correct / items, _Z * _Z / items
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def exam_report(results: Mapping[str, Any]) -> str:
    """Return the HTML page of a run.

    results  what results.json of a run holds: "medjax", the record with its evaluations and the examples to show (the
             first 12 are), and "date", seconds since 1970, if known

    Raises ValueError when the record is missing or an evaluation lacks a field the page is made of.
    """
    record = _record(results)
    evaluations = [_evaluation(entry) for entry in record["evaluations"]]
    languages = {entry["id"]: entry["language"] for entry in record["evaluations"]}
    examples = record.get("examples", [])
    page = Environment(
        loader=PackageLoader("medjax.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters.update(percent=_percent, number=_number)
    return page.get_template("template.html").render(
        model=record.get("model", {}).get("name", "unnamed model"),
        date=_date(results),
        facts=_facts(record),
        evaluations=evaluations,
        with_sections=any(evaluation["whole"]["parts"] for evaluation in evaluations),
        fold=len(evaluations) > _FOLD_ABOVE,
        axis=_axis(),
        key=_plot(0.6, 0.3, 0.9, 0.05),
        examples=[_example(example, languages) for example in examples[:MOST_EXAMPLES]],
        examples_given=len(examples),
        run_record=list(_flat({key: record[key] for key in record if key not in ("evaluations", "examples")})),
        command=record.get("command", ""),
    )


def summary_figure(results: Mapping[str, Any]) -> str:
    """Return a standalone SVG on white: accuracy, 95 % interval, chance level and verdict of every evaluation.

    Takes the same dict as `exam_report` and raises the same errors.
    """
    record = _record(results)
    evaluations = [_evaluation(entry) for entry in record["evaluations"]]
    names = [_cut_to(evaluation["name"], 32) for evaluation in evaluations]
    remarks = [_cut_to(f"{_number(e['whole']['items'])} items · {e['protocol']}", 40) for e in evaluations]
    # pixels a column: the mean of DejaVu Sans, the widest font to fall back on, at sizes 14 bold and 12
    widest = max([8.8 * display_width(name) for name in names] + [7 * display_width(text) for text in remarks])
    left, right = 24 + math.ceil(max(120, widest)) + 20, _WIDTH - 210
    bottom = _TOP + _ROW * len(evaluations)
    model = record.get("model", {}).get("name", "unnamed model")
    parts = [
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}" '
            'font-family="{2}" role="img">\n<title>Accuracy of {3}</title>\n'
            '<rect width="{0}" height="{1}" fill="#ffffff"/>'
        ).format(_WIDTH, bottom + 58, _FONT, model),
        _text(24, 32, _cut_to(model, 70), 18, _INK, weight=600),
        _text(24, 52, "share of questions answered correctly", 12, _MUTED),
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = _position(share, left, right)
        parts.append(_line(x, _TOP, x, bottom, _RULE))
        parts.append(_text(x, bottom + 17, f"{share:.0%}".replace("%", " %"), 12, _MUTED, anchor="middle"))
    for row, (evaluation, name, remark) in enumerate(zip(evaluations, names, remarks, strict=True)):
        parts += _figure_row(evaluation, name, remark, _TOP + _ROW * (row + 0.5), left, right)
    legend = "●\u00a0accuracy \u2003━\u00a095 % interval \u2003┆\u00a0by guessing"
    parts.append(_text((left + right) / 2, bottom + 42, legend, 12, _MUTED, anchor="middle"))
    return Markup("\n").join([*parts, Markup("</svg>\n")])


def _figure_row(
    evaluation: Mapping[str, Any], name: str, remark: str, y: float, left: float, right: float
) -> list[Markup]:
    whole = evaluation["whole"]
    accuracy, low, high = (_position(whole[key], left, right) for key in ("accuracy", "low", "high"))
    guess, verdict = _position(whole["chance"], left, right), evaluation["verdict"]
    marks = [
        _text(24, y - 3, name, 14, _INK, weight=600),
        _text(24, y + 13, remark, 12, _MUTED),
        _line(guess, y - 14, guess, y + 14, _MUTED, dashed=True),
        _line(low, y, high, y, _ACCENT, width=3),
        _line(low, y - 5, low, y + 5, _ACCENT, width=1.5),
        _line(high, y - 5, high, y + 5, _ACCENT, width=1.5),
        Markup('<circle cx="{:.2f}" cy="{:g}" r="5" fill="{}"/>').format(accuracy, y, _ACCENT),
        _text(right + 84, y - 3, _percent(whole["accuracy"]), 14, _INK, weight=600, anchor="end"),
        _text(right + 94, y - 3, f"{100 * whole['low']:.1f} – {100 * whole['high']:.1f}", 12, _MUTED),
    ]
    if verdict["tone"] != "none":
        marks.append(_text(right + 94, y + 13, verdict["label"], 12, _TONES[verdict["tone"]], weight=600))
    return marks


def _record(results: Mapping[str, Any]) -> Mapping[str, Any]:
    record = results.get("medjax") or {}
    if not record.get("evaluations"):
        raise ValueError(
            f"results: got the keys {', '.join(results) or 'none'}, expected 'medjax' with at least one entry under "
            "'evaluations'; give the content of a results.json written by medjax.eval"
        )
    for number, entry in enumerate(record["evaluations"]):
        if missing := [key for key in _NEEDED if key not in entry]:
            raise ValueError(
                f"results: medjax.evaluations[{number}]: got no {', '.join(missing)}, expected {', '.join(_NEEDED)}; "
                "run the evaluation again to write a complete results.json"
            )
    return record


def _evaluation(entry: Mapping[str, Any]) -> dict[str, Any]:
    scores = entry["scores"]
    exams = [
        {"exam": exam, **_whole(score), "verdict": _verdict({exam: score})} for exam, score in scores["by_exam"].items()
    ]
    whole = _whole(scores)
    if len(exams) == 1:  # cut-offs are for one exam
        whole["parts"] = exams[0]["parts"]
    return {
        "name": f"{entry['task']} · {entry['language']}",
        "language": entry["language"],
        "protocol": entry["protocol"],
        "limit": entry.get("limit"),
        "whole": whole,
        "verdict": _verdict(scores["by_exam"]),
        "exams": exams if len(exams) > 1 else [],
        "breakdowns": _breakdowns(entry),
        "remarks": list(_remarks(entry)),
        "record": list(_flat({key: entry[key] for key in entry if key not in ("scores", "normalised")})),
    }


def _whole(score: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the summary or of the table of exams."""
    low, high = score["accuracy_interval"]
    cuts = score.get("verdict", {})
    return {
        **{key: score[key] for key in ("items", "correct", "accuracy", "prohibited", "unparsed")},
        **{key: score[key] for key in ("points", "points_total", "points_share")},
        "low": low,
        "high": high,
        "chance": score["chance"]["accuracy"],
        "prohibited_max": cuts.get("prohibited_max"),
        "plot": _plot(score["accuracy"], low, high, score["chance"]["accuracy"]),
        "parts": {
            name: {"points": score[f"{name}_points"], "total": score[f"{name}_total"], "cut": cuts.get(f"{name}_min")}
            for name in ("required", "general")
            if f"{name}_points" in score
        },
    }


def _verdict(exams: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on one exam with its reasons, or how many of several exams were passed."""
    verdicts = [score["verdict"] for score in exams.values()]
    results = [verdict["result"] for verdict in verdicts]
    tone = next((tone for tone in ("fail", "incomplete", "pass") if tone in results), "none")
    if tone == "none":
        return {"tone": tone, "label": "no cut-off", "reasons": []}
    if len(verdicts) == 1:
        return {"tone": tone, "label": tone, "reasons": verdicts[0]["reasons"]}
    label = f"{results.count('pass')} of {len(results)} passed"
    unfinished = results.count("incomplete")
    return {"tone": tone, "label": label, "reasons": [f"{unfinished} incomplete"] if unfinished else []}


def _breakdowns(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    scores, language = entry["scores"], entry["language"]
    guess = scores["chance"]["accuracy"]
    # most items first: the same order for every model, and intervals widen downwards
    categories = sorted(scores["by_category"].items(), key=lambda pair: (-pair[1]["items"], pair[0]))
    split = len(categories) > _COLUMN
    half = math.ceil(len(categories) / 2) if split else len(categories)
    blocks = (
        ("By section", "Section", language, scores["by_section"]),
        ("By length normalisation", "Log-probability", "en", _normalised(entry, scores["items"])),
        ("By category", "Category", language, dict(categories[:half])),
        ("By category", "Category", language, dict(categories[half:])),
    )
    return [
        {
            **{"title": title, "label": label, "lang": lang, "rows": _bars(groups, guess)},
            "split": split and number == 2,
            "continued": number == 3,
        }
        for number, (title, label, lang, groups) in enumerate(blocks)
        if groups
    ]


def _bars(groups: Mapping[str, Mapping[str, Any]], guess: float) -> list[dict[str, Any]]:
    rows = []
    for label, total in groups.items():
        low, high = wilson_interval(total["correct"], total["items"])
        share = total["correct"] / total["items"]
        plot = _plot(share, low, high, guess, bar=True)
        rows.append({"label": label, **total, "accuracy": share, "low": low, "high": high, "plot": plot})
    return rows


def _normalised(entry: Mapping[str, Any], items: int) -> dict[str, dict[str, int]]:
    shares = entry.get("normalised") or {}
    return {_NORMALISATIONS.get(k, k): {"items": items, "correct": round(v * items)} for k, v in shares.items()}


def _remarks(entry: Mapping[str, Any]) -> Iterator[str]:
    scores, work = entry["scores"], entry.get("work") or {}
    yield f"{_number(scores['correct'])} of {_number(scores['items'])} questions right"
    yield f"{_percent(scores['chance']['accuracy'])} expected by guessing"
    if entry.get("limit") is not None:
        yield f"limited to {_number(entry['limit'])} questions"
    if left_out := entry.get("data", {}).get("left_out_by_protocol"):
        yield f"{_number(left_out)} left out, as the protocol cannot ask them"
    if cut_off := entry.get("truncated"):
        yield f"{_number(cut_off)} answers cut off at the limit of new tokens"
    plain = scores["text_only"]
    if 0 < plain["items"] < scores["items"]:
        share = _percent(plain["accuracy"])
        yield f"{_number(plain['correct'])} of the {_number(plain['items'])} without an image right ({share})"
    if scores["withdrawn"]:
        yield f"{_number(scores['withdrawn'])} withdrawn questions count in the accuracy, not in the points"
    if work.get("tokens_requested"):
        saved = _percent(work["tokens_saved"] / work["tokens_requested"])
        yield f"{_number(work['tokens_computed'])} tokens computed, {saved} saved by sharing"
    if work.get("items_per_second"):
        yield f"{work['items_per_second']:.3g} questions/s"


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, versions = record.get("model", {}), record.get("versions", {})
    changed = dict.fromkeys(n for e in record["evaluations"] for n in e.get("data", {}).get("unpinned", ()))
    facts = [
        ("Parameters", _magnitude(model["parameters"]) if model.get("parameters") else ""),
        ("Computed in", model.get("dtype", "")),
        ("Devices", record.get("devices", "")),
        ("Wall time", _duration(record["wall_seconds"]) if "wall_seconds" in record else ""),
        ("medjax", versions.get("medjax", "")),
        ("Data differ from the published files", ", ".join(changed)),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _example(example: Mapping[str, Any], languages: Mapping[str, str]) -> dict[str, Any]:
    item, picked = example["item"], example["picked"]
    choices = [
        {
            "letter": letter,
            "text": text,
            "gold": letter in item["answer"],
            "picked": letter in (picked or ()),
            "prohibited": letter in item.get("prohibited", ()),
        }
        for letter, text in zip(ascii_lowercase, item["choices"], strict=False)
    ]
    if example["correct"]:
        tone, label = "pass", "right"
    else:
        tone, label = ("incomplete", "unparsed") if picked is None else ("fail", "wrong")
    return {
        **{key: item.get(key, "") for key in ("id", "question", "context")},
        "evaluation": example["evaluation"],
        "lang": languages.get(example["evaluation"], ""),
        "choices": choices,
        "gold": ", ".join(item["answer"]),
        "answered": "nothing that could be read" if picked is None else ", ".join(picked) or "nothing",
        "text": example["text"],
        "tone": tone,
        "label": label,
    }


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted key and text of every leaf."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        yield path, ", ".join(map(str, value))
    else:
        yield path, "none" if value in (None, {}, [], ()) else str(value)


def _plot(accuracy: float, low: float, high: float, guess: float, *, bar: bool = False) -> Markup:
    """A proportion on an axis of 0 to 100 % that fills the width it is given: coordinates are percentages."""
    # the inner svg starts at half the height, so that marks keep their size in rows of any height
    ticks = Markup("").join(
        Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="100%" stroke="{1}"/>').format(tick, _RULE)
        for tick in (0, 25, 50, 75, 100)
    )
    body = (
        Markup('<rect class="bar" x="0" y="-6" width="{0:.2f}%" height="12" fill="{1}" fill-opacity="0.3"/>')
        if bar
        else Markup('<circle class="dot" cx="{0:.2f}%" cy="0" r="4.5" fill="{1}"/>')
    ).format(100 * accuracy, _ACCENT)
    span = Markup("").join(
        Markup('<line class="{}" x1="{:.2f}%" x2="{:.2f}%" y1="{}" y2="{}" stroke="{}"/>').format(name, *at, _ACCENT)
        for name, at in (
            ("interval", (100 * low, 100 * high, 0, 0)),
            ("cap", (100 * low, 100 * low, -4, 4)),
            ("cap", (100 * high, 100 * high, -4, 4)),
        )
    )
    chance = Markup('<line class="chance" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="100%" stroke="{1}"/>')
    label = f"{_percent(accuracy)}, 95 % interval {_percent(low)} to {_percent(high)}, {_percent(guess)} by guessing"
    return Markup('<svg class="plot" role="img" aria-label="{}">{}{}<svg y="50%">{}{}</svg></svg>').format(
        label, ticks, chance.format(100 * guess, _MUTED), body, span
    )


def _axis() -> Markup:
    labels = [
        Markup('<text x="{}%" y="100%" dy="-3" text-anchor="{}">{}</text>').format(at, anchor, text)
        for at, anchor, text in ((0, "start", "0"), (50, "middle", "50"), (100, "end", "100 %"))
    ]
    return Markup('<svg class="axis" aria-hidden="true">{}</svg>').format(Markup("").join(labels))


def _position(share: float, left: float, right: float) -> float:
    return left + share * (right - left)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dashed: bool = False) -> Markup:
    dash = Markup(' stroke-dasharray="3 3"') if dashed else ""
    return Markup('<line x1="{:.2f}" y1="{:g}" x2="{:.2f}" y2="{:g}" stroke="{}" stroke-width="{:g}"{}/>').format(
        x1, y1, x2, y2, colour, width, dash
    )


def _text(x: float, y: float, text: str, size: int, colour: str, *, weight: int = 400, anchor: str = "start") -> Markup:
    return Markup(
        '<text x="{:.2f}" y="{:g}" font-size="{}" fill="{}" font-weight="{}" text-anchor="{}">{}</text>'
    ).format(x, y, size, colour, weight, anchor, text)


def _cut_to(text: str, columns: int) -> str:
    if display_width(text) <= columns:
        return text
    while display_width(text) > columns - 1:
        text = text[:-1]
    return text + "…"


def _date(results: Mapping[str, Any]) -> str:
    if not results.get("date"):
        return ""
    return datetime.fromtimestamp(results["date"], UTC).strftime("%Y-%m-%d %H:%M UTC")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}\u00a0%"


def _number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}".rstrip("0").rstrip(".")


def _magnitude(count: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.4g}\u00a0{letter}"
    return str(count)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
