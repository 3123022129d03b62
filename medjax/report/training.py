"""The report of a training run: a page of one file, and the figure of its losses.

The figure, from the lines of metrics.jsonl and held_out.jsonl:

  loss   light: as logged   dark: smoothed (centred, so that it does not lag)   ● held-out   ✕ not finite
  ────
  learning rate, thin, below, on the same axis of steps

The page shows the figure, what held-out data said before and after, speed and where the time went, the data report, and
every setting. Of an encoder of ECGs it tells the sets of patients and their labels, and for a masked autoencoder it
shows reconstructions. It loads nothing, runs no script, and text of data and settings is escaped.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from medjax.report import drawing, pages, plane
from medjax.report.plane import Point

LANGUAGE_LOSS = "nats a token"
# by what the log lines say that the loss is a mean over
_LOSSES = {
    "counted_tokens": LANGUAGE_LOSS,
    "counted_patches": "squared error of masked patches",
    "counted_labels": "mean over known labels",
}
_LABEL_LOSSES = {
    "classify": "cross-entropy, mean over known labels",
    "regress": "squared error in SD², mean over known labels",
}
_COLUMNS = {"right": "Right at 1/2"}  # names of a log line that do not speak for themselves
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


def loss_figure(
    metrics: Sequence[Line], held_out: Sequence[Line] = (), title: str = "", unit: str | None = None
) -> str:
    """Return a standalone SVG on white of the losses over the steps.

    metrics   lines of metrics.jsonl: step, loss (None: not finite), learning_rate if it is known
    held_out  lines of held_out.jsonl: step, loss
    title     above the figure, if any
    unit      of the loss; None: what the lines say that it is a mean over

    Raises ValueError when there is no line with a step.
    """
    unit = unit or _loss_unit(metrics, held_out)
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
        plane.opening(_WIDTH, _HEIGHT - top, "Loss over the steps", top=top),
        plane.text(_LEFT, 30, title if len(title) <= 80 else title[:79] + "…", 17, "ink", weight=600),
        plane.text(_LEFT, 52, f"loss, {unit}", 12, "muted"),
        *_legend(width, bool(finite), bool(held), len(points) > len(finite)),
    ]
    for tick in ticks:
        parts.append(plane.grid_line(_LEFT, y(tick), _RIGHT, y(tick)))
        parts.append(plane.text(_LEFT - 8, y(tick) + 4, f"{tick:.4g}", 12, "muted", anchor="end"))
    for tick in plane.ticks(0, last, 6):
        if tick == int(tick):
            parts.append(plane.grid_line(x(tick), _LOSS[0], x(tick), _LOSS[1]))
            anchor = "end" if x(tick) > _RIGHT - 20 else "middle"
            parts.append(plane.text(x(tick), _HEIGHT - 38, f"{int(tick):,}", 12, "muted", anchor=anchor))
    parts.append(plane.text((_LEFT + _RIGHT) / 2, _HEIGHT - 16, "step", 12, "muted", anchor="middle"))
    parts += _learning_rate(metrics, x)
    logged = "light" if width > 1 else "accent"
    shown = [(x(step), y(loss)) for step, loss in plane.thinned(finite)]
    parts.append(plane.curve(shown, logged, 1 if width > 1 else 2))
    if width > 1:
        parts.append(plane.curve([(x(step), y(loss)) for step, loss in plane.thinned(smooth)], "accent", 2))
    for step, loss in points:
        if loss is None:
            parts.append(plane.text(x(step), _LOSS[0] + 5, "✕", 13, "bad", anchor="middle"))
    parts.append(plane.curve([(x(step), y(loss)) for step, loss in held], "held", 1, dashed=True))
    for number, (step, loss) in enumerate(held):
        parts.append(plane.dot(x(step), y(loss), "held"))
        if number in (0, len(held) - 1):
            side = -1 if x(step) > _RIGHT - 60 else 1
            anchor = "end" if side < 0 else "start"
            at, value = (x(step) + 8 * side, y(loss) - 8), f"{loss:.3f}"
            parts.append(plane.text(*at, value, 13, "held", weight=600, anchor=anchor, halo=True))
    return Markup("\n").join([*parts, Markup("</svg>\n")])


def training_report(run: Mapping[str, Any]) -> str:
    """Return the HTML page of a run.

    run  "name"; "metrics" and "held_out": lines of the two logs; and as far as known "date" (seconds since 1970),
         "status" (a sentence, where the run is not finished), "model" {name, parameters, trained, trained_parameters},
         "devices", "wall" (seconds by span, as `metrics.WallTime.read`), "data" (what became of the documents),
         "settings" and "record" (nested values, shown whole), "command", "loss_unit" (default: by the objective of
         the settings and by what the lines count), "reconstructions" (texts of SVG figures, trusted, shown as they are)

    Raises ValueError without a line in "metrics" or "held_out".
    """
    metrics, held_out = run.get("metrics", ()), run.get("held_out", ())
    settings = run.get("settings", {})
    unit = run.get("loss_unit") or _LABEL_LOSSES.get(settings.get("objective")) or _loss_unit(metrics, held_out)
    data = run.get("data", {})
    wall = {span: seconds for span, seconds in run.get("wall", {}).items() if seconds > 0}
    values = {
        "name": run["name"],
        "date": drawing.date(run.get("date")),
        "status": run.get("status", ""),
        "facts": [(name, value) for name, value in _facts(run, metrics, held_out) if value],
        "figure": loss_figure(metrics, held_out, unit=unit),
        "held_out": _held_out(held_out, language=unit == LANGUAGE_LOSS),
        "unit": unit,
        "language": unit == LANGUAGE_LOSS,
        "objective": settings.get("objective", ""),
        "speed": list(_speed(metrics)),
        "wall": _wall(wall),
        "reconstructions": [Markup(figure) for figure in run.get("reconstructions", ())],
        "sets": _sets(data),
        "targets": _targets(data),
        "data": list(pages.flat(_rest(data), shown=pages.compact)) if data else [],
        "settings": list(pages.flat(settings, shown=pages.compact)) if settings else [],
        "record": list(pages.flat(run["record"], shown=pages.compact)) if run.get("record") else [],
        "command": run.get("command", ""),
    }
    return pages.render("training.html", values)


def _loss_unit(metrics: Sequence[Line], held_out: Sequence[Line]) -> str:
    names = {name for line in (*metrics[-1:], *held_out[-1:]) for name in line}
    return next((unit for name, unit in _LOSSES.items() if name in names), LANGUAGE_LOSS)


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
    return low, high, [tick for tick in plane.ticks(low, high, 5) if low <= tick <= high]


def _learning_rate(metrics: Sequence[Line], x: Any) -> list[Markup]:
    rates = [(line["step"], line["learning_rate"]) for line in metrics if line.get("learning_rate") is not None]
    top, bottom = _RATE
    if not rates:
        return [plane.grid_line(_LEFT, _LOSS[1], _RIGHT, _LOSS[1])]
    most = max(rate for _, rate in rates) or 1.0
    if len(rates) < 2:
        only = f"learning rate {most:.3g} at step {rates[0][0]}, the only one logged"
        return [plane.text(_LEFT, top - 8, only, 12, "muted"), plane.grid_line(_LEFT, bottom, _RIGHT, bottom)]
    curve = [(x(step), bottom - (bottom - top) * rate / most) for step, rate in plane.thinned(rates)]
    return [
        plane.text(_LEFT, top - 8, f"learning rate, up to {most:.3g} at the steps that were logged", 12, "muted"),
        plane.grid_line(_LEFT, bottom, _RIGHT, bottom),
        plane.curve(curve, "muted", 1.2),
    ]


def _legend(width: int, with_loss: bool, with_held_out: bool, with_bad: bool) -> list[Markup]:
    entries = [
        ("light" if width > 1 else "accent", "as logged", with_loss),
        ("accent", f"smoothed over {width} lines", width > 1),
        ("held", "held-out", with_held_out),
        ("bad", "not finite", with_bad),
    ]
    marks: list[Markup] = []
    right = float(_RIGHT)
    for kind, label in [(kind, label) for kind, label, there in reversed(entries) if there]:
        right -= 7.2 * len(label)  # at most, the mean width of a letter in the widest font to fall back on
        marks.append(plane.text(right, 52, label, 12, "muted"))
        right -= 12
        if kind == "held":
            marks.append(plane.dot(right, 48, "held"))
        elif kind == "bad":
            marks.append(plane.text(right, 52, "✕", 13, "bad", anchor="middle"))
        else:
            marks.append(plane.curve([(right - 12, 48), (right + 6, 48)], kind, 2))
        right -= 28
    return marks


def _facts(run: Mapping[str, Any], metrics: Sequence[Line], held_out: Sequence[Line]) -> Iterator[tuple[str, str]]:
    model = run.get("model", {})
    losses = [line["loss"] for line in held_out if line.get("loss") is not None]
    yield "Held-out loss", f"{losses[0]:.3f} → {losses[-1]:.3f}" if len(losses) > 1 else ""
    yield "Model", model.get("name", "")
    yield "Parameters", drawing.magnitude(model["parameters"]) if model.get("parameters") else ""
    trained = f"{drawing.magnitude(model['trained_parameters'])} weights" if model.get("trained_parameters") else ""
    yield "Trained", ", ".join(part for part in (model.get("trained", ""), trained) if part)
    settings = run.get("settings", {})
    yield "Encoder from", settings["finetune"]["start"] if settings.get("objective") in _LABEL_LOSSES else ""
    yield "Steps", f"{metrics[-1]['step']:,}" if metrics else ""
    yield "Devices", str(run.get("devices", ""))
    yield "Wall time", drawing.duration(sum(run["wall"].values())) if run.get("wall") else ""


def _held_out(lines: Sequence[Line], *, language: bool) -> dict[str, Any]:
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
                *([f"{math.exp(min(line['loss'], 700)):,.2f}"] if language else []),
                *(pages.compact(line[name]) if line.get(name) is not None else "–" for name in names),
            ],
        }
        for label, line in labelled
    ]
    columns = [
        "Step",
        "Loss",
        "Change",
        *(["Perplexity"] if language else []),
        *(_COLUMNS.get(name) or name.replace("_", " ").capitalize() for name in names),
    ]
    return {"columns": columns, "rows": rows}


def _sets(data: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the sets that an ECG run divides its patients into: name, records, patients."""
    return [[name, f"{of['records']:,}", f"{of['patients']:,}"] for name, of in data.get("sets", {}).items()]


