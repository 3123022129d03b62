"""The least time that a step can take on a slice: computing, memory, links; the largest of the three is the limit.

  compute  operations of a chip / its peak
  memory   bytes that a chip reads and writes in HBM / its bandwidth
  links    bytes that a chip sends along each mesh axis / the bandwidth along it; axes work at the same time, and the
           network between slices is an axis of its own
  host     bytes that a chip sends to its host's memory and gets back (train.remat=offload) / the bandwidth one way:
           they leave in the forward pass and come back in the backward pass

What moves where no bandwidth is known is left out, and named: `Roofline.unknown`.

Every figure is an ESTIMATE and a bound from below: nothing is ever perfectly overlapped or at its peak. A mesh axis has
the links of those axes of the torus along which its members differ: two directions on a ring, one on a line.

Source: J. Austin et al., "How to Scale Your Model", parts 1 to 5.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from jax.sharding import Mesh

from medjax.parallel.topology import Topology
from medjax.plan.collectives import Collective

DCN = "dcn"


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step at the limits of one device.

    compute  of products at the chip's peak; memory: of reading and writing HBM; host: of both ways over PCIe
    links    by mesh axes ("fsdp", "data dcn")
    host     0 too where the chip's figure is not known
    unknown  links, and "host", that something goes over whose bandwidth is not known: no time is counted for it
    """

    compute: float
    memory: float
    links: Mapping[str, float]
    host: float = 0.0
    unknown: tuple[str, ...] = ()

    @property
    def axes(self) -> dict[str, float]:
        """Seconds of each axis: its own, and those that it shares with others."""
        names = {axis for joint in self.links for axis in joint.split() if axis != DCN}
        shared = {axis: [joint for joint in self.links if axis in joint.split() and DCN not in joint] for axis in names}
        found = {axis: sum(self.links[joint] for joint in joints) for axis, joints in sorted(shared.items()) if joints}
        return found | {joint: took for joint, took in self.links.items() if DCN in joint}

    @property
    def link(self) -> float:
        """Seconds of the busiest axis."""
        return max(self.axes.values(), default=0.0)

    @property
    def step(self) -> float:
        """Seconds of the slowest of all, which work at the same time."""
        return max(self.compute, self.memory, self.link, self.host)

    @property
    def limit(self) -> str:
        """What takes longest: "compute", "HBM", "host", or "interconnect" with the axis."""
        axes = self.axes
        busiest = max(axes, key=lambda axis: axes[axis], default="")
        times = {"compute": self.compute, "HBM": self.memory, f"interconnect ({busiest})": self.link, "host": self.host}
        return max(times, key=lambda name: times[name])

    @property
    def left_out(self) -> str:
        """What is not in the bound, as a sentence; empty where all is."""
        if not self.unknown:
            return ""
        return (
            f"no bandwidth is known of {', '.join(self.unknown)} here: what goes over that is NOT in the estimate, as "
            "if it took no time"
        )


def roofline(
    topology: Topology,
    mesh: Mesh,
    flops: float,
    hbm_bytes: float,
    collectives: list[Collective],
    host_bytes: float = 0.0,
    width: int = 2,
) -> Roofline | None:
    """Bound the step of a program from below; None on CPU, which has no figures.

    flops, hbm_bytes, host_bytes  of one device in a step; host_bytes: both ways together
    width                         bytes of a number of the computation
    """
    chip = topology.chip.device
    if not chip.bf16_flops:
        return None
    sent = [
        (*(network(topology, one.axes) if one.network else link(topology, mesh, one.axes)), one.step_bytes)
        for one in collectives
        if one.step_bytes
    ]
    return of_work(topology, flops, hbm_bytes, sent, host_bytes, width)


def of_work(
    topology: Topology,
    flops: float,
    hbm_bytes: float,
    sent: Iterable[tuple[str, float, float]],
    host_bytes: float,
    width: int,
) -> Roofline:
    """The bound of work whose ways are known.

    sent  link, its bytes/s (0: not known), bytes; those of one link are added
    """
    chip = topology.chip.device
    links: dict[str, float] = {}
    unknown = {}
    for name, bandwidth, moved in sent:
        if bandwidth:
            links[name] = links.get(name, 0.0) + moved / bandwidth
        elif moved:
            unknown[name] = True
    host = 0.0
    if chip.host_bytes_per_s:
        host = host_bytes / chip.host_bytes_per_s
    elif host_bytes:
        unknown["host"] = True
    return Roofline(flops / chip.flops(width), hbm_bytes / chip.hbm_bytes_per_s, links, host, tuple(unknown))


def network(topology: Topology, axes: tuple[str, ...]) -> tuple[str, float]:
    """The network between slices or nodes: its name, and one device's bytes/s; 0 where it is not known."""
    return " ".join((*axes, DCN)), topology.chip.device.dcn_bytes_per_s


def link(topology: Topology, mesh: Mesh, axes: tuple[str, ...]) -> tuple[str, float]:
    """What joins the members of a group along some mesh axes in a slice: its name, and one device's bytes/s, one way.

    0 where it is not known.
    """
    chip = topology.chip.device
    index = tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)
    members = list(np.asarray(mesh.devices[index]).reshape(-1))
    name = " ".join(axes)
    if not chip.is_tpu:
        nodes = {(getattr(device, "slice_index", 0), device.id // prod(chip.pod)) for device in members}
        return network(topology, axes) if len(nodes) > 1 else (name, chip.ici_bytes_per_s)
    own = getattr(members[0], "slice_index", None)
    members = [device for device in members if getattr(device, "slice_index", None) == own]
    places = np.array([device.coords for device in members])
    ways = 0
    for axis, (size, ring) in enumerate(zip(topology.shape, topology.rings, strict=True)):
        extent = len(np.unique(places[:, axis]))
        if extent > 1:
            ways += 2 if ring and extent == size and size > 2 else 1
    return name, chip.ici_bytes_per_s * max(ways, 1)
