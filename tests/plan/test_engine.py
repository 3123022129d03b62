"""The engine's programs from shapes alone: what is compiled ahead is what a run compiles; figures in closed form."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from medjax.config import load
from medjax.infer.generator import Generator
from medjax.infer.packing import Request
from medjax.infer.programs import Programs
from medjax.infer.scorer import Scorer
from medjax.parallel import topology as slices
from medjax.parallel.chips import GIB
from medjax.parallel.mesh import make_mesh
from medjax.plan import engine_run
from medjax.plan.__main__ import main
from medjax.plan.compiled import compile_step
from medjax.plan.engine import engine_steps, shape_programs
from medjax.plan.engine_run import plan_engine
from medjax.plan.engine_settings import EnginePlanSettings, LoadSettings
from medjax.plan.figures import matmul_flops
from medjax.plan.run import planned, tables
from medjax.store.loading import load_decoder

VOCAB, EMBED, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS, CONTEXT = 256, 64, 8, 4, 16, 128, 2, 1024
SPLIT_HEADS, SPLIT_SEQUENCES = "data=2,tensor=4", "tensor=8"  # kv heads divide by 4, not by 8


class _Letters:
    eos_ids = (0,)

    def decode(self, ids):
        return "".join(chr(0x3042 + i) for i in ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random Llama on disk."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    config = {
        **{"model_type": "llama", "vocab_size": VOCAB, "hidden_size": EMBED, "intermediate_size": MLP},
        **{"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS},
        **{"head_dim": HEAD_DIM, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 1000.0},
        **{"hidden_act": "silu", "tie_word_embeddings": True},
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(3)
    shapes = {
        **{"self_attn.q_proj": (HEADS * HEAD_DIM, EMBED), "self_attn.o_proj": (EMBED, HEADS * HEAD_DIM)},
        **{"self_attn.k_proj": (KV_HEADS * HEAD_DIM, EMBED), "self_attn.v_proj": (KV_HEADS * HEAD_DIM, EMBED)},
        **{"mlp.gate_proj": (MLP, EMBED), "mlp.up_proj": (MLP, EMBED), "mlp.down_proj": (EMBED, MLP)},
        **{"input_layernorm": (EMBED,), "post_attention_layernorm": (EMBED,)},
    }
    tensors = {"model.embed_tokens.weight": rng.standard_normal((VOCAB, EMBED)), "model.norm.weight": np.ones(EMBED)}
    for i in range(LAYERS):
        for name, shape in shapes.items():
            tensors[f"model.layers.{i}.{name}.weight"] = rng.standard_normal(shape) * 0.3
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, folder / "model.safetensors")
    return str(folder)


def settings_of(folder, objective, mesh, **more):
    given = {"objective": objective, "model.name": folder, "engine.mesh": mesh, "plan.topology": "cpu:8"}
    given |= {"engine.row_tokens": "256", "engine.batch_size": "8", "load.context": "300"}
    return load(EnginePlanSettings, overrides=given | more)


@pytest.mark.parametrize(("mesh", "kind"), [(SPLIT_HEADS, "int8"), (SPLIT_SEQUENCES, None)])
def test_the_programs_are_those_of_a_run(folder, mesh, kind, monkeypatch):
    """Every program that scoring and generating compile, word for word, from the same sizes; but those that move keys
    and values into the cache, which need no time."""
    real: dict[str, str] = {}
    lower = Programs.lower

    def kept(self, function, args, donate, out):
        lowered = lower(self, function, args, donate, out)
        real.setdefault(function.func.__name__ if hasattr(function, "func") else function.__name__, lowered.as_text())
        return lowered

    monkeypatch.setattr(Programs, "lower", kept)
    loaded = load_decoder(folder, mesh=make_mesh(mesh), quantisation=kind)
    programs = Programs(loaded, dtype="float32", backend="blockwise")
    rng = np.random.default_rng(5)
    draw = lambda n: tuple(rng.integers(1, VOCAB, n).tolist())  # noqa: E731
    shared = draw(200)
    Scorer(programs, row_tokens=256).score([Request(shared + draw(250), draw(3)) for _ in range(3)])
    Generator(programs, _Letters(), batch_size=8, row_tokens=256).generate(
        [shared + draw(250 - i) for i in range(9)], max_new_tokens=20
    )
    monkeypatch.undo()
    more = {"load.prefix": "200", "load.context": "470"} | ({"model.quantisation": kind} if kind else {})
    ahead: dict[str, str] = {}
    for objective in ("score", "generate"):
        for step in engine_steps(settings_of(folder, objective, mesh, **more), jax.devices()):
            ahead[f"_{step.name}"] = step.program.lower().as_text()
    shapes = shape_programs(settings_of(folder, "score", mesh, **more), jax.devices())
    shapes.prefix(shared, 256)
    (ahead["_prefix"],) = (lower().as_text() for lower in shapes.lowered.values())
    assert ahead.keys() == real.keys() - {"_filled"} == {"_score", "_prefix", "_prefill", "_decode"}
    for name in ahead:
        assert ahead[name] == real[name], name


@pytest.mark.parametrize("kind", [None, "nf4", "int8"])
def test_weights_are_where_loading_puts_them(folder, kind):
    more = {"model.dtype": "bfloat16"} | ({"model.quantisation": kind} if kind else {})
    shapes = shape_programs(settings_of(folder, "score", SPLIT_HEADS, **more), jax.devices()).variables["params"]
    loaded = load_decoder(folder, dtype="bfloat16", mesh=make_mesh(SPLIT_HEADS), quantisation=kind).params
    of = lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding)  # noqa: E731
    assert jax.tree.map(of, shapes) == jax.tree.map(of, loaded)


@pytest.mark.parametrize(
    ("mesh", "ways"), [(SPLIT_HEADS, 8), (SPLIT_SEQUENCES, 8), ("data=8", 8), ("fsdp=4,tensor=2", 8)]
)
def test_keys_and_values_in_closed_form(folder, mesh, ways):
    """Two arrays of layers x sequences x heads x tokens (of 300, 384 are kept) x head_dim, all devices share them."""
    prefill, decode = engine_steps(settings_of(folder, "generate", mesh), jax.devices())
    expected = 2 * LAYERS * 8 * KV_HEADS * 384 * HEAD_DIM * 4 // ways
    assert prefill.groups["keys and values"] == decode.groups["keys and values"] == expected
    assert decode.layout.kept == 0  # written where it lies
    memory = compile_step(decode).memory
    assert memory.argument == pytest.approx(sum(decode.groups.values()), abs=1000)
    assert memory.alias >= expected  # donated, and taken over


def test_a_prefix_is_split_by_heads(folder):
    whole, split = (
        engine_steps(settings_of(folder, "score", mesh, **{"load.prefix": "200"}), jax.devices())[0].groups["prefix"]
        for mesh in (SPLIT_SEQUENCES, SPLIT_HEADS)
    )
    # 200 tokens and a row of 256 after them: room for 512
    number = 4  # of the length, an int32
    assert (whole - number, split - number) == (2 * LAYERS * 512 * KV_HEADS * HEAD_DIM * 4, (whole - number) // 4)


def test_operations_of_full_rows(folder):
    """The compiler's products, over all devices, against 2 a weight and token, and attention in whole blocks."""
    rows, length = 8, 512
    settings = settings_of(folder, "score", "data=8", **{"engine.row_tokens": str(length)})
    (step,) = engine_steps(settings, jax.devices())
    weights = LAYERS * (2 * EMBED * HEADS * HEAD_DIM + 2 * EMBED * KV_HEADS * HEAD_DIM + 3 * EMBED * MLP)
    pairs = LAYERS * length * (length + 1) // 2
    logits = 2 * VOCAB * EMBED
    assert step.per_step == rows * length
    assert step.model_flops == rows * (length * (2 * weights + logits) + 4 * HEADS * HEAD_DIM * pairs)
    module = compile_step(step).module(step.turns)
    assert all(loop.given for loop in module.data_loops)
    blocks = LAYERS * 4 * 3 * 128 * 128  # of four query blocks, each with the mean of 1, 2, 3, 4 rounded up
    assert matmul_flops(module) * 8 == rows * (length * (2 * weights + logits) + 4 * HEADS * HEAD_DIM * blocks)


