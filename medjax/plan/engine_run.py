"""Planning a job of the engine: its programs compiled one after another, and the largest sizes that fit."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medjax.infer.decoding import Decoding
from medjax.parallel.chips import GIB
from medjax.parallel.topology import Topology, topology
from medjax.plan.capacity import Capacity, capacity
from medjax.plan.compiled import DoesNotFitError, compile_step
from medjax.plan.devices import devices_to_compile_for, named_devices
from medjax.plan.engine import engine_steps, shape_programs
from medjax.plan.engine_settings import EnginePlanSettings
from medjax.plan.memory import estimate
from medjax.plan.program import decoder_of
from medjax.plan.run import Plan, Say, by_arithmetic, describe, planned, tables, to_json
from medjax.report.table import text_table

_LONGEST_ROW = 131_072  # tokens: beyond that no row was ever packed


@dataclass(frozen=True)
class EnginePlan:
    """The programs of a job by name, in the order in which they run, and what --largest found."""

    programs: dict[str, Plan]
    capacities: tuple[Capacity, ...] = ()

    def fits(self, spare: float = 0.0) -> bool | None:
        """Whether every program does; None where the device's memory is not known."""
        found = [one.fits(spare) for one in self.programs.values()]
        return None if None in found else all(found)


def plan_engine(settings: EnginePlanSettings, say: Say = lambda line: None) -> EnginePlan:
    """Compile the programs of a job for the slice that the settings name.

    Raises ValueError for an unknown slice or model, for settings that do not fit together or on it, without libtpu,
    and for `largest` on devices whose memory is not known.
    """
    if settings.plan.search:
        raise ValueError(
            f"plan.search: got it with objective={settings.objective}, expected a training run; leave it out, or use "
            "--largest."
        )
    place = topology(settings.plan.topology, settings.plan.slices)
    devices = devices_to_compile_for(place, say) if settings.plan.compile else None
    found = {}
    for step in engine_steps(settings, devices or named_devices(place)):
        place.check_slices(step.program.mesh.shape)
        say(f"{step.name}: {describe(step, place)}; {'compiling' if devices else 'by arithmetic alone'}")
        found[step.name] = planned(step, place) if devices else by_arithmetic(step, place)
    return EnginePlan(found, _largest(settings, place, devices, say) if settings.load.largest else ())


def _largest(
    settings: EnginePlanSettings, place: Topology, devices: list[Any] | None, say: Say
) -> tuple[Capacity, ...]:
    usable = place.chip.device.usable_hbm_bytes
    if not usable:
        raise ValueError(
            f"load.largest: got {place.name}, whose memory is not known, expected chips; name a slice with --topology."
        )
    engine, load = settings.engine, settings.load

    def found(what: str, changed: Callable[[int], EnginePlanSettings], **sizes: int) -> Capacity:
        def needed(size: int) -> int:
            say(f"{size:,} {what}; {'compiling' if devices else 'by arithmetic alone'}")
            return peak(changed(size), place, compiled_for=devices)

        return capacity(what, needed, room=usable - settings.plan.spare_gib * GIB, **sizes)

    if settings.objective == "score":
        row = found(
            "tokens of a row",
            lambda size: replace(settings, engine=replace(engine, row_tokens=size)),
            start=engine.row_tokens,
            step=128,
            most=_LONGEST_ROW,
        )
        return (row,)
    batch = found(
        f"sequences of {load.context:,} tokens",
        lambda size: replace(settings, engine=replace(engine, batch_size=size)),
        start=engine.batch_size,
        step=Decoding(shape_programs(settings, devices or named_devices(place))).slot_shards,
        most=2**20,
    )
    context = found(
        f"tokens of each of {engine.batch_size:,} sequences",
        lambda size: replace(settings, load=replace(load, context=size)),
        start=load.context,
        step=128,
        most=decoder_of(settings.model.name).max_length,
    )
    return batch, context


def peak(settings: EnginePlanSettings, place: Topology, compiled_for: list[Any] | None) -> int:
    """Bytes of a device at the peak of the largest program, by the compiler or, without devices, by arithmetic."""
    sizes = []
    for step in engine_steps(settings, compiled_for or named_devices(place)):
        if not compiled_for:
            sizes.append(estimate(step).peak)
            continue
        try:
            sizes.append(compile_step(step).memory.peak)
        except DoesNotFitError as error:
            if not error.needed:
                raise
            sizes.append(error.needed)
    return max(sizes)


def engine_tables(found: EnginePlan, spare: float) -> str:
    """Everything that the user asked for, as text; spare: bytes of each chip that must stay free."""
    parts = [f"{name}: {tables(one, spare)}" for name, one in found.programs.items()]
    if found.capacities:
        rows = [
            (
                one.what,
                f"{one.size:,}{' (the most there is)' if one.size == one.most else ''}",
                f"{one.tried.get(one.size, 0) / GIB:.2f}",
                f"{one.slope / 2**20:.3f}" if one.slope else "–",
            )
            for one in found.capacities
        ]
        parts.append(text_table(rows, ("largest that fits", "", "GiB", "MiB for one more")))
    return "\n\n".join(parts)


def write_engine_json(path: str, found: EnginePlan, settings: EnginePlanSettings) -> None:
    """Every figure of every program, and what --largest found."""
    values = {name: to_json(one, settings) for name, one in found.programs.items()}
    values["largest"] = {one.what: asdict(one) for one in found.capacities}
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    Path(path).expanduser().write_text(text + "\n", "utf-8")
