"""Hugging Face and SentencePiece tokenizers, and the pair rule on Japanese with every kind of tokenizer."""

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece

from medjax.data.text.tokenizer import Tokenizer, load_tokenizer
from medjax.data.text.vocabulary import tokenizer_from_gguf, tokenizer_from_llama2c

JAPANESE = "68歳の男性。胸痛を主訴に来院した。"
TEST_JA_IDS = [6, 1430, 398, 4, 3008, 5, 5976, 5875, 8, 200, 3068, 10, 437, 101, 22, 5]
LLM_JP_IDS = [
    *(279, 28789, 28788, 32740, 28998, 72488, 28949, 33057, 32890, 29083, 29350, 33167, 29179, 70748, 77348),
]
TRAINED = ("byte-level", "llama-style", "sentencepiece-bpe", "sentencepiece-unigram", "score-merge")
# kind -> context and continuation that the tokenizer joins across the boundary; those of trained ones are searched
UNSTABLE = {
    "test_ja": ("来院し", "た。"),
    "llm-jp": ("人である", "。日本人"),
    "smollm2": ("心電図でS", "T上昇を認める。"),
    "tok512": ("Once upon a t", "ime"),
}


def joins(tokenizer: Tokenizer, context: str, continuation: str) -> bool:
    prefix = tokenizer.encode(context)
    return tokenizer.encode(context + continuation)[: len(prefix)] != prefix


def japanese_pair_that_joins(tokenizer: Tokenizer, sentences: list[str]) -> tuple[str, str]:
    cuts = [(text[:end], text[end:]) for text in sentences[:7] for end in range(1, len(text))]
    return next(pair for pair in cuts if joins(tokenizer, *pair))


