"""Small tokenizers trained here on a few sentences, in the layout of Hugging Face folders."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SENTENCES = [
    "七十歳の女性が胸痛と息切れを訴えて外来を受診した。",
    "心電図では心房細動を認め、心拍数は毎分120であった。",
    "胸部エックス線写真で心拡大と両側の胸水を認める。",
    "高血圧と糖尿病の既往があり、内服薬を三種類飲んでいる。",
    "胸痛は労作時に強く、安静にすると数分で消える。",
    "この患者にまず行う検査はどれか。答えは心電図である。",
    "息切れの原因として心不全を考え、心エコー検査を行った。",
    "血圧は150/90 mmHg、体温は36.5 ℃、呼吸数は毎分24であった。",
    "The patient has chest pain and an irregular pulse; order an ECG first.",
    "Blood pressure was 150/90 mmHg. The heart rate was 120 per minute.",
]
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def train_sentencepiece(model_type: str, vocab_size: int) -> bytes:
    """A model that changes no text: identity normalisation, all blanks kept, bytes for unseen characters."""
    target = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_writer=target,
        model_type=model_type,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return target.getvalue()


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return SENTENCES


@pytest.fixture(scope="session")
def sentencepiece_bpe() -> bytes:
    return train_sentencepiece("bpe", 620)


@pytest.fixture(scope="session")
def sentencepiece_unigram() -> bytes:
    return train_sentencepiece("unigram", 520)


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE with ChatML tokens, like Qwen2 and SmolLM2."""
    folder = tmp_path_factory.mktemp("byte_level")
    pipeline = Tokenizer(models.BPE())
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pipeline.train_from_iterator(SENTENCES * 4, trainer)
    pipeline.enable_truncation(max_length=4)  # as some published files have it: must not cut what is scored
    pipeline.save(str(folder / "tokenizer.json"))
    config = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def llama_style_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json that puts "▁" in front of a text, like Llama 2."""
    folder = tmp_path_factory.mktemp("llama_style")
    pipeline = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    pipeline.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pipeline.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=specials, show_progress=False)
    pipeline.train_from_iterator(SENTENCES * 4, trainer)
    spec = json.loads(pipeline.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]  # the bytes are ordinary tokens
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory, sentencepiece_bpe: bytes) -> Path:
    """A Llama folder with tokenizer.model only, and one token added beside the model."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "tokenizer.model").write_bytes(sentencepiece_bpe)
    size = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_bpe).vocab_size()
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "added_tokens_decoder": {str(size): {"content": "<pad>", "special": True}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def gguf_sentencepiece(sentencepiece_bpe: bytes) -> dict[str, object]:
    """The metadata that a GGUF file of the same SentencePiece BPE model would hold."""
    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_bpe)
    every = range(model.vocab_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in every],
        "tokenizer.ggml.scores": [model.get_score(i) for i in every],
        "tokenizer.ggml.token_type": [
            2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in every
        ],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_gguf: Path) -> dict[str, object]:
    from gguf import GGUFReader

    return {key: field.contents() for key, field in GGUFReader(smollm2_gguf).fields.items()}
