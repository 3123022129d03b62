"""A 12-lead ECG on ECG paper at true scale, with an attribution drawn on the trace.

  calibration  I     aVR   V1    V4          3x4: four columns of 2.5 s that follow each other in time, and below them
  pulse 1 mV   II    aVL   V2    V5          a rhythm strip over the whole time
  by 0.2 s     III   aVF   V3    V6          6x2: two columns of 5 s     12x1: one column of 10 s
               II ─────────────────          measured: a row for each lead there is, for a single lead or a few

The sheet is A4 across where 10 s at 25 mm/s (or 5 s at 50 mm/s) are drawn, and larger where more is asked for. Rows get
the height that their traces need; where a sheet has not enough, traces run over each other as on paper, and what would
leave the next row is cut off and marked. Each strip is centred on its median. The trace is thinned to the points that
keep it within 0.01 mm. Layouts and grid as in Kligfield et al., Circulation 115 (2007) 1306 (AHA/ACC/HRS, part I).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medjax.report import drawing
from medjax.report.attribution import Attribution, Place, drawn, legend
from medjax.report.sheet import Area, Label, Mark, Point, Sheet, Stroke, polylines

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LAYOUTS = ("3x4", "6x2", "12x1", "measured")
SPEEDS, GAINS = (25.0, 50.0), (5.0, 10.0, 20.0)  # mm/s, mm/mV

_GRIDS = {"pink": ("#f6cfce", "#e8918f"), "grey": ("#e9eaec", "#c3c6cb")}  # lines of 1 mm and of 5 mm
_STATUS = {"missing": "not recorded", "flat": "flat line, not drawn"}
_TRACE, _MARGIN, _LEAD_IN = 0.25, 13.5, 15.0  # mm: width of the trace; edge of the sheet; room for the pulse
_TOP, _GRID_HEIGHT, _FOOT = 30.0, 160.0, 20.0  # mm: 210 together
_SPAN = 250.0  # mm of trace on a sheet of A4
_AIR = 1.5  # mm between traces above each other
_LEAST_APART = 9.0  # mm from row to row
_MOST = 40.0  # mm that one trace can ask for above or below its middle
_NAME = (10.0, 4.6)  # mm: room for the name of a lead
_REACH = 20.0  # mm above and below its middle that a trace is drawn in a crowd


@dataclass(frozen=True)
class Header:
    """What stands above the trace; what is not known is left out, an unknown age or sex is said.

    filters  what was done to the signal that is drawn, such as "high-pass 0.5 Hz"; "" for as recorded
    """

    id: str
    age_years: float | None = None
    sex: str | None = None
    heart_rate_bpm: float | None = None
    device: str | None = None
    time: str | None = None
    filters: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Strip:
    """A stretch of a lead in the layout: seconds of the record, and mm from the left of the trace."""

    lead: str
    start_s: float
    stop_s: float
    left: float
    mm_a_second: float
    heading: str
    time: NDArray[np.float64] = field(repr=False)  # mm from `left`
    height: NDArray[np.float64] = field(repr=False)  # mm above the median
    empty: str = ""


def ecg_sheet(
    signal: ArrayLike,
    sampling_rate_hz: float,
    header: Header,
    *,
    leads: Sequence[str] = LEADS,
    status: Sequence[str] | None = None,
    layout: str = "3x4",
    speed_mm_s: float = 25.0,
    gain_mm_mv: float = 10.0,
    start_s: float = 0.0,
    seconds: float | None = None,
    grid: str = "",
    attribution: Attribution | None = None,
) -> Sheet:
    """Lay out a record.

    signal    [leads, samples] mV, NaN where not measured: drawn as a gap
    leads     names of the rows of signal, standard spelling
    status    a word a lead: "measured", "derived", "missing" or "flat"; None: a lead without a number is missing
    seconds   drawn from start_s on; None: what fits on 250 mm, 10 s at 25 mm/s
    grid      "pink" or "grey"; "": pink, and grey under an attribution, so that its colours stand alone

    Raises ValueError for a layout, speed, gain or grid that is not offered, shapes that do not fit and a part of the
    record that is not there.
    """
    values = np.asarray(signal, dtype=np.float64)
    _check(values, sampling_rate_hz, leads, status, layout, speed_mm_s, gain_mm_mv, grid, attribution)
    duration = values.shape[1] / sampling_rate_hz
    if not 0 <= start_s < duration:
        raise ValueError(
            f"start_s: got {start_s:g}, expected 0 to {duration:g} s, the record's length; choose an earlier start."
        )
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds: got {seconds:g}, expected more than 0 s; leave it out for what fits on A4.")
    fitting = _SPAN / speed_mm_s if seconds is None else seconds
    paper = _Paper(values, sampling_rate_hz, tuple(leads), tuple(status or ()), speed_mm_s, gain_mm_mv)
    rows = paper.rows(layout, start_s, min(start_s + fitting, duration), fitting)
    span = math.ceil(round(max(fitting * speed_mm_s, _SPAN), 6) / 5) * 5
    left, width = _MARGIN + _LEAD_IN, _LEAD_IN + span + 5
    places, crowded = _places(rows, span)
    grid = grid or ("grey" if attribution else "pink")
    marks: list[Mark] = [*_grid(grid, _MARGIN, _TOP, width, _GRID_HEIGHT)]
    names: list[Mark] = []
    traces: list[Mark] = []
    cut: list[str] = []
    pulse = -math.inf
    for row, (top, middle, bottom) in zip(rows, places, strict=True):
        reach = max(_REACH, 1.5 * (bottom - top)) if crowded else max(_MOST, min(middle - top, bottom - middle))
        for strip in row:
            at = left + strip.left
            if attribution and not strip.empty:
                place = Place(
                    *(top, bottom, strip.start_s, strip.stop_s, speed_mm_s),
                    *(at + strip.time, middle - strip.height),
                )
                marks += drawn(attribution, leads.index(strip.lead), place)
            lift = min(_name_height(strip), max(0.45 * (middle - top) + 1, 2.0)) if crowded else _name_height(strip)
            names += _name(strip, at, middle, lift, separated=strip is not row[0])
            traces += _trace(strip, at, middle, reach, cut)
        if middle - gain_mm_mv > pulse + 1:  # pulses do not run into each other
            traces.append(_pulse(_MARGIN + 4, middle, gain_mm_mv))
            pulse = middle
    marks += [*names, *traces, *_heading(header, width)]
    marks += _footing(paper, header, rows, (start_s, min(start_s + fitting, duration), duration), (crowded, cut), width)
    if attribution:
        marks += legend(attribution, _MARGIN + width, _TOP + _GRID_HEIGHT + 7.6)
    shown = [lead for lead in LEADS if lead in leads and not paper.absent(lead)]
    return Sheet(
        _MARGIN * 2 + width,
        _TOP + _GRID_HEIGHT + _FOOT,
        f"ECG {header.id}",
        f"{len(shown)} leads ({', '.join(shown) or 'none'}), {start_s:g} to {min(start_s + fitting, duration):g} s of "
        f"{duration:g} s, {speed_mm_s:g} mm/s, {gain_mm_mv:g} mm/mV, layout {layout}",
        tuple(marks),
    )


@dataclass(frozen=True)
class _Paper:
    values: NDArray[np.float64]
    sampling_rate_hz: float
    leads: tuple[str, ...]
    status: tuple[str, ...]
    speed_mm_s: float
    gain_mm_mv: float

    def rows(self, layout: str, start_s: float, stop_s: float, span_s: float) -> list[list[_Strip]]:
        """Strips of each row. Columns follow each other in time; in a record that ends earlier they overlap in time."""
        names = LEADS if layout != "measured" else tuple(lead for lead in self.leads if not self.absent(lead))
        columns = {"3x4": 4, "6x2": 2}.get(layout, 1)
        each = span_s / columns
        room = max(0.0, stop_s - start_s - each)
        starts = [start_s + (column * room / (columns - 1) if columns > 1 else 0) for column in range(columns)]
        depth = max(1, len(names) // columns)
        rows = [
            [
                self.strip(
                    names[column * depth + row], starts[column], min(starts[column] + each, stop_s), column * each
                )
                for column in range(columns)
            ]
            for row in range(depth if names else 0)
        ]
        if layout == "3x4":
            rhythm = next((lead for lead in ("II", "V1", *self.leads) if not self.absent(lead)), "II")
            rows.append([self.strip(rhythm, start_s, stop_s, 0.0)])
        return rows

    def strip(self, lead: str, start_s: float, stop_s: float, offset_s: float) -> _Strip:
        left = offset_s * self.speed_mm_s
        state = self.status[self.leads.index(lead)] if self.status and lead in self.leads else "measured"
        heading = f"{lead} derived" if state == "derived" else lead
        if self.absent(lead):
            why = _STATUS.get(state, _STATUS["missing"])
            return _Strip(lead, start_s, stop_s, left, self.speed_mm_s, lead, np.empty(0), np.empty(0), f"{lead} {why}")
        row = self.values[self.leads.index(lead)]
        first = math.ceil(start_s * self.sampling_rate_hz - 1e-6)
        last = min(math.floor(stop_s * self.sampling_rate_hz + 1e-6), len(row) - 1)
        part = row[first : last + 1]
        middle = np.nanmedian(part) if np.isfinite(part).any() else 0.0
        time = (np.arange(first, last + 1) / self.sampling_rate_hz - start_s) * self.speed_mm_s
        empty = "" if np.isfinite(part).any() else f"{lead} not measured here"
        height = (part - middle) * self.gain_mm_mv
        return _Strip(lead, start_s, stop_s, left, self.speed_mm_s, heading, time, height, empty)

    def absent(self, lead: str) -> bool:
        return lead not in self.leads or not np.isfinite(self.values[self.leads.index(lead)]).any()


def _places(rows: Sequence[Sequence[_Strip]], span: int) -> tuple[list[tuple[float, float, float]], bool]:
    """Top, middle and bottom of each row in mm of the sheet, and whether traces run over each other.

    Rows stand as far apart as their traces need where they are closest, and share what is left; where the sheet has not
    enough height they stand evenly.
    """
    if not rows:
        return [], False
    edges = [_edges(row, span) for row in rows]
    apart = [max(float((below + above).max()) + _AIR, _LEAST_APART) for (_, below), (above, _) in pairwise(edges)]
    first, last = float(edges[0][0].max()) + _AIR, float(edges[-1][1].max()) + _AIR
    spare = _GRID_HEIGHT - first - last - sum(apart)
    if spare >= 0:
        first, last = first + spare / (2 * len(rows)), last + spare / (2 * len(rows))
        apart = [distance + spare / len(rows) for distance in apart]
    else:
        share = min(1.0, 0.4 * _GRID_HEIGHT / (first + last))
        first, last = first * share, last * share
        apart = [(_GRID_HEIGHT - first - last) / len(apart)] * len(apart)
    middles = [_TOP + first]
    for distance in apart:
        middles.append(middles[-1] + distance)
    borders = [_TOP]
    for number, distance in enumerate(apart):
        below, above = float(edges[number][1].max()), float(edges[number + 1][0].max())
        borders.append(middles[number] + distance * min(max(below / (below + above), 0.25), 0.75))
    borders.append(_TOP + _GRID_HEIGHT)
    return list(zip(borders, middles, borders[1:], strict=False)), spare < 0


def _edges(row: Sequence[_Strip], span: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Most mm above and below the middle of a row in each mm of its length, the names of leads included."""
    above, below = np.ones(span + 1), np.ones(span + 1)
    for strip in row:
        known = np.isfinite(strip.height)
        at = np.minimum((strip.left + strip.time[known]).astype(int), span)
        np.maximum.at(above, at, np.minimum(strip.height[known], _MOST))
        np.maximum.at(below, at, np.minimum(-strip.height[known], _MOST))
        name = slice(int(strip.left), int(strip.left + _NAME[0]))
        above[name] = _name_height(strip) + 3.0
    # a stroke reaches into the millimetres beside it
    above, below = (np.maximum.reduce([side, np.roll(side, 1), np.roll(side, -1)]) for side in (above, below))
    return above, below


