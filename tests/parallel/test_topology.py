"""Names of slices, their shapes and what is wrong with them; devices of the compiler where libtpu is installed."""

import importlib.util
import os

import jax
import pytest

from medjax.parallel import topology as module
from medjax.parallel.chips import Chip, chip
from medjax.parallel.topology import Topology, known, quiet, topology

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install 'medjax[tpu]'"
)


@pytest.mark.parametrize(
    ("text", "name", "shape", "chips"),
    [
        ("v5e:4x4", "v5e:4x4", (4, 4), 16),
        ("v5e-16", "v5e:4x4", (4, 4), 16),
        ("v5litepod-8", "v5e:2x4", (2, 4), 8),
        ("v5e-1", "v5e:1x1", (1, 1), 1),
        ("V6E-128", "v6e:8x16", (8, 16), 128),
        ("v5p:2x2x4", "v5p:2x2x4", (2, 2, 4), 16),
        ("v5p:2x2", "v5p:2x2x1", (2, 2, 1), 4),
        ("v5p-16", "v5p:2x2x4", (2, 2, 4), 16),
        ("v5p-128", "v5p:4x4x8", (4, 4, 8), 128),
        ("v5p-192", "v5p:4x4x12", (4, 4, 12), 192),
        ("v4-512", "v4:8x8x8", (8, 8, 8), 512),
        ("tpu7x-64", "tpu7x:4x4x4", (4, 4, 4), 64),
        ("tpu7x:2x2x1", "tpu7x:2x2x1", (2, 2, 1), 4),
        ("gpu:h100:8", "gpu:h100:8", (8,), 8),
        ("gpu:a100-40gb:16", "gpu:a100-40gb:16", (16,), 16),
        ("cpu:8", "cpu:8", (8,), 8),
    ],
)
def test_names(text, name, shape, chips):
    found = topology(text)
    assert (found.name, found.shape, found.chips, found.slices) == (name, shape, chips, 1)


def test_chips_devices_hosts_and_rings():
    assert topology("tpu7x-64").device_count == 128  # two devices a chip
    assert topology("v4-16").device_count == 16
    assert topology("v5p-128").rings == (True, True, True)
    assert topology("v5e-128").rings == (False, True)
    assert topology("v5e-16").hosts == 4
    assert topology("v5e-1").hosts == 1
    two = topology("v5p:2x2x4", slices=2)
    assert (two.chips, two.device_count, two.hosts, two.shape) == (32, 32, 8, (2, 2, 4))
    assert [topology(f"gpu:{name}").hosts for name in ("h100:8", "h100:12", "gb200:72", "gh200:3")] == [1, 2, 18, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "nonsense",
            r"got 'nonsense', expected KIND:SHAPE or KIND-CHIPS of what there is: v4:2x2x4, v5e:4x4, v5p:2x2x4",
        ),
        ("v9-4", r"got 'v9-4', .*cpu:8, gpu:KIND:8 with KIND of gb200, .*h100.*; choose one"),
        ("v3-8", r"got 'v3-8', expected KIND:SHAPE"),
        ("gpu:v5e:8", r"got 'gpu:v5e:8', expected KIND:SHAPE"),
        ("h100:8", r"got 'h100:8', expected KIND:SHAPE"),
        ("v5e-20", r"got 'v5e-20', expected one of 1, 4, 8, 16, 32, 64, 128, 256 chips for v5e; .*as v5e:4x4"),
        ("v5p-100", r"got 'v5p-100', expected one of 1, 4, 8, 16, 32, or a multiple of 64 .*as v5p:2x2x4"),
        ("v5e:4x4x4", r"got 'v5e:4x4x4', expected 2 sizes for v5e; write for instance v5e:4x4"),
        ("v5e:0x4", r"got 'v5e:0x4', expected 2 sizes for v5e"),
        ("v5e:16x32", r"got 'v5e:16x32' of 512 chips, expected 256 at most, .*take several slices"),
        (
            "v5e:2x128",
            r"got 'v5e:2x128', a shape that no pod of v5e has, .*16 at most .*v5e:4x4, .*v5e:16x16\.",
        ),
        ("v6e:3x3", r"got 'v6e:3x3', .*expected whole hosts of 2 x 2 chips, .*choose one of v6e:1x1, v6e:2x2"),
        ("v5e:1x4", r"got 'v5e:1x4', a shape that no pod"),
        ("v5p:3x3x3", r"got 'v5p:3x3x3', .*hosts of 2 x 2 chips; choose one of v5p:1x1x1, .*v5p:2x4x4, v5p:4x4x4"),
        ("cpu:0", r"got 'cpu:0', expected a number of 1 or more"),
        ("gpu:h100:2x4", r"got 'gpu:h100:2x4', expected a number of 1 or more"),
    ],
)
def test_what_is_wrong_with_a_name(text, message, monkeypatch):
    monkeypatch.setattr(module, "_described", refused)
    with pytest.raises(ValueError, match=message):
        topology(text)


def refused(name, arguments):
    raise ValueError(f"{name} is not known")


