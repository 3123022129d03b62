"""What steps on eight fake devices send: what their layout needs and nothing besides."""

import jax
import pytest

from medjax.config import load
from medjax.models.decoder_config import from_hugging_face
from medjax.plan import engine
from medjax.plan.collectives import Collective, collectives
from medjax.plan.compiled import compiled
from medjax.plan.engine_settings import EnginePlanSettings
from medjax.train.language_program import step_program
from medjax.train.settings import TrainSettings

ROWS, WINDOW = 8, 1024
LLAMA = {
    **{"model_type": "llama", "vocab_size": 1024, "num_hidden_layers": 2, "hidden_size": 256, "head_dim": 32},
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 512, "hidden_act": "silu"},
    **{"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False},
}
TURNS = 4  # of the loop over chunks of the vocabulary's rows


def sent_by(shape: dict, mesh: str, **options: str) -> list[Collective]:
    """Of a training step, what is larger than the sums of its metrics."""
    given = {
        **{"model.dtype": "bfloat16", "data.window": str(WINDOW), "train.batch_size": str(ROWS)},
        **{"train.remat": "none", "mesh.shape": mesh, "lora.rank": "8"},
    }
    given |= {name.replace("__", "."): value for name, value in options.items()}
    program = step_program(load(TrainSettings, overrides=given), from_hugging_face(shape), 10, jax.devices()[:8])
    module = compiled(program.lower).module({"loss": TURNS})
    return [one for one in collectives(module, program.mesh.shape) if one.moved_bytes > 1024]


@pytest.mark.slow
def test_heads_stay_where_they_are_between_attention_and_its_output():
    sent = sent_by(LLAMA, "data=2,tensor=4")
    assert {one.kind for one in sent if "attention" in one.op_name} == {"all-reduce"}
    assert not [one for one in sent if one.kind == "all-gather"]


def test_heads_that_the_mesh_does_not_divide_are_not_cut():
    """Nine heads on tensor=2: every chip has all of them, so that nothing of attention passes along tensor."""
    nine = LLAMA | {"hidden_size": 288, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 512}
    sent = sent_by(nine, "fsdp=4,tensor=2")
    attention = [one for one in sent if "/attention/" in one.op_name]
    assert attention
    assert {one.axes for one in attention} == {("fsdp",)}


@pytest.mark.slow
def test_the_gradient_of_the_vocabulary_is_summed_once():
    """Full fine-tuning: the table comes once, and what its rows' chunks add to its gradient stays on the chip."""
    sent = sent_by(LLAMA, "fsdp=8", train__trainable="full")
    table = LLAMA["vocab_size"] * LLAMA["hidden_size"] * 4
    of_loss = [one for one in sent if "loss" in one.op_name]
    assert not [one for one in of_loss if one.times > 1]
    assert sum(one.step_bytes for one in of_loss) <= 3 * table


def engine_steps(**options: str) -> dict[str, engine.EngineStep]:
    """The engine's programs on data=2,fsdp=4."""
    given = {
        **{"model.name": "tiny/llama", "model.dtype": "bfloat16", "engine.mesh": "data=2,fsdp=4"},
        **{"engine.row_tokens": "512", "engine.batch_size": "16", "load.context": "512"},
    } | {name.replace("__", "."): value for name, value in options.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "decoder_of", lambda name: from_hugging_face(LLAMA))
        settings = [load(EnginePlanSettings, overrides=given | {"objective": it}) for it in ("score", "generate")]
        return {step.name: step for one in settings for step in engine.engine_steps(one, jax.devices()[:8])}


def sent_by_layers(step: engine.EngineStep) -> list[Collective]:
    module = compiled(step.program.lower).module(step.turns)
    return [one for one in collectives(module, step.program.mesh.shape) if "layers" in one.op_name]


def test_rows_of_prompts_are_split_as_kernels_are():
    """A prompt's layers: kernels come, hidden states stay where their row is."""
    steps = engine_steps()
    row = 512 * LLAMA["intermediate_size"] * 2
    for name in ("score", "prefill"):
        found = sent_by_layers(steps[name])
        gathers = [one for one in found if one.kind == "all-gather"]
        assert gathers
        assert {one.axes for one in gathers} == {("fsdp",)}
        assert not [one for one in found if one.kind == "all-reduce" and one.payload_bytes >= row]


@pytest.mark.parametrize("quantisation", ["none", "int8"])
def test_kernels_stay_where_they_are_while_decoding(quantisation):
    """A step's 16 tokens: their sums are sent, which are smaller than any kernel."""
    found = sent_by_layers(engine_steps(model__quantisation=quantisation)["decode"])
    assert found
    assert max(one.largest_array_bytes for one in found) <= 16 * LLAMA["intermediate_size"] * 4
