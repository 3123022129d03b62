"""Planning a run, from settings to figures and tables: the story that `python -m medjax.plan` tells."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medjax.parallel.chips import GIB
from medjax.parallel.topology import Topology, topology
from medjax.plan.collectives import Collective, by_kind, collectives
from medjax.plan.compiled import Compiled, DoesNotFitError, compile_step
from medjax.plan.devices import devices_to_compile_for, named_devices
from medjax.plan.engine import EngineStep
from medjax.plan.engine_settings import EnginePlanSettings
from medjax.plan.estimate import bound, work
from medjax.plan.figures import donation, estimated_cycles, hbm_bytes, host_bytes, kernels, matmul_flops
from medjax.plan.hlo import Loop
from medjax.plan.layout import tree_bytes
from medjax.plan.memory import Estimate, estimate, layout_of, memory
from medjax.plan.program import PlannedStep, planned_step
from medjax.plan.roofline import Roofline, roofline
from medjax.plan.settings import RunPlanSettings, run_settings
from medjax.report.table import text_table
from medjax.store.provenance import command, versions
from medjax.train.language_program import LanguageProgram

Say = Callable[[str], None]
Step = PlannedStep | EngineStep


@dataclass(frozen=True)
class Plan:
    """What is known of a step on a slice. Bytes and operations are of one device; a device is a chip but on 7x.

    usable     bytes of HBM that a program can have; 0 where the device has no figure
    groups     bytes by group: trained, optimiser, frozen, batch
    estimated  the memory by arithmetic alone
    refused    what the compiler said where it found no room; then the figures after it are None or empty
    loops      whose end is data: turns that are given by the step, as with full rows, or None, which count as one
    """

    step: Step
    topology: Topology
    usable: int
    groups: dict[str, int]
    estimated: Estimate
    compiled: Compiled | None = None
    refused: DoesNotFitError | None = None
    flops: float = 0.0
    hbm_bytes: float = 0.0
    host_bytes: float = 0.0
    cycles: int = 0
    collectives: tuple[Collective, ...] = ()
    kernels: tuple[str, ...] = ()
    loops: tuple[Loop, ...] = ()
    donated: int = 0
    roofline: Roofline | None = None

    @property
    def peak(self) -> int:
        """Bytes of a device at the step's peak."""
        if self.compiled:
            return self.compiled.memory.peak
        return self.refused.needed if self.refused else self.estimated.peak

    def fits(self, spare: float = 0.0) -> bool | None:
        """Whether it fits with so many bytes to spare; None where the device's memory is not known."""
        if self.refused:
            return False
        return self.peak + spare <= self.usable if self.usable else None

    @property
    def per_chip_s(self) -> float | None:
        """Tokens or records a second and chip, at the roofline."""
        return self.step.per_step / self.roofline.step / self.topology.chips if self.roofline else None

    @property
    def scheduled_s(self) -> float | None:
        """Seconds of a step by the compiler's own schedule, kernels and waiting for other chips left out."""
        clock = self.topology.chip.clock_hz
        return self.cycles / clock if self.cycles and clock else None

    @property
    def mfu(self) -> float | None:
        """Model operations over the chips' peak, at the roofline."""
        if not self.roofline:
            return None
        return self.step.model_flops / (self.roofline.step * self.topology.chips * self.topology.chip.bf16_flops)


def plan(settings: RunPlanSettings, say: Say = lambda line: None) -> Plan:
    """Compile the step of a run for the slice that the settings name.

    Raises ValueError for an unknown slice, for settings that do not fit together or on it, and without libtpu.
    """
    p = settings.plan
    place = topology(p.topology, p.slices)
    devices = devices_to_compile_for(place, say) if p.compile else None
    step = planned_step(run_settings(settings), devices or named_devices(place))
    place.check_slices(step.program.mesh.shape)
    if devices is None:
        say(f"{describe(step, place)}; by arithmetic alone")
        return by_arithmetic(step, place)
    say(f"{describe(step, place)}; compiling")
    return planned(step, place)


