"""A tiny random Llama on disk, with a byte-level tokenizer trained here and a chat template."""

import json

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EMBED, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS, CONTEXT = 32, 4, 2, 8, 56, 2, 1024
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_checkpoint(folder, seed):
    """config.json, model.safetensors, tokenizer.json and tokenizer_config.json of a random model."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["正しい選択肢の記号を1つだけ答えてください。\n答え:", "Which of these is right?\na. pneumonia\nAnswer:"]
    tokenizer.train_from_iterator(texts * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "bos_token": None, "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    vocab = tokenizer.get_vocab_size()
    config = {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": EMBED,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (vocab, EMBED), "model.norm.weight": (EMBED,)}
    for i in range(LAYERS):
        shapes |= {
            f"model.layers.{i}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (EMBED,),
                "post_attention_layernorm": (EMBED,),
                "self_attn.q_proj": (HEADS * HEAD_DIM, EMBED),
                "self_attn.k_proj": (KV_HEADS * HEAD_DIM, EMBED),
                "self_attn.v_proj": (KV_HEADS * HEAD_DIM, EMBED),
                "self_attn.o_proj": (EMBED, HEADS * HEAD_DIM),
                "mlp.gate_proj": (MLP, EMBED),
                "mlp.up_proj": (MLP, EMBED),
                "mlp.down_proj": (EMBED, MLP),
            }.items()
        }
    draw = {name: rng.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
    save_file({name: x + 1 if x.ndim == 1 else x for name, x in draw.items()}, folder / "model.safetensors")
    return folder
