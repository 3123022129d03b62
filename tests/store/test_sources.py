"""What a path may hold, and what is refused: pickles, cut files, indices that leave their folder."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_decoders import CONFIGS, bfloat16_tensors, random_tensors, write_folder

from medjax.store.json_file import read_json
from medjax.store.llama2c import is_llama2c
from medjax.store.sources import open_source

CONFIG = CONFIGS["llama"]
TENSORS = random_tensors(CONFIG)
NAME = "model.layers.1.mlp.gate_proj.weight"


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "model", CONFIG, TENSORS)


@pytest.fixture
def sharded(tmp_path):
    return write_folder(tmp_path / "model", CONFIG, TENSORS, shards=3)


def index_of(folder):
    return folder / "model.safetensors.index.json"


def test_reads_every_tensor(folder, tmp_path):
    sources = [open_source(folder), open_source(write_folder(tmp_path / "shards", CONFIG, TENSORS, shards=3))]
    for source in sources:
        for name, tensor in TENSORS.items():
            np.testing.assert_array_equal(source.read(name), tensor)
    assert [file.name for file in sources[0].files] == ["config.json", "model.safetensors"]
    shards = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [file.name for file in sources[1].files] == ["config.json", *shards]
    assert sources[1].location(NAME).endswith(json.loads(index_of(tmp_path / "shards").read_text())["weight_map"][NAME])


def test_reads_bfloat16(tmp_path):
    rounded = bfloat16_tensors(TENSORS)
    got = open_source(write_folder(tmp_path, CONFIG, rounded)).read(NAME)
    assert got.dtype == rounded[NAME].dtype
    np.testing.assert_array_equal(got.astype(np.float32), rounded[NAME].astype(np.float32))


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
def test_decoder_of_an_image_and_text_checkpoint(tmp_path, prefix):
    """Both places where Gemma 3 checkpoints with a vision tower keep the decoder."""
    renamed = {
        prefix + name.removeprefix("model.") if "model.language" in prefix else prefix + name: t
        for name, t in TENSORS.items()
    }
    source = open_source(write_folder(tmp_path, CONFIG, renamed))
    for name, tensor in TENSORS.items():
        if name != "lm_head.weight":
            np.testing.assert_array_equal(source.read(name), tensor)


def test_missing_tensor_is_a_key_error(folder):
    source = open_source(folder)
    with pytest.raises(KeyError):
        source.read("model.layers.2.mlp.gate_proj.weight")
    assert source.location("nothing.weight") == str(folder)


def test_cut_safetensors_names_file_and_tensor(folder):
    """A cut in the middle of the data: the first tensor that is not whole is named."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    start, end = header[NAME]["data_offsets"]
    file.write_bytes(data[: len(data) - (max(e["data_offsets"][1] for e in header.values()) - (start + end) // 2)])
    with pytest.raises(
        ValueError, match=rf"model\.safetensors: not a whole .*ends inside tensor {NAME}.*download it again"
    ):
        open_source(folder)


@pytest.mark.parametrize("size", [0, 5, 60])
def test_cut_header(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file \(its header is cut"):
        open_source(folder)


def test_missing_shard(sharded):
    file = sharded / "model-00002-of-00003.safetensors"
    held = [
        name for name, where in json.loads(index_of(sharded).read_text())["weight_map"].items() if where == file.name
    ]
    file.unlink()
    source = open_source(sharded)
    with pytest.raises(
        FileNotFoundError, match=r"model-00002-of-00003\.safetensors: missing, though the index names it"
    ):
        source.read(held[0])


@pytest.mark.parametrize(
    "place", ["../other/weights.safetensors", "/etc/weights.safetensors", "sub/weights.safetensors"]
)
def test_index_may_not_leave_its_folder(sharded, tmp_path, place):
    (tmp_path / "other").mkdir()
    save_file(TENSORS, tmp_path / "other" / "weights.safetensors")
    index_of(sharded).write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, place)}))
    with pytest.raises(
        ValueError, match=rf"index\.json: shard '{place}' is not a plain file name; .* may not leave its folder: put"
    ):
        open_source(sharded)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}'])
def test_index_without_a_map(sharded, content):
    index_of(sharded).write_text(content)
    with pytest.raises(ValueError, match=r"index\.json: .*weight_map; expected a table .*: download"):
        open_source(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_with_the_way_round(folder, name):
    (folder / "model.safetensors").unlink()
    pickle = folder / name
    pickle.write_bytes(b"\x80\x02}q\x00." * 20)
    for path in (folder, pickle):
        with pytest.raises(ValueError, match=rf"{name}: pickle files can run code .*save_pretrained\('.*-safetensors'"):
            open_source(path)


def test_a_bin_that_is_llama2c_is_not_a_pickle(tmp_path):
    """The header must fit the size to the byte."""
    file = tmp_path / "model.bin"
    dim, hidden, layers, heads, kv_heads, vocab, length = header = (8, 12, 2, 4, 2, 5, 16)
    kv = dim // heads * kv_heads
    floats = (
        vocab * dim + layers * (2 * dim + 2 * dim * dim + 2 * kv * dim + 3 * hidden * dim) + dim + length * dim // heads
    )
    file.write_bytes(struct.pack("<7i", *header) + bytes(4 * floats))
    assert is_llama2c(file)
    assert open_source(file).config.kv_heads == 2
    assert open_source(tmp_path).config.layers == 2
    file.write_bytes(file.read_bytes() + b"\0")
    assert not is_llama2c(file)
    with pytest.raises(ValueError, match=r"model\.bin: pickle files"):
        open_source(file)


def test_other_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing: no such file or folder; expected a checkpoint folder"):
        open_source(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no config\.json and no \.gguf file here"):
        open_source(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        ValueError,
        match=r"notes\.txt: got a file of unknown kind, expected \.gguf or a folder .*; for safetensors, name",
    ):
        open_source(tmp_path / "notes.txt")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(
        FileNotFoundError, match=r"no model\.safetensors and no model\.safetensors\.index\.json, expected .*; download"
    ):
        open_source(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"got 2 GGUF files \(a\.gguf, …\); name one of them"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON .*; download it again"), ("[1]", "got a JSON list, expected an object; download it again")],
)
def test_bad_json(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        read_json(tmp_path / "config.json")
