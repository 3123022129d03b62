"""Kernels against the reference on rows of documents, what they refuse, and the training step compiled for TPU."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medjax.config import load
from medjax.models.decoder import Decoder, abstract_params
from medjax.models.decoder_config import from_hugging_face
from medjax.nn import splash as splash_kernel
from medjax.nn.attention import BLOCK, Prefix, attention, forest
from medjax.nn.kernels import choose_backend, kernel_attention
from medjax.nn.splash import Blocks
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, Constraint
from medjax.train.language_program import step_program
from medjax.train.settings import TrainSettings

T, SIZE, SCALE = 2 * BLOCK, 16, 0.3
# documents across the block bound, one of one token, padding at the end; one document that fills its row
LENGTHS = ((90, 100, 1, 30), (T,))

LLAMA3_8B: dict = {
    **{"model_type": "llama", "vocab_size": 128256, "num_hidden_layers": 32, "hidden_size": 4096},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "hidden_act": "silu"},
    **{"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False},
}


@pytest.fixture(autouse=True)
def _two_blocks_a_row(monkeypatch):
    monkeypatch.setattr(splash_kernel, "block_sizes", lambda *_, **__: Blocks((BLOCK,) * 3, (BLOCK,) * 3, (BLOCK,) * 2))


def rows(lengths):
    """positions and ends [b, t] int32 of documents one after the other, then padding."""
    positions = np.zeros((len(lengths), T), np.int32)
    ends = np.tile(np.arange(1, T + 1, dtype=np.int32), (len(lengths), 1))
    for row, sizes in enumerate(lengths):
        start = 0
        for size in sizes:
            positions[row, start : start + size], ends[row, start : start + size] = np.arange(size), start + size
            start += size
    return jnp.asarray(positions), jnp.asarray(ends)


def arrays(heads, kv_heads):
    """q, k, v and the gradient of the output, two rows."""
    rng = np.random.default_rng(heads)
    return tuple(jnp.asarray(rng.normal(size=(2, T, n, SIZE)), jnp.float32) for n in (heads, kv_heads, kv_heads, heads))


@partial(jax.jit, static_argnums=0)
def values_and_gradients(run, q, k, v, d_out, positions, ends):
    """The output of run(q, k, v, trees=…), and the gradients of sum(output * d_out) by q, k and v."""
    out, pull = jax.vjp(lambda *x: run(*x, trees=forest(positions, ends)), q, k, v)
    return out, *pull(d_out)


def reference(window=None):
    return partial(attention, scale=SCALE, window=window, backend="reference")


def splash(window=None, sharding=None):
    """The TPU kernel, emulated."""

    def run(q, k, v, trees):
        call = {"scale": SCALE, "window": window, "sharding": sharding, "interpret": True}
        return kernel_attention("splash", q, k, v, trees.ends, **call)

    return run


def close(got, expected):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * float(jnp.abs(other).max()))


@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(4, 2, None), (2, 1, 40)])
def test_splash_is_the_reference_on_packed_rows(heads, kv_heads, window):
    inputs = *arrays(heads, kv_heads), *rows(LENGTHS)
    close(values_and_gradients(splash(window), *inputs), values_and_gradients(reference(window), *inputs))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "spec"),
    [(4, 2, ("rows", None, "heads", None)), (4, 2, (None, None, ("rows", "heads"), None))],
    ids=["rows and heads", "fewer kv heads than parts"],
)
def test_splash_on_a_mesh(heads, kv_heads, spec):
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("rows", "heads"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, PartitionSpec(*spec))
    inputs = *arrays(heads, kv_heads), *rows(LENGTHS)
    got = values_and_gradients(splash(sharding=place), *inputs)
    assert got[0].sharding.is_equivalent_to(place, 4)
    close(got, values_and_gradients(reference(), *inputs))


def test_branching_trees_raise_when_known_and_are_nan_inside_jit():
    q, k, v, _ = arrays(2, 1)
    _, plain = rows(((50,), (T,)))
    branching = plain.at[0, 10:30].set(30)  # a question of 10 tokens and two answers of 20 that see it
    run = partial(kernel_attention, "splash", scale=SCALE, window=None, sharding=None, interpret=True)
    with pytest.raises(ValueError, match=r"row 0 has other than whole documents.*use backend=blockwise instead of spl"):
        run(q, k, v, branching)
    run = jax.jit(run)
    out = run(q, k, v, branching)
    assert np.isnan(out[0]).all()
    np.testing.assert_array_equal(out[1], run(q, k, v, plain)[1])


@pytest.mark.parametrize("backend", ["splash", "cudnn"])
def test_what_cannot_be_expressed_is_refused(backend):
    q, k, v, _ = arrays(2, 1)
    call = {"trees": forest(*rows(LENGTHS)), "scale": SCALE, "backend": backend}
    prefix = Prefix(k[0], v[0], jnp.asarray(3))
    with pytest.raises(ValueError, match=f"got a prefix for backend={backend}, expected none; use backend=blockwise"):
        attention(q, k, v, prefix=prefix, **call)
    with pytest.raises(ValueError, match=f"window that is data for backend={backend}, expected one number"):
        attention(q, k, v, window=jnp.asarray(8), **call)


def test_cudnn_refuses_packed_rows():
    q, k, v, _ = arrays(2, 1)
    with pytest.raises(ValueError, match="row 0 has other than one document and padding; use backend=blockwise"):
        attention(q, k, v, trees=forest(*rows(LENGTHS)), scale=SCALE, backend="cudnn")


def test_padding_after_one_document_changes_nothing_for_it():
    """What cudnn relies on: plain causal attention gives a row of one document and padding its document's numbers."""
    positions, ends = rows(((200,), (T,)))
    q, k, v, d_out = arrays(4, 2)
    d_out = d_out.at[0, 200:].set(0)  # the loss has no weight on padding

    def plain(q, k, v, trees):
        return jax.nn.dot_product_attention(q, k, v, scale=SCALE, is_causal=True)

    got, expected = (values_and_gradients(run, q, k, v, d_out, positions, ends) for run in (plain, reference()))
    for one, other in zip(got, expected, strict=True):
        close([one[0, :200], one[1]], [other[0, :200], other[1]])