def by_arithmetic(step: Step, place: Topology) -> Plan:
    """What is known of a step without a compiler."""
    found = layout_of(step)
    todo = work(found)
    return Plan(
        step,
        place,
        place.chip.device.usable_hbm_bytes,
        bytes_by_group(step),
        memory(found),
        flops=todo.flops,
        hbm_bytes=todo.hbm_bytes,
        host_bytes=todo.host_bytes,
        roofline=bound(found, place),
    )


def planned(step: Step, place: Topology) -> Plan:
    """Compile a step and take its figures."""
    usable, groups, guess = place.chip.device.usable_hbm_bytes, bytes_by_group(step), estimate(step)
    try:
        found = compile_step(step)
    except DoesNotFitError as error:
        return Plan(step, place, usable, groups, guess, refused=error)
    module = found.module(step.turns)
    mesh = step.program.mesh
    sent = collectives(module, mesh.shape)
    flops = matmul_flops(module) + step.kernel_flops / mesh.size
    moved, to_host = hbm_bytes(module), host_bytes(module)
    return Plan(
        step,
        place,
        usable,
        groups,
        guess,
        found,
        flops=flops,
        hbm_bytes=moved,
        host_bytes=to_host,
        cycles=estimated_cycles(module),
        collectives=tuple(sent),
        kernels=tuple(f"{one.times} x {one.name}" for one in kernels(module)),
        loops=module.data_loops,
        donated=donation(module).bytes,
        roofline=roofline(place, mesh, flops, moved, sent, to_host, layout_of(step).width),
    )