@pytest.fixture(params=[*TRAINED, *UNSTABLE])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokenizer(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    """The tokenizer of one kind; those from real data are skipped where it is absent."""
    match kind:
        case "byte-level":
            return load_tokenizer(request.getfixturevalue("byte_level_folder"))
        case "llama-style":
            return load_tokenizer(request.getfixturevalue("llama_style_folder"))
        case "sentencepiece-bpe":
            return load_tokenizer(request.getfixturevalue("sentencepiece_folder"))
        case "sentencepiece-unigram":
            (tmp_path / "unigram.model").write_bytes(request.getfixturevalue("sentencepiece_unigram"))
            return load_tokenizer(tmp_path / "unigram.model")
        case "score-merge":
            return tokenizer_from_gguf(request.getfixturevalue("gguf_sentencepiece"))
        case "smollm2":
            return tokenizer_from_gguf(request.getfixturevalue("smollm2_metadata"))
    data = request.getfixturevalue("shared_data")
    match kind:
        case "test_ja":
            return load_tokenizer(data / "sentencepiece" / "test_ja_model.model")
        case "llm-jp":
            return load_tokenizer(data / "llm-jp-tokenizer" / "llm-jp-tokenizer-100k.ver3.1.model")
    return tokenizer_from_llama2c(data / "stories260K" / "tok512.bin")


def questions(kind: str) -> list[tuple[str, list[str]]]:
    """Contexts with their continuations; test_ja knows no line break (its own trap), so it gets none."""
    newline = " " if kind == "test_ja" else "\n"
    choices = ["痛みのみ", "心房細動", "胸水", "日本人である。", "a", "7.20", "３", "人工呼吸"]
    return [
        ("次のうち正しいのはどれか。答えは", choices),
        (f"問題:{newline}胸痛の原因はどれか。{newline}答え:", [f" {choice}" for choice in choices]),
        (f"胸痛の原因はどれか。{newline}答え: ", choices),
        ("胸痛を主訴に来院した", ["。", "がん検診で", "ことがある。"]),
        ("Answer:", [" a", " b", " ECG"]),
        ("", choices),
    ]


def normalised(tokenizer: Tokenizer, text: str) -> str:
    """The text as the tokenizer itself gives it back (test_ja writes full-width digits half-width)."""
    return tokenizer.decode(tokenizer.encode(text))


def test_pairs_share_the_context_and_give_the_text_back(kind, tokenizer):
    for context, continuations in questions(kind):
        context_ids, continuation_ids = tokenizer.encode_pairs(context, continuations)
        assert len(continuation_ids) == len(continuations)
        for continuation, ids in zip(continuations, continuation_ids, strict=True):
            assert tokenizer.encode_pair(context, continuation) == (context_ids, ids)
            assert ids
            assert tokenizer.decode(context_ids + ids) == normalised(tokenizer, context + continuation)
            if kind != "test_ja":
                assert tokenizer.decode(context_ids + ids) == context + continuation
        if context:
            assert context_ids == tokenizer.encode(context.rstrip())


def test_stable_pairs_equal_the_plain_rule(kind, tokenizer):
    stable = 0
    for context, continuations in questions(kind)[:-1]:
        prefix = tokenizer.encode(context.rstrip())
        for continuation in continuations:
            whole = tokenizer.encode(context + continuation)
            if whole[: len(prefix)] == prefix:
                stable += 1
                assert tokenizer.encode_pair(context, continuation) == (prefix, whole[len(prefix) :])
    assert stable >= 20


def test_unstable_boundary_encodes_the_continuation_alone(kind, tokenizer, sentences):
    context, continuation = UNSTABLE.get(kind) or japanese_pair_that_joins(tokenizer, sentences)
    assert joins(tokenizer, context, continuation)
    prefix = tokenizer.encode(context)
    context_ids, ids = tokenizer.encode_pair(context, continuation)
    assert context_ids == prefix
    assert tokenizer.decode(context_ids + ids) == context + continuation
    assert tokenizer.bos_id not in ids
    assert not tokenizer.token_text(ids[0]).startswith(("▁", " ", "Ġ"))
    # the same context beside a continuation that does not join: same ids
    assert tokenizer.encode_pairs(context, [continuation, "、"])[0] == prefix


def test_whitespace_of_the_context_belongs_to_the_continuation(kind, tokenizer):
    assert tokenizer.encode_pair("答え: ", "心電図") == tokenizer.encode_pair("答え:", " 心電図")


def test_empty_continuation_is_an_error_that_names_it(kind, tokenizer):
    with pytest.raises(ValueError, match=r"continuation 1 of 2, '', has no token after the context …'答え: '"):
        tokenizer.encode_pairs("答え: ", ["心電図", ""])


def test_empty_context_stands_on_bos_else_eos(kind, tokenizer):
    context_ids, _ = tokenizer.encode_pair("", "心電図")
    start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_ids[0]
    assert context_ids == [start]
    assert (kind == "byte-level") == (tokenizer.bos_id is None)


def test_growing_decode_only_grows_at_its_end(kind, tokenizer):
    text = "胸痛、68歳。ECG 😀𠮟る" if kind != "test_ja" else "胸痛、68歳。"
    ids = tokenizer.encode(text)
    shown = ""
    for end in range(len(ids) + 1):
        stable = tokenizer.decode(ids[:end]).rstrip("\ufffd")
        assert stable.startswith(shown)
        assert "\ufffd" not in stable
        shown = stable
    assert shown == text


def test_ids_beyond_the_vocabulary_decode_to_nothing_but_have_no_text(tokenizer):
    ids = tokenizer.encode("心電図")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, tokenizer.vocab_size + 7]) == tokenizer.decode(ids)
    with pytest.raises(ValueError, match=f"got id {tokenizer.vocab_size}, expected one of the {tokenizer.vocab_size}"):
        tokenizer.token_text(tokenizer.vocab_size)


