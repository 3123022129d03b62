"""The memory of a step by arithmetic: closed forms, what grows with what, and how far it is from the compiler."""

import importlib.util
from dataclasses import replace

import jax
import pytest

from medjax.config import load
from medjax.models.published import published
from medjax.parallel.topology import topology
from medjax.plan import program
from medjax.plan.compiled import compile_step
from medjax.plan.devices import named_devices
from medjax.plan.layout import layout, tree_bytes
from medjax.plan.memory import estimate, host_bytes, memory
from medjax.plan.settings import run_settings
from medjax.train.settings import TrainSettings


@pytest.fixture
def laid_out(tiny):
    def of(changes=None):
        return layout(program.planned_step(run_settings(tiny(changes)), named_devices(topology("cpu:8"))))

    return of


def deeper(of, layers):
    config = replace(of.config, layers=layers, windows=(0,) * layers, rope_index=(0,) * layers)
    return replace(of, config=config)


def test_arguments_are_the_arrays_that_a_device_holds(tiny):
    step = program.planned_step(run_settings(tiny()), jax.devices()[:8])
    held = tree_bytes((step.program.state, step.program.frozen, step.program.batch))
    # besides: step, loss average, bad steps, each 4 bytes
    assert estimate(step).arguments == held - 12
    tokens = 8 * 256 // 4
    assert layout(step).batch == 5 * 4 * tokens
    assert layout(step).tokens == tokens


def test_what_is_kept_of_a_layer(laid_out):
    """Bytes a token and layer, bfloat16: d 128, two of four heads of 32, one of two kv heads, half of an MLP of 256."""
    of = laid_out()
    full = 2 * 128
    attention = full + 2 * 2 * 32 + 2 * 4
    dots = attention + 2 * (64 + 2 * 32 + 128 + 2 * 128 + 128)
    expected = {"full": full, "attention": attention, "dots": dots}
    # on its way to the host's memory and back: two of the three layers
    offload = replace(of, remat="offload")
    assert memory(offload).kept == 2 * 512 * attention
    assert host_bytes(offload) == 3 * 512 * attention
    assert host_bytes(of) == 0
    assert {remat: memory(replace(of, remat=remat)).kept for remat in expected} == {
        remat: 3 * 512 * size for remat, size in expected.items()
    }


def test_more_kept_more_rows_and_more_parts_cost_what_they_should(laid_out):
    of = laid_out()
    peaks = [memory(replace(of, remat=remat)).peak for remat in ("full", "attention", "dots", "none")]
    assert peaks == sorted(set(peaks))
    assert memory(replace(of, rows=16)).kept == 2 * memory(of).kept
    halves = memory(replace(of, rows=16, accumulation=2))
    assert halves.kept == memory(of).kept
    assert halves.gradients == 2 * memory(of).gradients


def test_it_is_linear_in_depth(laid_out):
    of = laid_out()
    peaks = [memory(deeper(of, layers)).peak for layers in (2, 4, 6)]
    assert peaks[2] - peaks[1] == peaks[1] - peaks[0] == 2 * memory(deeper(of, 1)).kept


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'medjax[tpu]'")
@pytest.mark.parametrize(("remat", "layers"), [("full", 4), ("dots", 2)])
def test_it_is_within_15_percent_of_the_compiler(monkeypatch, remat, layers):
    """Llama 3 8B with fewer layers, which is what the compiler's figures are linear in."""
    whole = published("meta-llama/Meta-Llama-3-8B")
    config = replace(whole, layers=layers, windows=(0,) * layers, rope_index=(0,) * layers)
    monkeypatch.setattr(program, "decoder_of", lambda name: config)
    given = {
        **{"model.dtype": "bfloat16", "data.window": "2048", "train.batch_size": "16", "train.remat": remat},
        **{"mesh.shape": "fsdp=16"},
    }
    step = program.planned_step(load(TrainSettings, overrides=given), topology("v5e:4x4").devices())
    assert estimate(step).peak == pytest.approx(compile_step(step).memory.peak, rel=0.15)
