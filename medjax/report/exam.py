"""The report of an exam run: a page of one file, and a figure of its summary.

Both take the dict that stands in results.json and draw every proportion on the same axis from 0 to 100 %:

  ├────┆──●────┼─────────┼─────────┤     ● accuracy   ── 95 % interval   ┆ accuracy by guessing

A run of a base and its adapter also shows both side by side (report.variants) and their paired differences
(report.differences). Intervals of whole evaluations and exams are those of the dict (bootstrap over items). For
sections and categories, which may hold a handful of items, the Wilson interval is computed here. The page loads nothing
and shows every key of the record, those it does not know included; text of models and items is escaped. With samples it
holds every question (report.questions), and the one script it allows searches them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import ascii_lowercase
from typing import Any

from markupsafe import Markup

from medjax.report import certainty, differences, drawing, outcomes, pages, questions, variants
from medjax.report.table import display_width

MOST_EXAMPLES = 12
_Z = 1.959963984540054  # two-sided 95 % point of the normal distribution
_FOLD_ABOVE = 4  # evaluations whose breakdowns are shown unfolded
_COLUMN = 14  # categories that stand in one column
_SHOWN_APART = ("evaluations", "comparisons", "languages", "examples")
_DRAWN = ("scores", "normalised", "metrics", "calibration", "difficulty")
_NEEDED = ("id", "task", "language", "protocol", "scores")
_NORMALISATIONS = {"sum": "sum", "token": "per token", "byte": "per byte", "character": "per character"}

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


def exam_report(results: Mapping[str, Any], samples: Iterable[Mapping[str, Any]] = ()) -> str:
    """Return the HTML page of a run.

    results  what results.json of a run holds: "medjax", the record with its evaluations and the examples to show (the
             first 12 are), and "date", seconds since 1970, if known
    samples  objects as in samples.jsonl of the same run: every question, behind a search; without any the examples

    Raises ValueError when the record is missing, an evaluation lacks a field the page is made of, or a sample is of
    another run.
    """
    record = _record(results)
    evaluations = [_evaluation(entry) for entry in record["evaluations"]]
    found = questions.question_data(samples, evaluations)
    script = questions.script() if found else ""
    languages = {entry["id"]: entry["language"] for entry in record["evaluations"]}
    examples = record.get("examples", [])
    paired = [{**e, "language": f"{e['first']}, {e['second']}"} for e in record.get("languages", ())]
    values = {
        "model": record.get("model", {}).get("name", "unnamed model"),
        "date": drawing.date(results.get("date")),
        "facts": _facts(record),
        "evaluations": evaluations,
        "with_sections": any(evaluation["whole"]["parts"] for evaluation in evaluations),
        "fold": len(evaluations) > _FOLD_ABOVE,
        "axis": drawing.axis("0", "50", "100 %"),
        "key": drawing.plot(0.6, 0.3, 0.9, 0.05),
        "outcome_colours": outcomes.colours(),
        "outcomes": outcomes.table([(e["name"], e["protocol"], e["scores"]) for e in evaluations]),
        "variants": _variants(record["evaluations"]),
        "comparisons": differences.rows(record.get("comparisons", ())),
        "difference_axis": differences.axis(record.get("comparisons", ())),
        "languages": differences.rows(paired),
        "language_axis": differences.axis(paired),
        "questions": found,
        "script": script,
        **({"policy": f"{pages.POLICY}; script-src {questions.script_source(script)}"} if script else {}),
        "outcome_filters": [
            ("all", "All"),
            *((name, outcomes.named(name).capitalize()) for name in outcomes.met(e["scores"] for e in evaluations)),
            ("prohibited", "Prohibited pick"),
        ],
        "examples": [_example(example, languages) for example in examples[:MOST_EXAMPLES]],
        "examples_given": len(examples),
        "run_record": list(pages.flat({key: record[key] for key in record if key not in _SHOWN_APART})),
        "command": record.get("command", ""),
    }
    shown = {"outcomes": "Outcomes", "variants": "Models", "comparisons": "Differences", "languages": "Languages"}
    anchors = {"variants": "models", "comparisons": "differences"}
    values["parts"] = [
        ("results", "Results"),
        *((anchors.get(name, name), label) for name, label in shown.items() if values[name]),
        ("evaluation-1", "In detail"),
        *([("questions", "Questions")] if found else [("examples", "Examples")] if examples else []),
        ("protocol", "How to repeat"),
    ]
    return pages.render("exam.html", values)


def summary_figure(results: Mapping[str, Any]) -> str:
    """Return a standalone SVG on white: accuracy, 95 % interval, chance level and verdict of every evaluation.

    Takes the same dict as `exam_report` and raises the same errors.
    """
    record = _record(results)
    evaluations = [_evaluation(entry) for entry in record["evaluations"]]
    names = [drawing.cut_to(evaluation["name"], 32) for evaluation in evaluations]
    remarks = [
        drawing.cut_to(f"{drawing.number(e['whole']['items'])} items · {e['protocol']}", 40) for e in evaluations
    ]
    # pixels a column: the mean of DejaVu Sans, the widest font to fall back on, at sizes 14 bold and 12
    names_shown = [*names, *differences.names(record.get("comparisons", ()))]
    widest = max([8.8 * display_width(name) for name in names_shown] + [7 * display_width(text) for text in remarks])
    left, right = 24 + math.ceil(max(120, widest)) + 20, _WIDTH - 210
    bottom = _TOP + _ROW * len(evaluations)
    paired, more = differences.figure(record.get("comparisons", ()), left, right, bottom + 58)
    model = record.get("model", {}).get("name", "unnamed model")
    parts = [
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}" '
            'font-family="{2}" role="img">\n<title>Accuracy of {3}</title>\n'
            '<rect width="{0}" height="{1}" fill="#ffffff"/>'
        ).format(_WIDTH, bottom + 58 + more, drawing.FONT, model),
        drawing.text(24, 32, drawing.cut_to(model, 70), 18, drawing.INK, weight=600),
        drawing.text(24, 52, "share of questions answered correctly", 12, drawing.MUTED),
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = drawing.position(share, left, right)
        parts.append(drawing.line(x, _TOP, x, bottom, drawing.RULE))
        parts.append(
            drawing.text(x, bottom + 17, f"{share:.0%}".replace("%", " %"), 12, drawing.MUTED, anchor="middle")
        )
    for row, (evaluation, name, remark) in enumerate(zip(evaluations, names, remarks, strict=True)):
        parts += _figure_row(evaluation, name, remark, _TOP + _ROW * (row + 0.5), left, right)
    legend = "●\u00a0accuracy \u2003━\u00a095 % interval \u2003┆\u00a0by guessing"
    parts.append(drawing.text((left + right) / 2, bottom + 42, legend, 12, drawing.MUTED, anchor="middle"))
    return Markup("\n").join([*parts, *paired, Markup("</svg>\n")])


def _figure_row(
    evaluation: Mapping[str, Any], name: str, remark: str, y: float, left: float, right: float
) -> list[Markup]:
    whole = evaluation["whole"]
    accuracy, low, high = (drawing.position(whole[key], left, right) for key in ("accuracy", "low", "high"))
    guess, verdict = drawing.position(whole["chance"], left, right), evaluation["verdict"]
    marks = [
        drawing.text(24, y - 3, name, 14, drawing.INK, weight=600),
        drawing.text(24, y + 13, remark, 12, drawing.MUTED),
        drawing.line(guess, y - 14, guess, y + 14, drawing.MUTED, dashed=True),
        drawing.line(low, y, high, y, drawing.ACCENT, width=3),
        drawing.line(low, y - 5, low, y + 5, drawing.ACCENT, width=1.5),
        drawing.line(high, y - 5, high, y + 5, drawing.ACCENT, width=1.5),
        Markup('<circle cx="{:.2f}" cy="{:g}" r="5" fill="{}"/>').format(accuracy, y, drawing.ACCENT),
        drawing.text(right + 84, y - 3, drawing.percent(whole["accuracy"]), 14, drawing.INK, weight=600, anchor="end"),
        drawing.text(right + 94, y - 3, f"{100 * whole['low']:.1f} – {100 * whole['high']:.1f}", 12, drawing.MUTED),
    ]
    if verdict["tone"] != "none":
        marks.append(drawing.text(right + 94, y + 13, verdict["label"], 12, drawing.TONES[verdict["tone"]], weight=600))
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
        "id": entry["id"],
        "name": " · ".join(entry[key] for key in ("task", "language", "variant") if entry.get(key)),
        "language": entry["language"],
        "protocol": entry["protocol"],
        "limit": entry.get("limit"),
        "whole": whole,
        "verdict": _verdict(scores["by_exam"]),
        "scores": scores,
        "exams": exams if len(exams) > 1 else [],
        "cards": outcomes.cards(scores["by_exam"]),
        "graded": list(_graded(entry)),
        "figures": certainty.figures(entry),
        "breakdowns": _breakdowns(entry),
        "remarks": list(_remarks(entry)),
        "record": list(pages.flat({key: entry[key] for key in entry if key not in _DRAWN})),
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
        "plot": drawing.plot(score["accuracy"], low, high, score["chance"]["accuracy"]),
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
        plot = drawing.plot(share, low, high, guess, bar=True)
        rows.append({"label": label, **total, "accuracy": share, "low": low, "high": high, "plot": plot})
    return rows


def _normalised(entry: Mapping[str, Any], items: int) -> dict[str, dict[str, int]]:
    shares = entry.get("normalised") or {}
    return {_NORMALISATIONS.get(k, k): {"items": items, "correct": round(v * items)} for k, v in shares.items()}


def _variants(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The table of models side by side; None for a run of one."""
    names = [(name, variants.kind(number)) for number, name in enumerate(variants.variants(entries))]
    rows = variants.rows(entries) if len(names) > 1 else []
    return {"names": names, "rows": rows} if rows else None