@pytest.mark.parametrize(("window", "limit"), [(None, None), (40, 40), (T, None)])
def test_cudnn_lowers_for_cuda(monkeypatch, window, limit):
    """The custom calls that a CUDA build of JAX would make; only the look-up of the cuDNN version is replaced."""
    internals = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(internals, "check_cudnn_version", lambda: 91000)
    q, k, v, d_out = (x.astype(jnp.bfloat16) for x in arrays(4, 2))
    run = partial(attention, scale=SCALE, window=window, backend="cudnn")
    traced = values_and_gradients.trace(run, q, k, v, d_out, *rows(((200,), (T,))))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "@__cudnn$fmha" in line]
    assert [line.split("@__cudnn$")[1].split("(")[0] for line in calls] == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
    for line in calls:
        line = line.replace("\\22", '"')
        assert '"mask_type": "CAUSAL"' in line
        assert f'"fmha_scale": {SCALE}' in line
        assert f'"sliding_window_length": {limit or 0}' in line


def test_auto():
    def auto(platform, layers_differ=False):
        return choose_backend("auto", platform, packed=True, layers_differ=layers_differ, dtype="float32")

    assert (auto("tpu"), auto("gpu"), auto("cpu")) == ("splash", "blockwise", "blockwise")
    assert auto("tpu", layers_differ=True) == "blockwise"


