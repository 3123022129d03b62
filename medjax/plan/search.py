"""The best way to run a training on a slice: all ways estimated, the promising ones compiled, the best written down.

Ways that do not fit by arithmetic, with a margin, are left out; the others are ranked by the time that a token takes at
the roofline. The best of each mesh, quantisation and attention is compiled, in that order, until so many were; where
the compiler needs more memory than was thought, what is left is pruned by that ratio too. Of those that fit by the
compiler the fastest by its own figures is the best. Other weights or another batch than the run's own make another
training: they must be clearly faster to be chosen, and `Search.changes` says so.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from medjax.parallel.chips import GIB
from medjax.parallel.topology import Topology, topology
from medjax.plan.candidates import Candidate, candidates
from medjax.plan.devices import devices_to_compile_for
from medjax.plan.estimate import bound, seconds, work
from medjax.plan.memory import Estimate, memory
from medjax.plan.program import planned_step
from medjax.plan.roofline import Roofline
from medjax.plan.run import Plan, Say, planned
from medjax.plan.settings import LanguagePlanSettings, RunPlanSettings

Compile = Callable[[Candidate], Plan]
_MOST_GPUS = 1024
_WEIGHTS_HANDICAP, _BATCH_HANDICAP, _PART_HANDICAP = 0.1, 0.03, 0.002  # shares of the time a token


@dataclass(frozen=True)
class Tried:
    """A way to run, as far as it was looked at.

    estimated  its memory by arithmetic
    line       its time by arithmetic; None where the chip has no figures
    rank       seconds a token of all devices, or operations where there is no time
    found      what the compiler found; None where it was not asked
    """

    way: Candidate
    estimated: Estimate
    line: Roofline | None
    rank: float
    found: Plan | None = None

    @property
    def kind(self) -> tuple[str, str, str]:
        """Mesh, quantisation, attention: what tells ways apart that are worth compiling both."""
        return self.way.settings.mesh.shape, self.way.stored, self.way.context

    @property
    def peak(self) -> int:
        """Bytes of a device: by the compiler, else by arithmetic."""
        return self.found.peak if self.found else self.estimated.peak

    @property
    def away(self) -> float | None:
        """How far arithmetic was from the compiler, as a share of the compiler's peak."""
        return self.estimated.peak / self.found.peak - 1 if self.found and self.found.peak else None

    @property
    def best_line(self) -> Roofline | None:
        """Time by the compiler's program, else by arithmetic."""
        return self.found.roofline if self.found and self.found.roofline else self.line


@dataclass(frozen=True)
class Search:
    """What a search found.

    own      the run as it was asked for
    usable   bytes of a device; 0 where it has no figure
    count    ways that were estimated, fitting: those that fit by arithmetic
    ways     of each mesh, quantisation, attention and remat the fastest that fits, or the fastest where none does,
             fastest first; and all that were compiled
    compiled in the order of compilation
    best     None where none fits; then lacking says by how much, and what would hold it
    """

    own: RunPlanSettings
    topology: Topology
    usable: int
    count: int
    fitting: int
    ways: tuple[Tried, ...]
    compiled: tuple[Tried, ...]
    best: Tried | None
    lacking: str = ""

    @property
    def room(self) -> float:
        """Bytes of a device that a way may need by arithmetic."""
        return room(self.own, self.usable)

    @property
    def changes(self) -> list[str]:
        """What the best way changes in the training itself, not only in how it is computed: "batch 16, not 8"."""
        if not self.best:
            return []
        batch, stored = self.best.way.settings.train.batch_size, own_weights(self.own)
        found = [f"weights in {self.best.way.stored}, not {stored}"] if self.best.way.stored != stored else []
        own = self.own.train.batch_size
        return [*found, f"batch {batch}, not {own}"] if batch != own else found


def search(settings: RunPlanSettings, say: Say = lambda line: None) -> Search:
    """Search the best way to run on the slice that the settings name.

    Raises ValueError for an unknown slice, and without libtpu.
    """
    p = settings.plan
    place = topology(p.topology, p.slices)
    devices = devices_to_compile_for(place, say) if p.compile and p.tries else None

    def compiles(way: Candidate) -> Plan:
        import jax

        jax.clear_caches()  # programs of other meshes, which would stay in memory
        return planned(planned_step(way.settings, devices), place)

    return searched(settings, place, compiles if devices else None, say)