def _graded(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of what a set is graded by besides accuracy."""
    for name, found in entry.get("metrics", {}).items():
        interval = found["interval"]
        yield {
            **{key: found[key] for key in ("items", "unparsed")},
            "name": name.replace("_", " "),
            "value": _three_digits(found["value"]),
            "interval": "–" if interval is None else " – ".join(map(_three_digits, interval)),
            "chance": _three_digits(found["chance"]),
            "bounds": " to ".join(f"{bound:g}".replace("inf", "∞").replace("-", "−") for bound in found["bounds"]),
        }


def _three_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def _remarks(entry: Mapping[str, Any]) -> Iterator[str]:
    scores, work = entry["scores"], entry.get("work") or {}
    yield f"{drawing.number(scores['correct'])} of {drawing.number(scores['items'])} questions right"
    yield f"{drawing.percent(scores['chance']['accuracy'])} expected by guessing"
    if entry.get("limit") is not None:
        yield f"limited to {drawing.number(entry['limit'])} questions"
    if left_out := entry.get("data", {}).get("left_out_by_protocol"):
        yield f"{drawing.number(left_out)} left out, as the protocol cannot ask them"
    if not_asked := scores.get("not_asked"):
        yield f"{drawing.number(not_asked)} without choices not asked, which counts as wrong"
    if too_long := scores.get("too_long"):
        yield f"{drawing.number(too_long)} longer than the model's context, not sent and worth nothing"
    if cut_off := entry.get("truncated"):
        yield f"{drawing.number(cut_off)} answers cut off at the limit of new tokens"
    plain = scores["text_only"]
    if 0 < plain["items"] < scores["items"]:
        share, shown = drawing.percent(plain["accuracy"]), drawing.number(plain["items"])
        yield f"{drawing.number(plain['correct'])} of the {shown} without an image right ({share})"
    if scores["withdrawn"]:
        yield f"{drawing.number(scores['withdrawn'])} withdrawn questions count in the accuracy, not in the points"
    yield from _repeats(entry)
    if work.get("tokens_requested"):
        saved = drawing.percent(work["tokens_saved"] / work["tokens_requested"])
        yield f"{drawing.number(work['tokens_computed'])} tokens computed, {saved} saved by sharing"
    if work.get("items_per_second"):
        yield f"{work['items_per_second']:.3g} questions/s"


def _repeats(entry: Mapping[str, Any]) -> Iterator[str]:
    """What is said of questions that were asked more than once."""
    if rotation := entry.get("rotation"):
        mean, same = drawing.percent(rotation["mean_accuracy"]), drawing.percent(rotation["consistent"])
        yield f"right means under every shift of the choices; {mean} on average over shifts, {same} answered alike"
    if (agreement := entry.get("agreement")) is not None:
        yield f"{drawing.percent(agreement)} of the replies say what the answer says"
    if forced := entry.get("forced"):
        yield f"{drawing.number(forced)} answers forced after reasoning"
    if drawn := entry.get("samples"):
        alone = drawing.percent(drawn["accuracy"])
        yield f"{drawn['count']} answers drawn at temperature {drawn['temperature']:g}; one alone is right in {alone}"
    for name, found in entry.get("templates", {}).items():
        yield f"template {name} alone: {drawing.percent(found['accuracy'])}"


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, versions, adapter = (record.get(key, {}) for key in ("model", "versions", "adapter"))
    changed = dict.fromkeys(n for e in record["evaluations"] for n in e.get("data", {}).get("unpinned", ()))
    facts = [
        ("Adapter", f"{adapter['name']}, rank {adapter['rank']}" if adapter else ""),
        ("Parameters", drawing.magnitude(model["parameters"]) if model.get("parameters") else ""),
        ("Computed in", model.get("dtype", "")),
        ("Quantised to", model.get("quantisation") or ""),
        ("Keys and values kept in", model.get("kv_cache") or ""),
        ("Devices", record.get("devices", "")),
        ("Wall time", drawing.duration(record["wall_seconds"]) if "wall_seconds" in record else ""),
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
    return {
        **{key: item.get(key, "") for key in ("id", "question", "context")},
        "evaluation": example["evaluation"],
        "lang": languages.get(example["evaluation"], ""),
        "choices": choices,
        "gold": ", ".join(item["answer"]),
        "answered": "nothing that could be read" if picked is None else ", ".join(picked) or "nothing",
        "text": example["text"],
        "tone": outcomes.look(example["outcome"]).tone,
        "label": outcomes.named(example["outcome"]),
    }
