"""docs/scaling.md, written from the figures of benchmarks/scaling.py. Numbers come from results, words from here."""

import shlex
from typing import Any

from scaling_paper import sections
from scaling_published import published

INTRODUCTION = """# Does it fit, and how fast could it be

The rows below were compiled by `python -m medjax.plan` with the TPU compiler on a machine without a TPU: the very step
that `medjax.train` (or the engine of `medjax.eval`) would run, from shapes alone. **Nothing of it was run on a chip.**
Memory is what the compiler says it needs. Time is a roofline: computing, HBM and links each at their peak and perfectly
overlapped, the largest of the three is the limit. Real steps are slower; MFU and tokens a second are bounds from above.

`python benchmarks/scaling.py` makes this page. Every row's figures, with the command and versions that made them, lie
in [benchmarks/results/scaling](../benchmarks/results/scaling)."""

READING = """*Batch* is rows of a step on the whole slice, each of 2,048 packed tokens unless said otherwise. *Peak* is
arguments, temporaries, outputs and code of a chip, of the HBM that a program can have. *Arithmetic* is how far medjax's
memory model, which prunes `--search` without a compiler, was from the compiler. *MFU* counts the operations that the
model needs (for LoRA no gradients of frozen weights, nothing that is computed again), over the chip's bfloat16 peak.
*Schedule* is a second opinion: the sum of the cycles that the compiler expects of its own fusions, kernels and waiting
for other chips left out. *Host* is the memory that planning took on the machine that compiled."""


def page(rows: list[tuple[Any, dict[str, Any]]]) -> str:
    """The whole page.

    rows  benchmarks.scaling.Row with its figures
    """
    parts = [INTRODUCTION, table(rows), READING, limits(rows), "## The commands\n\n" + commands(rows)]
    parts += [published(), sections()]
    return "\n\n".join(parts) + "\n"


def table(rows: list[tuple[Any, dict[str, Any]]]) -> str:
    """One line a row, figures only."""
    head = (
        *("step", "slice", "mesh", "batch", "fits", "peak of HBM, GiB/chip", "arithmetic", "/s/chip", "MFU", "limit"),
        *("compile, s", "host, GiB"),
    )
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---:|---|---:|---:|---:|---:|---|---:|---:|"]
    for row, found in rows:
        speed = found.get("tokens_per_s_per_chip") or found.get("records_per_s_per_chip")
        away = f"{100 * (found['arithmetic_gib'] / found['peak_gib'] - 1):+.0f} %"
        mesh = ", ".join(f"{axis}={size}" for axis, size in found["mesh"].items()) or "one chip"
        cells = [
            row.what,
            f"{'2 x ' if found['slices'] == 2 else ''}{row.slice} ({found['topology'].split(':')[-1]})",
            mesh,
            batch(row, found),
            "yes" if found["fits"] else "**no**",
            f"{found['peak_gib']:.2f} of {found['hbm_gib']:.2f}",
            away,
            f"{speed:,.0f} {found['unit']}" if speed else "",
            f"{100 * found['mfu']:.0f} %" if found["mfu"] else "",
            found["limit"] or "",
            f"{found['compile_s']:.0f}" if found["compile_s"] else "",
            f"{found['host_peak_gib']:.1f}" if found["host_peak_gib"] else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def batch(row: Any, found: dict[str, Any]) -> str:
    """Rows or records of a step."""
    words = shlex.split(row.options)
    if "--batch-size" in words:
        return words[words.index("--batch-size") + 1]
    return f"{found['per_step']:,}" + (" tokens" if found["unit"] == "tokens" else "")


def limits(rows: list[tuple[Any, dict[str, Any]]]) -> str:
    """Seconds of a step by what takes them, so that the limit can be seen against the rest."""
    lines = [
        "| step | slice | computing, s | HBM, s | links, s | schedule, s | sent by a chip, GB |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    for row, found in rows:
        if not (seconds := found["seconds"]):
            continue
        links = ", ".join(f"{name} {value:.2f}" for name, value in seconds["links"].items() if value >= 0.005)
        schedule = f"{found['estimated_s']:.2f}" if found["estimated_s"] else ""
        sent = f"{sum(one['bytes'] for one in found['collectives']) / 1e9:.1f}"
        times = f"{seconds['compute']:.2f}", f"{seconds['memory']:.2f}", links or "0.00", schedule
        lines.append("| " + " | ".join((row.what, row.slice, *times, sent)) + " |")
    return "\n".join(lines)


def commands(rows: list[tuple[Any, dict[str, Any]]]) -> str:
    """What was typed for every row, and the versions."""
    calls = [f"python -m medjax.plan {row.options} --topology {row.slice}" for row, _ in rows]
    versions = sorted({f"{name} {version}" for _, found in rows for name, version in found["versions"].items()})
    return "```bash\n" + "\n".join(calls) + "\n```\n\n" + "Versions: " + ", ".join(versions) + "."
