"""The report of a comparison: finished runs against each other, verdicts, and the questions won and lost, in one page.

It takes what eval.comparison.compare_runs returns, its questions apart. The page loads nothing and runs no script; text
of models and items is escaped.
"""

from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any

from medjax.report import differences, drawing, pages

MOST_QUESTIONS = 200  # of each list that the page shows; all stand in questions.json
_LONGEST_OUTPUT = 600  # characters


def comparison_report(found: Mapping[str, Any], questions: Sequence[Mapping[str, Any]]) -> str:
    """Return the HTML page.

    found      runs, comparisons, differences, notes and exams
    questions  won and lost of each comparison
    """
    letters = {run["label"]: _letter(number) for number, run in enumerate(found["runs"])}
    comparisons = found["comparisons"]
    rows = [
        {
            **row,
            "first": letters[entry["first_label"]],
            "second": letters[entry["second_label"]],
            "points": f"{entry['points_difference']:+g}".replace("-", "\u2212"),
            "odds": _odds(entry),
            "g": "–" if entry["cohen_g"] is None else f"{entry['cohen_g']:+.2f}".replace("-", "\u2212"),
            "p_holm": f"{entry['p_holm']:.2g}",
            "left_out": entry["left_out"],
        }
        for row, entry in zip(differences.rows(comparisons), comparisons, strict=True)
    ]
    values = {
        "runs": [{**run, "letter": letters[run["label"]], "when": drawing.date(run["date"])} for run in found["runs"]],
        "rows": rows,
        "axis": differences.axis(comparisons),
        "differences": [
            {**each, "first": letters[each["first"]], "second": letters[each["second"]]}
            for each in found["differences"]
        ],
        "notes": found["notes"],
        "exams": [_exam(entry) for entry in found["exams"]],
        "letters": list(letters.values()),
        "sections": [
            {
                **{key: row[key] for key in ("name", "protocol", "first", "second")},
                "lang": entry["language"],
                "lists": [_list(part[key], key, row) for key in ("won", "lost")],
            }
            for row, entry, part in zip(rows, comparisons, questions, strict=True)
        ],
        "resamples": found["resamples"],
        "seed": found["seed"],
    }
    return pages.render("comparison.html", values)


def _letter(number: int) -> str:
    return ascii_lowercase[number].upper() if number < len(ascii_lowercase) else str(number + 1)


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
    return {"name": name, "protocol": entry["protocol"], "changed": entry["changed"], "runs": runs}


def _list(questions: Sequence[Mapping[str, Any]], key: str, row: Mapping[str, Any]) -> dict[str, Any]:
    winner = row["second"] if key == "won" else row["first"]
    return {
        "title": f"Right in {winner} alone",
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
    picked, output = given["picked"], given.get("output") or ""
    read = "nothing that could be read" if picked is None else ", ".join(picked) or "nothing"
    cut = " (cut off)" if given.get("truncated") else ""
    shown = output if len(output) <= _LONGEST_OUTPUT else output[:_LONGEST_OUTPUT] + "…"
    return {"letter": letter, "read": read + cut, "output": shown}
