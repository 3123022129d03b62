"""PEFT folders against their definition, computed here on the file's side: weight + scale * lora_B @ lora_A."""

import json
import math
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_adapters import CONFIG_OF, adapter_of, flat
from tiny_decoders import CONFIGS, load, random_tensors, write_folder

from medjax.nn.merging import merge
from medjax.store.adapters import base_name, is_adapter, open_adapter
from medjax.store.peft import write_peft

GATED = ("query", "key", "value", "out", "gate", "up", "down")
CASES = [
    ("llama", GATED),
    ("llama-biases", ("query", "out")),
    ("mistral", ("value", "down")),
    ("qwen2", ("key", "gate")),
    ("qwen3", GATED),
    ("gemma3", GATED),
    ("neox-parallel", ("query_key_value", "out", "up", "down")),
    ("neox-parallel", ("query", "key", "value")),
    ("neox-parallel", ("query", "value", "down")),
    ("neox-sequential", ("key", "out")),
]


def merged_tensors(name, folder):
    """The base model's file tensors with a PEFT folder merged in, by PEFT's own rule."""
    record = json.loads((folder / "adapter_config.json").read_text())
    factors = load_file(folder / "adapter_model.safetensors")
    tensors = {key: tensor.astype(np.float64) for key, tensor in random_tensors(CONFIGS[name]).items()}
    for key in [key for key in factors if ".lora_A." in key]:
        a, b = factors[key].astype(np.float64), factors[key.replace("lora_A", "lora_B")].astype(np.float64)
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        last = module.rpartition(".")[2]
        alpha = record.get("alpha_pattern", {}).get(last, record["lora_alpha"])
        rank = record.get("rank_pattern", {}).get(last, record["r"])
        assert a.shape[0] == b.shape[1] == rank
        scale = alpha / (math.sqrt(rank) if record.get("use_rslora") else rank)
        tensors[module + ".weight"] += scale * b @ a
    return {key: tensor.astype(np.float32) for key, tensor in tensors.items()}


def assert_same_model(name, folder, adapter, tmp_path, tolerance=2e-6):
    """PEFT's folder on the file tensors is our adapter on the parameters."""
    base = load(write_folder(tmp_path / "base", CONFIGS[name], random_tensors(CONFIGS[name])))
    want = load(write_folder(tmp_path / "merged", CONFIGS[name], merged_tensors(name, folder)))
    got = merge(base.params, adapter.leaves, adapter.lora.scale)
    changed = 0
    for key, leaf in flat(want.params).items():
        np.testing.assert_allclose(flat(got)[key], leaf, rtol=0, atol=tolerance, err_msg=key)
        changed += np.abs(np.asarray(leaf) - np.asarray(flat(base.params)[key])).max() > 0.01
    assert changed >= len(adapter.lora.targets)


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize(("name", "targets"), CASES)
def test_what_is_written_is_the_same_model(tmp_path, name, targets, stabilised):
    adapter = adapter_of(name, targets, rank_stabilised=stabilised)
    write_peft(tmp_path / "peft", adapter, CONFIG_OF[name])
    assert_same_model(name, tmp_path / "peft", adapter, tmp_path)


@pytest.mark.parametrize(("name", "targets"), CASES)
def test_what_is_written_is_read_back(tmp_path, name, targets):
    """Number for number, but for query, key and value of GPT-NeoX, which come back as one target: the same model."""
    adapter = adapter_of(name, targets, dropout=0.1)
    write_peft(tmp_path / "peft", adapter, CONFIG_OF[name])
    again = open_adapter(tmp_path / "peft", CONFIG_OF[name])
    assert is_adapter(tmp_path / "peft")
    assert (again.base, base_name(tmp_path / "peft"), again.base_digest) == ("tiny", "tiny", None)
    if CONFIGS[name]["model_type"] == "gpt_neox" and {"query", "key", "value"} & set(targets):
        assert again.lora.rank == 5 * len({"query", "key", "value"} & set(targets))
        assert_same_model(name, tmp_path / "peft", again, tmp_path)
        return
    assert again.lora == adapter.lora
    for leaf, values in flat(adapter.leaves).items():
        np.testing.assert_array_equal(flat(again.leaves)[leaf], values, err_msg=leaf)


def test_the_written_folder(tmp_path):
    write_peft(tmp_path, adapter_of("llama", ("query", "down"), dropout=0.05), CONFIG_OF["llama"])
    shapes = {key: tensor.shape for key, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}
    layer = "base_model.model.model.layers.1."
    assert len(shapes) == 8
    assert shapes[layer + "self_attn.q_proj.lora_A.weight"] == (5, 48)
    assert shapes[layer + "self_attn.q_proj.lora_B.weight"] == (60, 5)
    assert shapes[layer + "mlp.down_proj.lora_A.weight"] == (5, 80)
    assert shapes[layer + "mlp.down_proj.lora_B.weight"] == (48, 5)
    record = json.loads((tmp_path / "adapter_config.json").read_text())
    wanted = {
        **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny", "r": 5, "lora_alpha": 8},
        **{"lora_dropout": 0.05, "use_rslora": False, "bias": "none", "target_modules": ["down_proj", "q_proj"]},
        **{"rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": False, "use_dora": False},
    }
    assert {key: record[key] for key in wanted} == wanted