def test_japanese_sentencepiece_models(shared_data):
    test_ja = load_tokenizer(shared_data / "sentencepiece" / "test_ja_model.model")
    llm_jp = load_tokenizer(shared_data / "llm-jp-tokenizer" / "llm-jp-tokenizer-100k.ver3.1.model")
    assert test_ja.encode(JAPANESE) == TEST_JA_IDS
    assert llm_jp.encode(JAPANESE) == LLM_JP_IDS
    assert test_ja.decode(TEST_JA_IDS) == llm_jp.decode(LLM_JP_IDS) == JAPANESE
    for tokenizer, size in ((test_ja, 8_000), (llm_jp, 98_452)):
        assert (tokenizer.vocab_size, tokenizer.kind) == (size, "sentencepiece")
        assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id, tokenizer.add_bos) == (1, (2,), None, False)


def test_folder_with_tokenizer_json(byte_level_folder, sentences):
    from tokenizers import Tokenizer as Reference

    reference = Reference.from_file(str(byte_level_folder / "tokenizer.json"))
    reference.no_truncation()
    tokenizer = load_tokenizer(byte_level_folder)
    for text in sentences:
        assert tokenizer.encode(text) == reference.encode(text).ids
        assert len(tokenizer.encode(text)) > 4  # the truncation stored in the file
        assert tokenizer.decode(tokenizer.encode(text)) == text
    # bos_token null means none, though config.json names an id; all ends of text are collected
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.eos_ids, tokenizer.pad_id) == (None, False, (2, 0), 0)
    assert tokenizer.chat_template.startswith("{% for m in messages %}")
    assert (tokenizer.kind, tokenizer.vocab_size) == ("tokenizers", 420)


def test_special_tokens_in_text_only_on_request(byte_level_folder, sentencepiece_folder):
    byte_level = load_tokenizer(byte_level_folder)
    text = "<|im_start|>user\n胸痛<|im_end|>\n"
    assert not {0, 1, 2} & set(byte_level.encode(text))
    ids = byte_level.encode(text, special=True)
    assert (ids[0], ids.count(2)) == (1, 1)
    assert byte_level.decode(ids, skip_special=False) == text == byte_level.decode(byte_level.encode(text))
    assert byte_level.decode(ids) == "user\n胸痛\n"

    llama = load_tokenizer(sentencepiece_folder)
    pad = llama.pad_id
    ids = llama.encode("<s>胸痛</s>心電図<pad>", special=True, bos=False)
    assert (ids[0], ids.count(2), ids[-1], pad) == (1, 1, pad, llama.vocab_size - 1)
    assert llama.decode(ids, skip_special=False) == "<s>胸痛</s>心電図<pad>"
    assert llama.decode(ids) == "胸痛心電図"
    assert not {1, 2, pad} & set(llama.encode("<s>胸痛</s>", bos=False))


def test_special_texts_are_what_only_special_encoding_recognises(kind, tokenizer):
    expected = {
        "byte-level": {"<|endoftext|>", "<|im_start|>", "<|im_end|>"},
        "llama-style": {"<unk>", "<s>", "</s>"},
        "sentencepiece-bpe": {"<s>", "</s>", "<pad>"},
    }.get(kind, {"<s>", "</s>"} if kind != "smollm2" else {"<|im_start|>", "<|im_end|>"})
    assert expected <= tokenizer.special_texts
    for text in tokenizer.special_texts:
        (token_id,) = tokenizer.encode(text, bos=False, special=True)
        assert token_id not in tokenizer.encode(text, bos=False)
        assert tokenizer.decode([token_id], skip_special=False) == text
    assert not [text for text in tokenizer.special_texts if text in JAPANESE + "Answer: a < b <0x0A>\n"]


def test_bos_is_added_once(sentencepiece_folder, llama_style_folder):
    for folder in (sentencepiece_folder, llama_style_folder):
        tokenizer = load_tokenizer(folder)
        assert tokenizer.add_bos
        assert tokenizer.bos_token == "<s>"
        plain = tokenizer.encode("胸痛", bos=False)
        assert tokenizer.encode("胸痛") == [1, *plain]
        assert tokenizer.encode("<s>胸痛", special=True).count(1) == 1
        assert tokenizer.encode("<s>胸痛", special=True, bos=False).count(1) == 1


