"""The report of a training run: a page of one file, and the figure of its losses.

The figure, from the lines of metrics.jsonl and held_out.jsonl:

  loss   light: as logged   dark: smoothed (centred, so that it does not lag)   ● held-out   ✕ not finite
  ────
  learning rate, thin, below, on the same axis of steps

The page shows the figure, what held-out data said before and after, speed and where the time went, the data report, and
every setting. It loads nothing, runs no script, and text of data and settings is escaped.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medjax.report import drawing

MOST_POINTS = 1200  # of a curve; longer ones keep the lowest and highest of each stretch

# light colours; the page overrides them by class to follow the reader's colour scheme
_INK, _MUTED, _RULE, _ACCENT, _HELD, _BAD = "#1c2430", "#5b6675", "#d5dbe3", "#0b6b8f", "#c2570c", "#b3261e"
_FONT = "system-ui, 'Segoe UI', 'Hiragino Sans', 'Noto Sans CJK JP', 'Noto Sans JP', sans-serif"
_SPANS = {
    "step": "steps",
    "data": "waiting for data",
    "compile": "compiling",
    "evaluate": "held-out loss",
    "save": "saving",
    "restore": "restoring",
    "other": "starting and other",
}

# pixels of the figure: panels of the loss and the learning rate between left and right
_WIDTH, _HEIGHT, _LEFT, _RIGHT = 820, 430, 62, 796
_LOSS, _RATE = (78, 296), (330, 374)

Line = Mapping[str, Any]
Point = tuple[float, float]


def loss_figure(metrics: Sequence[Line], held_out: Sequence[Line] = (), title: str = "") -> str:
    """Return a standalone SVG on white of the losses over the steps.

    metrics   lines of metrics.jsonl: step, loss (None: not finite), learning_rate if it is known
    held_out  lines of held_out.jsonl: step, loss
    title     above the figure, if any

    Raises ValueError when there is no line with a step.
    """
    points = [(line["step"], line.get("loss")) for line in metrics if "step" in line]
    held = [(line["step"], line["loss"]) for line in held_out if line.get("loss") is not None]
    if not points and not held:
        raise ValueError(
            "loss_figure: got no line with a step, expected those of metrics.jsonl; draw it after the first log line."
        )
    finite = [(step, loss) for step, loss in points if loss is not None]
    smooth, width = _smoothed(finite)
    last = max([step for step, _ in points] + [step for step, _ in held])
    low, high, ticks = _loss_axis(finite, smooth, held)

    def x(step: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * step / (last or 1)

    def y(loss: float) -> float:
        share = (min(max(loss, low), high) - low) / (high - low)
        return _LOSS[1] - share * (_LOSS[1] - _LOSS[0])

    top = 0 if title else 36
    parts = [
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" class="figure" width="{0}" height="{1}" viewBox="0 {2} {0} {1}" '
            'font-family="{3}" role="img">\n<title>Loss over the steps</title>\n'
            '<rect class="back" y="{2}" width="{0}" height="{1}" fill="#ffffff"/>'
        ).format(_WIDTH, _HEIGHT - top, top, _FONT),
        _text(_LEFT, 30, title if len(title) <= 80 else title[:79] + "…", 17, "ink", weight=600),
        _text(_LEFT, 52, "loss, nats a token", 12, "muted"),
        *_legend(width, bool(finite), bool(held), len(points) > len(finite)),
    ]
    for tick in ticks:
        parts.append(_line(_LEFT, y(tick), _RIGHT, y(tick)))
        parts.append(_text(_LEFT - 8, y(tick) + 4, f"{tick:.4g}", 12, "muted", anchor="end"))
    for tick in _ticks(0, last, 6):
        if tick == int(tick):
            parts.append(_line(x(tick), _LOSS[0], x(tick), _LOSS[1]))
            anchor = "end" if x(tick) > _RIGHT - 20 else "middle"
            parts.append(_text(x(tick), _HEIGHT - 38, f"{int(tick):,}", 12, "muted", anchor=anchor))
    parts.append(_text((_LEFT + _RIGHT) / 2, _HEIGHT - 16, "step", 12, "muted", anchor="middle"))
    parts += _learning_rate(metrics, x)
    logged = "light" if width > 1 else "accent"
    parts.append(_curve([(x(step), y(loss)) for step, loss in _thinned(finite)], logged, 1 if width > 1 else 2))
    if width > 1:
        parts.append(_curve([(x(step), y(loss)) for step, loss in _thinned(smooth)], "accent", 2))
    for step, loss in points:
        if loss is None:
            parts.append(_text(x(step), _LOSS[0] + 5, "✕", 13, "bad", anchor="middle"))
    parts.append(_curve([(x(step), y(loss)) for step, loss in held], "held", 1, dashed=True))
    for number, (step, loss) in enumerate(held):
        parts.append(
            Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4" fill="{}"/>').format(x(step), y(loss), _HELD)
        )
        if number in (0, len(held) - 1):
            side = -1 if x(step) > _RIGHT - 60 else 1
            anchor = "end" if side < 0 else "start"
            parts.append(_text(x(step) + 8 * side, y(loss) - 8, f"{loss:.3f}", 13, "held", weight=600, anchor=anchor))
    return Markup("\n").join([*parts, Markup("</svg>\n")])


def training_report(run: Mapping[str, Any]) -> str:
    """Return the HTML page of a run.

    run  "name"; "metrics" and "held_out": lines of the two logs; and as far as known "date" (seconds since 1970),
         "status" (a sentence, where the run is not finished), "model" {name, parameters, trained, trained_parameters},
         "devices", "wall" (seconds by span, as `metrics.WallTime.read`), "data" (what became of the documents),
         "settings" and "record" (nested values, shown whole), "command"

    Raises ValueError without a line in "metrics" or "held_out".
    """
    metrics, held_out = run.get("metrics", ()), run.get("held_out", ())
    page = Environment(
        loader=PackageLoader("medjax.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    wall = {span: seconds for span, seconds in run.get("wall", {}).items() if seconds > 0}
    return page.get_template("training.html").render(
        name=run["name"],
        date=drawing.date(run.get("date")),
        status=run.get("status", ""),
        facts=[(name, value) for name, value in _facts(run, metrics, held_out) if value],
        figure=loss_figure(metrics, held_out),
        held_out=_held_out(held_out),
        speed=list(_speed(metrics)),
        wall=_wall(wall),
        data=list(_flat(run.get("data", {}))) if run.get("data") else [],
        settings=list(_flat(run.get("settings", {}))) if run.get("settings") else [],
        record=list(_flat(run.get("record", {}))) if run.get("record") else [],
        command=run.get("command", ""),
    )


def _smoothed(points: Sequence[Point]) -> tuple[list[Point], int]:
    """Means of the middle half of a centred window, shorter at the start and one-sided at the end, and its length.

    The window is about a fifteenth of the points. The outer quarters are left out so that a spike is no plateau.
    """
    reach = min(50, len(points) // 30)
    losses = [loss for _, loss in points]
    means = []
    for i, (step, _) in enumerate(points):
        window = sorted(losses[i - min(reach, i) : i + min(reach, i) + 1])
        cut = len(window) // 4
        means.append((step, statistics.fmean(window[cut : len(window) - cut])))
    return means, 2 * reach + 1


def _loss_axis(
    finite: Sequence[Point], smooth: Sequence[Point], held: Sequence[Point]
) -> tuple[float, float, list[float]]:
    """Lowest and highest loss shown, and ticks: single outliers of the logged loss are cut off at the edge."""
    logged = sorted(loss for _, loss in finite)
    shown = [loss for _, loss in (*smooth, *held)] or [0.0]
    if logged:
        shown += [logged[len(logged) // 100], logged[-1 - len(logged) // 100]]
    low, high = min(shown), max(shown)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = max(0.0, low - margin) if low >= 0 else low - margin, high + margin
    return low, high, [tick for tick in _ticks(low, high, 5) if low <= tick <= high]


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that cover a range: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [round(step * i, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS points that draw the same curve: first, lowest and highest of each stretch, in order."""
    if len(points) <= MOST_POINTS:
        return list(points)
    length = math.ceil(len(points) / (MOST_POINTS // 2))
    kept = []
    for start in range(0, len(points), length):
        stretch = points[start : start + length]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def _learning_rate(metrics: Sequence[Line], x: Any) -> list[Markup]:
    rates = [(line["step"], line["learning_rate"]) for line in metrics if line.get("learning_rate") is not None]
    top, bottom = _RATE
    if not rates:
        return [_line(_LEFT, _LOSS[1], _RIGHT, _LOSS[1])]
    most = max(rate for _, rate in rates) or 1.0
    curve = [(x(step), bottom - (bottom - top) * rate / most) for step, rate in _thinned(rates)]
    return [
        _text(_LEFT, top - 8, f"learning rate, up to {most:.3g}", 12, "muted"),
        _line(_LEFT, bottom, _RIGHT, bottom),
        _curve(curve, "muted", 1.2),
    ]


def _legend(width: int, with_loss: bool, with_held_out: bool, with_bad: bool) -> list[Markup]:
    entries = [
        ("light" if width > 1 else "accent", "as logged", with_loss),
        ("accent", f"smoothed over {width} lines", width > 1),
        ("held", "held-out", with_held_out),
        ("bad", "not finite", with_bad),
    ]
    marks, right = [], float(_RIGHT)
    for kind, label in [(kind, label) for kind, label, there in reversed(entries) if there]:
        right -= 7.2 * len(label)  # at most, the mean width of a letter in the widest font to fall back on
        marks.append(_text(right, 52, label, 12, "muted"))
        right -= 12
        if kind == "held":
            marks.append(Markup('<circle class="dot" cx="{:.1f}" cy="48" r="4" fill="{}"/>').format(right, _HELD))
        elif kind == "bad":
            marks.append(_text(right, 52, "✕", 13, "bad", anchor="middle"))
        else:
            marks.append(_curve([(right - 12, 48), (right + 6, 48)], kind, 2))
        right -= 28
    return marks


_HALO = Markup(' stroke="#ffffff" stroke-width="4" stroke-linejoin="round" paint-order="stroke"')  # over the curves
_FILLS = {"ink": _INK, "muted": _MUTED, "light": "#9cc7d6", "accent": _ACCENT, "held": _HELD, "bad": _BAD}


def _text(x: float, y: float, text: str, size: int, kind: str, *, weight: int = 400, anchor: str = "start") -> Markup:
    return Markup(
        '<text class="{}" x="{:.1f}" y="{:.1f}" font-size="{}" fill="{}" font-weight="{}" text-anchor="{}"{}>{}</text>'
    ).format(kind, x, y, size, _FILLS[kind], weight, anchor, _HALO if kind == "held" else "", text)


def _line(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}"/>').format(
        x1, y1, x2, y2, _RULE
    )


def _curve(points: Sequence[Point], kind: str, width: float, *, dashed: bool = False) -> Markup:
    if len(points) < 2:
        return Markup("")
    path = "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = Markup(' stroke-dasharray="2 4"') if dashed else ""
    return Markup(
        '<path class="{} curve" d="{}" fill="none" stroke="{}" stroke-width="{:g}" stroke-linejoin="round"{}/>'
    ).format(kind, path, _FILLS[kind], width, dash)


def _facts(run: Mapping[str, Any], metrics: Sequence[Line], held_out: Sequence[Line]) -> Iterator[tuple[str, str]]:
    model = run.get("model", {})
    losses = [line["loss"] for line in held_out if line.get("loss") is not None]
    yield "Held-out loss", f"{losses[0]:.3f} → {losses[-1]:.3f}" if len(losses) > 1 else ""
    yield "Model", model.get("name", "")
    yield "Parameters", drawing.magnitude(model["parameters"]) if model.get("parameters") else ""
    trained = f"{drawing.magnitude(model['trained_parameters'])} weights" if model.get("trained_parameters") else ""
    yield "Trained", ", ".join(part for part in (model.get("trained", ""), trained) if part)
    yield "Steps", f"{metrics[-1]['step']:,}" if metrics else ""
    yield "Devices", str(run.get("devices", ""))
    yield "Wall time", drawing.duration(sum(run["wall"].values())) if run.get("wall") else ""


def _held_out(lines: Sequence[Line]) -> dict[str, Any]:
    """Rows of the first, best and last evaluation, with a column for each number that they have."""
    lines = [line for line in lines if line.get("loss") is not None]
    if not lines:
        return {"columns": [], "rows": []}
    best = min(lines, key=lambda line: line["loss"])
    labelled = [("before", lines[0])]
    labelled += [("best", best)] if best is not lines[0] and best is not lines[-1] else []
    labelled += [("after" if best is not lines[-1] else "after, and best", lines[-1])] if len(lines) > 1 else []
    names = [
        name
        for name, value in lines[-1].items()
        if name not in ("step", "loss", "time")
        and isinstance(value, int | float)
        and any(line.get(name) != line["loss"] for line in lines)
    ]
    rows = [
        {
            "label": label,
            "cells": [
                f"{line['step']:,}",
                f"{line['loss']:.4f}",
                f"{line['loss'] - lines[0]['loss']:+.4f}".replace("-", "−") if line is not lines[0] else "",
                f"{math.exp(min(line['loss'], 700)):,.2f}",
                *(_number(line[name]) if line.get(name) is not None else "–" for name in names),
            ],
        }
        for label, line in labelled
    ]
    columns = ["Step", "Loss", "Change", "Perplexity", *(name.replace("_", " ").capitalize() for name in names)]
    return {"columns": columns, "rows": rows}


def _speed(metrics: Sequence[Line]) -> Iterator[tuple[str, str]]:
    def median(name: str) -> float | None:
        values = [line[name] for line in metrics if line.get(name) is not None]
        return statistics.median(values) if values else None

    real, computed, share = median("tokens_per_s"), median("computed_tokens_per_s"), median("mfu")
    if real is not None:
        yield "Real tokens a second (median)", f"{real:,.0f}"
    if real is not None and computed:
        yield "Computed tokens a second, padding included", f"{computed:,.0f} ({100 * real / computed:.1f} % real)"
    if share is not None:
        yield "Model FLOPs utilisation (MFU)", f"{100 * share:.1f} %"
    for name, label in (
        ("device_memory_gib", "Most memory of a device"),
        ("process_memory_gib", "Most memory of the process"),
    ):
        used = [line[name] for line in metrics if line.get(name) is not None]
        limit = next((line["device_memory_limit_gib"] for line in metrics if line.get("device_memory_limit_gib")), None)
        of = f" of {limit:.1f} GiB" if limit and name == "device_memory_gib" else ""
        if used:
            yield label, f"{max(used):.2f} GiB{of}"


def _wall(wall: Mapping[str, float]) -> list[dict[str, Any]]:
    total = sum(wall.values())
    return [
        {"span": span, "label": _SPANS.get(span, span), "share": seconds / total, "seconds": drawing.duration(seconds)}
        for span, seconds in sorted(wall.items(), key=lambda pair: -pair[1])
    ]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted key and text of every leaf."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        yield path, ", ".join(map(str, value))
    else:
        yield path, "none" if value in (None, {}, [], ()) else _number(value)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"