def describe(step: Step, place: Topology) -> str:
    """What is planned where, in one line."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in step.program.mesh.shape.items() if size > 1) or "one device"
    slices = f"{place.slices} x " if place.slices > 1 else ""
    chips = f"{place.chips} chip{'s' if place.chips > 1 else ''}"
    return f"{step.per_step:,} {step.unit} a step on {slices}{place.name} ({chips}, {mesh})"


def bytes_by_group(step: Step) -> dict[str, int]:
    """Bytes of one device that the arguments of the step take."""
    if isinstance(step, EngineStep):
        return step.groups
    program = step.program
    return {
        "trained parameters": tree_bytes(program.state.trainable),
        "optimiser": tree_bytes(program.state.optimizer),
        "frozen parameters": tree_bytes(program.frozen),
        "batch": tree_bytes(program.batch),
    }


def to_json(found: Plan, settings: RunPlanSettings | EnginePlanSettings) -> dict[str, Any]:
    """Every figure of a plan as plain JSON values."""
    memory = found.compiled.memory.to_json() if found.compiled else None
    line, program = found.roofline, found.step.program
    return {
        "fits": found.fits(settings.plan.spare_gib * GIB),
        "peak_gib": found.peak / GIB,
        "hbm_gib": found.usable / GIB,
        "tokens_per_s_per_chip" if found.step.unit == "tokens" else "records_per_s_per_chip": found.per_chip_s,
        "mfu": found.mfu,
        "limit": line.limit if line else None,
        "compile_s": found.compiled.compile_s if found.compiled else None,
        "lower_s": found.compiled.lower_s if found.compiled else None,
        "host_peak_gib": found.compiled.host_peak / GIB if found.compiled else None,
        "estimate": "roofline: computing, HBM and links at their peaks and perfectly overlapped; not measured",
        "topology": found.topology.name,
        "slices": found.topology.slices,
        "chips": found.topology.chips,
        "mesh": {axis: size for axis, size in found.step.program.mesh.shape.items() if size > 1},
        "unit": found.step.unit,
        "per_step": found.step.per_step,
        "memory": memory,
        "estimated": asdict(found.estimated) | {"peak": found.estimated.peak},
        "groups": found.groups,
        "refused": str(found.refused) if found.refused else None,
        "attention": asdict(program.attention) if isinstance(program, LanguageProgram) else None,
        "model_flops": found.step.model_flops,
        "device_flops": found.flops,
        "compiler_flops_loops_once": found.compiled.flops if found.compiled else None,
        "hbm_bytes": found.hbm_bytes,
        "host_bytes": found.host_bytes,
        "estimated_cycles": found.cycles,
        "estimated_s": found.scheduled_s,
        "collectives": [
            {"kind": kind, "axes": list(axes), "bytes": moved}
            for (kind, axes), moved in by_kind([*found.collectives]).items()
        ],
        "seconds": asdict(line) | {"step": line.step} if line else None,
        "kernels": list(found.kernels),
        "loops_by_data": [{"name": one.op_name or one.name, "turns": one.turns} for one in found.loops],
        "donated_bytes": found.donated,
        "command": command(settings, "medjax.plan"),
        "versions": versions("libtpu") if found.compiled and found.topology.chip.is_tpu else versions(),
    }


def tables(found: Plan, spare: float) -> str:
    """Everything that the user asked for, as text.

    spare  bytes of each chip that must stay free
    """
    parts = (_verdict(found, spare), _memory(found), _time(found), _sent(found), _loops(found))
    return "\n\n".join(part for part in parts if part)


def _verdict(found: Plan, spare: float) -> str:
    fits, what = found.fits(spare), describe(found.step, found.topology)
    hint = f"\n{_hint(found.step)}" if fits is False else ""
    if found.refused:
        return f"{what}\n{found.refused}{hint}"
    if isinstance(found.step.program, LanguageProgram):
        what += f"\nattention: {found.step.program.attention}"
    if found.step.beyond:
        what += f"\n{found.step.beyond}"
    if fits is None:
        return f"{what}\n{found.peak / GIB:.2f} GiB on each device"
    room, asked = (found.usable - found.peak) / GIB, f"{spare / GIB:.2f}"
    if fits:
        words = f"fits, {room:.2f} GiB to spare"
        words += f", of which {asked} were to stay free (plan.spare_gib)" if spare else ""
    else:
        words = f"DOES NOT FIT: {spare / GIB - room:.2f} GiB are missing"
        words += f" with {asked} that must stay free (plan.spare_gib)" if spare else ""
    kept = f"\n{preallocated(found.topology)}" if preallocated(found.topology) else ""
    return f"{what}\n{words}: {found.peak / GIB:.2f} of {found.usable / GIB:.2f} GiB on each device{kept}{hint}"


def preallocated(place: Topology) -> str:
    """Why a GPU's program cannot have all of its memory, in words; empty for others."""
    chip = place.chip
    if chip.is_tpu or chip.usable_hbm_bytes == chip.hbm_bytes:
        return ""
    share = 100 * chip.usable_hbm_bytes / chip.hbm_bytes
    return (
        f"{chip.usable_hbm_bytes / GIB:.2f} GiB are the {share:.0f} % of {chip.hbm_bytes / GIB:.0f} GiB that JAX takes "
        "of a GPU when it starts; XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 lets a run take more, which is not planned here"
    )


def _hint(step: Step) -> str:
    """What may make a step fit that does not."""
    if not isinstance(step, EngineStep):
        return "--search looks for a way that fits, or names the smallest slice that would hold it"
    of = step.layout
    hints = []
    if of.mesh.shape["tensor"] < of.mesh.size and of.config.heads % of.mesh.size == 0:
        hints.append(f"--mesh tensor={of.mesh.size}")
    if of.quantisation is None:
        hints.append("--quantise int8")
    hints.append("a smaller --engine.row_tokens" if step.name == "score" else "a smaller --batch-size or --context")
    return f"what needs less: {', '.join(hints)}, more chips (--topology)"