def test_operations_of_decoding(folder):
    settings = settings_of(folder, "generate", "data=8")
    decode = engine_steps(settings, jax.devices())[1]
    weights = LAYERS * (2 * EMBED * HEADS * HEAD_DIM + 2 * EMBED * KV_HEADS * HEAD_DIM + 3 * EMBED * MLP)
    tokens = 8 * 8  # sequences, steps
    assert decode.per_step == tokens
    assert decode.model_flops == tokens * (2 * (weights + VOCAB * EMBED) + 4 * HEADS * HEAD_DIM * LAYERS * 300)


@pytest.mark.parametrize(
    ("objective", "mesh"), [("score", SPLIT_HEADS), ("generate", SPLIT_HEADS), ("generate", SPLIT_SEQUENCES)]
)
def test_what_is_large_stays_where_it_lies(folder, objective, mesh):
    """No part of the vocabulary's table is gathered, and in decoding no kernel and nothing of the cache."""
    step = engine_steps(settings_of(folder, objective, mesh, **{"load.context": "1024"}), jax.devices())[-1]
    gathered = [one for one in planned(step, slices.topology("cpu:8")).collectives if one.kind == "all-gather"]
    smallest = EMBED * KV_HEADS * HEAD_DIM * 4  # bytes of the key projection; the table has four times as many
    of = [one for one in gathered if objective == "generate" or "vocabulary" in one.op_name]
    assert of or objective == "generate"
    assert max((one.payload_bytes for one in of), default=0) < smallest


def test_the_largest_row_fits_and_the_next_does_not(folder, monkeypatch):
    """On devices that are given a memory: what a row of 896 tokens needs, and a little."""
    settings = settings_of(folder, "score", "data=8", **{"load.largest": "true", "plan.topology": "cpu:8"})
    need = lambda tokens: engine_run.peak(  # noqa: E731
        replace(settings, engine=replace(settings.engine, row_tokens=tokens)), slices.topology("cpu:8"), jax.devices()
    )
    room = need(896) + 100
    _give_memory(monkeypatch, room)
    (found,) = engine_run.plan_engine(settings).capacities
    assert (found.what, found.size) == ("tokens of a row", 896)
    assert found.tried[896] == need(896)
    assert need(1024) > room


