"""A tiny random Llama on disk, loaded once: SmolLM2's shape rules (GQA, tied) at toy size."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

VOCAB, EMBED, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS = 131, 48, 6, 3, 8, 80, 3


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-llama")
    config = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": EMBED,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 4096,
        "rope_theta": 1000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(7)
    draw = lambda *shape: (rng.standard_normal(shape) * 0.3).astype(np.float32)  # noqa: E731
    tensors = {"model.embed_tokens.weight": draw(VOCAB, EMBED), "model.norm.weight": 1 + draw(EMBED)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        tensors |= {
            layer + "input_layernorm.weight": 1 + draw(EMBED),
            layer + "post_attention_layernorm.weight": 1 + draw(EMBED),
            layer + "self_attn.q_proj.weight": draw(HEADS * HEAD_DIM, EMBED),
            layer + "self_attn.k_proj.weight": draw(KV_HEADS * HEAD_DIM, EMBED),
            layer + "self_attn.v_proj.weight": draw(KV_HEADS * HEAD_DIM, EMBED),
            layer + "self_attn.o_proj.weight": draw(EMBED, HEADS * HEAD_DIM),
            layer + "mlp.gate_proj.weight": draw(MLP, EMBED),
            layer + "mlp.up_proj.weight": draw(MLP, EMBED),
            layer + "mlp.down_proj.weight": draw(EMBED, MLP),
        }
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The tiny model on one device."""
    import jax

    from medjax.parallel.mesh import make_mesh
    from medjax.store.loading import load_decoder

    return load_decoder(tiny_folder, mesh=make_mesh("data=1", jax.devices()[:1]))


@pytest.fixture(scope="session")
def plain_logprobs(tiny):
    """The unshared, one-at-a-time computation: log-probabilities [n, vocab] after each of n tokens, dense attention."""
    import functools

    import jax
    import jax.numpy as jnp

    from medjax.models.decoder import Decoder, unembedding
    from medjax.nn.attention import forest

    decoder = Decoder(tiny.config, backend="reference")

    @functools.partial(jax.jit, static_argnums=1)
    def run(tokens, length):
        positions = jnp.arange(length)[None]
        hidden, _ = decoder.apply(
            {"params": tiny.params}, tokens[None], positions, forest(positions, jnp.full((1, length), length))
        )
        return jax.nn.log_softmax(hidden[0] @ unembedding(tiny.params).T)

    def logprobs(tokens):
        length = 1024  # one shape; later tokens cannot change earlier ones under causal attention
        padded = np.zeros(length, np.int32)
        padded[: len(tokens)] = tokens
        return np.asarray(run(padded, length))[: len(tokens)]

    return logprobs
