"""Operation counts against closed forms written out for published models, and peaks against their data sheets."""

import time

import jax
import numpy as np
import pytest

from medjax.models.decoder_config import DecoderConfig, from_hugging_face
from medjax.nn.lora import LoraConfig
from medjax.train import flops
from medjax.train.flops import TrainingFlops, attended_pairs, lora_params, mfu, peak_of, real_tokens

ALL = ("query", "key", "value", "out", "gate", "up", "down")

SMOLLM2: dict = {
    **{"model_type": "llama", "vocab_size": 49152, "num_hidden_layers": 30, "hidden_size": 576},
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "hidden_act": "silu"},
    **{"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": True},
}
LLAMA3_8B: dict = {
    **{"model_type": "llama", "vocab_size": 128256, "num_hidden_layers": 32, "hidden_size": 4096},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "hidden_act": "silu"},
    **{"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False},
}
OPENCALM_7B: dict = {
    **{"model_type": "gpt_neox", "vocab_size": 52224, "num_hidden_layers": 32, "hidden_size": 4096},
    **{"num_attention_heads": 32, "intermediate_size": 16384, "hidden_act": "gelu", "max_position_embeddings": 2048},
    **{"layer_norm_eps": 1e-5, "rotary_emb_base": 10000, "rotary_pct": 1.0, "use_parallel_residual": False},
}


@pytest.fixture
def smollm2() -> DecoderConfig:
    return from_hugging_face(SMOLLM2)


@pytest.fixture
def llama3() -> DecoderConfig:
    return from_hugging_face(LLAMA3_8B)


def test_full_training_of_smollm2(smollm2):
    kernels = 30 * (576 * 576 + 2 * 576 * 192 + 576 * 576 + 3 * 576 * 1536)
    assert kernels == 106_168_320 == smollm2.matmul_params
    length = 512
    attention = 30 * 9 * 4 * 64 * (length * (length + 1) // 2)  # forward, a document
    expected = 6 * kernels * length + 3 * attention + 6 * 49152 * 576 * length
    assert TrainingFlops(smollm2).per_token(length) == expected / length
    # one number to hold on to: 0.86 GFLOP a token, of which the unembedding is a fifth
    assert expected / length == pytest.approx(860.1e6, rel=1e-3)


def test_lora_on_llama3_8b(llama3):
    kernels = 32 * (4096 * 4096 + 2 * 4096 * 1024 + 4096 * 4096 + 3 * 4096 * 14336)
    assert kernels == 6_979_321_856 == llama3.matmul_params
    lora = LoraConfig(rank=16, alpha=32, targets=ALL)
    adapters = 32 * 16 * ((4096 + 4096) + 2 * (4096 + 1024) + (4096 + 4096) + 3 * (4096 + 14336))
    assert adapters == 41_943_040 == lora_params(llama3, lora)
    lengths = [2048, 700, 1]
    tokens = sum(lengths)
    pairs = 32 * sum(n * (n + 1) // 2 for n in lengths)
    counted = 900
    expected = (4 * kernels + 6 * adapters) * tokens + 3 * 4 * 32 * 128 * pairs + 4 * 128256 * 4096 * counted
    positions = np.concatenate([np.arange(n) for n in lengths])
    cost = TrainingFlops(llama3, "lora", lora)
    assert attended_pairs(llama3, positions) == pairs
    assert cost.of_step(tokens, pairs, counted) == expected
    # about 4 N a token: the attention and the logits of a third of the positions add less than a tenth
    assert 4 * kernels < expected / tokens < 1.1 * 4 * kernels


def test_lora_of_smollm2_has_as_many_weights_as_peft_says(smollm2):
    # peft prints "trainable params: 4,884,480" for r = 16 on all linear layers of SmolLM2-135M
    assert lora_params(smollm2, LoraConfig(rank=16, alpha=32, targets=ALL)) == 4_884_480


def test_the_fused_projection_of_gpt_neox():
    config = from_hugging_face(OPENCALM_7B)
    lora = LoraConfig(rank=8, alpha=16, targets=("query_key_value", "up"))
    assert lora_params(config, lora) == 32 * 8 * ((4096 + 3 * 4096) + (4096 + 16384))
    assert config.matmul_params == 32 * (4 * 4096 * 4096 + 2 * 4096 * 16384)


def test_head_only_passes_no_gradient_through_the_layers(smollm2):
    cost = TrainingFlops(smollm2, "head")
    assert cost.of_step(10, 300, 4) == 10 * 2 * 106_168_320 + 4 * 9 * 64 * 300 + 4 * 6 * 49152 * 576


def test_remat_adds_one_forward_of_the_layers_and_no_logits(smollm2):
    lora = LoraConfig(rank=4, alpha=8, targets=("query",))
    adapters = 30 * 4 * (576 + 576)
    cost = TrainingFlops(smollm2, "lora", lora)
    assert cost.of_remat(10, 300) == 10 * 2 * (106_168_320 + adapters) + 4 * 9 * 64 * 300


def test_windows_bound_what_a_token_sees(smollm2):
    windows = (0,) * 10 + (4,) * 20
    config = DecoderConfig(**{**vars(smollm2), "windows": windows})
    slow = sum(min(position + 1, window or 99) for window in windows for n in (6, 3) for position in range(n))
    assert attended_pairs(config, np.array([0, 1, 2, 3, 4, 5, 0, 1, 2])) == slow


def test_real_tokens_of_a_packed_batch():
    # rows: documents of 3 and 2 tokens with one padded place; one document that fills the row
    positions = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]], np.int32)
    ends = np.array([[3, 3, 3, 5, 5, 6], [6] * 6], np.int32)
    assert real_tokens(positions, ends).tolist() == [[True] * 5 + [False], [True] * 6]


