"""The report of an exam run: a page of one file.

It takes the dict that stands in results.json and draws every proportion on the same axis from 0 to 100 %:

  ├────┆──●────┼─────────┼─────────┤     ● accuracy   ── 95 % interval   ┆ accuracy by guessing

A set that is graded by another figure (kappa, F1, correlation, BLEU) stands in a table of its own, on the scale of that
figure (report.headlines). A run of a base and its adapter also shows both side by side (report.variants) and their
paired differences (report.differences). Accuracies have Wilson's interval: of whole evaluations and exams that of the
dict, of sections and categories, whose counts alone stand there, it is computed here. The page loads nothing and shows
every key of the record, those it does not know included; text of models and items is escaped. With samples it holds
every question (report.questions), and the one script it allows searches them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import ascii_lowercase
from typing import Any

from medjax.report import certainty, differences, drawing, outcomes, pages, questions, variants
from medjax.report.headlines import (
    ACCURACY,
    accuracy,
    by_scale,
    called,
    checked_record,
    headlines,
    metric_label,
    no_interval,
)
from medjax.report.outcomes import accuracy_items

MOST_EXAMPLES = 12
_Z = 1.959963984540054  # two-sided 95 % point of the normal distribution
_FOLD_ABOVE = 4  # evaluations whose breakdowns are shown unfolded
_COLUMN = 14  # categories that stand in one column
_SHOWN_APART = ("evaluations", "comparisons", "languages", "examples")
_DRAWN = ("scores", "normalised", "metrics", "calibration", "difficulty")
_NORMALISATIONS = {"sum": "sum", "token": "per token", "byte": "per byte", "character": "per character"}


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
    record = checked_record(results)
    evaluations = [_evaluation(number, entry) for number, entry in enumerate(record["evaluations"], 1)]
    found = questions.question_data(samples, evaluations)
    script = questions.script() if found else ""
    languages = {entry["id"]: entry["language"] for entry in record["evaluations"]}
    examples = record.get("examples", [])
    paired = [{**e, "language": f"{e['first']}, {e['second']}"} for e in record.get("languages", ())]
    compared = record.get("comparisons", ())
    answered = differences.answered(compared)
    values = {
        "model": record.get("model", {}).get("name", "unnamed model"),
        "date": drawing.date(results.get("date")),
        "facts": _facts(record),
        "evaluations": evaluations,
        "with_sections": any(e["whole"]["parts"] for e in evaluations if e["by_accuracy"] or e["exams"]),
        "graded": _by_figure(evaluations),
        "fold": len(evaluations) > _FOLD_ABOVE,
        "unread": outcomes.unread(_counted(record["evaluations"])),
        "axis": drawing.axis("0", "50", "100 %"),
        "key": drawing.plot(0.6, 0.3, 0.9, 0.05),
        "outcome_colours": outcomes.colours(),
        "outcomes": outcomes.table([(e["name"], e["protocol"], e["scores"]) for e in evaluations]),
        "variants": _variants(record["evaluations"]),
        "comparisons": compared,
        "answered": differences.rows(answered),
        "difference_axis": differences.axis(answered),
        "graded_differences": differences.graded(compared),
        "languages": paired
        and {
            "answered": differences.rows(differences.answered(paired)),
            "axis": differences.axis(differences.answered(paired)),
            "graded": differences.graded(paired),
        },
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


def _evaluation(number: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    scores = entry["scores"]
    exams = [
        {"exam": exam, **_whole(score), "verdict": outcomes.verdict({exam: score})}
        for exam, score in scores["by_exam"].items()
    ]
    whole = _whole(scores)
    figures = headlines(entry)
    if right := next((each for each in figures if each.name == ACCURACY), None):
        # of a set with other questions too the accuracy is of those that it takes
        whole |= {"items": right.items, "accuracy": right.value, "low": right.low, "high": right.high}
        whole |= {"plot": right.plot(), "unread": right.unread, "not_graded": right.not_graded}
    if len(exams) == 1:  # pass marks are for one exam
        whole["parts"] = exams[0]["parts"]
    return {
        **{"id": entry["id"], "number": number},
        "name": called(entry),
        "language": entry["language"],
        "protocol": entry["protocol"],
        "limit": entry.get("limit"),
        "whole": whole,
        "by_accuracy": right is not None,
        "headlines": [each for each in figures if each.name != ACCURACY],
        "verdict": outcomes.verdict(scores["by_exam"]),
        "scores": scores,
        "exams": exams if len(exams) > 1 else [],
        "cards": outcomes.cards(scores["by_exam"]),
        "graded": list(_graded(entry)),
        "figures": certainty.figures(entry),
        "breakdowns": _breakdowns(entry),
        "remarks": list(_remarks(entry)),
        "record": list(pages.flat({key: entry[key] for key in entry if key not in _DRAWN})),
    }


def _counted(entries: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """All that counts answers which could not be read: scores, and figures beside accuracy."""
    for entry in entries:
        yield from (entry["scores"], *entry.get("metrics", {}).values())


def _by_figure(evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the sets that are not graded by accuracy, a group for each scale with its axis."""
    rows = [(each, evaluation) for evaluation in evaluations for each in evaluation["headlines"]]
    return [
        {"axis": scale.axis(), "rows": [row for row in rows if row[0].scale == scale]}
        for scale, _ in by_scale(each for each, _ in rows)
    ]


