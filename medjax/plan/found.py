"""What a search leaves behind: tables for the terminal, and a folder with plan.toml, plan.svg and plan.json.

plan.toml is the best way to run, as `python -m medjax.train` takes it; its first lines say for what, and what is
estimated. The run's own out is kept, plan's settings are not in it.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medjax.config import to_dict, to_toml
from medjax.parallel.chips import GIB
from medjax.plan.layout import Layout
from medjax.plan.program import beyond
from medjax.plan.roofline import Roofline
from medjax.plan.run import preallocated
from medjax.plan.search import Search, Tried, described, first_of, front
from medjax.plan.settings import LanguagePlanSettings, RunPlanSettings
from medjax.report.plan import pareto_figure
from medjax.report.table import text_table
from medjax.store.provenance import command, versions
from medjax.store.runs import named, shortened

_SHOWN = 12  # ways in the table besides the compiled ones
_APART = 1.5  # times: rates by the compiler and by arithmetic that differ by more are not comparable


def folder(settings: RunPlanSettings) -> Path:
    """Where the results of a search go."""
    p = settings.plan
    if isinstance(settings, LanguagePlanSettings):
        what = Path(settings.model.name).name
    else:
        what = f"{settings.objective}-{settings.encoder.size}"
    slices = f"{p.slices}x" if p.slices > 1 else ""
    usual = shortened(f"{settings.name or what}-{slices}{p.topology.replace(':', '-')}")
    return named(p.out or Path("runs") / "plan" / usual)


def search_tables(found: Search) -> str:
    """What was tried and what is best, as text."""
    fitting = (one for one in found.ways if not one.found and one.estimated.peak <= found.room)
    shown = [*found.compiled, *first_of(fitting, lambda one: one.kind)[:_SHOWN]]
    parts = []
    if shown:
        parts.append(text_table([_row(one, found) for one in shown], _header(shown[0].way.unit), align="lllrrrrll"))
        parts += [_rates(shown, found)] if found.topology.chip.bf16_flops else []
    if distances := [abs(one.away) for one in found.compiled if one.away is not None]:
        parts.append(
            f"arithmetic alone was {100 * max(distances):.0f} % off the peak at the most, of {len(distances)} compiled"
        )
    parts.append(f"best: {described(found.best)}\n{_verdict(found.best, found)}" if found.best else found.lacking)
    if found.changes:
        parts.append(f"this is another training than the one asked for: {'; '.join(found.changes)}")
    if longer := _beyond(found):
        parts.append(longer)
    return "\n\n".join(parts)


def write(found: Search, settings: RunPlanSettings, place: Path) -> list[Path]:
    """Write plan.json, plan.svg and, where something fits, plan.toml; returns their paths."""
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "plan.json", found, settings)
    texts = {"plan.svg": picture(found)}
    if found.best:
        texts["plan.toml"] = run_toml(found, settings, place)
    for name, text in texts.items():
        (place / name).write_text(text, "utf-8")
    return [place / "plan.json", *(place / name for name in sorted(texts))]


def write_json(path: str | Path, found: Search, settings: RunPlanSettings) -> None:
    """Write everything that was tried."""
    text = json.dumps(to_json(found, settings), indent=1, ensure_ascii=False, allow_nan=False)
    Path(path).expanduser().write_text(text + "\n", "utf-8")


def run_toml(found: Search, settings: RunPlanSettings, place: Path) -> str:
    """The best way to run as medjax.train reads it, with what is known of it."""
    assert found.best
    best = found.best
    source = "by the compiler" if best.found else "by arithmetic alone, not compiled"
    memory = f"{best.peak / GIB:.2f} of {found.usable / GIB:.2f}" if found.usable else f"{best.peak / GIB:.2f}"
    chips = f"{found.topology.slices} x {found.topology.name}, {found.topology.chips} chips"
    lines = [
        f"# python -m medjax.train {place / 'plan.toml'}",
        f"# hardware: {chips}",
        f"# memory:   {memory} GiB on each device, {source}",
        f"# estimate: {_speed(best, found) or 'no time: this device has no figures'}",
        *([f"# changes:  {'; '.join(found.changes)}"] if found.changes else []),
        f"# made by:  {made_by(settings)}",
    ]
    return "\n".join(line.replace("\n", " ") for line in lines) + "\n\n" + to_toml(best.way.settings)


def made_by(settings: RunPlanSettings) -> str:
    """The command that repeats a search: without the file's mesh and parts, which a search replaces and refuses."""
    usual = type(settings)()
    given: dict[str, Any] = {
        "mesh": replace(settings.mesh, shape=usual.mesh.shape),
        "train": replace(settings.train, accumulation=usual.train.accumulation),
    }
    return command(replace(settings, **given), "medjax.plan")


def picture(found: Search) -> str:
    """Memory against time of every way, as SVG; times are those of the rates in the table."""
    ways = [one for one in found.ways if one.line]
    best = found.best if found.best and found.best.best_line else None
    return pareto_figure(
        [_point(one, one.line, found) for one in ways],
        [_point(one, one.line, found) for one in front(ways, lambda one: _ms(one, one.line, found))],
        [(one.peak / GIB, _ms(one, one.best_line, found)) for one in found.compiled if one.best_line],
        (best.peak / GIB, _ms(best, best.best_line, found)) if best else None,
        found.usable / GIB,
        found.topology.name,
        found.ways[0].way.unit if found.ways else "tokens",
    )


