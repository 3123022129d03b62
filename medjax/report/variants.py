"""Several models on the same questions, drawn on one axis: a row for each set and protocol, a mark for each model.

├───┆──○─────┼─────────┤     ○ base
├───┆──────●─┼─────────┤     ● adapter   ── 95 % interval   ┆ accuracy by guessing
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from medjax.report import drawing
from medjax.report.plane import FILLS

_KINDS = ("muted", "accent", "held", "ink")  # classes of the marks, in the order of the models

Entries = Sequence[Mapping[str, Any]]


def rows(entries: Entries) -> list[dict[str, Any]]:
    """A row for each set and protocol that more than one model was graded by; entries are those of the record."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["task"], entry["language"], entry["protocol"]), []).append(entry)
    names = variants(entries)
    found = []
    for (task, language, protocol), group in groups.items():
        if len(group) < 2:
            continue
        by_name = {entry.get("variant", ""): entry["scores"] for entry in group}
        found.append(
            {
                **{"name": f"{task} · {language}", "protocol": protocol},
                "scores": [by_name.get(name) for name in names],
                "plot": _plot([(name, number, by_name[name]) for number, name in enumerate(names) if name in by_name]),
            }
        )
    return found


def variants(entries: Entries) -> list[str]:
    """Names of the models, in the order of the run."""
    return list(dict.fromkeys(entry.get("variant", "") for entry in entries))


def kind(number: int) -> str:
    """The class of a model's marks."""
    return _KINDS[number % len(_KINDS)]


def _plot(scores: Sequence[tuple[str, int, Mapping[str, Any]]]) -> Markup:
    said, parts = [], []
    chance = scores[0][2]["chance"]["accuracy"]
    for row, (name, number, score) in enumerate(scores):
        low, high = score["accuracy_interval"]
        shown = drawing.percent(score["accuracy"])
        said.append(f"{name} {shown}, 95 % interval {drawing.percent(low)} to {drawing.percent(high)}")
        parts.append(
            Markup(
                '<svg y="{0:.1f}%"><line class="interval {1}" x1="{2:.2f}%" x2="{3:.2f}%" y1="0" y2="0" stroke="{5}" '
                'stroke-width="2.5"/><circle class="dot {1}" cx="{4:.2f}%" cy="0" r="4.5" fill="{5}"/></svg>'
            ).format(
                100 * (row + 1) / (len(scores) + 1),
                *(kind(number), 100 * low, 100 * high, 100 * score["accuracy"], FILLS[kind(number)]),
            )
        )
    grid = Markup("").join(
        Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="100%" stroke="{1}"/>').format(tick, drawing.RULE)
        for tick in (0, 25, 50, 75, 100)
    )
    guess = Markup('<line class="chance" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="100%" stroke="{1}"/>')
    return Markup('<svg class="plot" role="img" aria-label="{}">{}{}{}</svg>').format(
        "; ".join(said), grid, guess.format(100 * chance, drawing.MUTED), Markup("").join(parts)
    )
