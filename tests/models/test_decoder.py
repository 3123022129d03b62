"""Every family against the plain NumPy float64 forward; real checkpoints against their oracles; faults are caught."""

import copy
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_decoder import forward
from tiny_decoders import CONFIGS, TOKENS, bfloat16_tensors, load, logits, old_layout, random_tensors, write_folder

from medjax.models.decoder import Decoder, abstract_params, continued, unembedding
from medjax.models.decoder_config import from_hugging_face
from medjax.nn import ops
from medjax.nn.attention import BLOCK, PREFIX_BLOCK, Prefix, forest
from medjax.nn.cache import Cache, Group

TOLERANCE = 2e-5
TAIL = 384  # places of a row whose logits are read


def length_of(name):
    return len(TOKENS) if "dynamic" in name else None  # 150 tokens, beyond this checkpoint's 64


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> (config, tensors, model loaded from a float32 folder), made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            tensors = random_tensors(CONFIGS[name])
            folder = write_folder(tmp_path_factory.mktemp(name), CONFIGS[name], tensors)
            made[name] = CONFIGS[name], tensors, load(folder)
        return made[name]

    return get


@pytest.mark.parametrize("name", CONFIGS)
def test_family_equals_numpy(models, name):
    config, tensors, model = models(name)
    got = logits(model, length=length_of(name))
    want = forward(config, tensors, TOKENS, length_of(name))
    assert want.std() > 0.5
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama-llama3", "qwen2-window", "gemma3", "neox-sequential"])
def test_old_layout_sharded_bfloat16_equals_numpy(models, tmp_path, name):
    """The other way in which the same checkpoint may lie on disk; float32 arithmetic on the rounded weights."""
    config, tensors, model = models(name)
    rounded = bfloat16_tensors(tensors)
    other = load(write_folder(tmp_path, old_layout(config), rounded, shards=3))
    assert other.config == model.config
    np.testing.assert_allclose(logits(other), forward(config, rounded, TOKENS), rtol=0, atol=TOLERANCE)
    assert np.abs(logits(other) - logits(model)).max() > 1e-2


def without_scaling(config, tensors):
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_parameters"]["rope_theta"]}


def other_theta(config, tensors):
    config["rope_parameters"]["rope_theta"] *= 2


