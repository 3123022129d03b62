"""Several models on the same questions, drawn on one axis: a row for each set, protocol and figure, a mark a model.

├───┆──○─────┼─────────┤     ○ base
├───┆──────●─┼─────────┤     ● adapter   ── 95 % interval   ┆ by guessing
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from medjax.report import drawing
from medjax.report.headlines import Headline, Scale, headlines
from medjax.report.plane import FILLS

_KINDS = ("muted", "accent", "held", "ink")  # classes of the marks, in the order of the models

Entries = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """Models by one figure of a set; None for a model that was not asked."""

    name: str
    protocol: str
    scores: tuple[Headline | None, ...]
    models: tuple[str, ...]

    @property
    def first(self) -> Headline:
        return next(each for each in self.scores if each)

    @property
    def scale(self) -> Scale:
        return self.first.scale

    def plot(self) -> Markup:
        """The marks of all models on one axis."""
        graded = [(number, each) for number, each in enumerate(self.scores) if each]
        said, parts = [], []
        for place, (number, each) in enumerate(graded, 1):
            said.append(f"{self.models[number]} {each.said}")
            value, low, high = each.places
            colour, found = FILLS[kind(number)], []
            if low is not None and high is not None:
                span = Markup(
                    '<line class="interval {}" x1="{:.2f}%" x2="{:.2f}%" y1="0" y2="0" stroke="{}" stroke-width="2.5"/>'
                )
                found.append(span.format(kind(number), 100 * low, 100 * high, colour))
            if value is not None:
                dot = Markup('<circle class="dot {}" cx="{:.2f}%" cy="0" r="4.5" fill="{}"/>')
                found.append(dot.format(kind(number), 100 * value, colour))
            at = 100 * place / (len(graded) + 1)
            parts.append(Markup('<svg y="{:.1f}%">{}</svg>').format(at, Markup("").join(found)))
        grid = Markup("").join(
            Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="100%" stroke="{1}"/>').format(tick, drawing.RULE)
            for tick in (0, 25, 50, 75, 100)
        )
        chance = Markup("")
        if self.first.chance is not None:
            chance = Markup('<line class="chance" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="100%" stroke="{1}"/>').format(
                100 * self.scale.place(self.first.chance), drawing.MUTED
            )
        return Markup('<svg class="plot" role="img" aria-label="{}">{}{}{}</svg>').format(
            "; ".join(said), grid, chance, Markup("").join(parts)
        )


def rows(entries: Entries) -> list[Row]:
    """A row for each set, protocol and figure that more than one model was graded by; entries are the record's."""
    groups: dict[tuple[str, str, str, str], dict[str, Headline]] = {}
    for entry in entries:
        for each in headlines(entry):
            key = entry["task"], entry["language"], entry["protocol"], each.name
            groups.setdefault(key, {})[entry.get("variant", "")] = each
    names = variants(entries)
    return [
        Row(f"{task} · {language}", protocol, tuple(by_name.get(name) for name in names), tuple(names))
        for (task, language, protocol, _), by_name in groups.items()
        if len(by_name) > 1
    ]


def variants(entries: Entries) -> list[str]:
    """Names of the models, in the order of the run."""
    return list(dict.fromkeys(entry.get("variant", "") for entry in entries))


def kind(number: int) -> str:
    """The class of a model's marks."""
    return _KINDS[number % len(_KINDS)]