def _name_height(strip: _Strip) -> float:
    """Where the name of a lead stands: just above what the trace does there, mm above the middle."""
    near = strip.height[strip.time <= _NAME[0]]
    near = near[np.isfinite(near)]
    return min(max(float(near.max(initial=0.0)) + 1.2, _NAME[1]), _REACH)


def _name(strip: _Strip, left: float, middle: float, lift: float, *, separated: bool) -> Iterator[Mark]:
    if separated:
        ticks = tuple(((left, middle + a), (left, middle + b)) for a, b in ((-6.0, -2.5), (2.5, 6.0)))
        yield Stroke(ticks, drawing.INK, 0.2, kind="separator")
    if strip.empty:
        right = left + (strip.stop_s - strip.start_s) * strip.mm_a_second
        yield Stroke((((left + 1.2, middle), (right - 1.2, middle)),), drawing.MUTED, 0.15, dashed=True, kind="empty")
        yield Label(left + 1.2, middle - 1.8, strip.empty, 3.2, drawing.MUTED, halo=True)
    else:
        yield Label(left + 1.2, middle - lift, strip.heading, 3.4, bold=True, halo=True)


def _trace(strip: _Strip, left: float, middle: float, reach: float, cut: list[str]) -> Iterator[Mark]:
    """The trace; what lies further than `reach` from the middle or off the grid is cut off, marked and noted."""
    if strip.empty:
        return
    high, low = min(reach, middle - _TOP), -min(reach, _TOP + _GRID_HEIGHT - middle)
    inside = np.clip(strip.height, low, high)
    yield Stroke(tuple(polylines(left + strip.time, middle - inside)), "#000000", _TRACE, kind=f"trace {strip.lead}")
    for beyond, edge, turn in ((strip.height > high, middle - high, 1), (strip.height < low, middle - low, -1)):
        for begin in np.flatnonzero(np.diff(np.concatenate([[False], beyond]).astype(np.int8)) == 1):
            x = left + strip.time[begin]
            corners = ((x - 1, edge + 1.6 * turn), (x + 1, edge + 1.6 * turn), (x, edge))
            yield Area(corners, drawing.TONES["fail"], kind="cut")
        if beyond.any() and strip.lead not in cut:
            cut.append(strip.lead)


