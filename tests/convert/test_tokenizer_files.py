"""Vocabularies out of GGUF and llama2.c files: a tokenizer.json that gives the same ids."""

import json
import random

import pytest
from tokenizers import Tokenizer as Pipeline

from medjax.data.text.tokenizer import load_tokenizer
from medjax.data.text.vocabulary import tokenizer_from_gguf, tokenizer_from_llama2c

PIECES = ["▁", "a", "b", "c", "心", "電", "▁a", "ab", "bc", "▁ab", "abc", "心電", "▁心", "aa", "▁▁", "cab", "▁abc"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def metadata(prefix):
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *PIECES, "<end of>▁turn"]
    scores = [0.0] * 259 + [-float(7 * i % 17) for i in range(len(PIECES))] + [0.0]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(PIECES), 4],
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def read_again(tokenizer, folder):
    """Through the file, as medjax reads it, and the bare pipeline, as transformers runs it."""
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
    settings = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "add_bos_token": tokenizer.add_bos}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return load_tokenizer(folder), Pipeline.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("prefix", [True, False])
def test_score_merges_as_a_byte_pair_encoding(tmp_path, prefix):
    """Random texts of few letters, in which almost every merge can happen, blanks, unknown letters, and tokens."""
    tokenizer = tokenizer_from_gguf(metadata(prefix))
    again, pipeline = read_again(tokenizer, tmp_path)
    generator = random.Random(3)
    texts = ["".join(generator.choices("abc 心電é\n", k=length)) for length in range(60) for _ in range(8)]
    for text in [*texts, "a<end of> turn b", "<s>a</s>", " "]:
        want = tokenizer.encode(text)
        assert again.encode(text) == want, text
        assert tokenizer.encode(text, special=True, bos=False) == again.encode(text, special=True, bos=False), text
        assert pipeline.encode(text).ids == [1, *tokenizer.encode(text, special=True, bos=False)], text
        if "<end" not in text:  # after a token inside a text the library keeps the blank that was put in front
            assert again.decode(want) == tokenizer.decode(want), text
    assert (again.bos_id, again.eos_ids, again.add_bos) == (1, (2,), True)


def test_stories260k(shared_data, tmp_path):
    folder = shared_data / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is not in the data folder")
    tokenizer = tokenizer_from_llama2c(folder / "tok512.bin")
    again, pipeline = read_again(tokenizer, tmp_path)
    text = "Once upon a time, there was a little 心電図 girl named Lily.\n  She was 3 years old and loved café."
    assert again.encode(text) == pipeline.encode(text).ids == tokenizer.encode(text)
    assert again.decode(again.encode(text)) == text


def test_smollm2(smollm2_gguf, tmp_path):
    from medjax.store.gguf import GgufSource

    tokenizer = tokenizer_from_gguf(GgufSource(smollm2_gguf).metadata)
    again, pipeline = read_again(tokenizer, tmp_path)
    text = "<|im_start|>user\nThe patient's  BP was 150/90; 胸痛?<|im_end|>"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.encode(text, special=True) == pipeline.encode(text).ids == tokenizer.encode(text, special=True)
    assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))
