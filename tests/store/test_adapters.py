"""Adapter folders: there and back, found wherever they lie, and refused with a reason where they do not fit."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_adapters import CONFIG_OF, adapter_of, flat
from tiny_decoders import CONFIGS

from medjax.models.decoder import abstract_variables
from medjax.models.decoder_config import from_hugging_face
from medjax.nn.lora import LoraConfig
from medjax.parallel.mesh import make_mesh
from medjax.store.adapters import (
    base_name,
    check_base,
    files_digest,
    is_adapter,
    leaf_shapes,
    open_adapter,
    tree_of,
    write_adapter,
)

ALL = ("query", "key", "value", "out", "gate", "up", "down")


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "neox-parallel"])
def test_leaf_shapes_are_those_of_the_decoder(name):
    config = from_hugging_face(CONFIGS[name])
    for targets in (ALL, ("query_key_value", "out", "up", "down")):
        if ("gate" in targets and not config.gated) or ("query_key_value" in targets and config.family != "gpt_neox"):
            continue
        lora = LoraConfig(rank=7, alpha=3.0, targets=targets)
        tree = jax.tree.map(lambda box: box.value, abstract_variables(config, lora)["lora"], is_leaf=_is_box)
        assert leaf_shapes(lora, config) == {name: leaf.shape for name, leaf in flat(tree).items()}


def _is_box(leaf):
    return hasattr(leaf, "names")


def test_there_and_back(tmp_path):
    adapter = adapter_of("llama", ("query", "out", "gate", "down"), dropout=0.05, rank_stabilised=True)
    folder = write_adapter(tmp_path / "run" / "adapter", adapter)
    assert sorted(file.name for file in folder.iterdir()) == ["adapter.json", "adapter.safetensors"]
    for place in (folder, tmp_path / "run"):
        again = open_adapter(place, CONFIG_OF["llama"])
        assert (again.lora, again.base, again.base_digest) == (adapter.lora, "tiny", "b" * 64)
        assert (again.tokenizer_digest, again.model) == ("t" * 64, adapter.model)
        assert flat(again.leaves).keys() == flat(adapter.leaves).keys()
        for name, leaf in flat(adapter.leaves).items():
            np.testing.assert_array_equal(flat(again.leaves)[name], leaf)
        assert is_adapter(place)
        assert base_name(place) == "tiny"
    assert not is_adapter(tmp_path)


def test_the_files_say_what_they_hold(tmp_path):
    write_adapter(tmp_path, adapter_of("llama", ("value",)))
    record = json.loads((tmp_path / "adapter.json").read_text())
    assert record == {
        "format": 1,
        "lora": {"rank": 5, "alpha": 8.0, "targets": ["value"], "dropout": 0.0, "rank_stabilised": False},
        "base": {"name": "tiny", "digest": "b" * 64},
        "tokenizer": {"digest": "t" * 64},
        "model": {
            **{"family": "llama", "vocab_size": 97, "layers": 2, "embed": 48, "mlp": 80},
            **{"heads": 6, "kv_heads": 2, "head_dim": 10},
        },
    }


def test_sharded_leaves_are_gathered_and_an_older_adapter_is_replaced(tmp_path):
    adapter = adapter_of("llama", ("query",))
    write_adapter(tmp_path, adapter_of("llama", ("query", "up"), seed=9))
    mesh = make_mesh("fsdp=2,tensor=4")
    leaf = adapter.leaves["layers"]["attention"]["query"]
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp", None))
    leaf["a"] = jax.device_put(leaf["a"], spread)
    write_adapter(tmp_path, adapter)
    again = flat(open_adapter(tmp_path, CONFIG_OF["llama"]).leaves)
    assert list(again) == ["layers/attention/query/a", "layers/attention/query/b"]
    np.testing.assert_array_equal(again["layers/attention/query/a"], np.asarray(leaf["a"]))


def test_a_digest_is_over_names_and_bytes(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"abc")
    # printf 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  w.bin\n' | sha256sum
    assert files_digest((tmp_path / "w.bin",)) == "9bdf663e7872f95e6890ffab21b37521ad6b213827afe964745f2f8654728517"


def test_another_base_or_tokenizer_is_refused():
    adapter = adapter_of("llama", ("query",))
    check_base(adapter, "here", "b" * 64)
    check_base(adapter, "here", "b" * 64, "t" * 64)
    message = "adapter: got base model here with digest cccccccccccc, expected tiny with digest bbbbbbbbbbbb, which it"
    with pytest.raises(ValueError, match=f"^{message}"):
        check_base(adapter, "here", "c" * 64)
    with pytest.raises(ValueError, match=r"got a tokenizer with digest uuuuuuuuuuuu in here, expected tttttttttttt"):
        check_base(adapter, "here", "b" * 64, "u" * 64)


def test_another_models_adapter_is_refused(tmp_path):
    write_adapter(tmp_path, adapter_of("llama", ("query",)))
    with pytest.raises(
        ValueError, match=r"got an adapter of a model with family llama, head_dim 10, expected family q"
    ):
        open_adapter(tmp_path, CONFIG_OF["qwen3"])
    neox = write_adapter(tmp_path / "neox", adapter_of("neox-parallel", ("query_key_value",)))
    record = json.loads((neox / "adapter.json").read_text()) | {"model": {}}
    (neox / "adapter.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"got target query_key_value, expected some of query, key, value, out, up"):
        open_adapter(neox, CONFIG_OF["llama"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers/mlp/down/b": None}, "leaf layers/mlp/down/b: got none, expected (2, 5, 48)"),
        ({"layers/mlp/down/a": (2, 5, 80)}, "leaf layers/mlp/down/a: got (2, 5, 80), expected (2, 80, 5) by the base"),
        ({"layers/mlp/up/a": (2, 48, 5)}, "leaf layers/mlp/up/a: got (2, 48, 5), expected none by the base model"),
    ],
)
def test_a_leaf_that_does_not_fit_is_named(tmp_path, change, message):
    adapter = adapter_of("llama", ("query", "down"))
    write_adapter(tmp_path, adapter)
    leaves = {name: np.asarray(leaf) for name, leaf in flat(adapter.leaves).items()}
    for name, shape in change.items():
        leaves = {key: leaf for key, leaf in leaves.items() if key != name}
        leaves |= {name: np.zeros(shape, np.float32)} if shape else {}
    save_file(leaves, tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match=re.escape(message)):
        open_adapter(tmp_path, CONFIG_OF["llama"])


def test_damaged_folders_are_named(tmp_path):
    folder = write_adapter(tmp_path / "a", adapter_of("llama", ("query",)))
    whole = (folder / "adapter.json").read_text()

    def error(**change):
        record = {key: value for key, value in (json.loads(whole) | change).items() if value is not None}
        (folder / "adapter.json").write_text(json.dumps(record))
        with pytest.raises(ValueError) as caught:
            open_adapter(folder, CONFIG_OF["llama"])
        return str(caught.value)

    lora = json.loads(whole)["lora"]
    assert error(format=2).startswith(f"{folder}/adapter.json: got format 2, expected 1; update medjax")
    assert f"{folder}/adapter.json: got no table 'base', expected one" in error(base=None)
    assert "lora: rank: got 0, expected 1 or more" in error(lora=lora | {"rank": 0})
    assert "lora: got keys rank, alpha, targets, dropout, rank_stabilised, more, expected rank," in error(
        lora=lora | {"more": 1}
    )
    (folder / "adapter.json").write_text(whole[:40])
    with pytest.raises(ValueError, match=r"adapter\.json: not valid JSON"):
        open_adapter(folder, CONFIG_OF["llama"])
    (folder / "adapter.json").write_text(whole)
    weights = folder / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"adapter\.safetensors: not a whole safetensors file"):
        open_adapter(folder, CONFIG_OF["llama"])
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter\.safetensors: missing, expected the adapter's weights"):
        open_adapter(folder, CONFIG_OF["llama"])


def test_what_is_no_adapter_is_named(tmp_path):
    def error(path):
        with pytest.raises((FileNotFoundError, ValueError)) as caught:
            open_adapter(path, CONFIG_OF["llama"])
        return str(caught.value).removeprefix(str(tmp_path))

    assert error(tmp_path / "none").startswith("/none: no such folder; expected an adapter folder (adapter.json), a tr")
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert error(tmp_path / "x.safetensors").startswith("/x.safetensors: got a file, expected an adapter folder")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert error(tmp_path / "run").startswith("/run: got a training run without adapter/adapter.json, which is written")
    assert error(tmp_path).startswith(": no adapter here; expected an adapter folder")


def test_tree_of_nests_by_path():
    assert tree_of({"a/b/c": 1, "a/b/d": 2, "e": 3}) == {"a": {"b": {"c": 1, "d": 2}}, "e": 3}