def _targets(data: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the targets of an ECG run: name, kind, and for each set the share of yes or the mean of known records."""

    def cell(kind: str, found: Mapping[str, Any]) -> str:
        if found["mean"] is None:
            return "–"
        value = drawing.percent(found["mean"]) if kind == "binary" else f"mean {pages.compact(found['mean'])}"
        return f"{value} of {found['records']:,}"

    return [
        [name, of["kind"], *(cell(of["kind"], of[each]) for each in data["sets"])]
        for name, of in data.get("targets", {}).items()
    ]


def _rest(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables of an ECG run do not show; all of a language model's."""
    return {
        name: value for name, value in data.items() if "sets" not in data or name not in ("sets", "targets", "fill")
    }


def _speed(metrics: Sequence[Line]) -> Iterator[tuple[str, str]]:
    def median(name: str) -> float | None:
        values = [line[name] for line in metrics if line.get(name) is not None]
        return statistics.median(values) if values else None

    real, computed, share = median("tokens_per_s"), median("computed_tokens_per_s"), median("mfu")
    if real is not None:
        yield "Real tokens a second (median)", f"{real:,.0f}"
    if real is not None and computed:
        yield "Computed tokens a second, padding included", f"{computed:,.0f} ({100 * real / computed:.1f} % real)"
    records = median("records_per_s")
    if records is not None:
        yield "Records a second (median)", f"{records:,.1f}"
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