def swapped_halves(config, tensors):
    for name in tensors:
        if "q_proj" in name or "k_proj" in name:
            heads = tensors[name].reshape(-1, 2, config["head_dim"] // 2, *tensors[name].shape[1:])
            tensors[name] = heads[:, ::-1].reshape(tensors[name].shape)


def interleaved_rows(config, tensors):
    for name in tensors:
        if "q_proj" in name or "k_proj" in name:
            heads = tensors[name].reshape(-1, 2, config["head_dim"] // 2, *tensors[name].shape[1:])
            tensors[name] = heads.swapaxes(1, 2).reshape(tensors[name].shape)


def window_off_by_one(config, tensors):
    config["sliding_window"] += 1


def window_from_the_first_layer(config, tensors):
    config["max_window_layers"] = 0


def no_query_norm(config, tensors):
    for name in tensors:
        if "q_norm" in name:
            tensors[name] = np.ones_like(tensors[name])


def ropes_exchanged(config, tensors):
    full, local = config["rope_parameters"]["full_attention"], config["rope_parameters"]["sliding_attention"]
    config["rope_parameters"] = {"full_attention": local, "sliding_attention": full}


def other_scale(config, tensors):
    config["query_pre_attn_scalar"] = config["head_dim"]


def sequential(config, tensors):
    config["use_parallel_residual"] = False


def all_rotated(config, tensors):
    config["rope_parameters"]["partial_rotary_factor"] = 1.0


def no_biases(config, tensors):
    for name in tensors:
        if name.endswith("proj.bias"):
            tensors[name] = np.zeros_like(tensors[name])


FAULTS = [
    ("llama", other_theta),
    ("llama", swapped_halves),
    ("llama", interleaved_rows),
    ("llama-biases", no_biases),
    ("llama-linear", without_scaling),
    ("llama-dynamic", without_scaling),
    ("llama-llama3", without_scaling),
    ("llama-yarn", without_scaling),
    ("mistral", window_off_by_one),
    ("qwen2", no_biases),
    ("qwen2-window", window_from_the_first_layer),
    ("qwen3", no_query_norm),
    ("gemma3", ropes_exchanged),
    ("gemma3", other_scale),
    ("gemma3", window_off_by_one),
    ("neox-parallel", sequential),
    ("neox-parallel", all_rotated),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_fault_would_be_seen(models, name, fault):
    """The comparison above is not vacuous: each of these mistakes moves the logits by far more than the tolerance."""
    config, tensors, model = models(name)
    config, tensors = copy.deepcopy(config), dict(tensors)
    fault(config, tensors)
    got = logits(model, length=length_of(name))
    assert np.abs(got - forward(config, tensors, TOKENS, length_of(name))).max() > 1e-2


def test_local_layers_alone_use_the_local_rope(tmp_path):
    """A Gemma whose layers are all local still turns them by rope_local_base_freq."""
    config = CONFIGS["gemma3"] | {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2}
    tensors = random_tensors(config)
    model = load(write_folder(tmp_path, config, tensors))
    np.testing.assert_allclose(logits(model), forward(config, tensors, TOKENS), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_prefix_and_cache_equal_the_whole_row(models, name):
    """90 tokens as a prefix, 20 as a packed row after it, 40 decoded one by one: the same logits as in one go."""
    _, _, model = models(name)
    c, decoder = model.config, Decoder(model.config)
    shape = (c.layers, PREFIX_BLOCK, c.kv_heads, c.head_dim)

    @jax.jit
    def run(params, tokens, positions, ends, prefix):
        hidden, kv = decoder.apply({"params": params}, tokens, positions, forest(positions, ends), prefix)
        return hidden[0] @ unembedding(params).T, kv

    @jax.jit
    def step(params, token, position, groups, used, prefix):
        caches = [Cache((group,), used) for group in groups]
        hidden, caches = continued(decoder, {"params": params}, token, position, caches, prefix)
        return hidden @ unembedding(params).T, [cache.groups[0] for cache in caches]

    def row(tokens, start, prefix):
        padded, index = np.zeros((1, 128), np.int32), np.arange(128, dtype=np.int32)[None]
        padded[0, : len(tokens)] = tokens
        ends = np.where(index < len(tokens), len(tokens), index + 1).astype(np.int32)
        found, kv = run(model.params, padded, start + index, ends, prefix)
        return found[: len(tokens)], [np.asarray(x)[:, 0, : len(tokens)] for x in kv]

    def held(parts):
        """A prefix buffer of these keys and values; what follows them is never read."""
        whole = [np.full(shape, 1e6, np.float32) for _ in parts]
        for buffer, part in zip(whole, parts, strict=True):
            buffer[:, : part.shape[1]] = part
        return Prefix(*whole, np.int32(parts[0].shape[1]))

    empty = np.zeros((c.layers, 0, c.kv_heads, c.head_dim))
    first, kv = row(TOKENS[:90], 0, held([empty, empty]))
    prefix = held(kv)
    second, kv = row(TOKENS[90:110], 90, prefix)
    k, v = (np.zeros((c.layers, 1, c.kv_heads, 64, c.head_dim), np.float32) for _ in "kv")
    for buffer, part in zip((k, v), kv, strict=True):
        buffer[:, 0, :, :20] = part.swapaxes(1, 2)
    groups = [Group(jnp.asarray(of_k.swapaxes(2, 3)), jnp.asarray(of_v)) for of_k, of_v in zip(k, v, strict=True)]
    found = [first, second]
    for place in range(110, 150):
        token, position, used = (jnp.asarray([value], jnp.int32) for value in (TOKENS[place], place, place - 90))
        one, groups = step(model.params, token, position, groups, used, prefix)
        found.append(one)
    np.testing.assert_allclose(np.concatenate(found), logits(model), rtol=0, atol=TOLERANCE)


def test_backends_agree(models):
    _, _, model = models("gemma3")
    np.testing.assert_allclose(logits(model, backend="reference"), logits(model), rtol=0, atol=TOLERANCE)


def test_bfloat16_compute_is_near_float32(models):
    """The compute dtype reaches every layer, and angles and norms stay in float32: errors stay at bfloat16's size."""
    _, _, model = models("llama")
    error = np.abs(logits(model, dtype=jnp.bfloat16) - logits(model))
    assert 5e-3 < error.max() < 0.15
    assert error.mean() < 0.02


def test_abstract_params_are_those_that_load(models):
    for name in ("llama", "llama-biases", "gemma3", "neox-parallel"):
        _, tensors, model = models(name)
        shapes = jax.tree.map(
            lambda box: box.value.shape, abstract_params(model.config), is_leaf=lambda x: hasattr(x, "names")
        )
        assert shapes == jax.tree.map(lambda array: array.shape, model.params)
        assert sum(array.size for array in jax.tree.leaves(model.params)) == sum(t.size for t in tensors.values())


def test_initial_kernels_keep_the_variance():
    """A new kernel's standard deviation is (summed inputs) ** -0.5, whatever axes it has; norms start as identity."""
    config = from_hugging_face(CONFIGS["gemma3"])
    row = jnp.zeros((1, BLOCK), jnp.int32)
    start = jax.jit(Decoder(config).init)(jax.random.key(0), row, row, forest(row, row))
    layers = nn.unbox(start)["params"]["layers"]
    for path, inputs in (
        (("attention", "query"), 48),
        (("attention", "out"), 96),
        (("mlp", "up"), 48),
        (("mlp", "down"), 80),
    ):
        kernel = layers[path[0]][path[1]]["kernel"]
        assert float(kernel.std()) == pytest.approx(inputs**-0.5, rel=0.05), path
        assert not np.array_equal(kernel[0], kernel[1])
    assert not layers["attention_norm"]["scale"].any()  # Gemma's scale is 1 + parameter


def test_matmul_params_counts_the_kernels(models):
    for name in ("llama", "neox-parallel"):
        _, tensors, model = models(name)
        kernels = [t for key, t in tensors.items() if t.ndim == 2 and "layers" in key]
        assert model.config.matmul_params == sum(kernel.size for kernel in kernels)


def row_logprobs(model):
    """A function from token ids to the log-probabilities of all but the first, and the arg-max after each.

    Of a row longer than TAIL only its last places are read.
    """
    decoder = Decoder(model.config)

    @jax.jit
    def run(params, row, count):
        index = jnp.arange(row.shape[1])[None]
        ends = jnp.where(index < count, count, index + 1)
        hidden = decoder.apply({"params": params}, row, index, forest(index, ends))[0][0, -TAIL:]
        found = ops.row_statistics(hidden, unembedding(params), 8192)
        logits = ops.target_logits(hidden[:-1], unembedding(params), row[0, 1:][1 - hidden.shape[0] :])
        return logits - found.logsumexp[:-1], found.argmax

    def logprobs(ids):
        row = np.zeros((1, -(-len(ids) // 128) * 128), np.int32)
        row[0, : len(ids)] = ids
        found, best = run(model.params, row, len(ids))
        real = len(ids) - max(row.shape[1] - TAIL, 0)
        return np.asarray(found)[: real - 1], np.asarray(best)[:real]

    return logprobs


@pytest.mark.usefixtures("full_compilation")
def test_smollm2_oracle(smollm2_gguf, shared_data):
    oracle = json.loads((shared_data / "oracles" / "smollm2_135m.json").read_text("utf-8"))
    logprobs = row_logprobs(load(smollm2_gguf))
    assert len(oracle["prompts"]) == 6
    for prompt in oracle["prompts"]:
        got, best = logprobs(prompt["token_ids"])
        np.testing.assert_allclose(got, prompt["token_logprobs"][1:], rtol=0, atol=1e-4, err_msg=prompt["name"])
        assert best[-1] == prompt["greedy"]["token_ids"][0]
    long = oracle["long_prompt"]
    got, _ = logprobs(long["token_ids"])
    for entry in long["last8"]:
        assert abs(got[entry["position"] - long["n_tokens"]] - entry["logprob_of_this_token"]) < 1e-4


def test_stories260k_oracle(shared_data):
    oracle = json.loads((shared_data / "oracles" / "stories260k.json").read_text("utf-8"))
    model = load(shared_data / "stories260K" / "stories260K.bin")
    assert sum(array.size for array in jax.tree.leaves(model.params)) == 260_032
    logprobs = row_logprobs(model)
    for case in oracle["cases"]:
        got, best = logprobs(case["token_ids"])
        np.testing.assert_allclose(got, case["token_logprobs"][1:], rtol=0, atol=1e-4, err_msg=case["name"])
        start = len(case["prompt_token_ids"])
        assert best[start - 1 : -1].tolist() == case["token_ids"][start:]
