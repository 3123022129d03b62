"""Slices of chips that nobody here needs to own: their names, shapes and, for the TPU compiler, their devices.

Names:  v5e:4x4         kind of chip and shape of the slice
        v5e-16          kind and number of CHIPS, in the usual shape. Google's own names count cores on v4 and v5p:
                        its v5p-128 has 64 chips, here it has 128
        gpu:h100:8      kind and number of GPUs
        cpu:8           fake devices of this machine

The devices of a TPU slice come from libtpu, which needs no TPU for that: programs are compiled for them, not run. Those
of several slices are told apart by `slice_index` and come slice by slice, so that the first axis of a mesh (`data`)
goes over the network between slices and the others stay inside.

Source: jax.experimental.topologies; arguments of libtpu 0.0.42 (`wrap`, `chip_config_name`, `chips_per_host_bounds`) as
in AI-Hypercomputer/maxtext@035dd3d, accelerator_to_spec_map.py, whose shapes for a number of chips are these too.
"""

import contextlib
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from medjax.parallel.chips import CHIPS, Chip, chip_of, stated_by_jax

_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "7x": "tpu7x", "v7x": "tpu7x"}
_OLD = ("v2", "v3", "v4i")  # known by their peak alone
_FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
_CUBES = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}
# a CPU of this machine, for plans of small programs: it has no figures of its own
CPU = Chip("cpu", ("cpu",), 0, 0, 0, 0, 0, 1, 0)


