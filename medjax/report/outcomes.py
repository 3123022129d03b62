"""How the answers of an exam came out: each in one group, and each exam against the cuts that decide it.

  right 46 ███████████ wrong 61 ░░░░░░░░░░░░░░░ unparsed 9 ▒▒ cut off 4 ▒

The groups are disjoint, add up to the questions, and stand in the order of `scores["outcomes"]`. A gauge is a bar up to
what was reached, with a line at the cut; what questions that were not asked are worth is drawn on from its end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from medjax.report import drawing

_SURE = ("right", "wrong")  # shown even where there is none
UNREAD = ("unparsed", "cut_off", "too_long")  # outcomes that stand beside a score in its own row


@dataclass(frozen=True)
class _Look:
    """How an outcome is shown: tone of its tag, colour on white, colour of the page's scheme, name if not its own."""

    tone: str
    fill: str
    colour: str
    label: str = ""


_LOOKS = {
    "right": _Look("pass", drawing.TONES["pass"], "var(--pass)"),
    "wrong": _Look("fail", "#d58a83", "color-mix(in srgb, var(--fail) 50%, var(--page))"),
    "unparsed": _Look("incomplete", "#d9a93f", "color-mix(in srgb, var(--incomplete) 60%, var(--page))"),
    "cut_off": _Look("incomplete", "#8a5a00", "var(--incomplete)"),
    "not_asked": _Look("incomplete", "#a9b2bd", "var(--muted)"),
    "too_long": _Look("incomplete", "#7a6f9b", "color-mix(in srgb, var(--accent) 45%, var(--page))"),
    "no_reference": _Look("none", "#cfdbe8", "var(--light)", "for people to judge"),
}
_OTHER = _Look("incomplete", drawing.RULE, "var(--rule)")


def named(outcome: str) -> str:
    return look(outcome).label or outcome.replace("_", " ")


def look(outcome: str) -> _Look:
    return _LOOKS.get(outcome, _OTHER)


def colours() -> list[tuple[str, str]]:
    """Outcome and colour, for the page's style."""
    return [(name, found.colour) for name, found in _LOOKS.items()]


def met(scores: Iterable[Mapping[str, Any]]) -> list[str]:
    """Outcomes in the order in which the scores hold them: those that happened, and right and wrong."""
    counted = [entry["outcomes"] for entry in scores if entry.get("outcomes")]
    names = dict.fromkeys(name for counts in counted for name in counts)
    return [name for name in names if name in _SURE or any(counts.get(name) for counts in counted)]