def searched(
    settings: RunPlanSettings, place: Topology, compiles: Compile | None, say: Say = lambda line: None
) -> Search:
    """Search with a compiler, or by arithmetic alone."""
    p, usable = settings.plan, place.chip.device.usable_hbm_bytes
    every = [tried(way, place) for way in candidates(settings, place)]
    every.sort(key=lambda one: choice(one.rank, one.way, settings))
    if not every:
        raise ValueError(
            f"plan.search: no mesh of {place.device_count} devices can split batches of "
            f"{', '.join(map(str, p.batches or (settings.train.batch_size,)))} {_rows(settings)}; change plan.batches, "
            f"{'data.window' if isinstance(settings, LanguagePlanSettings) else 'encoder.size'} or the topology."
        )
    most = room(settings, usable)
    fitting = [one for one in every if one.estimated.peak <= most]
    ways = first_of(sorted(every, key=lambda one: one.estimated.peak > most), _variant)
    ways.sort(key=lambda one: choice(one.rank, one.way, settings))
    say(
        f"{len(every):,} ways to run on {place.name} ({len(fitting):,} fit by arithmetic"
        f"{f', {100 * p.margin:.0f} % left free' if usable else ''})"
    )
    if not fitting:
        return Search(settings, place, usable, len(every), 0, tuple(ways), (), None, lacking(settings, place, every))
    if not compiles or not p.tries:
        return Search(settings, place, usable, len(every), len(fitting), tuple(ways), (), fitting[0])
    asked = _compiled(fitting, compiles, usable, p.tries, p.spare_gib * GIB, say)
    good = [one for one in asked if one.found and one.found.fits(p.spare_gib * GIB) is not False]
    best = min(good, key=lambda one: choice(rank_compiled(one), one.way, settings)) if good else None
    least = min((one.peak for one in asked), default=0)
    words = (
        f"none of the {len(asked)} compiled fits: the smallest needs {least / GIB:.2f} of {usable / GIB:.2f} GiB; "
        "compile more (plan.tries), or leave more room (plan.margin)"
    )
    seen = {id(one.way) for one in asked}
    ways = sorted(
        [*asked, *(one for one in ways if id(one.way) not in seen)],
        key=lambda one: choice(one.rank, one.way, settings),
    )
    return Search(
        settings, place, usable, len(every), len(fitting), tuple(ways), tuple(asked), best, "" if best else words
    )


def room(settings: RunPlanSettings, usable: int) -> float:
    """Bytes of a device that a way may need by arithmetic: usable bytes without the margin and what must stay free."""
    p = settings.plan
    return usable * (1 - p.margin) - p.spare_gib * GIB if usable else float("inf")


def own_weights(settings: RunPlanSettings) -> str:
    """How the run that was asked for stores weights, as Candidate.stored says it."""
    if isinstance(settings, LanguagePlanSettings):
        return settings.model.quantisation or settings.model.dtype
    return settings.encoder.dtype


def _variant(one: Tried) -> tuple[str, ...]:
    return (*one.kind, one.way.layout.remat)


def _rows(settings: RunPlanSettings) -> str:
    """What a batch is made of, and the model."""
    if isinstance(settings, LanguagePlanSettings):
        return f"rows of {settings.data.window} tokens and {settings.model.name}"
    return f"records and an encoder of size {settings.encoder.size}"


def tried(way: Candidate, place: Topology) -> Tried:
    """Estimate a way to run."""
    line = bound(way.layout, place)
    cost = seconds(line) if line else work(way.layout).flops
    return Tried(way, memory(way.layout), line, cost / way.per_step)


def choice(cost: float, way: Candidate, own: RunPlanSettings) -> float:
    """A time a token with a handicap: other weights or another batch than the run's own are another training, and many
    parts are many small programs."""
    steps = way.settings.train
    handicap = (
        _WEIGHTS_HANDICAP * (way.stored != own_weights(own))
        + _BATCH_HANDICAP * (steps.batch_size != own.train.batch_size)
        + _PART_HANDICAP * (steps.accumulation - 1)
    )
    return cost * (1 + handicap)


def rank_compiled(one: Tried) -> float:
    """Seconds a token by the compiler's program, where there is a time."""
    line = one.found.roofline if one.found else None
    return seconds(line) / one.way.per_step if line else one.rank


def first_of(ranked: Iterable[Tried], kind: Callable[[Tried], tuple]) -> list[Tried]:
    """The first of each kind, in order."""
    found: dict[tuple, Tried] = {}
    for one in ranked:
        found.setdefault(kind(one), one)
    return list(found.values())