@pytest.mark.parametrize(("trained", "lora"), [("lora", None), ("some", None), ("full", LoraConfig(1, 1, ("up",)))])
def test_what_is_trained_must_be_known(smollm2, trained, lora):
    with pytest.raises(ValueError, match=rf"got trained='{trained}' .*expected one of full, lora, head"):
        TrainingFlops(smollm2, trained, lora)


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        *(("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5e", 197), ("TPU v5", 459), ("TPU v5p", 459)),
        *(("TPU v6 lite", 920), ("TPU v6e", 920), ("TPU7x", 1155), ("TPU v2", 23), ("TPU v4 lite", 137)),
        *(("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA B200", 2250)),
        *(("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("Tesla T4", 65)),
        *(("NVIDIA A10G", 70), ("NVIDIA A10", 125)),
    ],
)
def test_peaks(kind, teraflops):
    assert peak_of(kind) == teraflops * 1e12


def test_tpu_peaks_are_those_that_jax_states():
    info = pytest.importorskip("jax._src.pallas.mosaic.tpu_info")
    if not hasattr(info, "_get_tpu_info_impl"):
        pytest.skip("this jax keeps its table elsewhere; that of 0.10.2 is the source")
    for kind in ("TPU v2", "TPU v3", "TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"):
        version = info.chip_version_from_device_kind(kind)
        a_device = 1 if kind in ("TPU v2", "TPU v3", "TPU7x") else version.num_physical_tensor_cores_per_chip
        stated = info._get_tpu_info_impl(version, 1).bf16_ops_per_second * a_device
        assert peak_of(kind) == pytest.approx(stated, rel=1e-6), kind


def test_an_unknown_device_has_no_mfu():
    assert peak_of("Abacus 3000") is None
    assert mfu(1e12, 1.0, 8, None) is None
    assert mfu(1e12, 0.0, 8, 1e12) is None


def test_mfu_is_the_share_of_all_devices():
    assert mfu(6e12, 2.0, 4, 1e12) == 0.75


def test_the_rate_of_this_cpu_is_measured_once_and_shared_by_its_devices():
    flops._cpu_rate.cache_clear()
    began = time.perf_counter()
    peak = flops.peak_flops()
    assert time.perf_counter() - began < 2
    a = np.ones((1024, 1024), np.float32)
    fastest = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        a @ a
        fastest = min(fastest, time.perf_counter() - start)
    # both multiply on all cores; shared machines disturb either, so only the order of magnitude is certain
    assert 0.1 < peak * jax.local_device_count() / (2 * 1024**3 / fastest) < 10
    assert flops.peak_flops() == peak