@pytest.mark.parametrize(
    ("text", "slices", "message"),
    [
        ("v5e-16", 0, r"slices: got 0, expected 1 or more"),
        ("cpu:8", 2, r"slices: got 2 of cpu:8, expected 1: fake devices have no slices"),
    ],
)
def test_numbers_of_slices(text, slices, message):
    with pytest.raises(ValueError, match=message):
        topology(text, slices)


def test_a_mesh_must_not_cut_a_slice():
    two = topology("v5e:2x2", slices=2)
    two.check_slices({"data": 2, "fsdp": 4})
    two.check_slices({"data": 8, "fsdp": 1})
    with pytest.raises(ValueError, match=r"mesh: got data=1 for 2 slices, expected a multiple of 2, .*set it to 2"):
        two.check_slices({"data": 1, "fsdp": 8})


def test_a_chip_newer_than_the_table(monkeypatch):
    class Device:
        device_kind = "TPU8i"

    monkeypatch.setattr(module, "_described", lambda name, arguments: [Device()])
    found = topology("tpu8i:2x2x1")
    assert (found.name, found.chip.bf16_flops, found.device_count) == ("tpu8i:2x2x1", 1.101e15, 8)
    Device.device_kind = "TPU99"
    with pytest.raises(ValueError, match=r"libtpu knows 'TPU99', but nothing here states .* give its memory"):
        topology("tpu99:2x2x1")
    given = Chip("tpu99", ("TPU99",), 1e15, 10**11, 10**11, 1e12, 1e11, 3, 1e9)
    assert topology("tpu99:2x2x1", chip=given).chip is given


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"topology: v5e:4x4 needs libtpu.*pip install 'medjax\[tpu\]'"):
        topology("v5e-16").devices()


def test_fake_cpu_devices():
    assert topology("cpu:4").devices() == jax.devices("cpu")[:4]
    with pytest.raises(ValueError, match=r"cpu:4096: this process has \d+ CPU devices, .*device_count=4096"):
        topology("cpu:4096").devices()


def test_gpus_that_are_not_here():
    if jax.default_backend() == "gpu":
        pytest.skip("this machine has GPUs")
    with pytest.raises(ValueError, match=r"gpu:h100:8: this machine has 0 GPUs of that kind, expected 8"):
        topology("gpu:h100:8").devices()


def test_what_is_known_is_an_example_each():
    tpus, _, rest = known().partition(", cpu:8, ")
    assert [topology(text).name for text in tpus.split(", ")] == tpus.split(", ")
    kinds = rest.removeprefix("gpu:KIND:8 with KIND of ").split(", ")
    assert [topology(f"gpu:{kind}:8").chip.name for kind in kinds] == kinds


def test_chatter_of_libraries_is_kept(capfd):
    with quiet() as said:
        os.write(2, b"E0000 hostname\n")
    os.write(2, b"after\n")
    assert said == ["E0000 hostname\n"]
    assert capfd.readouterr().err == "after\n"
    with pytest.raises(KeyError), quiet():
        raise KeyError("seen")


@needs_libtpu
@pytest.mark.parametrize(
    ("text", "slices", "count", "kind"),
    [
        *(("v5e-16", 1, 16, "TPU v5 lite"), ("v5e-1", 1, 1, "TPU v5 lite"), ("v5p-64", 1, 64, "TPU v5")),
        *(("v4-8", 1, 8, "TPU v4"), ("v6e-256", 1, 256, "TPU v6 lite"), ("tpu7x:2x2x1", 1, 8, "TPU7x")),
        ("v5e:2x2", 2, 8, "TPU v5 lite"),
    ],
)
def test_devices_of_the_compiler(text, slices, count, kind, capfd):
    found = topology(text, slices)
    devices = found.devices()
    assert (len(devices), {device.device_kind for device in devices}) == (count, {kind})
    assert found.device_count == count
    assert chip(found.chip.name) is found.chip
    if slices > 1:
        assert [device.slice_index for device in devices] == sorted(list(range(slices)) * (count // slices))
    assert capfd.readouterr().err == ""


@needs_libtpu
def test_slices_that_the_compiler_refuses():
    with pytest.raises(ValueError, match=r"libtpu refuses v5e:3x5: .*not divisible.*expected a shape of whole hosts"):
        Topology("v5e:3x5", chip("v5e"), (3, 5)).devices()
    with pytest.raises(ValueError, match=r"got 'v9:2x2', expected KIND:SHAPE"):
        topology("v9:2x2")


@needs_libtpu
@pytest.mark.parametrize(
    "text",
    [
        *("v5e:1x2", "v5e:2x8", "v5e:12x12", "v5e:16x8", "v5e:3x3", "v5e:1x4", "v6e:2x1"),
        *("v5p:2x2x3", "v5p:4x2x2", "v5p:4x4x28", "v5p:1x2x2", "v4:2x8x1", "tpu7x:2x1x1"),
    ],
)
def test_shapes_of_whole_hosts_are_what_the_compiler_knows(text):
    """What is refused by name the compiler refuses too; what it knows, within a pod, is not refused."""
    name, _, size = text.partition(":")
    shape = tuple(map(int, size.split("x")))
    try:
        count = len(Topology(text, chip(name), shape).devices())
    except ValueError:
        count = 0
    try:
        named = topology(text).device_count
    except ValueError:
        named = 0
    assert named == count