def _whole(score: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the summary or of the table of exams."""
    right, cuts = accuracy(score), {} if outcomes.is_part(score) else score.get("verdict", {})
    return {
        **{key: score[key] for key in ("correct", "accuracy", "prohibited")},
        "items": right.items,
        **{key: score[key] for key in ("points", "points_total", "points_share")},
        **{"low": right.low, "high": right.high, "unread": right.unread, "not_graded": right.not_graded},
        "prohibited_max": cuts.get("prohibited_max"),
        "plot": right.plot(),
        "parts": {
            name: {"points": score[f"{name}_points"], "total": score[f"{name}_total"], "cut": cuts.get(f"{name}_min")}
            for name in ("required", "general")
            if f"{name}_points" in score
        },
    }


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
        if total["accuracy"] is None:  # no model has seen a question of it that accuracy counts
            plot = drawing.marks((None, None, None), guess, "not graded", bar=True)
            rows.append({"label": label, **total, "count": total["items"], "low": None, "plot": plot})
            continue
        low, high = wilson_interval(total["correct"], accuracy_items(total))
        plot = drawing.plot(total["accuracy"], low, high, guess, bar=True)
        rows.append({"label": label, **total, "count": accuracy_items(total), "low": low, "high": high, "plot": plot})
    return rows


def _normalised(entry: Mapping[str, Any], items: int) -> dict[str, dict[str, int]]:
    shares = entry.get("normalised") or {}
    return {
        _NORMALISATIONS.get(k, k): {"items": items, "correct": round(v * items), "accuracy": v}
        for k, v in shares.items()
    }


def _variants(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The table of models side by side; None for a run of one."""
    names = [(name, variants.kind(number)) for number, name in enumerate(variants.variants(entries))]
    groups = by_scale(variants.rows(entries)) if len(names) > 1 else []
    shown = [{"axis": scale.axis(), "percent": scale.percent, "rows": rows} for scale, rows in groups]
    return {"names": names, "groups": shown} if shown else None


def _graded(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of what a set is graded by besides accuracy."""
    for name, found in entry.get("metrics", {}).items():
        interval = found["interval"]
        yield {
            **{"items": found["items"], "unread": found, "name": metric_label(name)},
            "value": "not graded" if found.get("not_graded") else _three_digits(found["value"]),
            "interval": drawing.between(*map(_three_digits, interval)) if interval else no_interval(found) or "–",
            "chance": _three_digits(found["chance"]),
            "bounds": " to ".join(f"{bound:g}".replace("inf", "∞").replace("-", "−") for bound in found["bounds"]),
        }


def _three_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def _remarks(entry: Mapping[str, Any]) -> Iterator[str]:
    scores, work = entry["scores"], entry.get("work") or {}
    unknown = scores.get("no_reference", 0)
    if reason := scores.get("not_graded"):
        yield f"not graded: {reason}"
    elif unknown < scores["items"]:
        counted = accuracy_items(scores)
        right = f"{drawing.number(scores['correct'])} of {drawing.counted(counted, 'question')} right"
        none = f"no accuracy, since of {drawing.counted(counted, 'question')} that it counts none reached the model"
        yield none if scores["accuracy"] is None else right
        if others := scores["items"] - counted - unknown:
            yield f"{drawing.counted(others, 'question')} without choices, graded by other figures than accuracy"
        yield f"{drawing.percent(scores['chance']['accuracy'])} expected by guessing"
    if unknown:
        yield f"{drawing.counted(unknown, 'open question')} without a reference answer, for people to judge"
    if entry.get("limit") is not None:
        yield f"limited to {drawing.counted(entry['limit'], 'question')}"
    if left_out := entry.get("data", {}).get("left_out_by_protocol"):
        yield f"{drawing.number(left_out)} left out, as the protocol cannot ask them"
    if not_asked := scores.get("not_asked"):
        counts = "" if "not_graded" in scores else " (not right in the accuracy)"
        yield f"{drawing.counted(not_asked, 'question')} without choices not asked{counts}"
    if too_long := scores.get("too_long"):
        worth = "" if "not_graded" in scores else " (no points, not right)"
        yield f"{drawing.counted(too_long, 'question')} longer than the model's context, not sent{worth}"
    if truncated := entry.get("truncated"):
        unread = f", {drawing.number(scores['cut_off'])} of them unread (cut off)" if scores.get("cut_off") else ""
        yield f"{drawing.counted(truncated, 'answer')} truncated at the limit of new tokens{unread}"
    plain = scores["text_only"]
    if 0 < plain["items"] < scores["items"] and plain["accuracy"] is not None:
        share, shown = drawing.percent(plain["accuracy"]), drawing.number(accuracy_items(plain))
        yield f"{drawing.number(plain['correct'])} of the {shown} without an image right ({share})"
    if scores["withdrawn"]:
        withdrawn = drawing.counted(scores["withdrawn"], "withdrawn question")
        yield f"{withdrawn} in the accuracy, not in the points"
    yield from _repeats(entry)
    if work.get("tokens_requested"):
        saved = drawing.percent(work["tokens_saved"] / work["tokens_requested"])
        yield f"{drawing.number(work['tokens_computed'])} tokens computed, {saved} saved by sharing"
    if work.get("items_per_second") and "not_graded" not in scores:
        yield f"{work['items_per_second']:.3g} questions a second"


def _repeats(entry: Mapping[str, Any]) -> Iterator[str]:
    """What is said of questions that were asked more than once."""
    has_accuracy = entry["scores"]["accuracy"] is not None
    if rotation := entry.get("rotation"):
        if has_accuracy:
            mean = drawing.percent(rotation["mean_accuracy"])
            yield f"right means under every shift of the choices; {mean} on average over shifts"
        if rotation["consistent"] is not None:
            same = drawing.percent(rotation["consistent"])
            yield f"{same} of the questions asked under several shifts answered alike under all"
        bias = rotation.get("position_bias") or {}
        if unread := bias.get("unread"):
            yield f"{drawing.number(unread)} of {drawing.counted(bias['asks'], 'ask')} could not be read"
    if agreement := entry.get("agreement"):  # where nothing could be read there is none to speak of
        yield f"{drawing.percent(agreement)} of the replies say what the answer says"
    if forced := entry.get("forced"):
        yield f"{drawing.counted(forced, 'answer')} forced after reasoning"
    if drawn := entry.get("samples"):
        alone = f"; one alone is right in {drawing.percent(drawn['accuracy'])}" if has_accuracy else ""
        yield f"{drawn['count']} answers drawn at temperature {drawn['temperature']:g}{alone}"
    for name, found in entry.get("templates", {}).items() if has_accuracy else ():
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
