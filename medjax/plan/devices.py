"""Devices that exist by name alone, for plans that no compiler is asked about: no libtpu, no GPU, no fake CPU.

They can be laid out in a mesh, and arrays can be sharded over them on paper; nothing can be compiled for them.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from medjax.parallel.topology import Topology


@dataclass(frozen=True)
class NamedDevice:
    """What a mesh asks of a device.

    coords       place in its slice
    slice_index  which slice
    """

    id: int
    platform: str
    device_kind: str
    coords: tuple[int, int, int]
    slice_index: int
    core_on_chip: int = 0
    process_index: int = 0
    client: None = None


def named_devices(of: Topology) -> list[NamedDevice]:
    """As many devices as a topology has, slice by slice, in the order in which JAX numbers those of one host."""
    platform = "tpu" if of.chip.is_tpu else "cpu" if of.chip.name == "cpu" else "gpu"
    shape = ((*of.shape, 1, 1) if of.chip.is_tpu else (prod(of.shape), 1, 1))[:3]
    places = [(x, y, z) for z, y, x in itertools.product(*(range(size) for size in reversed(shape)))]
    kind = of.chip.kinds[0]
    found: list[NamedDevice] = []
    for part, place, core in itertools.product(range(of.slices), places, range(of.chip.cores)):
        host = len(found) // (of.chip.host_chips * of.chip.cores)
        found.append(NamedDevice(len(found), platform, kind, place, part, core, host))
    return found


def devices_to_compile_for(of: Topology, say: Callable[[str], None]) -> list[Any] | None:
    """The devices of a topology; None, and a line to the user, for GPUs that this machine lacks.

    Raises ValueError without libtpu, and where it refuses the slice.
    """
    try:
        return of.devices()
    except ValueError as error:
        if of.chip.is_tpu or of.chip.name == "cpu":
            raise
        say(f"{error}")
        return None