def test_blank_in_front_after_special_tokens_follows_legacy(sentencepiece_folder, tmp_path):
    legacy = load_tokenizer(sentencepiece_folder)
    folder = shutil.copytree(sentencepiece_folder, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) | {"legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    modern = load_tokenizer(folder)
    second = [[t.token_text(i) for i in t.encode("胸痛</s>胸痛", special=True, bos=False)] for t in (legacy, modern)]
    assert [pieces[pieces.index("</s>") + 1][0] for pieces in second] == ["▁", "胸"]
    assert [pieces[0][0] for pieces in second] == ["▁", "▁"]
    assert modern.digest != legacy.digest


def write_folder(source: Path, target: Path, **files: object) -> Path:
    """A copy of a folder with some JSON files replaced (None: removed); a name's __ stands for the dot."""
    folder = shutil.copytree(source, target)
    for name, content in files.items():
        file = folder / name.replace("__", ".")
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def test_add_bos_of_sentencepiece_folders(sentencepiece_folder, tmp_path):
    def add_bos(number: int, config: dict[str, object] | None) -> bool:
        folder = write_folder(sentencepiece_folder, tmp_path / str(number), tokenizer_config__json=config)
        return load_tokenizer(folder).add_bos

    assert add_bos(0, {"tokenizer_class": "LlamaTokenizer"})
    assert add_bos(1, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": None})
    assert not add_bos(2, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False})
    assert not add_bos(3, {"tokenizer_class": "T5Tokenizer"})
    assert add_bos(4, {"tokenizer_class": "T5Tokenizer", "add_bos_token": True})
    assert not add_bos(5, None)


def test_add_bos_of_tokenizer_json_is_its_post_processors_word(llama_style_folder, tmp_path):
    from tokenizers import Tokenizer as Reference
    from tokenizers.processors import TemplateProcessing

    pipeline = Reference.from_file(str(llama_style_folder / "tokenizer.json"))
    pipeline.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    with_bos = write_folder(
        llama_style_folder, tmp_path / "a", tokenizer_config__json=config, tokenizer__json=pipeline.to_str()
    )
    assert load_tokenizer(with_bos).encode("胸痛")[0] == 1
    assert load_tokenizer(with_bos).encode("胸痛")[-1] != 2  # EOS is never added
    refused = write_folder(with_bos, tmp_path / "b", tokenizer_config__json=config | {"add_bos_token": False})
    assert not load_tokenizer(refused).add_bos
    without = write_folder(llama_style_folder, tmp_path / "c", tokenizer_config__json=config)
    assert not load_tokenizer(without).add_bos


def test_chat_template_places(byte_level_folder, tmp_path):
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    config = {"eos_token": "<|im_end|>"}
    places = [
        ({"tokenizer_config__json": config}, None),
        ({"tokenizer_config__json": config | {"chat_template": named}}, "d"),
        (
            {"tokenizer_config__json": config | {"chat_template": "c"}, "chat_template__json": {"chat_template": "j"}},
            "j",
        ),
        ({"chat_template__json": {"chat_template": "j"}, "chat_template__jinja": "x"}, "x"),
    ]
    for number, (files, expected) in enumerate(places):
        folder = write_folder(byte_level_folder, tmp_path / str(number), **files)
        assert load_tokenizer(folder).chat_template == expected
    folder = write_folder(
        byte_level_folder, tmp_path / "none", tokenizer_config__json=config | {"chat_template": named[:1]}
    )
    with pytest.raises(ValueError, match="chat_template holds tool_use, expected one named default"):
        load_tokenizer(folder)


def test_chat_template_in_another_encoding(byte_level_folder, tmp_path):
    folder = write_folder(byte_level_folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_bytes("{# 胸痛 #}".encode("shift_jis"))
    with pytest.raises(ValueError, match=r"model/chat_template\.jinja: not UTF-8 \(.*byte 0x8b.*\), .*; save it as"):
        load_tokenizer(folder)


def test_special_ids_from_config_where_the_tokenizer_files_are_silent(byte_level_folder, tmp_path):
    folder = write_folder(
        byte_level_folder,
        tmp_path / "model",
        tokenizer_config__json=None,
        generation_config__json=None,
        config__json={"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 0},
    )
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id, tokenizer.add_bos) == (1, (2, 0), 0, False)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")


def test_digest_is_of_content_not_of_place(byte_level_folder, tmp_path):
    digest = load_tokenizer(byte_level_folder).digest
    spec = json.loads((byte_level_folder / "tokenizer.json").read_text(encoding="utf-8"))
    same = write_folder(byte_level_folder, tmp_path / "a", tokenizer__json=json.dumps(spec, indent=1))
    assert load_tokenizer(same).digest == digest
    spec["normalizer"] = {"type": "NFC"}
    other = write_folder(byte_level_folder, tmp_path / "b", tokenizer__json=spec)
    assert load_tokenizer(other).digest != digest
    ends = write_folder(byte_level_folder, tmp_path / "c", generation_config__json=None)
    assert load_tokenizer(ends).digest != digest


def test_folder_prefers_tokenizer_json(byte_level_folder, sentencepiece_bpe, tmp_path):
    folder = shutil.copytree(byte_level_folder, tmp_path / "both")
    (folder / "tokenizer.model").write_bytes(sentencepiece_bpe)
    assert load_tokenizer(folder).kind == "tokenizers"
    assert load_tokenizer(folder / "tokenizer.json").digest == load_tokenizer(byte_level_folder).digest


def test_refusals_of_files(tmp_path, byte_level_folder):
    def refusal(path: Path) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            load_tokenizer(path)
        return str(error.value)

    assert refusal(tmp_path / "absent").endswith("expected a model folder, a tokenizer.json or a .model file.")
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    assert "expected tokenizer.json or tokenizer.model, found vocab.json" in refusal(tmp_path)
    for name, message in (
        ("tokenizer.pkl", "pickles are not read"),
        ("model.gguf", "tokenizer_from_gguf"),
        ("tok512.bin", "tokenizer_from_llama2c"),
        ("tokenizer.model", "not a SentencePiece model"),
        ("broken.json", "not JSON (Expecting value: line 1 column 1"),
    ):
        (tmp_path / name).write_text("IQ== 0\n", encoding="utf-8")
        assert refusal(tmp_path / name).startswith(str(tmp_path / name))
        assert message in refusal(tmp_path / name)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Unheard"}}', encoding="utf-8")
    assert "not a tokenizer.json that tokenizers" in refusal(tmp_path)

    config = {"bos_token": "<bos>"}
    wrong = write_folder(byte_level_folder, tmp_path / "wrong", tokenizer_config__json=config)
    assert "bos_token is '<bos>', expected a token of the vocabulary" in refusal(wrong)
    config = {"bos_token": None, "add_bos_token": True}
    missing = write_folder(byte_level_folder, tmp_path / "missing", tokenizer_config__json=config)
    assert "add_bos_token = true without a BOS token" in refusal(missing)


def test_explicit_bos_without_a_bos_token_is_an_error(byte_level_folder):
    with pytest.raises(ValueError, match="got bos=True, but this tokenizer has no BOS token"):
        load_tokenizer(byte_level_folder).encode("胸痛", bos=True)


def test_sentencepiece_prefix_is_the_models_own(sentencepiece_folder, sentencepiece_bpe, sentences):
    reference = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_bpe)
    tokenizer = load_tokenizer(sentencepiece_folder)
    for text in [*sentences, "", " ", "  胸痛 "]:
        assert tokenizer.encode(text) == [1, *reference.encode(text)]