def _pulse(x: float, y: float, gain_mm_mv: float) -> Stroke:
    """The calibration pulse: 1 mV by 5 mm."""
    corners = ((x, y), (x + 1.5, y), (x + 1.5, y - gain_mm_mv), (x + 6.5, y - gain_mm_mv), (x + 6.5, y), (x + 8, y))
    return Stroke((corners,), "#000000", _TRACE, kind="calibration")


def _grid(name: str, left: float, top: float, width: float, height: float) -> Iterator[Stroke]:
    for step, colour, thickness, kind in ((1, _GRIDS[name][0], 0.1, "fine"), (5, _GRIDS[name][1], 0.15, "coarse")):
        lines: list[tuple[Point, ...]] = []
        for x in range(0, round(width) + 1, step):
            if step == 5 or x % 5:
                lines.append(((left + x, top), (left + x, top + height)))
        for y in range(0, round(height) + 1, step):
            if step == 5 or y % 5:
                lines.append(((left, top + y), (left + width, top + y)))
        yield Stroke(tuple(lines), colour, thickness, kind=kind)


def _heading(header: Header, width: float) -> Iterator[Label]:
    age = "age not known" if header.age_years is None else f"{header.age_years:g} years"
    rate = "" if header.heart_rate_bpm is None else f"{header.heart_rate_bpm:.0f} beats/min"
    person = " · ".join(part for part in (age, header.sex or "sex not known", rate) if part)
    yield Label(_MARGIN, 14.5, drawing.cut_to(header.id, 60), 5.2, bold=True)
    yield Label(_MARGIN, 20.5, person, 3.8)
    for y, value in ((14.5, header.time), (20.5, header.device)):
        if value:
            yield Label(_MARGIN + width, y, drawing.cut_to(value, 60), 3.4, drawing.MUTED, anchor="end")
    if header.remarks:
        yield Label(_MARGIN, 26.2, drawing.cut_to("; ".join(header.remarks), 150), 3.0, drawing.MUTED)


