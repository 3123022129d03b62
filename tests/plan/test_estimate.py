"""Work of a step by arithmetic, against the conventions of train.flops and the compiler's own program."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from medjax.parallel.topology import topology
from medjax.plan import program
from medjax.plan.devices import named_devices
from medjax.plan.estimate import bound, seconds, work
from medjax.plan.layout import layout
from medjax.plan.memory import memory
from medjax.plan.roofline import Roofline
from medjax.plan.run import planned
from medjax.plan.settings import run_settings
from medjax.train.flops import TrainingFlops, attended_pairs


@pytest.fixture
def laid_out(tiny):
    def of(changes=None, name="cpu:8"):
        return layout(program.planned_step(run_settings(tiny(changes)), named_devices(topology(name))))

    return of


@pytest.mark.parametrize("trained", ["lora", "full"])
@pytest.mark.parametrize("mesh", ["data=8", "fsdp=4,tensor=2", "fsdp=2,tensor=2,sequence=2"])
def test_without_remat_it_is_the_model_s_operations(laid_out, trained, mesh):
    """All devices together: train.flops, and 2 a pair and component more, as scores are computed again."""
    of = laid_out({"train.trainable": trained, "train.remat": "none", "mesh.shape": mesh})
    tokens, pairs = 8 * 256, 8 * attended_pairs(of.config, np.arange(256))
    expected = TrainingFlops(of.config, trained, of.lora).of_step(tokens, pairs, tokens)
    again = 2 * pairs * of.config.heads * of.config.head_dim
    assert 8 * work(of).flops == pytest.approx(expected + again)


def test_remat_adds_a_forward_pass(laid_out):
    of = laid_out({"train.remat": "full"})
    tokens, pairs = 8 * 256, 8 * attended_pairs(of.config, np.arange(256))
    more = TrainingFlops(of.config, "lora", of.lora).of_remat(tokens, pairs)
    more -= (
        2 * tokens * of.config.layers * of.config.embed * of.config.mlp
    )  # what the last projection gave, nobody needs
    assert 8 * (work(of).flops - work(replace(of, remat="none")).flops) == pytest.approx(more)


def test_offload_computes_what_attention_does_and_sends_what_it_keeps(laid_out):
    """There and back for every part of a batch, over a v5e's PCIe of 16 GB/s."""
    given = {"mesh.shape": "fsdp=4,tensor=2", "train.batch_size": "16", "train.accumulation": "2"}
    of = laid_out(given, "v5e:2x4")
    offload = replace(of, remat="offload")
    assert (work(offload).flops, work(offload).hbm_bytes) == (work(of).flops, work(of).hbm_bytes)
    sent = 2 * 2 * memory(of).kept
    assert (work(of).host_bytes, work(offload).host_bytes) == (0, sent)
    assert bound(offload, topology("v5e:2x4")).host == pytest.approx(sent / 1.6e10)


def test_the_compiler_s_program_does_as_much(tiny):
    """All devices on data, so that nothing is split or gathered; blockwise attention computes whole blocks."""
    settings = run_settings(tiny({"mesh.shape": "data=8", "train.remat": "dots", "model.dtype": "float32"}))
    step = program.planned_step(settings, jax.devices()[:8])
    found = planned(step, topology("cpu:8"))
    assert work(layout(step)).flops == pytest.approx(found.flops, rel=0.15)


def test_what_is_sent(laid_out):
    """Ring formulas, by hand: bytes of bfloat16 weights and activations, float32 gradients."""
    of = laid_out({"train.trainable": "full", "mesh.shape": "fsdp=4,tensor=2", "train.remat": "none"})
    weights = 3 * 128 * (32 * (2 * 2 + 2 * 1) + 3 * 128) * 2  # of three layers, on one half of tensor
    sent = work(of).sent
    assert sent["fsdp"] == pytest.approx(0.75 * (2 * weights + 4 * of.trained))
    assert sent["tensor"] == pytest.approx(2 / 2 * 4 * 512 * 3 * 128 * 2)
    assert set(sent) == {"fsdp", "tensor"}
    apart = work(laid_out({"mesh.shape": "data=8"}))
    assert apart.sent == {"data": pytest.approx(2 * 7 / 8 * laid_out({"mesh.shape": "data=8"}).trained)}


def test_the_bound_of_a_slice(laid_out):
    of, place = laid_out({"mesh.shape": "fsdp=16", "train.batch_size": "16"}, "v5e:4x4"), topology("v5e:4x4")
    line, todo = bound(of, place), work(of)
    assert line.compute == pytest.approx(todo.flops / 197e12)
    assert line.memory == pytest.approx(todo.hbm_bytes / 819e9)
    assert line.links == {"fsdp": pytest.approx(todo.sent["fsdp"] / (2 * 4.5e10))}
    assert bound(laid_out(), topology("cpu:8")) is None


def test_two_slices_meet_over_their_network(tiny):
    place = topology("v5e:2x2", 2)
    of = layout(program.planned_step(run_settings(tiny({"mesh.shape": "data=2,fsdp=4"})), named_devices(place)))
    assert bound(of, place).links["data dcn"] == pytest.approx(of.trained / 3.125e9)
    assert "data" not in bound(of, place).links  # no two of a slice hold the same weights
    parts = replace(of, rows=16, accumulation=2)
    assert bound(parts, place).links["data dcn"] == pytest.approx(2 * of.trained / 3.125e9)


def test_gradients_are_summed_in_every_part_of_a_batch(laid_out):
    of = laid_out({"mesh.shape": "data=8"})
    assert work(replace(of, rows=32, accumulation=4)).sent["data"] == 4 * work(of).sent["data"]


def test_a_head_alone_has_one_forward_pass(laid_out):
    """Frozen layers keep nothing and compute nothing again."""
    of = laid_out({"train.trainable": "head", "train.remat": "full", "mesh.shape": "data=8"})
    tokens, pairs = 8 * 256, 8 * attended_pairs(of.config, np.arange(256))
    assert 8 * work(of).flops == pytest.approx(TrainingFlops(of.config, "head").of_step(tokens, pairs, tokens))
    assert memory(of).kept == 0


def test_ties_go_to_the_one_that_does_less():
    busy, idle = Roofline(1.0, 0.5, {"fsdp": 0.5}), Roofline(1.0, 0.1, {})
    assert seconds(idle) == pytest.approx(1.01)
    assert seconds(busy) == pytest.approx(1.1)
