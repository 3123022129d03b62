"""Least times against arithmetic by hand, on slices whose devices are made up."""

from types import SimpleNamespace

import numpy as np
import pytest

from medjax.parallel.chips import chip
from medjax.parallel.topology import Topology, topology
from medjax.plan.devices import named_devices
from medjax.plan.roofline import Roofline, link, roofline

V5E, V5P = chip("v5e"), chip("v5p")


def mesh(shape, places, slices=1):
    """What roofline reads of a mesh: axes data, fsdp, tensor, sequence over devices at these places."""
    devices = np.empty(len(places) * slices, object)
    for number in range(len(devices)):
        devices[number] = SimpleNamespace(coords=places[number % len(places)], slice_index=number // len(places))
    names = ("data", "fsdp", "tensor", "sequence")
    return SimpleNamespace(axis_names=names, devices=devices.reshape(shape), shape=dict(zip(names, shape, strict=True)))


FLAT = [(x, y, 0) for x in range(4) for y in range(4)]


def sent(axes, moved, network=False):
    return SimpleNamespace(axes=axes, step_bytes=moved, network=network)


@pytest.mark.parametrize(
    ("shape", "axes", "links"),
    [
        ((1, 4, 4, 1), ("fsdp",), 1),  # a line along x
        ((1, 4, 4, 1), ("tensor",), 1),
        ((1, 16, 1, 1), ("fsdp",), 2),  # over both axes of the torus
        ((1, 4, 4, 1), ("fsdp", "tensor"), 2),
    ],
)
def test_links_of_a_mesh_axis(shape, axes, links):
    name, found = link(Topology("v5e:4x4", V5E, (4, 4)), mesh(shape, FLAT), axes)
    assert name == " ".join(axes)
    assert found == links * 4.5e10


def test_a_ring_has_two_directions():
    places = [(x, y, z) for x in range(4) for y in range(4) for z in range(4)]
    place = Topology("v5p:4x4x4", V5P, (4, 4, 4))
    assert link(place, mesh((1, 4, 16, 1), places), ("fsdp",)) == ("fsdp", 2 * 9e10)
    assert link(place, mesh((1, 4, 16, 1), places), ("tensor",)) == ("tensor", 4 * 9e10)


def test_times_are_work_over_peaks_and_the_largest_is_the_limit():
    place, flat = Topology("v5e:4x4", V5E, (4, 4)), mesh((1, 4, 4, 1), FLAT)
    found = roofline(place, flat, 197e12, 0.5 * 819e9, [sent(("fsdp",), 9e10), sent(("fsdp",), 4.5e10)])
    assert (found.compute, found.memory, found.links) == (1.0, 0.5, {"fsdp": 3.0})
    assert (found.step, found.limit) == (3.0, "interconnect (fsdp)")
    found = roofline(place, flat, 197e12, 0.5 * 819e9, [sent(("fsdp",), 4.5e9), sent(("tensor",), 9e9)])
    assert found.links == {"fsdp": 0.1, "tensor": 0.2}
    assert (found.link, found.step, found.limit) == (0.2, 1.0, "compute")
    assert roofline(place, flat, 0.0, 819e9, []).limit == "HBM"
    found = roofline(place, flat, 197e12, 0.0, [], host_bytes=3.2e10)
    assert (found.host, found.step, found.limit) == (2.0, 2.0, "host")
    unknown = Topology("tpu7x:2x2x1", chip("tpu7x"), (2, 2, 1))
    found = roofline(unknown, flat, 0.0, 0.0, [], host_bytes=3.2e10)
    assert (found.host, found.unknown) == (0.0, ("host",))


def test_what_goes_where_no_bandwidth_is_known_is_named():
    """Sixteen L40S are two hosts, and nothing is known of the network between."""
    place = topology("gpu:l40s:16")
    devices = np.array(named_devices(place), object).reshape(2, 8)
    of = SimpleNamespace(axis_names=("data", "fsdp"), devices=devices)
    found = roofline(place, of, 362e12, 0.0, [sent(("data",), 1e9), sent(("data",), 1e9), sent(("fsdp",), 3.2e10)])
    assert (found.links, found.unknown, found.limit) == ({"fsdp": 1.0}, ("data dcn",), "compute")
    assert "no bandwidth is known of data dcn here: what goes over that is NOT in the estimate" in found.left_out
    assert roofline(place, of, 362e12, 0.0, [sent(("fsdp",), 3.2e10)]).left_out == ""


def test_what_passes_between_slices_goes_over_the_network():
    place, both = Topology("v5e:4x4", V5E, (4, 4), slices=2), mesh((2, 4, 4, 1), FLAT, slices=2)
    found = roofline(place, both, 0.0, 0.0, [sent(("data",), 3.125e9, network=True), sent(("fsdp",), 4.5e10)])
    assert found.links == {"data dcn": 1.0, "fsdp": 1.0}


def test_axes_that_share_links_wait_for_each_other():
    """What goes over data and fsdp together uses the links of both."""
    found = Roofline(0.5, 0.0, {"fsdp": 1.0, "data fsdp": 1.0, "tensor": 1.5, "data dcn": 0.25})
    assert found.axes == {"data": 1.0, "fsdp": 2.0, "tensor": 1.5, "data dcn": 0.25}
    assert (found.step, found.limit) == (2.0, "interconnect (fsdp)")


@pytest.mark.parametrize(
    ("shape", "axis", "rate"),
    [
        ((1, 8, 1, 1), "fsdp", 4.5e11),  # a node
        ((2, 8, 1, 1), "fsdp", 4.5e11),
        ((2, 8, 1, 1), "data", 5e10),  # two GPUs, one of each node
        ((1, 8, 2, 1), "fsdp", 5e10),  # eight GPUs, four of each
        ((1, 8, 2, 1), "tensor", 4.5e11),
    ],
)
def test_nvlink_ends_with_the_node(shape, axis, rate):
    place = topology(f"gpu:h100:{int(np.prod(shape))}")
    names = ("data", "fsdp", "tensor", "sequence")
    devices = np.empty(place.chips, object)
    for device in named_devices(place):
        devices[device.id] = device
    of = SimpleNamespace(axis_names=names, devices=devices.reshape(shape))
    assert link(place, of, (axis,))[1] == rate


@pytest.mark.parametrize(("name", "rate"), [("gb200", 9e11), ("gh200", 5e10)])
def test_nvlink_of_superchips_joins_a_rack_or_nothing(name, rate):
    """Eight GPUs are one NVL72's on two hosts, or eight hosts with a network between."""
    place = topology(f"gpu:{name}:8")
    of = SimpleNamespace(axis_names=("fsdp",), devices=np.array(named_devices(place), object))
    assert link(place, of, ("fsdp",))[1] == rate
    assert len({device.process_index for device in named_devices(place)}) == place.hosts


def test_float32_products_take_longer():
    assert chip("v5e").flops(4) == 197e12 / 6
    assert chip("h100").flops(4) == 989e12 / 16
    place = Topology("v5e:4x4", V5E, (4, 4), 1)
    given = place, mesh((1, 16, 1, 1), FLAT), 197e12, 0.0, []
    assert (roofline(*given).compute, roofline(*given, width=4).compute) == (1.0, 6.0)
