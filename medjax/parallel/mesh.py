"""Device meshes: which devices, along which named axes.

Four axes, always all present (size 1 when unused), so that one table of sharding rules serves every run:
  data      batch rows          fsdp      batch rows, and parameters split
  tensor    heads, MLP, vocab   sequence  tokens of one row
"""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor", "sequence")


def parse_mesh(text: str) -> dict[str, int]:
    """Read "data=4,tensor=2" (or "data:4 tensor:2"); one axis may be -1: all devices that are left.

    Raises ValueError on an unknown axis, a repeated one, or a size that is not a whole number.
    """
    sizes: dict[str, int] = {}
    for part in text.replace(" ", ",").split(","):
        if not part:
            continue
        name, separator, size = part.replace(":", "=").partition("=")
        if name not in AXES or not separator:
            raise ValueError(
                f"mesh: got {part!r}, expected axis=size with an axis of {', '.join(AXES)}; write for instance data=4."
            )
        if name in sizes:
            raise ValueError(f"mesh: axis {name!r} is given twice in {text!r}, expected once; leave one of them out.")
        try:
            sizes[name] = int(size)
        except ValueError:
            raise ValueError(
                f"mesh: got {part!r}, expected a whole number for axis {name!r}; write for instance {name}=2, "
                f"or {name}=-1 for all devices that are left."
            ) from None
    return sizes


def make_mesh(text: str = "", devices: list | None = None) -> Mesh:
    """A mesh of all axes over the devices, for instance make_mesh("data=4,tensor=2").

    text     sizes by axis; empty: every device along `data`
    devices  default: all of this run
    Raises ValueError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = parse_mesh(text) or {"data": -1}
    if list(sizes.values()).count(-1) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"mesh: got {text!r}; sizes are 1 or more, and one axis at most may be -1: change the sizes.")
    known = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values() and len(devices) % known:
        raise ValueError(
            f"mesh: {text!r} needs a multiple of {known} devices, there are {len(devices)}; change the sizes."
        )
    for name, size in sizes.items():
        if size == -1:
            sizes[name] = len(devices) // known
    total = math.prod(sizes.values())
    if total != len(devices):
        raise ValueError(
            f"mesh: {text!r} needs {total} devices, there are {len(devices)}; "
            f"{_fitting(sizes, len(devices)) or 'change the sizes'}, or use -1 for one axis."
        )
    shape = tuple(sizes.get(name, 1) for name in AXES)
    return Mesh(_placed(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _placed(shape: tuple[int, ...], devices: list) -> np.ndarray:
    """Devices in the shape of the mesh: on TPU so that its axes lie along those of the torus, slices along `data`.

    Raises ValueError when `data` does not hold whole slices.
    """
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    if shape[0] % slices:
        raise ValueError(
            f"mesh: got data={shape[0]} for {slices} slices, expected a multiple of {slices}, as only this axis goes "
            f"over the network between slices; set it to {slices} or a multiple."
        )
    if slices > 1:
        inside = (shape[0] // slices, *shape[1:])
        across = (slices,) + (1,) * (len(shape) - 1)
        return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _fitting(sizes: dict[str, int], devices: int) -> str:
    """For each axis that alone is the wrong size, the one that would do, as "use data=4 or tensor=1"."""
    total = math.prod(sizes.values())
    fit = [
        f"{name}={devices * size // total}"
        for name, size in sizes.items()
        if devices % (total // size) == 0 and size > 1
    ]
    return f"use {' or '.join(fit)}" if fit else ""
