"""The ways to run a training on a slice, drawn: memory of a device against the estimated time of its work."""

from collections.abc import Sequence

from medjax.report.plane import Plane, Point, padded, plain

_SLOWEST = 2.0  # times the fastest by arithmetic that fits: what is slower is left out
_FAINT = 0.45  # opacity of the many dots


def pareto_figure(
    ways: Sequence[Point],
    front: Sequence[Point],
    compiled: Sequence[Point],
    best: Point | None,
    usable: float,
    name: str,
    unit: str = "tokens",
) -> str:
    """Every way a dot, a line through those that no other beats, those that the compiler saw, the best, the limit.

    ways, front, compiled, best  (GiB of a device, ms for a thousand units on a chip); the last two by the compiler
    usable  GiB of a device that a program can have; 0: not known
    name    of the slice
    unit    tokens or records
    """
    fastest = min((y for x, y in ways if not usable or x <= usable), default=min((y for _, y in ways), default=1.0))
    near = [point for point in ways if point[1] <= _SLOWEST * fastest and (not usable or point[0] <= 2 * usable)]
    shown = [*near, *compiled, *((best,) if best else ())] or [(0.0, 0.0), (1.0, 1.0)]
    widest = 1.05 * max([*(x for x, _ in shown), usable])
    low, slowest = padded([y for _, y in shown], 0.15)
    plane = Plane(
        f"Memory and time on {name}",
        f"{len(near)} ways to run, by arithmetic; {len(compiled)} of them compiled"
        + (f"; a device has {usable:.2f} GiB" if usable else ""),
        "memory of a device at the step's peak, GiB",
        f"estimate of a thousand {unit} on a chip, ms",
        (0.0, widest),
        (max(0.0, low), slowest),
        x_shown=plain,
    )
    plane.explain("dot", "muted", "by arithmetic", opacity=_FAINT)
    plane.explain("line", "accent", "no other is smaller and faster")
    if compiled:
        plane.explain("dot", "held", "compiled")
    if best:
        plane.explain("dot", "ink", "the best")
    if usable:
        plane.explain("dashed", "bad", "the device's memory")
        plane.curve([usable, usable], [max(0.0, low), slowest], "bad", width=1.6, dashed=True)
    for x, y in near:
        plane.dot(x, y, "muted", radius=2, opacity=_FAINT)
    line = [point for point in front if point in set(near)]
    plane.curve([x for x, _ in line], [y for _, y in line], "accent")
    for x, y in compiled:
        plane.dot(x, y, "held", radius=4)
    if best:
        plane.dot(*best, "ink", radius=5)
        plane.note(*best, f"{plain(round(best[1], 1))} ms, {best[0]:.1f} GiB", "ink", dx=9, dy=-8)
    return plane.svg()
