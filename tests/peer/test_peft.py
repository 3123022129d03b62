"""Adapters and exported models against peft and transformers: python -m pytest -m peer tests/peer/test_peft.py.

An adapter of ours, written for PEFT, gives in PEFT the logits of our merged model; one that PEFT made gives them here;
and a folder that we export gives in transformers the logits of the model it came from. All in float32.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_transformers import peer_model
from tiny_adapters import adapted_logits, adapter_of
from tiny_decoders import CONFIGS, TOKENS, load, logits

from medjax.nn.merging import merge
from medjax.store.adapters import open_adapter
from medjax.store.exporting import save_hugging_face
from medjax.store.peft import write_peft

torch = pytest.importorskip("torch", reason="torch is not installed: the comparison with peft needs it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
peft = pytest.importorskip("peft", reason="peft is not installed: nothing to compare with")

pytestmark = pytest.mark.peer

GATED = ("query", "key", "value", "out", "gate", "up", "down")
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NEOX_MODULES = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
CASES = {
    "llama": GATED,
    "llama-biases": ("query", "down"),
    "mistral": ("value", "out"),
    "qwen2": ("key", "up"),
    "qwen3": GATED,
    "gemma3": GATED,
    "neox-parallel": ("query_key_value", "out", "up", "down"),
    "neox-sequential": ("query", "key", "value", "out"),
}


def run(model):
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


@pytest.fixture
def base(tmp_path, request):
    """A tiny model of transformers in a folder, and loaded from it."""
    name = request.param
    peer_model(CONFIGS[name]).save_pretrained(tmp_path / "base", safe_serialization=True)
    return name, tmp_path / "base", load(tmp_path / "base")


def peer(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("base", CASES, indirect=True)
def test_our_adapter_in_peft(tmp_path, base, stabilised):
    name, folder, model = base
    adapter = adapter_of(name, CASES[name], rank_stabilised=stabilised, dropout=0.1)
    write_peft(tmp_path / "peft", adapter, model.config)
    theirs = run(peft.PeftModel.from_pretrained(peer(folder), tmp_path / "peft").eval())
    merged = merge(model.params, adapter.leaves, adapter.lora.scale)
    save_hugging_face(tmp_path / "merged", model.config, merged, dtype="float32")
    ours = logits(load(tmp_path / "merged"))
    print(f"{name}: {np.abs(ours - theirs).max():.1e}, the adapter changes {np.abs(theirs - logits(model)).max():.1f}")
    assert np.abs(theirs - logits(model)).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(adapted_logits(model, adapter), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("base", ["llama", "gemma3", "neox-parallel"], indirect=True)
def test_their_adapter_here(tmp_path, base, stabilised):
    """With ranks and alphas of some modules, and one layer left out."""
    name, folder, model = base
    neox = name == "neox-parallel"
    modules = NEOX_MODULES if neox else MODULES
    config = peft.LoraConfig(
        r=5,
        lora_alpha=7,
        target_modules=modules,
        use_rslora=stabilised,
        init_lora_weights=False,
        rank_pattern={modules[1]: 3},
        alpha_pattern={modules[0]: 12},
        layers_to_transform=[1],
        layers_pattern="layers",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(3)
    made = peft.get_peft_model(peer(folder), config).eval()
    with torch.no_grad():
        for parameter_name, parameter in made.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_(std=0.2)
    made.save_pretrained(tmp_path / "peft")
    theirs, adapter = run(made), open_adapter(tmp_path / "peft", model.config)
    assert adapter.base == str(folder)
    assert np.abs(theirs - logits(model)).max() > 0.1
    np.testing.assert_allclose(adapted_logits(model, adapter), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("base", ["llama", "neox-parallel"], indirect=True)
def test_the_round_trip_is_exact(tmp_path, base):
    """PEFT's files, read here and written again, hold the same numbers."""
    name, folder, model = base
    modules = NEOX_MODULES if name == "neox-parallel" else MODULES
    config = peft.LoraConfig(r=5, lora_alpha=7, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(peer(folder), config).save_pretrained(tmp_path / "in")
    write_peft(tmp_path / "out", open_adapter(tmp_path / "in", model.config), model.config)
    before, after = (load_file(tmp_path / side / "adapter_model.safetensors") for side in ("in", "out"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        np.testing.assert_array_equal(after[key], tensor, err_msg=key)


@pytest.mark.parametrize("base", CONFIGS, indirect=True)
def test_an_exported_folder_in_transformers(tmp_path, base):
    """config.json says the same to transformers, and every tensor is byte for byte the one it wrote itself."""
    _, folder, model = base
    save_hugging_face(tmp_path / "out", model.config, model.params, dtype="float32", shard_bytes=60_000)
    again = peer(tmp_path / "out")
    np.testing.assert_array_equal(run(again), run(peer(folder)))
    again.save_pretrained(tmp_path / "again", safe_serialization=True)
    before, after = (
        load_file(tmp_path / "base" / "model.safetensors"),
        load_file(tmp_path / "again" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert type(again.config).model_type == record["model_type"]
