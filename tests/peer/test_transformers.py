"""Every family against transformers, where torch and transformers are installed: python -m pytest -m peer tests/peer.

A tiny random model is made by transformers, saved by it, loaded by medjax, and both compute logits in float32.
"""

import json

import numpy as np
import pytest
from tiny_decoders import CONFIGS, SPARSE_GEMMA, TOKENS, YARN, load, logits

from medjax.models.decoder_config import from_hugging_face
from medjax.nn.rope import inverse_frequencies

torch = pytest.importorskip("torch", reason="torch is not installed: the comparison with transformers needs it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")

pytestmark = pytest.mark.peer

CLASSES = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gemma3_text": "Gemma3TextConfig",
    "gpt_neox": "GPTNeoXConfig",
}
ROPES = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    **{f"yarn-{name}": {"original_max_position_embeddings": 64, **values} for name, values in YARN.items()},
}


def peer_config(config):
    values = {key: value for key, value in config.items() if key != "model_type"}
    return getattr(transformers, CLASSES[config["model_type"]])(**json.loads(json.dumps(values)))


def peer_model(config):
    """A random model whose norms and biases matter: transformers starts them at 1 and 0."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        peer_config(config), attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 2:
                parameter.copy_(noise * (0.5 if "embed" in name else parameter.shape[1] ** -0.5))
            else:
                parameter.add_(0.3 * noise)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal(tmp_path, name):
    model = peer_model(CONFIGS[name])
    model.save_pretrained(tmp_path, safe_serialization=True)
    with torch.no_grad():
        want = model(torch.tensor([TOKENS])).logits[0].numpy()
    got = logits(load(tmp_path), length=len(TOKENS) if "dynamic" in name else None)
    assert want.std() > 0.5
    print(f"{name}: largest difference {np.abs(got - want).max():.1e} of logits up to {np.abs(want).max():.1f}")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_shards_of_transformers(tmp_path, name):
    """bfloat16 weights in several shards, written by transformers, read into float32 by both."""
    model = peer_model(CONFIGS[name]).to(torch.bfloat16)
    model.save_pretrained(tmp_path, safe_serialization=True, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        want = again(torch.tensor([TOKENS])).logits[0].numpy()
    got = logits(load(tmp_path), length=len(TOKENS) if "dynamic" in name else None)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("length", [None, 1000])
def test_rope_frequencies_and_magnitude(kind, length):
    """Also for a large head, where more than a few frequencies lie in the blended band."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": kind.split("-")[0], "rope_theta": 500000.0, **ROPES[kind]}
    config = CONFIGS["llama"] | {"head_dim": 128, "rope_parameters": rope}
    peer = peer_config(config)
    if kind == "default":  # the plain rule lives in each model's own module
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        rotary = LlamaRotaryEmbedding(peer)
        want, magnitude = rotary.inv_freq, rotary.attention_scaling
    else:
        want, magnitude = ROPE_INIT_FUNCTIONS[rope["rope_type"]](peer, torch.device("cpu"), seq_len=length)
    ours = from_hugging_face(config).ropes[0]
    np.testing.assert_allclose(inverse_frequencies(ours, length), want.numpy(), rtol=3e-6)
    assert ours.magnitude == pytest.approx(magnitude, rel=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_that_transformers_writes(tmp_path, name):
    """config.json after a round trip through transformers says the same as the one that we wrote."""
    peer_config(CONFIGS[name]).save_pretrained(tmp_path)
    assert from_hugging_face(json.loads((tmp_path / "config.json").read_text())) == from_hugging_face(CONFIGS[name])


@pytest.mark.parametrize("size", SPARSE_GEMMA)
def test_what_gemma_files_leave_out(size):
    """transformers fills in its class defaults; the file it would write in full says the same as the sparse one."""
    sparse = {"model_type": "gemma3_text", **SPARSE_GEMMA[size]}
    full = peer_config(sparse).to_dict()
    assert {"vocab_size", "head_dim", "rms_norm_eps", "layer_types", "rope_parameters"} <= set(full)
    assert from_hugging_face(full) == from_hugging_face(sparse)