def to_json(found: Search, settings: RunPlanSettings) -> dict[str, Any]:
    """Everything that was tried, as plain JSON values."""
    best = found.best
    return {
        "fits": best is not None,
        "peak_gib": best.peak / GIB if best else None,
        "hbm_gib": found.usable / GIB,
        **({f"{best.way.unit}_per_s_per_chip": _per_chip(best, found)} if best else {}),
        "limit": best.best_line.limit if best and best.best_line else None,
        "no_bandwidth_of": list(best.best_line.unknown) if best and best.best_line else [],
        "lacking": found.lacking or None,
        "topology": found.topology.name,
        "slices": found.topology.slices,
        "chips": found.topology.chips,
        "estimated_ways": found.count,
        "fitting_by_arithmetic": found.fitting,
        "changes": found.changes,
        "best": _entry(best, found) if best else None,
        "compiled": [_entry(one, found, settings.plan.spare_gib * GIB) for one in found.compiled],
        "ways": [_entry(one, found) for one in found.ways],
        "estimate": "roofline: computing, HBM and links at their peaks and overlapped but for a tenth; not measured",
        "command": made_by(settings),
        "versions": versions("libtpu") if found.compiled and found.topology.chip.is_tpu else versions(),
    }


def _beyond(found: Search) -> str:
    """Rows that are longer than the model was made for, in words; empty where they are not."""
    of = found.ways[0].way.layout if found.ways else None
    return beyond(of.config, "data.window", of.window) if isinstance(of, Layout) else ""


def _header(unit: str) -> tuple[str, ...]:
    return (
        "mesh",
        "batch",
        "remat, weights, attention",
        "GiB by arithmetic",
        "compiled",
        "off",
        f"{unit}/s/chip",
        "by",
        "limit",
    )


def _row(one: Tried, found: Search) -> tuple[str, ...]:
    s, line = one.way.settings, one.best_line
    parts = f" in {s.train.accumulation}" if s.train.accumulation > 1 else ""
    split = f", {one.way.context}" if one.way.context else ""
    speed = _per_chip(one, found)
    return (
        s.mesh.shape,
        f"{s.train.batch_size}{parts}",
        f"{s.train.remat}, {one.way.stored}{split}",
        f"{one.estimated.peak / GIB:.2f}",
        f"{one.found.peak / GIB:.2f}" if one.found else "–",
        f"{100 * one.away:+.0f} %" if one.away is not None else "–",
        f"{speed:,.0f}" if speed else "–",
        _source(one) if line else "–",
        line.limit if line else "–",
    )


def _source(one: Tried) -> str:
    """What the time of a way comes from."""
    return "compiler" if one.found and one.found.roofline else "arithmetic"


def _rates(shown: Sequence[Tried], found: Search) -> str:
    """What the two kinds of rates are, and how far they are apart on the ways that have both."""
    unit = found.ways[0].way.unit
    words = f"{unit}/s/chip by the compiler: of the compiled program; by arithmetic: of the estimate, not compiled"
    shares = [one.line.step / one.found.roofline.step for one in shown if one.line and one.found and one.found.roofline]
    if any(not 1 / _APART <= share <= _APART for share in shares):
        low, high = (f"{end(shares):.2f}" for end in (min, max))
        between = low if low == high else f"{low} to {high}"
        words += (
            f"\nthe two are not comparable here: of the compiled ways the compiler's rate is {between} times that of "
            "arithmetic; compare rows of one kind, or compile more (plan.tries)"
        )
    return words


def _entry(one: Tried, found: Search, spare: float = 0.0) -> dict[str, Any]:
    s = one.way.settings
    return {
        "mesh": s.mesh.shape,
        "batch_size": s.train.batch_size,
        "accumulation": s.train.accumulation,
        "remat": s.train.remat,
        "weights": one.way.stored,
        "context": one.way.context or None,
        "estimated_gib": one.estimated.peak / GIB,
        "compiled_gib": one.found.peak / GIB if one.found else None,
        "fits": one.found.fits(spare) if one.found else None,
        "time_by": _source(one) if one.best_line else None,
        "step_s": _step(one.best_line),
        f"{one.way.unit}_per_s_per_chip": _per_chip(one, found),
        "limit": one.best_line.limit if one.best_line else None,
        "settings": to_dict(s) if one is found.best else None,
    }


def _verdict(best: Tried, found: Search) -> str:
    source = "by the compiler" if best.found else "by arithmetic alone, not compiled"
    room = f", {(found.usable - best.peak) / GIB:.2f} to spare" if found.usable else ""
    asked = found.own.plan.spare_gib
    room += f", of which {asked:.2f} were to stay free (plan.spare_gib)" if room and asked else ""
    room += f"\n{kept}" if (kept := preallocated(found.topology)) else ""
    speed = _speed(best, found)
    notes = [speed, best.best_line.left_out if best.best_line else ""]
    return "\n".join([f"{best.peak / GIB:.2f} GiB on each device {source}{room}", *filter(None, notes)])


def _speed(one: Tried, found: Search) -> str:
    line, speed = one.best_line, _per_chip(one, found)
    if not line or not speed:
        return ""
    return (
        f"{_step(line):.2f} s a step, {speed:,.0f} {one.way.unit}/s/chip at the limit ({line.limit}); a bound from "
        "above, nothing was run"
    )


def _step(line: Roofline | None) -> float | None:
    return line.step if line else None


def _per_chip(one: Tried, found: Search) -> float | None:
    line = one.best_line
    return one.way.per_step / line.step / found.topology.chips if line else None


def _point(one: Tried, line: Roofline | None, found: Search) -> tuple[float, float]:
    return one.estimated.peak / GIB, _ms(one, line, found)


def _ms(one: Tried, line: Roofline | None, found: Search) -> float:
    """Of a thousand tokens, or records, on a chip."""
    assert line
    return line.step / one.way.per_step * 1e6 * found.topology.chips