def front(ways: Sequence[Tried], cost: Callable[[Tried], float] = lambda one: one.rank) -> list[Tried]:
    """Those that no other beats in both memory and cost, by memory."""
    found: list[Tried] = []
    for one in sorted(ways, key=lambda one: (one.estimated.peak, cost(one))):
        if not found or cost(one) < cost(found[-1]):
            found.append(one)
    return found


def lacking(settings: RunPlanSettings, place: Topology, every: Sequence[Tried]) -> str:
    """By how much a run is too large for a slice, and the smallest slice of that kind that would hold it."""
    p, usable = settings.plan, place.chip.device.usable_hbm_bytes
    smallest = min(every, key=lambda one: one.estimated.peak)
    needed = smallest.estimated.peak + p.margin * usable + p.spare_gib * GIB
    text = (
        f"too large for any mesh of {place.name}: {smallest.estimated.peak / GIB:.2f} GiB by arithmetic on each device "
        f"at the least ({described(smallest)}), {(needed - usable) / GIB:.2f} GiB more than there are of "
        f"{usable / GIB:.2f} GiB with plan.margin and plan.spare_gib free"
    )
    for larger in larger_slices(place):
        # a batch that the larger slice can split: the search is for memory, not for this batch
        rows = max(settings.train.batch_size, 1)
        sizes = {rows * larger.device_count, *(p.batches or (rows,))}
        wider = replace(settings, plan=replace(p, batches=tuple(sorted(sizes))))
        peaks = [memory(way.layout).peak for way in candidates(wider, larger, least=True)]
        several = f"{larger.slices} x " if larger.slices > 1 else ""
        if peaks and min(peaks) <= larger.chip.device.usable_hbm_bytes * (1 - p.margin) - p.spare_gib * GIB:
            return (
                f"{text}; the smallest slice that would hold it is {several}{larger.name} ({min(peaks) / GIB:.2f} GiB, "
                "a row a device at one time and remat full)"
            )
    return (
        f"{text}; no slice of {place.chip.name} would hold it: take another chip, a smaller model or a shorter window"
    )


def larger_slices(place: Topology) -> Iterable[Topology]:
    """Slices of the same kind with 2, 4, 8, … times as many chips and 5, 6, 7 eighths of these, where there are such.

    GPUs: eighths that are whole hosts.
    """
    own, chip = place.chips // place.slices, place.chip
    most = prod(chip.pod) if chip.is_tpu else _MOST_GPUS
    powers = [2**power * own for power in range(1, most.bit_length()) if 2**power * own <= 2 * most]
    for chips in sorted({power * part // 8 for power in powers for part in (5, 6, 7, 8) if power * part % 8 == 0}):
        whole = chip.is_tpu or chips in powers or chips % chip.host_chips == 0
        if not own < chips <= most or not whole:
            continue
        with contextlib.suppress(ValueError):  # no usual shape has so many
            yield topology(f"{chip.name}-{chips}" if chip.is_tpu else f"gpu:{chip.name}:{chips}", place.slices)


def described(one: Tried) -> str:
    """A way to run in a few words."""
    s = one.way.settings
    parts = f" in {s.train.accumulation} parts" if s.train.accumulation > 1 else ""
    split = f", {one.way.context} attention" if one.way.context else ""
    return f"{s.mesh.shape}, batch {s.train.batch_size}{parts}, remat {s.train.remat}, {one.way.stored}{split}"


def _compiled(
    fitting: Sequence[Tried], compiles: Compile, usable: int, most: int, spare: float, say: Say
) -> list[Tried]:
    asked: list[Tried] = []
    ratio, kinds = 1.0, set()
    for one in fitting:
        if len(asked) == most:
            break
        if one.kind in kinds or (usable and one.estimated.peak * ratio + spare > usable):
            continue
        say(f"compiling {len(asked) + 1} of {most}: {described(one)}")
        asked.append(replace(one, found=compiles(one.way)))
        found = asked[-1].found
        assert found is not None
        if found.fits(spare) is not False:
            kinds.add(one.kind)
        ratio = max(ratio, found.peak / one.estimated.peak)
        say(
            f"  {'does not fit' if found.fits(spare) is False else 'fits'}: {found.peak / GIB:.2f} GiB, by arithmetic "
            f"{one.estimated.peak / GIB:.2f}"
        )
    return asked
