"""GGUF and llama2.c vocabularies against stored ids, SentencePiece itself and a plain quadratic merge."""

import hashlib
import itertools
import json
import random
import struct
from pathlib import Path

import pytest
import sentencepiece

from medjax.data.text.chat import ChatTemplate
from medjax.data.text.vocabulary import (
    cut_between_pieces,
    merge_by_score,
    tokenizer_from_gguf,
    tokenizer_from_llama2c,
)


def merge_slowly(text, score):
    """Score-greedy merging, looking at every pair before every merge."""
    pieces = list(text)
    while True:
        pairs = enumerate(itertools.pairwise(pieces))
        found = [(-score(a + b), i) for i, (a, b) in pairs if score(a + b) is not None]
        if not found:
            return pieces
        _, i = min(found)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


# few letters and few distinct scores: many ties, many chances to join wrongly
LETTERS = "胸痛の"
SCORES = {
    piece: float(value)
    for value, piece in zip(
        [-3, -1, -1, -2, -2, -5, -1, -4, -2, -3, -1],
        ["胸痛", "痛の", "の胸", "胸胸", "胸痛の", "の胸痛", "痛痛", "胸痛胸痛", "のの", "ののの", "痛の胸"],
        strict=True,
    )
}


def test_heap_merge_equals_quadratic_merge():
    generator = random.Random(0)
    for length in [0, 1, 2, 3, *range(4, 60)]:
        for _ in range(20):
            text = "".join(generator.choices(LETTERS, k=length))
            assert merge_by_score(text, SCORES.get) == merge_slowly(text, SCORES.get), text


def test_leftmost_pair_wins_a_tie():
    assert merge_by_score("aaa", {"aa": -1.0}.get) == ["aa", "a"]
    assert merge_by_score("abcd", {"ab": -2.0, "bc": -1.0, "cd": -2.0, "abc": -3.0}.get) == ["abc", "d"]


def neighbours_of(pieces):
    return {piece[i : i + 2] for piece in pieces for i in range(len(piece) - 1)}


def test_cuts_change_no_merge():
    """Vocabularies of few random pieces: most texts are cut somewhere, and pieces meet at every cut."""
    generator = random.Random(1)
    cuts = 0
    for _ in range(200):
        pieces = {
            "".join(generator.choices("▁abc心", k=generator.randint(2, 4))) for _ in range(generator.randint(1, 9))
        }
        score = {piece: float(generator.randint(-4, -1)) for piece in sorted(pieces)}
        for length in (0, 1, 2, 7, 40):
            text = "".join(generator.choices("▁abc心", k=length))
            shortest = generator.randint(1, 6)
            stretches = list(cut_between_pieces(text, neighbours_of(pieces), shortest))
            assert "".join(stretches) == text
            assert all(len(stretch) >= shortest for stretch in stretches[:-1])
            cuts += len(stretches) > 1
            merged = [piece for stretch in stretches for piece in merge_by_score(stretch, score.get)]
            assert merged == merge_by_score(text, score.get), (text, score)
    assert cuts > 300


def test_where_a_text_is_cut():
    """Blanks that only start words or run on, line ends in no piece, and kanji that never meet."""
    neighbours = neighbours_of(["▁▁", "▁chest", "pain", "▁pa", "胸痛", "である"])
    cut = list(cut_between_pieces("▁chest▁▁pain\n胸痛である", neighbours, 1))
    assert cut == ["▁chest", "▁▁pain", "\n", "胸痛", "である"]
    cut = list(cut_between_pieces("▁chest▁▁pain\n胸痛である", neighbours, 7))
    assert cut == ["▁chest▁▁pain", "\n胸痛である"]  # at the first place from the seventh character on
    assert list(cut_between_pieces("", neighbours, 1)) == []


def test_ids_of_cut_texts_are_those_of_the_whole_text(gguf_sentencepiece, sentences):
    """Japanese and English, first and second time, against one merge over the whole text."""
    tokenizer = tokenizer_from_gguf(gguf_sentencepiece)
    score = {tokenizer.token_text(i): s for i, s in enumerate(gguf_sentencepiece["tokenizer.ggml.scores"]) if i >= 259}
    texts = ["\n".join(sentences), *sentences, "図心電図電  図\n\n of the  chest.𠮟▁x"]
    for text in [*texts, *texts]:
        whole = merge_by_score(("▁" + text).replace(" ", "▁"), score.get)
        spelled = [[piece] if piece in score else [f"<0x{b:02X}>" for b in piece.encode()] for piece in whole]
        found = [tokenizer.token_text(i) for i in tokenizer.encode(text, bos=False)]
        assert found == list(itertools.chain(*spelled)), text


def test_score_merge_equals_sentencepiece(gguf_sentencepiece, sentencepiece_bpe, sentences):
    reference = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_bpe)
    tokenizer = tokenizer_from_gguf(gguf_sentencepiece)
    texts = [
        *sentences,
        "",
        "胸痛 と 息切れ",
        "  two  blanks ",
        "新しい漢字𠮟と😀\n改行",
        "心心心電図図図",
        "<s>は文字",
    ]
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == [1, *reference.encode(text)], text
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.add_bos, tokenizer.kind) == (1, (2,), True, "score-merge")