def _memory(found: Plan) -> str:
    rows = [(name, f"{size / GIB:.3f}") for name, size in found.groups.items()]
    if found.compiled:
        m = found.compiled.memory
        rows += [("arguments, as compiled", f"{m.argument / GIB:.3f}"), ("temporaries", f"{m.temporary / GIB:.3f}")]
        rows += [
            ("outputs that are no arguments", f"{(m.output - m.alias) / GIB:.3f}"),
            ("code", f"{m.code / GIB:.3f}"),
        ]
        rows += [("on the host", f"{m.host / GIB:.3f}")] if m.host else []
        rows += [("peak", f"{m.peak / GIB:.3f}")]
    else:
        e = found.estimated
        larger = ("loss", e.loss) if e.loss >= e.layer else ("one layer at work", e.layer)
        guessed = [("kept for later", e.kept), ("gradients", e.gradients), ("codes, copied", e.copied), larger]
        guessed.append(("code", e.code))
        rows += [(f"{name}, by arithmetic", f"{size / GIB:.3f}") for name, size in guessed if size]
    away = f" ({100 * (found.estimated.peak / found.peak - 1):+.0f} %)" if found.compiled else ""
    rows += [("by arithmetic alone", f"{found.estimated.peak / GIB:.3f}{away}")]
    return text_table(rows, ("memory of a device", "GiB")) + _host(found)


def _host(found: Plan) -> str:
    """What one host needs for the activations of its chips; "" where they stay on the chips."""
    if not found.compiled or not found.compiled.memory.host:
        return ""
    each, chip = found.compiled.memory.host, found.topology.chip
    chips = min(chip.host_chips, found.topology.chips)
    needed = each * chip.cores * chips / GIB
    words = f"\nactivations in the host's memory: {needed:.1f} GiB on a host of {chips} chip{'s' if chips > 1 else ''}"
    return words


def _time(found: Plan) -> str:
    line = found.roofline
    if not line:
        return ""
    rows = [
        ("the model's own operations", f"{found.step.model_flops / found.step.program.mesh.size / 1e12:.2f} TFLOP", ""),
        ("computing", f"{found.flops / 1e12:.2f} TFLOP", f"{line.compute * 1e3:.1f}"),
        ("HBM", f"{found.hbm_bytes / 1e9:.1f} GB", f"{line.memory * 1e3:.1f}"),
        *((f"links {axis}", "", f"{seconds * 1e3:.1f}") for axis, seconds in line.links.items()),
        *((f"links {axis}", "", "not known") for axis in line.unknown if axis != "host"),
    ]
    if found.host_bytes:
        shown_ms = "not known" if "host" in line.unknown else f"{line.host * 1e3:.1f}"
        rows.append(("host's memory, by PCIe", f"{found.host_bytes / 1e9:.1f} GB", shown_ms))
    if scheduled := found.scheduled_s:
        rows.append(("compiler's own schedule", f"{found.cycles / 1e6:.0f} M cycles", f"{scheduled * 1e3:.1f}"))
    shown = text_table(rows, ("estimate of a step, one device", "work", "ms at the least"))
    note = f"\n{line.left_out}" if line.left_out else ""
    return (
        f"{shown}\nestimate at that limit ({line.limit}): {found.per_chip_s:,.1f} {found.step.unit}/s/chip, MFU "
        f"{100 * (found.mfu or 0):.1f} %; a bound from above, nothing was run{note}"
    )


def _loops(found: Plan) -> str:
    """Which loops end where data says, and what was assumed; "" without such."""
    given = [one.turns for one in found.loops if one.turns is not None]
    alone = [one.op_name or one.name for one in found.loops if one.turns is None]
    words = []
    if given:
        turns = " or ".join(map(str, sorted(set(given))))
        words.append(f"loops whose end is data: {len(given)}, turns counted as with full rows: {turns}")
    if alone:
        words.append(f"loops whose turns nothing says: {len(alone)}, counted once: {', '.join(alone[:3])}")
    return "\n".join(words)


def _sent(found: Plan) -> str:
    rows = [
        (kind, " ".join(axes), f"{moved / 1e6:,.1f}") for (kind, axes), moved in by_kind([*found.collectives]).items()
    ]
    return text_table(rows, ("sent by a device in a step", "mesh axis", "MB")) if rows else ""


def write_json(path: str, found: Plan, settings: RunPlanSettings) -> None:
    text = json.dumps(to_json(found, settings), indent=1, ensure_ascii=False, allow_nan=False)
    Path(path).expanduser().write_text(text + "\n", "utf-8")
