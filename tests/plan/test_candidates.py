"""Ways to run: meshes that divide, batches that can be split, and layouts equal to those of real programs."""

from dataclasses import fields

import pytest

from medjax.parallel.sharding import PRESETS
from medjax.parallel.topology import topology
from medjax.plan import program
from medjax.plan.candidates import batches, candidates, meshes, remats, written
from medjax.plan.devices import named_devices
from medjax.plan.layout import layout
from medjax.plan.program import decoder_of


def test_meshes_split_what_they_are_meant_to_split(tiny):
    """Eight devices: four heads allow tensor=4 at the most; rows of 256 tokens can be split in two."""
    found = meshes(topology("cpu:8"), program.decoder_of(""), PRESETS["default"], 256)
    expected = {
        (data, fsdp, tensor, sequence)
        for data in (1, 2, 4, 8)
        for fsdp in (1, 2, 4, 8)
        for tensor in (1, 2, 4)
        for sequence in (1, 2)
        if data * fsdp * tensor * sequence == 8
    }
    assert len(found) == len(expected) == 15
    assert set(found) == expected
    assert written((1, 4, 1, 2)) == "fsdp=4,sequence=2"
    assert written((1, 1, 1, 1)) == "data=1"


def test_between_slices_goes_data_alone(tiny):
    found = meshes(topology("v5e:2x2", 2), program.decoder_of(""), PRESETS["default"], 256)
    assert {sizes[0] for sizes in found} == {2, 4, 8}


def test_batches_in_parts(tiny):
    assert batches(tiny(), 4) == [(8, 1), (8, 2), (16, 1), (16, 2), (16, 4), (32, 1), (32, 2), (32, 4), (32, 8)]
    assert batches(tiny({"plan.batches": "6,8"}), 4) == [(8, 1), (8, 2)]
    assert batches(tiny(), 4, least=True) == [(8, 2)]


@pytest.mark.parametrize("changes", [{}, {"train.trainable": "full", "model.quantisation": "none"}])
def test_layouts_are_those_of_the_programs(tiny, changes):
    """Nothing is built for a way to run; what is known of it is what a program built for it tells."""
    place = topology("cpu:8")
    ways = [way for way in candidates(tiny(changes), place) if way.settings.train.batch_size == 16]
    kinds = {(way.settings.mesh.shape, way.settings.model.quantisation, way.layout.context) for way in ways}
    chosen = [
        next(way for way in ways if way.settings.mesh.shape == shape)
        for shape in ("data=8", "data=2,fsdp=2,tensor=2", "fsdp=4,sequence=2")
    ]
    for way in chosen:
        real = layout(program.planned_step(way.settings, named_devices(place)))
        assert {one.name: getattr(way.layout, one.name) for one in fields(real)} == {
            one.name: getattr(real, one.name) for one in fields(real)
        }
    assert {kind[1] for kind in kinds} == ({None} if changes else {None, "int8", "nf4"})
    assert {kind[2] for kind in kinds if "sequence" in kind[0]} >= {"heads"}


def test_offload_is_tried_where_the_run_asks_for_it(tiny):
    assert remats(tiny()) == ["none", "dots", "attention", "full"]
    assert remats(tiny(), least=True) == ["full"]
    asked = tiny({"train.remat": "offload"})
    assert remats(asked) == ["none", "dots", "attention", "full", "offload"]
    assert remats(asked, least=True) == ["full", "offload"]


def test_named_devices_are_those_of_a_slice():
    devices = named_devices(topology("v5e:2x4", 2))
    assert len(devices) == 16
    assert len({(one.slice_index, one.coords) for one in devices}) == 16
    assert devices[1].coords == (1, 0, 0)
    assert [one.slice_index for one in devices] == [0] * 8 + [1] * 8
    assert len(named_devices(topology("tpu7x:2x2x1"))) == 8


def test_a_model_that_is_not_known(tiny, monkeypatch):
    monkeypatch.setattr(program, "decoder_of", decoder_of)
    with pytest.raises(ValueError, match=r"model\.name: got nobody/nothing-7b, expected"):
        next(candidates(tiny({"model.name": "nobody/nothing-7b"}), topology("v5e:2x2")))