def test_score_merge_without_space_prefix(gguf_sentencepiece):
    tokenizer = tokenizer_from_gguf(gguf_sentencepiece | {"tokenizer.ggml.add_space_prefix": False})
    assert tokenizer.token_text(tokenizer.encode("胸痛", bos=False)[0])[0] == "胸"
    assert tokenizer.decode(tokenizer.encode(" 胸痛")) == " 胸痛"


def test_score_merge_special_and_user_defined_tokens(gguf_sentencepiece):
    tokens = [*gguf_sentencepiece["tokenizer.ggml.tokens"], "[INST]"]
    metadata = gguf_sentencepiece | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [*gguf_sentencepiece["tokenizer.ggml.scores"], 0.0],
        "tokenizer.ggml.token_type": [*gguf_sentencepiece["tokenizer.ggml.token_type"], 4],
    }
    tokenizer = tokenizer_from_gguf(metadata)
    last = len(tokens) - 1
    assert tokenizer.encode("[INST]", bos=False) == [last]
    assert tokenizer.encode("<s>[INST]</s>", special=True) == [1, last, 2]  # its own BOS, not a second one
    assert 2 not in tokenizer.encode("</s>")
    assert tokenizer.decode([1, last, 2]) == "[INST]"
    assert tokenizer.decode([1, last, 2], skip_special=False) == "<s>[INST]</s>"


def test_gguf_without_token_types_finds_bytes_and_special_ids(gguf_sentencepiece, sentences):
    bare = {key: value for key, value in gguf_sentencepiece.items() if not key.endswith("token_type")}
    for text in [*sentences, "<s>𠮟"]:
        assert tokenizer_from_gguf(bare).encode(text) == tokenizer_from_gguf(gguf_sentencepiece).encode(text)


def test_smollm2_tokenizer_cases(smollm2_metadata, shared_data):
    oracle = json.loads((shared_data / "oracles" / "smollm2_135m.json").read_text(encoding="utf-8"))
    tokenizer = tokenizer_from_gguf(smollm2_metadata)
    assert len(oracle["tokenizer_cases"]) == 11
    for case in oracle["tokenizer_cases"]:
        assert tokenizer.encode(case["text"], special=True) == case["token_ids"], case["name"]
        assert tokenizer.decode(case["token_ids"], skip_special=False) == case["text"], case["name"]
        plain = tokenizer.encode(case["text"])
        assert (plain == case["token_ids"]) == (case["name"] != "special_in_text")
        assert tokenizer.decode(plain) == case["text"]
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (2,), 2)
    assert (tokenizer.add_bos, tokenizer.vocab_size, tokenizer.kind) == (False, 49_152, "tokenizers")
    assert tokenizer.token_text(281) == "Ġin"