@pytest.mark.parametrize(("stabilised", "alpha"), [(False, 24), (True, 8 * math.sqrt(3))])
def test_separate_parts_of_a_fused_projection_have_three_ranks(tmp_path, stabilised, alpha):
    adapter = adapter_of("neox-parallel", ("query", "key", "value", "out"), rank_stabilised=stabilised)
    write_peft(tmp_path, adapter, CONFIG_OF["neox-parallel"])
    record = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (record["r"], record["lora_alpha"]) == (5, 8)
    assert record["target_modules"] == ["dense", "query_key_value"]
    assert record["rank_pattern"] == {"query_key_value": 15}
    assert record["alpha_pattern"] == {"query_key_value": pytest.approx(alpha, rel=1e-15)}


def peft_folder(folder, name="llama", modules=("self_attn.q_proj",), layers=(0, 1), rank=4, ranks=None, **record):
    """A PEFT folder of random factors; ranks: module name -> its own rank."""
    rng, tensors = np.random.default_rng(4), {}
    sizes = {key: tensor.shape for key, tensor in random_tensors(CONFIGS[name]).items()}
    for layer in layers:
        for module in modules:
            key = f"model.layers.{layer}.{module}"
            out, into = sizes[key + ".weight"]
            r = (ranks or {}).get(module.rpartition(".")[2], rank)
            for factor, shape in (("A", (r, into)), ("B", (out, r))):
                values = rng.standard_normal(shape).astype(np.float32) * 0.2
                tensors[f"base_model.model.{key}.lora_{factor}.weight"] = values
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [module.rpartition(".")[2] for module in modules]
    base = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(base | record))
    return folder


@pytest.mark.parametrize("stabilised", [False, True])
def test_ranks_and_alphas_of_their_own(tmp_path, stabilised):
    folder = peft_folder(
        tmp_path / "peft",
        modules=("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"),
        ranks={"o_proj": 3, "up_proj": 7},
        rank_pattern={"o_proj": 3, "up_proj": 7},
        alpha_pattern={"up_proj": 2.5},
        use_rslora=stabilised,
    )
    adapter = open_adapter(folder, CONFIG_OF["llama"])
    assert (adapter.lora.rank, adapter.lora.targets) == (7, ("query", "out", "up"))
    assert not adapter.leaves["layers"]["attention"]["out"]["a"][..., 3:].any()
    assert_same_model("llama", folder, adapter, tmp_path)


def test_layers_that_are_left_out_are_zero(tmp_path):
    folder = peft_folder(tmp_path / "peft", layers=(1,), layers_to_transform=[1])
    adapter = open_adapter(folder, CONFIG_OF["llama"])
    assert not adapter.leaves["layers"]["attention"]["query"]["b"][0].any()
    assert_same_model("llama", folder, adapter, tmp_path)
    one = peft_folder(tmp_path / "one", layers=(0,), layers_to_transform=0)
    assert open_adapter(one, CONFIG_OF["llama"]).leaves["layers"]["attention"]["query"]["b"][0].any()
    by_pattern = peft_folder(tmp_path / "regex", layers=(0,), target_modules=r".*layers\.0\.self_attn\.q_proj")
    assert not open_adapter(by_pattern, CONFIG_OF["llama"]).leaves["layers"]["attention"]["query"]["a"][1].any()


