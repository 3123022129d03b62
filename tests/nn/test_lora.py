"""Adapters: step 0 is the base, merged products and their gradients, scales, dropout, GPT-NeoX's fused projection."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_adapters import CONFIG_OF, adapter_of
from tiny_decoders import TOKENS

from medjax.models.decoder import Decoder, abstract_variables, init_lora
from medjax.nn.attention import forest
from medjax.nn.lora import LoraConfig, merged_matmul, merging_pays
from medjax.nn.transformer import Projection
from medjax.parallel.sharding import is_box

ALL = ("query", "key", "value", "out", "gate", "up", "down")


def params_of(name, seed=0):
    """Random parameters of a tiny decoder, in the layout of the model."""
    rng = np.random.default_rng(seed)
    boxes = abstract_variables(CONFIG_OF[name])["params"]
    return jax.tree.map(
        lambda box: jnp.asarray(rng.normal(size=box.value.shape) * 0.2, jnp.float32), boxes, is_leaf=is_box
    )


def running(name, lora):
    """variables -> hidden states [1, 128, embed], compiled."""
    tokens = np.resize(TOKENS, (1, 128)).astype(np.int32)
    index = jnp.arange(128)[None]
    decoder, trees = Decoder(CONFIG_OF[name], lora=lora), forest(index, jnp.full((1, 128), 128))
    return jax.jit(lambda variables: decoder.apply(variables, tokens, index, trees)[0])


@cache
def drawing(name, lora):
    return jax.jit(partial(init_lora, CONFIG_OF[name], lora))


def draw(name, lora, seed):
    return drawing(name, lora)(jax.random.key(seed))


@pytest.mark.parametrize(
    ("name", "targets"), [("llama", ALL), ("neox-parallel", ("query_key_value", "out", "up", "down"))]
)
def test_a_fresh_adapter_is_the_base(name, targets):
    """B is zero, A is not, and no bit depends on A; the base runs as another program, which may round otherwise."""
    lora = LoraConfig(5, 8.0, targets)
    params, leaves = params_of(name), draw(name, lora, 3)
    for path, leaf in jax.tree_util.tree_leaves_with_path(leaves):
        assert leaf.dtype == jnp.float32
        assert np.any(leaf) == (path[-1].key == "a")
    run = running(name, lora)
    found = run({"params": params, "lora": leaves})
    np.testing.assert_array_equal(found, run({"params": params, "lora": jax.tree.map(jnp.zeros_like, leaves)}))
    np.testing.assert_allclose(found, running(name, None)({"params": params}), rtol=0, atol=2e-6)


@pytest.mark.parametrize("tokens", [4, 64])
def test_a_fresh_adapter_changes_no_bit_of_a_projection(tokens):
    """Apart and merged: x W + (x A) 0 and x (W + A 0) are x W."""
    x, kernel, a, b = factors(5, t=tokens, into=24, out=40)
    plain = jax.jit(jnp.matmul)(x, kernel)
    module = Projection("btd,df->btf", (24, 40), ("embed", "mlp"), lora=LoraConfig(3, 6.0, ("up",)))
    variables = {"params": {"kernel": kernel}, "lora": {"a": a, "b": 0 * b}}
    np.testing.assert_array_equal(jax.jit(module.apply)(variables, x[None])[0], plain)


def test_a_is_drawn_as_peft_draws_it():
    """Uniform within 1 / sqrt(inputs): torch's kaiming_uniform_ with a = sqrt(5); layers and keys differ."""
    lora = LoraConfig(5, 8.0, ALL)
    leaves = draw("llama", lora, 0)["layers"]
    for module, inputs in (
        (leaves["attention"]["query"], 48),
        (leaves["attention"]["out"], 60),
        (leaves["mlp"]["down"], 80),
    ):
        a = np.asarray(module["a"])
        assert np.abs(a).max() <= inputs**-0.5
        assert np.abs(a).max() > 0.97 * inputs**-0.5
        assert a.std() == pytest.approx((3 * inputs) ** -0.5, rel=0.06)
        assert not np.allclose(a[0], a[1])
    other = draw("llama", lora, 1)["layers"]
    assert not np.allclose(other["mlp"]["up"]["a"], leaves["mlp"]["up"]["a"])
    again = draw("llama", lora, 0)["layers"]
    np.testing.assert_array_equal(again["mlp"]["up"]["a"], leaves["mlp"]["up"]["a"])


def factors(seed=0, t=40, into=12, out=20, rank=3, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in ((t, into), (into, out), (into, rank), (rank, out))]


def test_merged_product_and_its_gradients():
    """Against x W + (x A) B * scale and its automatic gradient, for x, W, A and B."""
    arguments, scale = factors(), 0.7
    cotangent = jnp.asarray(np.random.default_rng(9).normal(size=(40, 20)), jnp.float32)

    def separate(x, kernel, a, b):
        return x @ kernel + (x @ a) @ b * scale

    results = []
    for product in (lambda *four: merged_matmul(*four, scale), separate):
        value, pull = jax.vjp(jax.jit(product), *arguments)
        results.append((value, *pull(cotangent)))
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_when_merging_pays():
    """From in out / (in + out) tokens on; never in bfloat16, which would lose the small sum."""
    kernel = jnp.zeros((30, 60))
    assert not merging_pays(20, kernel, jnp.dtype("float32"))
    assert merging_pays(21, kernel, jnp.dtype("float32"))
    assert not merging_pays(10**6, kernel, jnp.dtype("bfloat16"))
    assert not merging_pays(10**6, kernel.astype(jnp.bfloat16), jnp.dtype("float32"))