@pytest.mark.parametrize(
    ("wanted", "platform", "changed", "message"),
    [
        ("splash", "cpu", {}, "model.backend: got splash on cpu, expected tpu; use auto or blockwise."),
        ("cudnn", "tpu", {}, "model.backend: got cudnn on tpu, expected gpu; use auto or blockwise."),
        ("splash", "tpu", {"layers_differ": True}, "layers differ in sliding window .* use auto or blockwise"),
        ("cudnn", "gpu", {"packed": True}, "got cudnn with data.packing=true, .* set data.packing=false"),
        ("cudnn", "gpu", {"dtype": "float32"}, "got cudnn with float32, expected bfloat16; set model.dtype"),
    ],
)
def test_what_the_run_asks_for_is_checked_before(wanted, platform, changed, message):
    good = {"packed": wanted == "splash", "layers_differ": False, "dtype": "bfloat16"}
    assert choose_backend(wanted, {"splash": "tpu", "cudnn": "gpu"}[wanted], **good) == wanted
    with pytest.raises(ValueError, match=message):
        choose_backend(wanted, platform, **good | changed)


def test_a_decoder_on_a_mesh_calls_each_kernel_once_on_its_own_rows_and_heads():
    """Lowered for TPU: forward, and two backward kernels that use the saved output."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = from_hugging_face(LLAMA3_8B | sizes | {"vocab_size": 32, "num_hidden_layers": 2})
    place = Constraint(make_mesh("data=2,tensor=2", jax.devices()[:4]), PRESETS["default"])
    decoder = Decoder(config, backend="splash", remat="attention", constrain=place)

    def loss(params, tokens, positions, ends):
        return jnp.sum(decoder.apply({"params": params}, tokens, positions, forest(positions, ends))[0])

    params, row = nn.unbox(abstract_params(config)), jax.ShapeDtypeStruct((6, T), jnp.int32)
    traced = jax.jit(jax.grad(loss)).trace(params, row, row, row)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    calls = re.findall(r'@tpu_custom_call.*kernel_name = "splash_mha_(\w+?)_.*: \((.*)\) ->', text)
    assert sorted(name for name, _ in calls) == ["dkv", "dq", "fwd"]
    for _, operands in calls:
        q, k, v = re.findall(r"tensor<(\w+)xf32>", operands)[:3]
        assert (q, k, v) == (f"3x2x{T}x16", f"3x1x{T}x16", f"3x1x{T}x16")


def kernels_of(compiled_text):
    return sorted(re.findall(r"%splash_mha_(\w+?)_\S* = ", compiled_text))


def test_a_tiny_training_step_has_the_kernels_on_tpu(tpu_devices):
    """Compiled for four chips: forward, and two backward kernels that use the saved output."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = from_hugging_face(LLAMA3_8B | sizes | {"vocab_size": 512, "num_hidden_layers": 2})
    given = {"model.dtype": "bfloat16", "data.window": "256", "train.batch_size": "4", "train.remat": "attention"}
    settings = load(TrainSettings, overrides=given | {"mesh.shape": "fsdp=2,tensor=2"})
    program = step_program(settings, config, 100, devices=tpu_devices("v5e:2x2"))
    text = program.lower().compile().as_text()
    assert kernels_of(text) == ["dkv", "dq", "fwd"]
    assert f"bf16[2,1,{T},64]" in next(line for line in text.splitlines() if "%splash_mha_fwd" in line)


@pytest.mark.slow
def test_the_training_step_of_llama3_8b_compiles_for_tpu(tpu_devices):
    """LoRA of an 8B model on 8 chips of 16 GiB, ahead of time: which kernels the step has, and its memory."""
    given = {"model.dtype": "bfloat16", "data.window": "2048", "train.batch_size": "8", "train.remat": "attention"}
    settings = load(TrainSettings, overrides=given | {"mesh.shape": "fsdp=4,tensor=2"})
    program = step_program(settings, from_hugging_face(LLAMA3_8B), 100, devices=tpu_devices("v5e:2x4"))
    assert program.backend == "splash"
    step = program.lower().compile()
    assert kernels_of(step.as_text()) == ["dkv", "dq", "fwd"]
    found = step.memory_analysis()
    assert 4 < (found.argument_size_in_bytes + found.temp_size_in_bytes) / 2**30 < 8