def _footing(
    paper: _Paper,
    header: Header,
    rows: Sequence[Sequence[_Strip]],
    drawn_s: tuple[float, float, float],
    crowding: tuple[bool, list[str]],
    width: float,
) -> Iterator[Label]:
    start, stop, duration = drawn_s
    starts = [strip.start_s for strip in rows[0]] if rows else []
    each = (rows[0][1].left - rows[0][0].left) / paper.speed_mm_s if len(starts) > 1 else 0.0
    base = _TOP + _GRID_HEIGHT
    whole = stop - start >= duration - 1e-9
    part = f"all {duration:.4g} s" if whole else f"{start:.4g} to {stop:.4g} s of {duration:.4g} s"
    scale = f"{paper.speed_mm_s:g} mm/s · {paper.gain_mm_mv:g} mm/mV"
    yield Label(_MARGIN, base + 5.2, scale, 3.6, bold=True)
    facts = [part, f"{paper.sampling_rate_hz:g} Hz", header.filters or "as recorded", "each strip about its median"]
    yield Label(_MARGIN + 56, base + 5.2, " · ".join(facts), 3.2, drawing.MUTED)
    notes = []
    if len(set(starts)) > 1 and starts[1] - starts[0] < each - 1e-6:
        notes.append(f"columns of {each:.4g} s start at {', '.join(f'{at:.3g}' for at in starts)} s")
    crowded, cut = crowding
    if crowded:
        notes.append("traces run over each other at this gain")
    if notes:
        yield Label(_MARGIN, base + 10.4, "; ".join(notes), 3.0, drawing.MUTED)
    if cut:
        marked = drawing.cut_to(f"▲▼ cut off: {', '.join(cut)}", 90)
        yield Label(_MARGIN, base + 15.4, marked, 3.0, drawing.TONES["fail"], bold=True)
    yield Label(
        _MARGIN + width, base + 15.5, "Drawn by medjax. Not a medical device.", 2.8, drawing.MUTED, anchor="end"
    )