def test_the_largest_batch_and_context_by_arithmetic(folder, monkeypatch):
    """What is found so where no compiler is asked: on GPUs that are not here."""
    more = {"load.largest": "true", "plan.compile": "false", "plan.topology": "cpu:8"}
    settings = settings_of(folder, "generate", SPLIT_HEADS, **more)
    need = lambda count, context: engine_run.peak(  # noqa: E731
        replace(
            settings,
            engine=replace(settings.engine, batch_size=count),
            load=replace(settings.load, context=context),
        ),
        slices.topology("cpu:8"),
        None,
    )
    room = need(20, 300) + 100
    _give_memory(monkeypatch, room)
    batch, context = engine_run.plan_engine(settings).capacities
    assert (batch.size, batch.what) == (20, "sequences of 300 tokens")
    assert need(22, 300) > room
    assert context.what == "tokens of each of 8 sequences"
    assert context.size % 128 == 0
    assert need(8, context.size) <= room < need(8, context.size + 128)


def _give_memory(monkeypatch, room: int) -> None:
    monkeypatch.setattr(slices, "CPU", replace(slices.CPU, usable_hbm_bytes=room))


def test_the_command(folder, tmp_path, capsys):
    file = tmp_path / "plan.json"
    options = ["--model", folder, "--topology", "cpu:8", "--mesh", SPLIT_HEADS, "--dtype", "bfloat16"]
    assert (
        main(["--objective", "generate", *options, "--batch-size", "8", "--context", "300", "--json", str(file)]) == 0
    )
    shown = capsys.readouterr().out
    assert "decode: 64 tokens a step on cpu:8 (8 chips, data=2, tensor=4)" in shown
    assert "keys and values" in shown
    values = json.loads(file.read_text())
    assert list(values) == ["prefill", "decode", "largest"]
    cache = 2 * LAYERS * 8 * KV_HEADS * 384 * HEAD_DIM * jnp.bfloat16.dtype.itemsize // 8
    assert values["decode"]["groups"]["keys and values"] == cache
    assert main(["--objective", "generate", *options, "--context", "2000"]) == 2
    assert "load.context: got 2000 tokens, expected 1024 at most" in capsys.readouterr().err
    assert main(["--objective", "score", *options, "--row-tokens", "128", "--largest"]) == 2
    assert "load.largest: got cpu:8, whose memory is not known" in capsys.readouterr().err


def test_slots_are_rounded_up_to_what_the_mesh_splits(folder):
    """Eight parts (kv heads divide by 4): 20 sequences get 24 slots, three on a device, not 20 on every one."""
    more = {"plan.compile": "false", "plan.topology": "v5e:2x4"}
    for size, held in ((16, 2), (20, 3), (24, 3), (4, 1)):
        given = settings_of(folder, "generate", SPLIT_SEQUENCES, **more | {"engine.batch_size": str(size)})
        for one in plan_engine(given).programs.values():
            room, width = 384, 4
            assert one.groups["keys and values"] == 2 * LAYERS * held * KV_HEADS * room * HEAD_DIM * width


def test_what_does_not_fit_says_what_needs_less(folder):
    more = {"plan.compile": "false", "plan.topology": "v5e:2x4"}
    given = settings_of(folder, "generate", "data=8", **more)
    decode = plan_engine(given).programs["decode"]
    assert "what needs less" not in tables(decode, 0.0)
    less = "--mesh tensor=8, --quantise int8, a smaller --batch-size or --context, more chips (--topology)"
    assert f"what needs less: {less}" in tables(decode, 16 * GIB)
    given = settings_of(folder, "score", "tensor=8", **more | {"model.quantisation": "int8"})
    score = plan_engine(given).programs["score"]
    assert "what needs less: a smaller --engine.row_tokens, more chips (--topology)" in tables(score, 16 * GIB)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="prefix: got -1"):
        LoadSettings(prefix=-1)
    given = {"load.prefix": "5000"}
    with pytest.raises(ValueError, match=r"load\.prefix: got 5000 tokens, expected fewer than load\.context=4096"):
        load(EnginePlanSettings, overrides=given | {"objective": "generate"})
    assert load(EnginePlanSettings, overrides=given | {"objective": "score"}).load.prefix == 5000


def test_a_row_beyond_the_model_s_context_is_said(folder, capsys):
    options = ["--objective", "score", "--model", folder, "--topology", "v5e:2x2", "--plan.compile", "false"]
    assert main([*options, "--mesh", "tensor=4", "--row-tokens", "512", "--prefix", "512"]) == 0
    assert "that the model was made for" not in capsys.readouterr().out
    assert main([*options, "--mesh", "tensor=4", "--row-tokens", "512", "--prefix", "640"]) == 0
    assert "rows of 1,152 tokens are longer than the 1,024 that the model was made for" in capsys.readouterr().out
