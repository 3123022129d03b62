"""Every file of configs/sft resolves; those of 7B to 70B build their shardings and lower on fake devices."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from medjax.config import load
from medjax.models.decoder_config import from_hugging_face
from medjax.train.language_program import step_program
from medjax.train.settings import TrainSettings
from medjax.train.state import count, path_name

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "sft"

# facts of the published config.json
LLAMA2_70B = {
    **{"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80},
    **{"num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 4096},
    **{"rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu", "tie_word_embeddings": False},
}
LLAMA3_8B = LLAMA2_70B | {
    **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 5e5},
}
OPENCALM_7B = {
    **{"model_type": "gpt_neox", "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "vocab_size": 52224, "max_position_embeddings": 2048, "rotary_pct": 1.0},
    **{"rotary_emb_base": 10000, "use_parallel_residual": False, "tie_word_embeddings": False, "hidden_act": "gelu"},
    "layer_norm_eps": 1e-5,
}
QLORA_70B = 828_375_040  # 80 layers x 64 x (query, out 16384 + key, value 9216 each + gate, up, down 36864)
MODELS = {
    "llama2_70b_qlora": (LLAMA2_70B, 8, QLORA_70B),
    "swallow_70b_qlora": (LLAMA2_70B | {"vocab_size": 43176}, 8, QLORA_70B),
    "llama3_8b_lora": (LLAMA3_8B, 8, 41_943_040),
    "opencalm7b_lora": (OPENCALM_7B, 4, 4_194_304),
}


def settings_of(name: str) -> TrainSettings:
    return load(TrainSettings, FOLDER / f"{name}.toml")


@pytest.fixture(scope="module", params=sorted(MODELS))
def program(request):
    config, devices, _ = MODELS[request.param]
    steps = settings_of(request.param).train.steps or 1000
    return request.param, step_program(
        settings_of(request.param), from_hugging_face(config), steps, jax.devices()[:devices]
    )


def leaves(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def bytes_here(leaf) -> int:
    """What one device holds of a leaf."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_file_resolves_and_says_how_to_run_it(path):
    settings = load(TrainSettings, path)
    assert settings.train.trainable == ("lora",)
    lines = path.read_text("utf-8").splitlines()
    assert lines[0].startswith(f"# python -m medjax.train configs/sft/{path.name}")
    assert [line.split(":")[0] for line in lines[1:4]] == ["# hardware", "# time", "# result"]


def test_the_published_hyper_parameters():
    found = {name: settings_of(name) for name in MODELS}
    for name, rank, alpha, dropout, rate in (
        ("opencalm7b_lora", 8, 32.0, 0.05, 5e-5),
        ("llama2_70b_qlora", 64, 16.0, 0.1, 2e-4),
    ):
        s = found[name]
        assert (s.lora.rank, s.lora.alpha, s.lora.dropout, s.optimizer.learning_rate) == (rank, alpha, dropout, rate)
        assert (s.train.batch_size, s.data.window, s.data.packing) == (8, 1024, False)
    assert found["opencalm7b_lora"].lora.targets == ("query_key_value",)
    assert {found[name].model.quantisation for name in ("llama2_70b_qlora", "swallow_70b_qlora")} == {"nf4"}


def test_trained_parameters_are_the_adapters(program):
    """r = 64 on all linear layers of a 70B Llama: 828.4 M, the size of the published adapter."""
    name, step = program
    _, _, trained = MODELS[name]
    assert count(step.state.trainable) == trained
    assert set(step.state.trainable) == {"lora"}
    assert QLORA_70B == 80 * 64 * (2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 28672))


def test_bytes_of_the_frozen_weights_on_each_device(program):
    """NF4 with double quantisation: 4 bit a code, 8 bit and a little for 64 of them; the rest is bfloat16."""
    name, step = program
    _, devices, _ = MODELS[name]
    frozen = leaves(step.frozen)
    here = sum(map(bytes_here, frozen.values()))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in frozen.values())
    assert here < 1.01 * total / devices + 10e6
    if "70b" in name:
        codes = 2 * sum(leaf.size for path, leaf in frozen.items() if path.endswith("/codes"))
        stored = sum(leaf.size * leaf.dtype.itemsize for path, leaf in frozen.items() if "/kernel/" in path)
        assert codes == 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
        assert stored * 8 / codes == pytest.approx(4 + 8 / 64 + 32 / 64 / 256, abs=1e-4)
        assert here / 2**30 < 4.5  # of a model of 128 GiB in bfloat16
    else:
        assert {leaf.dtype for leaf in frozen.values()} == {jnp.dtype("bfloat16")}


def test_nothing_large_is_whole_on_every_device(program):
    _, step = program
    everything = leaves(step.frozen) | leaves(step.state)
    whole = {path: bytes_here(leaf) for path, leaf in everything.items() if leaf.sharding.is_fully_replicated}
    assert {path: size for path, size in whole.items() if size > 2**23} == {}
    # adapters and moments, 12 bytes a trained number, are split over all devices, but for the factors with neither
    # heads nor MLP, which `tensor` leaves alone
    trained = leaves(step.state.trainable).values()
    assert sum(map(bytes_here, leaves(step.state).values())) < 12.1 * sum(
        leaf.size / (step.mesh.size if "tensor" in leaf.sharding.spec else step.mesh.shape["fsdp"]) for leaf in trained
    )


def test_the_step_lowers_without_weights(program):
    """The state is donated, the batch split over the data axes, the layers one scan."""
    name, step = program
    lowered = step.lower()
    text = lowered.as_text()
    _, devices, _ = MODELS[name]
    assert f"mhlo.num_partitions = {devices} : i32" in text
    assert text.count("stablehlo.while") >= 2
    donated = text.count("tf.aliasing_output") + text.count("jax.buffer_donor")
    assert donated == len(jax.tree.leaves(step.state))
    assert tuple(step.batch.tokens.sharding.spec) == (("data", "fsdp"), None)