def unread(counted: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Columns beside the scores, key and name: unparsed, and of the other UNREAD those that happened.

    counted  what holds counts: scores, or figures of a set
    """
    rows = list(counted)
    return [(key, named(key)) for key in UNREAD if key == "unparsed" or any(row.get(key) for row in rows)]


def table(entries: Sequence[tuple[str, str, Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Columns and rows of the table with its stacked bars; None where no entry says how its answers came out.

    entries  name, protocol and scores of each evaluation; `scores["outcomes"]` holds a count for each outcome
    """
    counted = [(name, protocol, scores["outcomes"]) for name, protocol, scores in entries if scores.get("outcomes")]
    if not counted:
        return None
    names = met(scores for _, _, scores in entries)
    return {
        "outcomes": [(name, named(name)) for name in names],
        "rows": [
            {"name": name, "protocol": protocol, "plot": stack(counts), "counts": [counts.get(key, 0) for key in names]}
            for name, protocol, counts in counted
        ],
    }


def stack(counts: Mapping[str, int]) -> Markup:
    """One bar as wide as it is given, cut in the proportions of the counts."""
    total, begin, parts = max(1, sum(counts.values())), 0, []
    for name, count in counts.items():
        if count:
            parts.append(
                Markup('<rect class="{}" x="{:.3f}%" width="{:.3f}%" y="0" height="100%" fill="{}"/>').format(
                    name, 100 * begin / total, 100 * count / total, look(name).fill
                )
            )
            begin += count
    said = ", ".join(f"{drawing.number(count)} {named(name)}" for name, count in counts.items() if count)
    return Markup('<svg class="stack" role="img" aria-label="{}">{}</svg>').format(said, Markup("").join(parts))


def verdict(exams: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on one exam with its reasons, or how many of several exams were passed."""
    verdicts = [score["verdict"] for score in exams.values()]
    results = [verdict["result"] for verdict in verdicts]
    tone = next((tone for tone in ("fail", "incomplete", "pass") if tone in results), "none")
    if tone == "none":
        return {"tone": tone, "label": "no pass mark", "reasons": []}
    if len(verdicts) == 1:
        return {"tone": tone, "label": tone, "reasons": verdicts[0]["reasons"]}
    label = f"{results.count('pass')} of {len(results)} passed"
    unfinished = results.count("incomplete")
    return {"tone": tone, "label": label, "reasons": [f"{unfinished} incomplete"] if unfinished else []}


def cards(by_exam: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A card for each exam whose cuts are known: verdict, accuracy, and what was reached of what was needed."""
    return [_card(exam, score) for exam, score in by_exam.items() if score["verdict"]["result"] != "none"]


def accuracy_items(scores: Mapping[str, Any]) -> int:
    """How many items accuracy counts: not the texts of an exam that has choices; of old results all."""
    return int(scores.get("accuracy_items", scores["items"]))


def is_part(score: Mapping[str, Any]) -> bool:
    """Whether an exam is incomplete because the run took some of its questions: there are no pass marks for these."""
    verdict = score.get("verdict", {})
    return verdict.get("result") == "incomplete" and "open" not in verdict


def _card(exam: str, score: Mapping[str, Any]) -> dict[str, Any]:
    verdict = score["verdict"]
    left = verdict.get("open", {})  # what the questions that were not asked are worth
    in_part = is_part(score)
    gauges = []
    for part in ("required", "general"):
        total, cut = score.get(f"{part}_total"), verdict.get(f"{part}_min")
        if total and cut is not None:
            reached, more = score[f"{part}_points"], left.get(part, 0)
            tone = "pass" if reached >= cut else "incomplete" if cut <= reached + more else "fail"
            shown = f"{drawing.number(reached)} of {drawing.number(total)} points"
            places = reached / total, cut / total, more / total
            needed = f"{drawing.number(cut)} needed{_not_asked(more)}"
            gauges.append(_gauge(part, shown, "" if in_part else needed, places, "incomplete" if in_part else tone))
    most = verdict.get("prohibited_max")
    if most is not None:
        picks, more = score["prohibited"], left.get("prohibited", 0)
        whole = max(2 * most, picks + more, 1)
        # the line stands between the last that is allowed and the next
        places = picks / whole, (most + 0.5) / whole, more / whole
        tone = "fail" if picks > most else "incomplete" if picks + more > most else "pass"
        needed = "" if in_part else f"{most} allowed{_not_asked(more)}"
        tone = "incomplete" if in_part else tone
        gauges.append(_gauge("prohibited picks", drawing.number(picks), needed, places, tone))
    return {
        **{"exam": exam, "result": verdict["result"], "gauges": [] if "not_graded" in score else gauges},
        **{"accuracy": score["accuracy"], "correct": score["correct"], "count": accuracy_items(score)},
        "not_graded": score.get("not_graded", ""),
    }


def _not_asked(worth: int | float) -> str:
    return f", {drawing.number(worth)} not asked" if worth else ""


def _gauge(name: str, shown: str, needed: str, places: tuple[float, float, float], tone: str) -> dict[str, Any]:
    """places: where the bar ends, where the cut is, and how much was not asked, as shares of the width.

    needed is "" where no cut holds; then none is drawn, nor one beyond the width.
    """
    reached, cut, more = places
    line = Markup('<line class="cut" x1="{0:.2f}%" x2="{0:.2f}%" y1="-3" y2="11" stroke="{1}"/>').format(
        100 * cut, drawing.INK
    )
    left = Markup('<rect class="open" x="{:.2f}%" width="{:.2f}%" height="100%" fill="{}"/>').format(
        100 * reached, 100 * more, drawing.MUTED
    )
    bar = Markup(
        '<svg class="gauge" role="img" aria-label="{}: {}">'
        '<rect class="back" width="100%" height="100%" fill="{}"/>'
        '<rect class="{}" width="{:.2f}%" height="100%" fill="{}"/>{}{}</svg>'
    ).format(
        *(
            name,
            f"{shown}, {needed}" if needed else shown,
            drawing.RULE,
            tone,
            100 * min(reached, 1.0),
            drawing.TONES[tone],
        ),
        *(left if more else "", line if needed and cut <= 1 else ""),
    )
    return {"name": name, "shown": shown, "needed": needed, "tone": tone, "bar": bar}
