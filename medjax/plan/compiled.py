"""Compile a step for devices that are not there; what the compiler found: memory, seconds, the text of the program."""

import re
import resource
import time
from dataclasses import asdict, dataclass
from typing import Any

from medjax.parallel.chips import GIB
from medjax.parallel.topology import quiet
from medjax.plan.engine import EngineStep
from medjax.plan.hlo import Module, parse
from medjax.plan.layout import tree_bytes
from medjax.plan.program import PlannedStep

_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFitError(ValueError):
    """The compiler refused the program for lack of memory.

    needed, available  bytes of a chip, 0 where the compiler did not say
    largest            its largest allocations, one line each
    """

    def __init__(self, needed: int, available: int, largest: tuple[str, ...]):
        self.needed, self.available, self.largest = needed, available, largest
        lines = [f"does not fit: it needs {needed / GIB:.2f} GiB of each chip, which has {available / GIB:.2f} GiB"]
        if not needed:
            lines = ["does not fit: the compiler found no room for it, and did not say how much it needs"]
        super().__init__("\n".join([*lines, *largest]))


@dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    argument    state, frozen weights and batch, which stay; with what lies beside them
    temporary   what the step needs besides, at its peak
    output      of which `alias` take over the memory of donated arguments
    code        the program itself
    host        of the host's memory, by offload
    """

    argument: int
    temporary: int
    output: int
    alias: int
    code: int
    host: int = 0

    @property
    def peak(self) -> int:
        return self.argument + self.temporary + self.output - self.alias + self.code

    def to_json(self) -> dict[str, int]:
        return asdict(self) | {"peak": self.peak}


@dataclass(frozen=True)
class Compiled:
    """A compiled step.

    flops, bytes  as XLA's cost analysis states them: loops counted once
    lower_s, compile_s  seconds; host_peak  bytes of this process so far
    """

    memory: Memory
    flops: float
    bytes: float
    lower_s: float
    compile_s: float
    host_peak: int
    text: str

    def module(self, turns: dict[str, int]) -> Module:
        """The parsed program; turns: of loops whose end is data."""
        return parse(self.text, turns)


def compile_step(step: PlannedStep | EngineStep) -> Compiled:
    """Lower and compile the step of a plan.

    Raises DoesNotFitError where the compiler finds no room for it.
    """
    beside = 0
    if isinstance(step, EngineStep):
        held, beside = sum(step.groups.values()), step.beside
    else:
        held = tree_bytes((step.program.state, step.program.frozen, step.program.batch))
    on_tpu = step.program.mesh.devices.flat[0].platform == "tpu"
    return compiled(step.program.lower, held=held, beside=beside, on_tpu=on_tpu)


def compiled(lower: Any, *, held: int = 0, beside: int = 0, on_tpu: bool = False) -> Compiled:
    """Call `lower`, compile what it returns, and read off the figures; what libraries write to stderr is kept away.

    held    bytes of a device that the arguments take, which not every complaint of the compiler counts
    beside  bytes that lie on the device meanwhile and are no argument
    on_tpu  its `temp_size_in_bytes` counts VMEM too, and what is kept for the backward pass twice: programs are taken
            without a word whose sum by that figure is 18.2 GiB, on chips of 15.75 GiB. What lives at one time is there
            as well; other back ends leave temporaries out of that
    """
    began = time.monotonic()
    lowered = lower()
    lower_s, began = time.monotonic() - began, time.monotonic()
    with quiet():
        try:
            program = lowered.compile()
        except Exception as error:  # jaxlib's own type
            if found := out_of_memory(str(error), held):
                raise found from None
            raise
    compile_s = time.monotonic() - began
    stats, cost = program.memory_analysis(), program.cost_analysis() or {}
    own = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = Memory(
        stats.argument_size_in_bytes + beside,
        max(stats.peak_memory_in_bytes - own, 0) if on_tpu else stats.temp_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.generated_code_size_in_bytes,
        stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes + stats.host_output_size_in_bytes,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    flops, moved = float(cost.get("flops", 0.0)), float(cost.get("bytes accessed", 0.0))
    return Compiled(memory, flops, moved, lower_s, compile_s, peak, program.as_text())


def out_of_memory(text: str, held: int = 0) -> DoesNotFitError | None:
    """The compiler's complaint, summarised; None where the text is of another failure.

    held  bytes of the arguments, for complaints that are of temporaries alone
    """
    if "RESOURCE_EXHAUSTED" not in text:
        return None
    # libtpu's two ways to say it
    everything = re.search(r"[Uu]sed ([\d.]+)([BKMGT]) of ([\d.]+)([BKMGT])", text)
    temporaries = re.search(r"\(([\d.]+)([BKMGT])\) exceeds available HBM \(([\d.]+)([BKMGT])\)", text)
    needed = available = 0
    if found := everything or temporaries:
        needed, available = (int(float(found[i]) * _UNITS[found[i + 1]]) for i in (1, 3))
    if temporaries and not everything:
        needed += held
    sizes = re.findall(r"Size: ([\d.]+[BKMGT])\s+.*?Shape: (\S+).*?(?:\n\s*Unpadded size: \S+)?", text, re.DOTALL)
    names = re.findall(r'op_name="([^"]*)"', text)
    largest = [
        f"  {size:>8} {shape.partition('{')[0]} {names[i].rpartition('/')[2] if i < len(names) else ''}".rstrip()
        for i, (size, shape) in enumerate(sizes[:2])
    ]
    return DoesNotFitError(needed, available, tuple(largest))