@pytest.mark.parametrize("tokens", [4, 64])
@pytest.mark.parametrize("lora", [LoraConfig(3, 6.0, ("up",)), LoraConfig(4, 6.0, ("up",), rank_stabilised=True)])
def test_a_projection_with_few_and_many_tokens(lora, tokens):
    """Apart below 24 x 40 / 64 = 15 tokens, merged above: the same y = x W + (x A) B * scale."""
    scale = 6.0 / 2 if lora.rank_stabilised else 6.0 / 3
    assert lora.scale == pytest.approx(scale)
    rng = np.random.default_rng(2)
    x, kernel, a, b = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((1, tokens, 24), (24, 40), (24, lora.rank), (lora.rank, 40))
    )
    module = Projection("btd,df->btf", (24, 40), ("embed", "mlp"), lora=lora)
    found = jax.jit(module.apply)({"params": {"kernel": kernel}, "lora": {"a": a, "b": b}}, x)
    np.testing.assert_allclose(found, x @ kernel + x @ a @ b * scale, atol=2e-4)


def test_dropout_is_of_the_adapters_inputs_and_only_with_a_key():
    """Without the rng nothing is dropped; with it the key decides, and the mean over keys is the undropped output."""
    lora = LoraConfig(3, 6.0, ("up",), dropout=0.5)
    rng = np.random.default_rng(4)
    x, kernel, a, b = (rng.normal(size=s).astype(np.float32) for s in ((1, 8, 24), (24, 40), (24, 3), (3, 40)))
    module = Projection("btd,df->btf", (24, 40), ("embed", "mlp"), lora=lora)
    variables = {"params": {"kernel": kernel}, "lora": {"a": a, "b": b}}
    run = jax.jit(lambda key: module.apply(variables, x, rngs={"dropout": key}))
    plain = jax.jit(lambda: module.apply(variables, x))()
    np.testing.assert_allclose(plain, x @ kernel + x @ a @ b * 2.0, atol=1e-4)
    one, same, other = (run(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(np.asarray(one) - np.asarray(other)).max() > 0.1
    many = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(many.mean(axis=0), plain, atol=0.08 * np.abs(plain).max())
    # every entry is x W plus 2 * 2.0 * (some of x) A B: the base part is never dropped
    without = jax.jit(
        lambda: module.apply({**variables, "lora": {"a": a, "b": b * 0}}, x, rngs={"dropout": jax.random.key(1)})
    )
    np.testing.assert_allclose(without(), x @ kernel, atol=1e-4)


def test_the_fused_adapter_of_neox():
    """One A for the three; equal to an update of W_q, W_k and W_v by A B, part by part."""
    adapter = adapter_of("neox-parallel", ("query_key_value",))
    params = params_of("neox-parallel")
    fused = adapter.leaves["layers"]["attention"]["query_key_value"]
    a, b = np.asarray(fused["a"]), np.asarray(fused["b"])
    assert a.shape == (2, 48, 5)
    assert b.shape[:3] == (2, 5, 3)
    merged = jax.tree.map(lambda x: x, params)
    for part, name in enumerate(("query", "key", "value")):
        update = np.einsum("ldr,lrnh->ldnh", a, b[:, :, part]) * adapter.lora.scale
        merged["layers"]["attention"][name]["kernel"] = params["layers"]["attention"][name]["kernel"] + update
    base = running("neox-parallel", None)
    expected = np.asarray(base({"params": merged}))
    found = running("neox-parallel", adapter.lora)({"params": params, "lora": adapter.leaves})
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    assert np.abs(np.asarray(found) - base({"params": params})).max() > 0.1


def test_no_optimiser_could_see_the_kernel():
    """A frozen kernel's gradient is not computed: what is compiled has no product of its size."""
    x, kernel, a, b = factors(3, t=64, into=512, out=768, rank=4)

    def loss(a, b, kernel):
        return jnp.sum(merged_matmul(x, kernel, a, b, 1.0) ** 2)

    def flops(argnums):
        return jax.jit(jax.grad(loss, argnums)).lower(a, b, kernel).compile().cost_analysis()["flops"]

    full = 2 * 64 * 512 * 768
    assert flops((0, 1)) < 1.4 * full  # the output itself, and thin products
    assert flops((0, 1, 2)) > 1.9 * full


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8.0, ("up",)), r"^rank: got 0, expected 1 or more; 8 to 64 are usual\.$"),
        ((4, 8.0, ("up",), 1.0), r"^dropout: got 1.0, expected 0 or more and below 1; 0.05 is usual\.$"),
        (
            (4, 8.0, ("q_proj", "up")),
            r"^targets: got q_proj, expected some of query, key, value, query_key_value, ",
        ),
        ((4, 8.0, ()), r"^targets: got none, expected some of query"),
        ((4, 8.0, ("query", "query_key_value")), r"^targets: got query_key_value beside one of its parts; name either"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(*arguments)
