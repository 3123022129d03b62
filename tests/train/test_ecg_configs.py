"""Every file of configs/ecg resolves; the paper's encoder has its shape and size, and its step lowers on 8 devices."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.config import load
from medjax.models.ecg_mae import abstract_variables
from medjax.nn.masking import draw_mask
from medjax.train.ecg_program import mae_config, mae_program
from medjax.train.ecg_settings import SIZES, EcgTrainSettings
from medjax.train.flops import vit_flops
from medjax.train.state import count

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "ecg"
HUGE = FOLDER / "mae_huge_paper.toml"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_a_config_says_how_it_is_run_on_what_and_with_which_result(path):
    settings = load(EcgTrainSettings, path)
    lines = path.read_text("utf-8").splitlines()
    assert lines[0].startswith(f"# python -m medjax.train configs/ecg/{path.name}")
    assert [line[2:].split(":")[0] for line in lines[1:4]] == ["hardware", "time", "result"]
    assert settings.name


@pytest.mark.parametrize(("size", "millions"), [("Ti", 5.4), ("S", 21.4), ("B", 85.3), ("L", 302.6), ("H", 630.0)])
def test_the_papers_tokens_in_every_size(size, millions):
    settings = load(EcgTrainSettings, HUGE, {"--encoder.size": size})
    config = mae_config(settings)
    encoder = abstract_variables(config)["params"]["encoder"]
    assert count(encoder) / 1e6 == pytest.approx(millions, abs=0.15)
    tokens = 12 * 5000 // config.vit.patch[0]
    mask = draw_mask(jnp.zeros(1, jnp.uint32), jnp.ones((1, tokens), bool), masked=config.masked)
    assert (tokens, mask.keep.shape[1], int(mask.masked.sum())) == (240, 60, 180)
    assert size in SIZES


def test_the_huge_step_lowers_on_8_devices_without_weights():
    settings = load(EcgTrainSettings, HUGE, {"--mesh": "data=2,fsdp=4"})
    program = mae_program(settings, 1000, jax.devices()[:8])
    placed = program.state.trainable["params"]["encoder"]["layers"]["mlp"]["up"]["kernel"]
    assert placed.shape == (32, 1280, 5120)
    assert placed.sharding.shard_shape(placed.shape) == (32, 320, 5120)
    assert program.batch.signal.sharding.shard_shape(program.batch.signal.shape) == (128, 12, 5000)
    here = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(program.state)) * 4
    assert here < 2.2e9  # weights and both moments of 655 M numbers, four ways
    assert "tensor<1024x12x5000xf32>" in program.lower().as_text()


def test_operations_of_a_vision_transformer():
    """ViT-B/16 at 224: 17.56 G multiplications and additions for 197 tokens (arXiv 2012.12877, table 5, patch embedding
    and head included), twice as many operations."""
    config = replace(mae_config(load(EcgTrainSettings, HUGE, {"--encoder.size": "B"})).vit)
    rest = 196 * 768 * 768 + 768 * 1000
    assert vit_flops(config, 197) / 2 + rest == pytest.approx(17.56e9, rel=0.005)
