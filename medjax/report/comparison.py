"""The report of a comparison: finished runs against each other, verdicts, and the questions won and lost, in one page.

It takes what eval.comparison.compare_runs returns, its questions apart. The page loads nothing and runs no script; text
of models and items is escaped.
"""

from collections.abc import Mapping, Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from medjax.report import differences, drawing, pages
from medjax.report.headlines import metric_label, no_interval

MOST_QUESTIONS = 200  # of each list that the page shows; all stand in questions.json
_LONGEST_OUTPUT = 600  # characters


def comparison_report(
    found: Mapping[str, Any],
    questions: Sequence[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]] = (),
    folders: Sequence[str] = (),
) -> str:
    """Return the HTML page.

    found      runs, comparisons, differences, notes and exams
    questions  won and lost of each comparison
    scores     a table of all models above the comparison: task, language, protocol, metric and `values` by model, as
               text
    folders    of the models' own reports, beside the page
    """
    letters = run_letters(found["runs"])
    comparisons = found["comparisons"]
    places = [
        {
            **{"name": differences.called(entry), "protocol": entry["protocol"], "anchor": f"pair-{number}"},
            **{"first": letters[entry["first_label"]], "second": letters[entry["second_label"]]},
            **{"left_out": entry["left_out"], "won": entry["won_count"], "lost": entry["lost_count"]},
        }
        for number, entry in enumerate(comparisons, 1)
    ]
    paired = list(zip(places, comparisons, strict=True))
    answered = [entry for entry in comparisons if entry["has_answers"]]
    rows = [
        {
            **row,
            **place,
            "points": _digits(entry["points_difference"], "+g"),
            "odds": _odds(entry),
            "g": _digits(entry["cohen_g"], "+.2f"),
            "p_holm": _p(entry["p_holm"]),
        }
        for row, (place, entry) in zip(
            differences.rows(answered), (pair for pair in paired if pair[1]["has_answers"]), strict=True
        )
    ]
    values = {
        "runs": [{**run, "letter": letters[run["label"]], "when": drawing.date(run["date"])} for run in found["runs"]],
        "rows": rows,
        "axis": differences.axis(answered),
        "graded": [_graded(metric, place) for place, entry in paired for metric in entry["metrics"]],
        "differences": [
            {**each, "first": letters[each["first"]], "second": letters[each["second"]]}
            for each in found["differences"]
        ],
        "notes": found["notes"],
        "exams": [_exam(entry) for entry in found["exams"]],
        "letters": list(letters.values()),
        "sections": [
            {
                **place,
                **{"lang": entry["language"], "has_answers": entry["has_answers"]},
                "lists": [_list(part[key], key, place, entry["has_answers"]) for key in ("won", "lost")],
            }
            for (place, entry), part in zip(paired, questions, strict=True)
        ],
        "resamples": found["resamples"],
        "seed": found["seed"],
        "scores": scores,
        "columns": list(dict.fromkeys(name for row in scores for name in row["values"])),
        "folders": folders,
    }
    return pages.render("comparison.html", values)


def run_letters(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Label -> what tables call the run: A, B, ..., and beyond Z numbers."""
    return {
        run["label"]: ascii_uppercase[number] if number < len(ascii_uppercase) else str(number + 1)
        for number, run in enumerate(runs)
    }


def _graded(metric: Mapping[str, Any], place: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of figures other than accuracy."""
    ends = metric["difference_interval"]
    return {
        **place,
        "count": metric["items"],
        "by": metric_label(metric["metric"]),
        "lower_is_better": not metric["higher_is_better"],
        "values": [_digits(metric[name]) for name in ("first", "second")],
        "difference": _digits(metric["difference"], "+.3f"),
        "interval": drawing.between(*(_digits(end, "+.3f") for end in ends))
        if ends
        else no_interval(metric, "difference"),
        **{name: _p(metric[name]) for name in ("p_value", "p_holm")},
    }


def _digits(value: float | None, form: str = ".3f") -> str:
    if value is None:
        return "–"
    text = format(value, form)
    return text.replace("-", "\u2212") if float(text) else text.lstrip("+-")


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def _odds(entry: Mapping[str, Any]) -> dict[str, str]:
    if entry["cohen_g"] is None:
        return {"value": "–", "interval": ""}
    value, low, high = ("∞" if x is None else f"{x:.2f}" for x in (entry["odds_ratio"], *entry["odds_ratio_interval"]))
    return {"value": value, "interval": f"{low} – {high}"}


def _exam(entry: Mapping[str, Any]) -> dict[str, Any]:
    runs = [
        {
            "tone": row["result"] if row and row["result"] in ("pass", "fail", "incomplete") else "none",
            "label": row["result"] if row else "not asked",
            "points": f"{drawing.number(row['points'])} / {drawing.number(row['points_total'])}"
            if row and "points" in row
            else "",
            "reasons": "; ".join(row["reasons"]) if row else "",
        }
        for row in entry["runs"]
    ]
    name = f"{entry['task']} · {entry['language']} · {entry['exam']}"
    return {"name": name, "runs": runs, **{key: entry[key] for key in ("protocol", "alike", "changed")}}


def _list(
    questions: Sequence[Mapping[str, Any]], key: str, row: Mapping[str, Any], has_answers: bool
) -> dict[str, Any]:
    winner = row["second"] if key == "won" else row["first"]
    return {
        "title": f"Right in {winner} alone" if has_answers else f"Better in {winner}",
        "kind": key,
        "count": len(questions),
        "shown": [_question(question, row) for question in questions[:MOST_QUESTIONS]],
    }


def _question(question: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    gold = question.get("answer", ())
    answers = [_answer(question[side], row[side]) for side in ("first", "second")]
    choices = [
        {
            "letter": letter,
            "text": text,
            "gold": letter in gold,
            "picked": [row[side] for side in ("first", "second") if letter in (question[side]["picked"] or ())],
        }
        for letter, text in zip(ascii_lowercase, question.get("choices", ()), strict=False)
    ]
    place = [question.get(key) for key in ("exam", "section", "category")]
    return {
        "id": question["id"],
        "place": " · ".join(str(part) for part in place if part),
        "context": question.get("context", ""),
        "question": question.get("question", ""),
        "choices": choices,
        "gold": ", ".join(gold),
        "answers": answers,
    }


def _answer(given: Mapping[str, Any], letter: str) -> dict[str, str]:
    picked = given["picked"]
    read = "nothing that could be read" if picked is None else _beginning(", ".join(picked)) or "nothing"
    cut = (" (cut off)" if picked is None else " (truncated)") if given.get("truncated") else ""
    return {"letter": letter, "read": read + cut, "output": _beginning(given.get("output") or "")}


def _beginning(text: str) -> str:
    return text if len(text) <= _LONGEST_OUTPUT else text[:_LONGEST_OUTPUT] + "…"