@dataclass(frozen=True)
class Topology:
    """A slice, or several of one shape.

    shape   chips along each axis of one slice
    slices  joined by the network between them
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Of all slices."""
        return prod(self.shape) * self.slices

    @property
    def device_count(self) -> int:
        """JAX devices of all slices: more than chips where a chip makes two (7x)."""
        return self.chips * self.chip.cores

    @property
    def rings(self) -> tuple[bool, ...]:
        """Which axes of a slice are closed to rings."""
        return self.chip.wraps(self.shape)

    @property
    def hosts(self) -> int:
        """Machines of all slices."""
        return -(-prod(self.shape) // self.chip.host_chips) * self.slices

    def devices(self) -> list[Any]:
        """JAX devices, slice by slice. TPU: of the compiler alone, nothing can be computed on them.

        Sets TPU_SKIP_MDS_QUERY and ALLOW_MULTIPLE_LIBTPU_LOAD where they are not set: without them libtpu asks a cloud
        server for minutes, and a second process that compiles is refused.

        Raises ValueError when libtpu is missing or refuses the slice, or when this machine lacks the CPUs or GPUs.
        """
        if self.chip.is_tpu:
            return _tpu_devices(self)
        return _cpu_devices(self.chips) if self.chip is CPU else _gpu_devices(self)

    def check_slices(self, mesh: Mapping[str, int]) -> None:
        """Raise ValueError when a mesh would cut a slice: `data`, its first axis, must hold whole slices."""
        first = next(iter(mesh.items()))
        if first[1] % self.slices:
            raise ValueError(
                f"mesh: got {first[0]}={first[1]} for {self.slices} slices, expected a multiple of {self.slices}, as "
                f"only this axis goes over the network between slices; set it to {self.slices} or a multiple."
            )


def topology(text: str, slices: int = 1, chip: Chip | None = None) -> Topology:
    """The slice of a name, as "v5e:4x4", "v5e-16", "gpu:h100:8" or "cpu:8"; nothing is asked of libtpu yet.

    slices  of that shape, over the network
    chip    facts of a chip that the table lacks; else they are asked of the installed JAX, through libtpu

    Raises ValueError for an unknown kind or number (the message lists what there is), for slices larger than a pod, and
    for shapes that no pod has.
    """
    if slices < 1:
        raise ValueError(f"slices: got {slices}, expected 1 or more; leave it out for one slice.")
    kind, size = _parts(text)
    if kind == "cpu":
        return Topology(text, CPU, (_count(text, size),), _single(slices, text))
    if text.lower().startswith("gpu:"):
        return Topology(text, _known(text, kind, gpu=True), (_count(text, size),), slices)
    found = chip or next((one for one in CHIPS if one.name == kind and one.is_tpu and kind not in _OLD), None)
    if found is None and "x" in size:
        found = _asked(text, kind, size)
    found = found or _known(text, kind, gpu=False)
    shape = tuple(int(part) for part in size.split("x")) if "x" in size else _usual(text, found, _count(text, size))
    shape = shape if len(shape) >= found.ici_axes else shape + (1,) * (found.ici_axes - len(shape))
    if len(shape) != found.ici_axes or min(shape) < 1:
        raise ValueError(
            f"topology: got {text!r}, expected {found.ici_axes} sizes for {found.name}; write for instance "
            f"{found.name}:{'x'.join(map(str, _usual(text, found, 16)))}."
        )
    if found.pod and prod(shape) > prod(found.pod):
        raise ValueError(
            f"topology: got {text!r} of {prod(shape)} chips, expected {prod(found.pod)} at most, the largest slice of "
            f"{found.name}; take several slices (slices=2 or more) of a smaller shape."
        )
    if not _possible(found, shape):
        raise ValueError(
            f"topology: got {text!r}, a shape that no pod of {found.name} has, expected whole hosts of 2 x 2 chips"
            f"{f', {found.pod[0]} at most along an axis' if found.ici_axes == 2 else ''}; choose one of "
            f"{', '.join(_shapes(found))}."
        )
    return Topology(f"{found.name}:{'x'.join(map(str, shape))}", found, shape, slices)


def known() -> str:
    """What `topology` knows, for messages and help: an example of each TPU, and the kinds of GPU."""
    tpus = [one for one in CHIPS if one.is_tpu and one.name not in _OLD]
    names = [f"{one.name}:{'x'.join(map(str, _usual('', one, 16)))}" for one in tpus]
    return f"{', '.join(names)}, cpu:8, gpu:KIND:8 with KIND of " + ", ".join(
        one.name for one in CHIPS if not one.is_tpu
    )


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Keep what C++ libraries write to standard error off the terminal; yields a list that then holds the text."""
    said: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


def _parts(text: str) -> tuple[str, str]:
    """Kind and size: ("v5e", "4x4") of "v5e:4x4", ("h100", "8") of "gpu:h100:8"."""
    found = re.fullmatch(r"(?:gpu:)?([a-z][\w\-]*?|7x)[:\-](\d+(?:x\d+)*)", text.strip().lower())
    if not found:
        raise ValueError(_listing(text))
    return _ALIASES.get(found[1], found[1]), found[2]


def _listing(text: str) -> str:
    return (
        f"topology: got {text!r}, expected KIND:SHAPE or KIND-CHIPS of what there is: {known()}; choose one, with a "
        "shape or number of chips that you can have."
    )


def _known(text: str, kind: str, *, gpu: bool) -> Chip:
    found = next((one for one in CHIPS if one.name == kind and one.is_tpu != gpu and kind not in _OLD), None)
    if found is None:
        raise ValueError(_listing(text))
    return found


def _count(text: str, size: str) -> int:
    if "x" in size or int(size) < 1:
        raise ValueError(
            f"topology: got {text!r}, expected a number of 1 or more after the kind; write for instance 8."
        )
    return int(size)


def _single(slices: int, text: str) -> int:
    if slices > 1:
        raise ValueError(f"slices: got {slices} of {text}, expected 1: fake devices have no slices; leave it out.")
    return 1


def _usual(text: str, found: Chip, count: int) -> tuple[int, ...]:
    """The shape that a number of chips usually has: as near to a square or cube as can be."""
    table = _FLAT if found.ici_axes == 2 else _CUBES
    if count in table:
        return table[count]
    if found.ici_axes == 3 and count % 64 == 0:
        cubes = count // 64
        sides = [
            (4 * a, 4 * b, 4 * (cubes // a // b))
            for a, b in itertools.product(range(1, cubes + 1), repeat=2)
            if cubes % (a * b) == 0 and a <= b <= cubes // a // b
        ]
        fitting = [side for side in sides if all(x <= y for x, y in zip(side, sorted(found.pod), strict=True))]
        if fitting:
            return min(fitting, key=lambda side: side[-1] - side[0])
    more = ", or a multiple of 64 that makes cubes within a pod" if found.ici_axes == 3 else ""
    raise ValueError(
        f"topology: got {text!r}, expected one of {', '.join(map(str, table))}{more} chips for {found.name}; choose "
        f"one, or write the shape, as {found.name}:{'x'.join(map(str, table[16]))}."
    )


def _possible(found: Chip, shape: tuple[int, ...]) -> bool:
    """Whether a pod can have such a slice: whole hosts or a part of one, and of a flat torus no axis beyond its own.

    Cubes are joined by switches, in lines as long as there are cubes.
    """
    if found.pod and found.ici_axes == 2 and max(shape) > max(found.pod):
        return False
    return prod(shape) < 4 or all(size % 2 == 0 for size in shape[:2])


def _shapes(found: Chip) -> list[str]:
    """Names of the usual slices of a TPU, smallest first."""
    table = _FLAT if found.ici_axes == 2 else _CUBES
    shapes = [shape for count, shape in table.items() if not found.pod or count <= prod(found.pod)]
    cubes = [] if found.ici_axes == 2 else [(4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8)]
    return [f"{found.name}:{'x'.join(map(str, shape))}" for shape in shapes + cubes]


def _asked(text: str, kind: str, size: str) -> Chip | None:
    """A chip that the table lacks but libtpu knows, with the facts that the installed JAX states."""
    try:
        device = _described(f"{kind}:{size}", {})[0]
    except ValueError:
        return None
    found = chip_of(device.device_kind) or stated_by_jax(device.device_kind)
    if found is None:
        raise ValueError(
            f"topology: {text}: libtpu knows {device.device_kind!r}, but nothing here states what it can do; give its "
            "memory, bandwidths and operations as a Chip."
        )
    return found


def _tpu_devices(of: Topology) -> list[Any]:
    shape = (*of.shape, 1)[:3]
    arguments: dict[str, Any] = {"wrap": [*of.rings, False][:3]}
    if prod(shape) < 4:
        arguments["chips_per_host_bounds"] = list(shape)
    if of.chip.name == "v4":
        arguments["chip_config_name"] = "megacore"  # both cores of a chip as one device, as on Google Cloud
    if of.slices > 1:
        arguments["num_slices"] = of.slices
    devices = _described(of.name, arguments)
    if len(devices) != of.device_count:
        raise ValueError(
            f"topology: {of.name}: libtpu makes {len(devices)} devices, expected {of.device_count}; correct the facts "
            f"of {of.chip.name} (cores={of.chip.cores})."
        )
    return sorted(devices, key=lambda device: (getattr(device, "slice_index", None) or 0, device.id))


def _described(name: str, arguments: dict[str, Any]) -> list[Any]:
    import importlib.util

    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"topology: {name} needs libtpu, the TPU compiler, which is not installed; pip install 'medjax[tpu]' (it "
            "needs no TPU)."
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    with quiet() as said:
        try:
            return list(topologies.get_topology_desc(name, "tpu", **arguments).devices)
        except Exception as error:  # jaxlib's own type, and others of missing plugins
            reason = str(error).partition("\n")[0]
    first = next((line for line in "".join(said).splitlines() if "INVALID" in line or "ERROR" in line), "")
    raise ValueError(
        f"topology: libtpu refuses {name}: {reason or first}; expected a shape of whole hosts (2x2) of a kind that it "
        f"knows: {known().partition(', cpu')[0]}."
    )


def _cpu_devices(count: int) -> list[Any]:
    import jax

    with contextlib.suppress(RuntimeError):  # devices exist already: as many as there are
        if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"topology: cpu:{count}: this process has {len(devices)} CPU devices, expected {count}; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count} before the command."
        )
    return devices[:count]


def _gpu_devices(of: Topology) -> list[Any]:
    import jax

    try:
        devices = [one for one in jax.devices("gpu") if chip_of(one.device_kind) == of.chip]
    except RuntimeError:
        devices = []
    if len(devices) < of.chips:
        raise ValueError(
            f"topology: {of.name}: this machine has {len(devices)} GPUs of that kind, expected {of.chips} to compile "
            "for them; the analytic plan needs none."
        )
    return devices[: of.chips]