def _check(
    values: NDArray[np.float64],
    sampling_rate_hz: float,
    leads: Sequence[str],
    status: Sequence[str] | None,
    layout: str,
    speed_mm_s: float,
    gain_mm_mv: float,
    grid: str,
    attribution: Attribution | None,
) -> None:
    if values.ndim != 2 or len(values) != len(leads) or values.shape[1] == 0 or sampling_rate_hz <= 0:
        raise ValueError(
            f"signal: got shape {values.shape} at {sampling_rate_hz:g} Hz with {len(leads)} lead names, expected "
            "[leads, samples] mV with a name a lead, at least one sample and a rate above 0; give the record as read."
        )
    if unknown := [lead for lead in leads if lead not in LEADS]:
        raise ValueError(f"leads: got {', '.join(unknown)}, expected names out of {', '.join(LEADS)}; rename them.")
    if status is not None and len(status) != len(leads):
        raise ValueError(f"status: got {len(status)} words, expected {len(leads)}, one a lead; give the record's own.")
    for name, got, offered in (
        ("layout", layout, LAYOUTS),
        ("speed_mm_s", speed_mm_s, SPEEDS),
        ("gain_mm_mv", gain_mm_mv, GAINS),
        ("grid", grid or "pink", tuple(_GRIDS)),
    ):
        if got not in offered:
            raise ValueError(
                f"{name}: got {got!r}, expected one of {', '.join(map(str, offered))}; choose one of them."
            )
    if attribution and len(attribution.weights) != len(leads):
        raise ValueError(
            f"attribution.weights: got {len(attribution.weights)} rows, expected {len(leads)}, one a lead; give NaN "
            "for leads that the model does not see."
        )
