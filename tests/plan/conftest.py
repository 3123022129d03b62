"""A tiny decoder that plans can name without a file, and its settings on eight devices."""

import pytest

from medjax.config import load
from medjax.models.decoder_config import from_hugging_face
from medjax.plan import program
from medjax.plan.settings import LanguagePlanSettings

LLAMA = {
    **{"model_type": "llama", "vocab_size": 1024, "num_hidden_layers": 3, "hidden_size": 128, "head_dim": 32},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256, "hidden_act": "silu"},
    **{"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False},
}


@pytest.fixture
def tiny(monkeypatch):
    """Settings of a plan of the tiny decoder's LoRA on cpu:8, changed by keyword: tiny({"train.remat": "full"})."""
    monkeypatch.setattr(program, "decoder_of", lambda name: from_hugging_face(LLAMA))
    usual = {
        **{"model.dtype": "bfloat16", "data.window": "256", "train.batch_size": "8", "train.remat": "attention"},
        **{"mesh.shape": "fsdp=4,tensor=2", "plan.topology": "cpu:8", "lora.rank": "8"},
    }
    return lambda changes=None: load(LanguagePlanSettings, overrides=usual | (changes or {}))