def test_smollm2_prompts_and_chat_template(smollm2_metadata, shared_data):
    oracle = json.loads((shared_data / "oracles" / "smollm2_135m.json").read_text(encoding="utf-8"))
    tokenizer = tokenizer_from_gguf(smollm2_metadata)
    assert tokenizer.chat_template == oracle["chat_template"]
    template = ChatTemplate(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
    chats = 0
    for prompt in oracle["prompts"]:
        if "messages" in prompt:
            chats += 1
            assert template.render(prompt["messages"]) == prompt["text"]
        assert tokenizer.encode(prompt["text"], special="messages" in prompt) == prompt["token_ids"], prompt["name"]
        for position, entry in enumerate(prompt["next_token_top5"]):
            assert tokenizer.token_text(entry["id"]) == entry["token"], position
        assert tokenizer.decode(prompt["greedy"]["token_ids"]) == prompt["greedy"]["text"]
    assert chats == 2


def test_smollm2_long_prompt(smollm2_metadata, shared_data):
    oracle = json.loads((shared_data / "oracles" / "smollm2_135m.json").read_text(encoding="utf-8"))["long_prompt"]
    lines = (shared_data / "igakuqa" / "data" / "2018" / "112-A.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines[:16]]
    text = "\n\n".join(item["problem_text"] + "\n" + "\n".join(item["choices"]) for item in items)
    assert hashlib.sha256(text.encode()).hexdigest() == oracle["text_sha256"]
    assert tokenizer_from_gguf(smollm2_metadata).encode(text) == oracle["token_ids"]


def test_stories260k_tokenizer_cases(shared_data):
    oracle = json.loads((shared_data / "oracles" / "stories260k.json").read_text(encoding="utf-8"))
    tokenizer = tokenizer_from_llama2c(shared_data / "stories260K" / "tok512.bin")
    assert len(oracle["tokenizer_cases"]) == 5
    for case in oracle["tokenizer_cases"]:
        assert tokenizer.encode(case["text"]) == case["token_ids"], case["text"]
        assert tokenizer.decode(case["token_ids"]) == case["text"]
    for case in oracle["cases"]:
        assert tokenizer.encode(case["prompt"]) == case["prompt_token_ids"]
    assert (tokenizer.vocab_size, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_id) == (
        512,
        "<s>",
        "</s>",
        None,
    )


def byte_level_metadata(folder: Path, pre: str) -> dict[str, object]:
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in spec["model"]["merges"]],
        "tokenizer.ggml.token_type": [3 if i < 3 else 1 for i in range(len(tokens))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 0,
    }


# how one text is cut before merging, as each family's own tokenizer.json cuts it
CUTS = {
    "gpt-2": ["BP", " 1234", "/", "90", "  ", " mmHg", "\n", "\n", "It", "'", "S", " OK"],
    "smollm": ["BP", " ", "1", "2", "3", "4", "/", "9", "0", "  ", " mmHg", "\n", "\n", "It", "'", "S", " OK"],
    "llama-bpe": ["BP", " ", "123", "4", "/", "90", "  ", " mmHg", "\n\n", "It", "'S", " OK"],
    "qwen2": ["BP", " ", "1", "2", "3", "4", "/", "9", "0", "  ", " mmHg", "\n\n", "It", "'S", " OK"],
    "tekken": ["BP", " ", "1", "2", "3", "4", "/", "9", "0", "  ", " mm", "Hg", "\n\n", "It", "'S", " OK"],
    "default": ["BP", " ", "123", "4", "/", "90", "  ", " mmHg", "\n", "\n", "It", "'", "S", " OK"],
}


@pytest.mark.parametrize("pre", CUTS)
def test_text_is_cut_as_the_pre_tokenizer_names_it(byte_level_folder, pre):
    text = "BP 1234/90   mmHg\n\nIt'S OK"
    tokenizer = tokenizer_from_gguf(byte_level_metadata(byte_level_folder, pre))
    cuts = tokenizer._pipeline.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in cuts] == CUTS[pre]
    assert tokenizer.add_bos == (pre in ("llama-bpe", "tekken"))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_byte_level_gguf_equals_its_tokenizer_json(byte_level_folder, sentences):
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(byte_level_folder / "tokenizer.json"))
    reference.no_truncation()
    tokenizer = tokenizer_from_gguf(byte_level_metadata(byte_level_folder, "gpt-2"))
    for text in sentences:
        assert tokenizer.encode(text) == reference.encode(text).ids
    assert tokenizer.eos_ids == (2, 0)
    assert tokenizer.encode("<|im_start|>心電図", special=True)[0] == 1


def test_qwen2_composes_kana_and_smollm_keeps_them(byte_level_folder):
    decomposed, composed = "て\u3099す", "です"
    for pre, text in (("qwen2", composed), ("smollm", decomposed)):
        tokenizer = tokenizer_from_gguf(byte_level_metadata(byte_level_folder, pre))
        assert tokenizer.decode(tokenizer.encode(decomposed)) == text


def test_digest_follows_vocabulary_and_flags(gguf_sentencepiece):
    digest = tokenizer_from_gguf(gguf_sentencepiece).digest
    assert len(digest) == 64
    assert tokenizer_from_gguf(dict(gguf_sentencepiece) | {"general.name": "other"}).digest == digest
    scores = list(gguf_sentencepiece["tokenizer.ggml.scores"])
    scores[-1] -= 0.5
    for change in (
        {"tokenizer.ggml.scores": scores},
        {"tokenizer.ggml.add_bos_token": False},
        {"tokenizer.ggml.add_space_prefix": False},
        {"tokenizer.ggml.padding_token_id": 0},
    ):
        assert tokenizer_from_gguf(gguf_sentencepiece | change).digest != digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, "got 't5', supported are gpt2, llama"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "kimi-k2"}, "tokenizer.ggml.merges is missing"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": [], "tokenizer.ggml.pre": "kimi-k2"},
            "got 'kimi-k2', supported are codeshell, command-r, dbrx",
        ),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["胸 鱻"], "tokenizer.ggml.pre": "gpt-2"},
            "tokenizer.ggml.merges: ",
        ),
        ({"tokenizer.ggml.scores": [0.0]}, "tokenizer.ggml.scores: got 1 entries, expected one for each"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, "tokenizer.ggml.bos_token_id: got 1000000, expected an id below"),
    ],
)
def test_gguf_refusals(gguf_sentencepiece, change, message):
    with pytest.raises(ValueError) as error:
        tokenizer_from_gguf(gguf_sentencepiece | change)
    assert message in str(error.value)


def test_llama2c_refuses_damaged_files(tmp_path, shared_data):
    whole = (shared_data / "stories260K" / "tok512.bin").read_bytes()
    for name, data in (("cut", whole[:-1]), ("short", whole[:14]), ("other", struct.pack("<ifi", 7, 0.0, 1) + b"a")):
        file = tmp_path / f"{name}.bin"
        file.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}\.bin: byte \d+: .*llama2\.c"):
            tokenizer_from_llama2c(file)
