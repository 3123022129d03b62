"""Meshes over the eight fake CPU devices, and what is refused."""

import jax
import pytest
from jax.sharding import AxisType

from medjax.parallel.mesh import AXES, make_mesh, parse_mesh


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("", {}),
        ("data=4,tensor=2", {"data": 4, "tensor": 2}),
        ("data:4 tensor:2", {"data": 4, "tensor": 2}),
        (" fsdp=-1, sequence=1 ", {"fsdp": -1, "sequence": 1}),
    ],
)
def test_parse(text, sizes):
    assert parse_mesh(text) == sizes


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("", (8, 1, 1, 1)),
        ("data=4,tensor=2", (4, 1, 2, 1)),
        ("tensor=2,data=4", (4, 1, 2, 1)),
        ("data=2,fsdp=2,tensor=2", (2, 2, 2, 1)),
        ("data=-1,tensor=2", (4, 1, 2, 1)),
        ("fsdp=-1", (1, 8, 1, 1)),
        ("sequence=8", (1, 1, 1, 8)),
    ],
)
def test_all_axes_are_always_there(text, shape):
    mesh = make_mesh(text)
    assert mesh.axis_names == AXES == ("data", "fsdp", "tensor", "sequence")
    assert mesh.devices.shape == shape
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert [device.id for device in mesh.devices.flat] == [device.id for device in jax.devices()]


def test_some_devices():
    assert make_mesh("data=-1,tensor=2", jax.devices()[:6]).devices.shape == (3, 1, 2, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model=8", r"got 'model=8', expected axis=size with an axis of data, fsdp, tensor, sequence; write"),
        ("data", r"got 'data', expected axis=size"),
        ("data=four", r"got 'data=four', expected a whole number for axis 'data'; write"),
        ("data=4,data=2", r"axis 'data' is given twice .*; leave"),
        ("data=3", r"'data=3' needs 3 devices, there are 8"),
        ("data=16", r"needs 16 devices, there are 8"),
        ("data=-1,tensor=3", r"'data=-1,tensor=3' needs a multiple of 3 devices, there are 8; change"),
        ("data=-1,tensor=16", r"'data=-1,tensor=16' needs a multiple of 16 devices, there are 8"),
        ("data=-1,fsdp=-1", r"one axis at most may be -1"),
        ("data=0", r"sizes are 1 or more"),
        ("data=-2", r"sizes are 1 or more"),
    ],
)
def test_refused(text, message):
    with pytest.raises(ValueError, match=r"^mesh: .*" + message):
        make_mesh(text)
