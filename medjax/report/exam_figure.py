"""The figure of a run's summary: what each set is graded by, in a panel for each scale, and adapter against base.

share of questions answered correctly
igakuqa · ja     ├────┆──●────┼─────────┼─────────┤     ● value   ── 95 % interval   ┆ by guessing
kappa linear, -1 to 1
crade · ja       ├─────────┼─────────┆──●──────┼──────┤
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from medjax.report import differences, drawing, outcomes
from medjax.report.headlines import Headline, Scale, by_scale, called, checked_record, headlines
from medjax.report.table import display_width

_WIDTH, _ROW, _TOP, _HEAD, _FOOT = 820, 42, 44, 30, 28  # pixels; head and foot of a panel


@dataclass(frozen=True)
class _Row:
    """A row of a panel: what the set is called, its protocol, what is shown of it, and the verdict on the exam."""

    name: str
    protocol: str
    headline: Headline
    verdict: Mapping[str, Any]

    @property
    def scale(self) -> Scale:
        return self.headline.scale

    def remark(self, by: str = "") -> str:
        """by: what it is graded by, where the panel holds several figures."""
        parts = (drawing.counted(self.headline.items, "item"), by, self.protocol)
        return drawing.cut_to(" · ".join(part for part in parts if part), 40)


def summary_figure(results: Mapping[str, Any]) -> str:
    """Return a standalone SVG on white: what every evaluation is graded by, 95 % interval, chance level and verdict.

    Takes the same dict as `exam_report` and raises the same errors. A set whose right answers nobody knows is named.
    """
    record = checked_record(results)
    entries, comparisons = record["evaluations"], record.get("comparisons", ())
    rows = [row for entry in entries for row in _rows(entry)]
    unknown = [f"{called(entry)} · {entry['protocol']}" for entry in entries if not headlines(entry)]
    # pixels a column: the mean of DejaVu Sans, the widest font to fall back on, at sizes 14 bold and 12
    names_shown = [*(row.name for row in rows), *differences.names(comparisons)]
    lengths = [8.8 * display_width(name) for name in names_shown]
    lengths += [7.0 * display_width(row.remark(row.headline.label)) for row in rows]
    widest = max(lengths, default=0)
    left, right = 24 + math.ceil(max(120, widest)) + 20, _WIDTH - 210
    panels: list[Markup] = []
    height = _TOP
    for scale, found in by_scale(rows):
        panels += _panel(scale, found, left, right, height)
        height += _HEAD + _ROW * len(found) + _FOOT
    if rows:
        legend = "●\u00a0value \u2003━\u00a095 % interval \u2003┆\u00a0by guessing"
        panels.append(drawing.text((left + right) / 2, height + 14, legend, 12, drawing.MUTED, anchor="middle"))
        height += 30
    paired, more = differences.figure(comparisons, left, right, height)
    height += more
    for name in unknown:
        panels.append(
            drawing.text(24, height + 16, drawing.cut_to(f"{name}: for people to judge", 90), 12, drawing.MUTED)
        )
        height += 22
    model = record.get("model", {}).get("name", "unnamed model")
    opening = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}" '
        'font-family="{2}" role="img">\n<title>Scores of {3}</title>\n'
        '<rect width="{0}" height="{1}" fill="#ffffff"/>'
    ).format(_WIDTH, height + 12, drawing.FONT, model)
    title = drawing.text(24, 32, drawing.cut_to(model, 70), 18, drawing.INK, weight=600)
    return Markup("\n").join([opening, title, *panels, *paired, Markup("</svg>\n")])


def _rows(entry: Mapping[str, Any]) -> list[_Row]:
    found = headlines(entry)
    # of several figures of a set the first stands beside the verdict
    verdicts = [outcomes.verdict(entry["scores"]["by_exam"] if number == 0 else {}) for number in range(len(found))]
    return [
        _Row(drawing.cut_to(called(entry), 36), entry["protocol"], each, verdict)
        for each, verdict in zip(found, verdicts, strict=True)
    ]


def _panel(scale: Scale, rows: Sequence[_Row], left: float, right: float, top: float) -> list[Markup]:
    begin, bottom = top + _HEAD, top + _HEAD + _ROW * len(rows)
    by = list(dict.fromkeys(row.headline.explained for row in rows))
    title = "share of questions answered correctly" if scale.percent else ", ".join(by)
    marks = [drawing.text(24, top + 16, title, 12, drawing.MUTED)]
    for part, tick in enumerate(scale.ticks()):
        x = drawing.position(part / 4, left, right)
        marks.append(drawing.line(x, begin, x, bottom, drawing.RULE))
        marks.append(drawing.text(x, bottom + 17, tick, 12, drawing.MUTED, anchor="middle"))
    for number, row in enumerate(rows):
        remark = row.remark(row.headline.label if len(by) > 1 else "")
        marks += _marks(row, remark, begin + _ROW * (number + 0.5), left, right)
    return marks


def _marks(row: _Row, remark: str, y: float, left: float, right: float) -> list[Markup]:
    each, verdict = row.headline, row.verdict
    marks = [
        drawing.text(24, y - 3, row.name, 14, drawing.INK, weight=600),
        drawing.text(24, y + 13, remark, 12, drawing.MUTED),
    ]
    if each.chance is not None:
        guess = drawing.position(each.scale.place(each.chance), left, right)
        marks.append(drawing.line(guess, y - 14, guess, y + 14, drawing.MUTED, dashed=True))
    marks += drawing.row_marks(each.places, y, left, right)
    marks.append(drawing.text(right + 84, y - 3, each.shown, 14, drawing.INK, weight=600, anchor="end"))
    # the reason of no interval has no room here; the page says it
    if beside := "no interval" if each.no_interval else each.beside:
        marks.append(drawing.text(right + 94, y - 3, beside, 12, drawing.MUTED))
    if verdict["tone"] != "none":
        marks.append(drawing.text(right + 94, y + 13, verdict["label"], 12, drawing.TONES[verdict["tone"]], weight=600))
    return marks
