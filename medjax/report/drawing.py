"""Marks of a report: proportions on an axis, lines and text of a figure, and numbers as they are shown."""

from datetime import UTC, datetime

from markupsafe import Markup

from medjax.report.table import display_width

# light colours; the page overrides them by class to follow the reader's colour scheme
INK, MUTED, RULE, ACCENT = "#1c2430", "#5b6675", "#d5dbe3", "#0b6b8f"
TONES = {"pass": "#17733a", "fail": "#b3261e", "incomplete": "#8a5a00", "none": MUTED}
FONT = "system-ui, 'Segoe UI', 'Hiragino Sans', 'Noto Sans CJK JP', 'Noto Sans JP', sans-serif"


def plot(accuracy: float, low: float, high: float, guess: float, *, bar: bool = False) -> Markup:
    """A proportion, its interval and what guessing gives, on an axis of 0 to 100 %."""
    label = f"{percent(accuracy)}, 95 % interval {percent(low)} to {percent(high)}, {percent(guess)} by guessing"
    return marks((accuracy, low, high), guess, label, bar=bar)


def marks(
    places: tuple[float | None, float | None, float | None],
    reference: float | None,
    label: str,
    *,
    bar: bool = False,
) -> Markup:
    """A dot (or a bar), an interval and a dashed line on an axis that fills the width it is given.

    places     of the dot and of the ends of the interval, as shares of the axis, like that of the dashed reference;
               what is None is not drawn
    label      for readers who do not see it
    """
    value, low, high = places
    # the inner svg starts at half the height, so that marks keep their size in rows of any height
    ticks = Markup("").join(
        Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="100%" stroke="{1}"/>').format(tick, RULE)
        for tick in (0, 25, 50, 75, 100)
    )
    body = span = chance = Markup("")
    if value is not None:
        body = (
            Markup('<rect class="bar" x="0" y="-6" width="{0:.2f}%" height="12" fill="{1}" fill-opacity="0.3"/>')
            if bar
            else Markup('<circle class="dot" cx="{0:.2f}%" cy="0" r="4.5" fill="{1}"/>')
        ).format(100 * value, ACCENT)
    if low is not None and high is not None:
        span = Markup("").join(
            Markup('<line class="{}" x1="{:.2f}%" x2="{:.2f}%" y1="{}" y2="{}" stroke="{}"/>').format(name, *at, ACCENT)
            for name, at in (
                ("interval", (100 * low, 100 * high, 0, 0)),
                ("cap", (100 * low, 100 * low, -4, 4)),
                ("cap", (100 * high, 100 * high, -4, 4)),
            )
        )
    if reference is not None:
        chance = Markup('<line class="chance" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="100%" stroke="{1}"/>').format(
            100 * reference, MUTED
        )
    return Markup('<svg class="plot" role="img" aria-label="{}">{}{}<svg y="50%">{}{}</svg></svg>').format(
        label, ticks, chance, body, span
    )


def axis(*labels: str) -> Markup:
    """The labels of an axis at its start, middle and end."""
    places = zip((0, 50, 100), ("start", "middle", "end"), labels, strict=True)
    marks = [
        Markup('<text x="{}%" y="100%" dy="-3" text-anchor="{}">{}</text>').format(at, anchor, label)
        for at, anchor, label in places
    ]
    return Markup('<svg class="axis" aria-hidden="true">{}</svg>').format(Markup("").join(marks))


def position(share: float, left: float, right: float) -> float:
    return left + share * (right - left)


def line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dashed: bool = False) -> Markup:
    dash = Markup(' stroke-dasharray="3 3"') if dashed else ""
    return Markup('<line x1="{:.2f}" y1="{:g}" x2="{:.2f}" y2="{:g}" stroke="{}" stroke-width="{:g}"{}/>').format(
        x1, y1, x2, y2, colour, width, dash
    )


def text(x: float, y: float, text: str, size: int, colour: str, *, weight: int = 400, anchor: str = "start") -> Markup:
    return Markup(
        '<text x="{:.2f}" y="{:g}" font-size="{}" fill="{}" font-weight="{}" text-anchor="{}">{}</text>'
    ).format(x, y, size, colour, weight, anchor, text)


def row_marks(
    places: tuple[float | None, float | None, float | None], y: float, left: float, right: float
) -> list[Markup]:
    """A dot and its interval in a row of a figure; places as those of `marks`, on the axis from left to right."""
    value, low, high = (None if place is None else position(place, left, right) for place in places)
    found = []
    if low is not None and high is not None:
        found = [
            line(low, y, high, y, ACCENT, width=3),
            line(low, y - 5, low, y + 5, ACCENT, width=1.5),
            line(high, y - 5, high, y + 5, ACCENT, width=1.5),
        ]
    if value is not None:
        found.append(Markup('<circle cx="{:.2f}" cy="{:g}" r="5" fill="{}"/>').format(value, y, ACCENT))
    return found


def cut_to(text: str, columns: int) -> str:
    """The text, or its beginning and "…" where it is wider than so many columns of a terminal."""
    if display_width(text) <= columns:
        return text
    while display_width(text) > columns - 1:
        text = text[:-1]
    return text + "…"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}\u00a0%"


def between(low: str, high: str, dash: str = " – ") -> str:
    """A range of two written numbers: 10.0 – 20.0, but −7.00 to −3.07, where a dash would read as one sign more.

    Hyphens become minus signs. Numbers with a plus are written with "to" as well, so that a column of differences is.
    """
    ends = [end.replace("-", "−") for end in (low, high)]
    return (" to " if any(end[:1] in ("−", "+") for end in ends) else dash).join(ends)


def number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}".rstrip("0").rstrip(".")


def counted(count: int, what: str) -> str:
    """A count with its noun, such as 1 question, 12 questions."""
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def magnitude(count: int) -> str:
    """A large count for humans, such as 134.5 M."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.4g}\u00a0{letter}"
    return str(count)


def duration(seconds: float) -> str:
    """Seconds for humans, such as 8 min 6 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def date(seconds: float | None) -> str:
    """Seconds since 1970 as a date in UTC, "" for none."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else ""