@pytest.mark.parametrize("prefix", ["base_model.model.model.language_model.", "base_model.model.language_model.model."])
def test_the_decoder_inside_an_image_and_text_model(tmp_path, prefix):
    adapter = adapter_of("gemma3", ("query",))
    write_peft(tmp_path, adapter, CONFIG_OF["gemma3"])
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    moved = {key.replace("base_model.model.model.", prefix): tensor for key, tensor in tensors.items()}
    save_file(moved, tmp_path / "adapter_model.safetensors")
    again = open_adapter(tmp_path, CONFIG_OF["gemma3"])
    np.testing.assert_array_equal(
        again.leaves["layers"]["attention"]["query"]["a"], adapter.leaves["layers"]["attention"]["query"]["a"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "got use_dora=True, which is not supported, expected False; merge it into its model with"),
        ({"bias": "lora_only"}, "got bias='lora_only', which is not supported, expected 'none'; merge it"),
        ({"lora_bias": True}, "got lora_bias=True, which is not supported, expected False"),
        ({"modules_to_save": ["lm_head"]}, "got modules_to_save=['lm_head'], which is not supported, expected none"),
        ({"fan_in_fan_out": True}, "got fan_in_fan_out=True, which is not supported, expected False"),
        ({"init_lora_weights": "pissa"}, "got init_lora_weights='pissa', which is not supported, expected True or Fal"),
        ({"trainable_token_indices": [3]}, "got trainable_token_indices=[3], which is not supported, expected"),
        ({"layer_replication": [[0, 2]]}, "got layer_replication=[[0, 2]], which is not supported, expected none"),
        ({"peft_type": "IA3"}, "got peft_type='IA3', supported is 'LORA'; merge it into its model with PEFT"),
        ({"r": 8}, "got rank 8 for model.layers.0.self_attn.q_proj, expected 4, which its weights have; take"),
        ({"lora_alpha": None}, "key 'lora_alpha' is missing, expected a number; save the adapter again."),
    ],
)
def test_what_would_compute_something_else_is_refused(tmp_path, change, message):
    folder = peft_folder(tmp_path, **change)
    with pytest.raises(ValueError, match=re.escape(f"{folder}/adapter_config.json: {message}")):
        open_adapter(folder, CONFIG_OF["llama"])


def test_harmless_values_pass(tmp_path):
    folder = peft_folder(tmp_path, modules_to_save=[], trainable_token_indices=None, init_lora_weights="gaussian")
    assert open_adapter(folder, CONFIG_OF["llama"]).lora.alpha == 6.0


Q = "base_model.model.model.layers.1.self_attn.q_proj."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {Q + "lora_A.weight": (48, 4)},
            f"tensor {Q}lora_A.weight: got shape [48, 4], expected [rank, 48] and a layer",
        ),
        (
            {Q + "lora_B.weight": (4, 60)},
            f"tensor {Q}lora_B.weight: got shape [4, 60], expected [60, rank] and a layer",
        ),
        (
            {Q + "lora_B.weight": (60, 3)},
            "query of layer 1: got lora_A [4, 48] and lora_B [60, 3], expected lora_A and",
        ),
        ({Q + "lora_B.weight": None}, "query of layer 1: got lora_A [4, 48], expected lora_A and lora_B of one rank"),
        (
            {Q + "lora_A.weight": None, Q + "lora_B.weight": None},
            "query: got no tensors of layer 1, expected layers 0, 1 by adapter_config.json; save or copy",
        ),
        (
            {Q.replace("s.1.", "s.2.") + "lora_A.weight": (4, 48)},
            "layers.2.self_attn.q_proj.lora_A.weight: got shape [4, 48], expected [rank, 48] and a layer below 2 by",
        ),
        (
            {"base_model.model.lm_head.lora_A.weight": (4, 48)},
            "tensor base_model.model.lm_head.lora_A.weight: expected lora_A or lora_B of model.layers.{}.mlp.down_proj",
        ),
        ({Q + "lora_magnitude_vector": (60,)}, f"tensor {Q}lora_magnitude_vector: expected lora_A or lora_B of"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    folder = peft_folder(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, shape in change.items():
        tensors.pop(name, None)
        tensors |= {name: np.zeros(shape, np.float32)} if shape else {}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=re.escape(f"{folder}/adapter_model.safetensors: ")) as caught:
        open_adapter(folder, CONFIG_OF["llama"])
    assert message in str(caught.value)


def test_pickles_and_empty_folders_are_refused(tmp_path):
    folder = peft_folder(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors: missing, expected the adapter's weights"):
        open_adapter(folder, CONFIG_OF["llama"])
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(
        ValueError, match=r"adapter_model\.bin: pickle files can run code when read and are refused; co"
    ):
        open_adapter(folder, CONFIG_OF["llama"])
    save_file({}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"got no tensor, expected lora_A and lora_B; save the adapter again"):
        open_adapter(folder, CONFIG_OF["llama"])


def test_narrow_factors_widen_exactly(tmp_path):
    folder = peft_folder(tmp_path)
    half = {key: tensor.astype(np.float16) for key, tensor in load_file(folder / "adapter_model.safetensors").items()}
    save_file(half, folder / "adapter_model.safetensors")
    a = open_adapter(folder, CONFIG_OF["llama"]).leaves["layers"]["attention"]["query"]["a"]
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a[1].T, half[Q + "lora_A.weight"].astype(np.float32))


def test_another_models_adapter_is_not_written(tmp_path):
    with pytest.raises(
        ValueError, match=r"got an adapter of a model with family llama, head_dim 10, expected family q"
    ):
        write_peft(tmp_path, adapter_of("llama", ("query",)), CONFIG_OF["qwen3"])
