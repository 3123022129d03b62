"""Estimates of an encoder's step, against closed forms written down by hand and against the compiler."""

from dataclasses import replace

import pytest

from medjax.config import load
from medjax.parallel.topology import topology
from medjax.plan import program
from medjax.plan.compiled import compile_step
from medjax.plan.devices import named_devices
from medjax.plan.encoder import encoder_layout, kept
from medjax.plan.estimate import work
from medjax.plan.memory import estimate, memory
from medjax.plan.run import by_arithmetic
from medjax.train.ecg_settings import EcgTrainSettings

EMBED, LAYERS, HEADS, MLP, PATCH, LEADS, SAMPLES, ROWS = 64, 4, 4, 256, 50, 12, 500, 32
TOKENS = LEADS * SAMPLES // PATCH  # 120, of which a quarter is shown
SHOWN = TOKENS // 4
USUAL = {
    **{"objective": "mae", "encoder.size": "nano", "encoder.patch": str(PATCH), "signal.samples": str(SAMPLES)},
    **{"signal.sampling_rate_hz": "100", "train.batch_size": str(ROWS), "mesh.shape": "data=8"},
    **{"mae.decoder_embed": "32", "mae.decoder_layers": "2", "mae.decoder_heads": "2"},
}
PREDICTOR = {"objective": "regress", "data.targets": "age", "finetune.trained": "probe"}


def step_of(changes=None, place="cpu:8"):
    given = USUAL | (changes or {})
    if given["objective"] != "mae":
        given = {name: value for name, value in given.items() if not name.startswith("mae.")}
    return program.planned_step(load(EcgTrainSettings, overrides=given), named_devices(topology(place)))


def test_arguments_are_what_shapes_say():
    for changes in ({}, {"mesh.shape": "fsdp=8"}, PREDICTOR):
        step = step_of(changes)
        held = step.program
        sizes = encoder_layout(step)
        assert estimate(step).arguments == sizes.trained + sizes.optimizer + sizes.frozen + sizes.batch
        signal = ROWS // 8 * LEADS * SAMPLES
        targets = held.batch.targets.shape[1]
        assert sizes.batch == signal * (4 + 1) + ROWS // 8 * (2 * targets * 4 + 4)


def test_stacks_are_the_shown_tokens_and_all_of_them():
    encoder, decoder = step_of().stacks
    assert (encoder.tokens, encoder.vit.embed, encoder.vit.layers) == (SHOWN, EMBED, LAYERS)
    assert (decoder.tokens, decoder.vit.embed, decoder.vit.mlp) == (TOKENS, 32, 128)
    (whole,) = step_of(PREDICTOR).stacks
    assert whole.tokens == TOKENS + whole.vit.extra


def test_what_is_kept_by_hand():
    rows, widths = ROWS // 8, 4
    of = encoder_layout(step_of({"train.remat": "full"}))
    carries = rows * (LAYERS * SHOWN * EMBED + 2 * TOKENS * 32) * widths
    assert kept(of) == carries
    assert kept(replace(of, remat="attention")) == 2 * carries
    projections = rows * (LAYERS * SHOWN * (5 * EMBED + MLP) + 2 * TOKENS * (5 * 32 + 128)) * widths
    assert kept(replace(of, remat="dots")) == 2 * carries + projections
    assert kept(encoder_layout(step_of(PREDICTOR))) == 0  # nothing below the head is trained


def test_operations_are_those_of_the_model_and_what_is_computed_again():
    """Of blocks alone: 6 a weight and token; attention 4 forward, 10 backward with the weights computed again."""
    of = encoder_layout(step_of({"train.remat": "none"}))
    total = 0
    for embed, layers, mlp, tokens in ((EMBED, LAYERS, MLP, SHOWN), (32, 2, 128, TOKENS)):
        total += ROWS * layers * tokens * (6 * (4 * embed**2 + 2 * embed * mlp) + 14 * tokens * embed)
    assert 8 * work(of).flops == pytest.approx(total)
    again = 8 * (work(replace(of, remat="full")).flops - work(of).flops)
    assert again == pytest.approx(
        sum(
            ROWS * layers * tokens * (2 * (4 * embed**2 + embed * mlp) + 4 * tokens * embed)  # all but the last product
            for embed, layers, mlp, tokens in ((EMBED, LAYERS, MLP, SHOWN), (32, 2, 128, TOKENS))
        )
    )


def test_gradients_alone_are_sent_over_data_and_weights_too_over_fsdp():
    apart = encoder_layout(step_of())
    assert work(apart).sent == {"data": pytest.approx(2 * 7 / 8 * apart.trained)}
    split = encoder_layout(step_of({"mesh.shape": "fsdp=8"}))
    kernels = LAYERS * (4 * EMBED**2 + 2 * EMBED * MLP) + 2 * (4 * 32**2 + 2 * 32 * 128)
    assert work(split).sent == {"fsdp": pytest.approx(7 / 8 * (2 * 4 * kernels + 8 * split.trained))}


def test_parts_of_a_batch_need_less_at_one_time():
    of = encoder_layout(step_of())
    halves = replace(of, accumulation=2)
    assert memory(halves).kept == memory(of).kept // 2
    assert memory(halves).gradients == 2 * memory(of).gradients


def test_a_gpu_is_planned_without_one():
    place = topology("gpu:h100:8")
    found = by_arithmetic(step_of(place="gpu:h100:8"), place)
    assert found.fits() is True
    line, todo = found.roofline, work(encoder_layout(found.step))
    assert line.compute == pytest.approx(todo.flops / (989e12 / 16))  # float32, a sixteenth of bfloat16
    assert line.memory == pytest.approx(todo.hbm_bytes / 3.35e12)
    assert line.links == {"data": pytest.approx(todo.sent["data"] / 4.5e11)}
    assert found.per_chip_s == pytest.approx(ROWS / 8 / max(line.compute, line.memory, line.links["data"]))
    model = (
        3
        * ROWS
        * sum(
            layers * tokens * (2 * (4 * embed**2 + 2 * embed * mlp) + 4 * embed * tokens)
            for embed, layers, mlp, tokens in ((EMBED, LAYERS, MLP, SHOWN), (32, 2, 128, TOKENS))
        )
    )
    assert found.mfu == pytest.approx(model / (8 * 989e12 * line.step))


def test_it_is_near_the_compiler_on_cpu():
    import jax

    given = {"train.remat": "full", "train.batch_size": "256", "mesh.shape": "data=8"}
    step = program.planned_step(load(EcgTrainSettings, overrides=USUAL | given), jax.devices()[:8])
    found = compile_step(step)
    assert estimate(step).arguments == pytest.approx(found.memory.argument, rel=0.01)
    assert estimate(step).peak == pytest.approx(found.memory.peak, rel=0.2)  # of TPU programs: docs/scaling.md
