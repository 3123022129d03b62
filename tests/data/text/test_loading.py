"""The tokenizer of a checkpoint of each kind, and what does not fit."""

import pytest

from medjax.data.text.loading import tokenizer_of
from medjax.data.text.tokenizer import load_tokenizer


def test_of_a_folder(byte_level_folder):
    (byte_level_folder / "config.json").write_text("{}")
    weights = byte_level_folder / "model.safetensors"
    found = tokenizer_of(byte_level_folder, [weights], {}, 100_000)
    assert found.digest == load_tokenizer(byte_level_folder).digest
    with pytest.raises(ValueError, match=rf"has {found.vocab_size} tokens, the embedding 5 rows; expected a tokenizer"):
        tokenizer_of(byte_level_folder, [weights], {}, 5)


def test_beside_llama2c_weights(shared_data, tmp_path):
    folder = shared_data / "stories260K"
    found = tokenizer_of(folder, [folder / "stories260K.bin"], {}, 512)
    assert found.vocab_size == 512
    with pytest.raises(FileNotFoundError, match=r"got 0 files tok\*.bin beside the weights, expected one"):
        tokenizer_of(tmp_path / "x.bin", [tmp_path / "x.bin"], {}, 512)
