"""Figures that others have published for shapes near the planned ones, with where they are stated; Markdown.

Every figure was read in the document named beside it. `published()` renders them; what medjax adds is one column, the
same figure in medjax's own counting of operations, so that two conventions are not compared.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from scaling_arithmetic import MODELS, model
from scaling_paper import wrapped

from medjax.models.published import published as shape
from medjax.models.vit import VitConfig, vit_config
from medjax.nn.lora import LoraConfig
from medjax.parallel.chips import chip
from medjax.train.flops import TrainingFlops, vit_flops

_ALL = ("query", "key", "value", "out", "gate", "up", "down")
_QKV = ("query", "key", "value")
_TIERS = "AI-Hypercomputer/maxtext@e591f30, docs/reference/models/tiering.md"
_CONFIGS = "AI-Hypercomputer/maxtext@e591f30, src/maxtext/configs/tpu/"
_RECIPES = "AI-Hypercomputer/tpu-recipes@c8cfe2f, training/trillium/"
_AUTOMODEL = "NVIDIA-NeMo/Automodel@36044ad, docs/performance-summary.mdx and examples/llm_benchmark"
_BRIDGE = "NVIDIA-NeMo/Megatron-Bridge@067f987, docs/performance-summary-archive.md (26.06) and perf_recipes/llama"
_TORCHTUNE = "pytorch/torchtune@bd2a0fc, README.md"
_ANSWER = "AnswerDotAI/fsdp_qlora@05ed9f2, benchmarks_03_2024.md"
IMAGENET = 1_281_167  # training images of ImageNet-1K


@dataclass(frozen=True)
class Figure:
    """A published figure.

    who, work, hardware, batch, stated, source, note  cells of the table
    chip, flops  of the chip, and operations/s that it did by medjax's counting; 0 where they cannot be told
    """

    who: str
    work: str
    hardware: str
    batch: str
    stated: str
    source: str
    note: str
    chip: str = ""
    flops: float = 0.0

    @property
    def counted(self) -> str:
        """TFLOP/s a chip, and the share of the bfloat16 peak."""
        if not self.flops:
            return "–"
        share = f", {100 * self.mfu:.0f} %" if self.chip else ""
        return f"{self.flops / 1e12:.0f} TFLOP/s{share}"

    @property
    def mfu(self) -> float:
        return self.flops / chip(self.chip).bf16_flops


def _decoder(size: str, length: int, tokens_per_s: float, lora: LoraConfig | None = None) -> float:
    """Operations/s of a chip that trains so many tokens/s in documents of `length`."""
    config = model(size) if size in MODELS else shape(size)
    return tokens_per_s * TrainingFlops(config, "lora" if lora else "full", lora).per_token(length)


def _lora(rank: int, targets: Sequence[str] = _ALL) -> LoraConfig:
    return LoraConfig(rank, 2.0 * rank, tuple(targets))


def _images(encoder: VitConfig, tokens: int, hours: float, chips: int) -> float:
    """Operations/s of a chip in 800 epochs of an image autoencoder: a quarter of the patches and a class token."""
    decoder = VitConfig(patch=encoder.patch, embed=512, layers=8, heads=16, mlp=2048)
    image = 3 * (vit_flops(encoder, tokens // 4 + 1) + vit_flops(decoder, tokens + 1))
    return 800 * IMAGENET * image / (hours * 3600 * chips)


ADAPTED = (
    Figure(
        "NeMo AutoModel", "Llama 3.1 8B, LoRA r=16 on all projections, bfloat16", "1 H100",
        "4,096; 32 rows, 2 at a time", "12,473 tok/s, 402 TFLOP/s", _AUTOMODEL,
        "measured on mock data; the same count as ours (a frozen weight 4 operations). One GPU: no links at all",
        "h100", _decoder("8B", 4096, 12_472.87, _lora(16)),
    ),
    Figure(
        "NeMo AutoModel", "Llama 3.3 70B, LoRA r=16 on all, bfloat16", "8 H100, tensor 2 x FSDP 4", "4,096; 32 rows",
        "1,092 tok/s a GPU, 316 TFLOP/s", _AUTOMODEL, "measured; base in bfloat16, not quantised",
        "h100", _decoder("meta-llama/Llama-3.3-70B-Instruct", 4096, 1091.85, _lora(16)),
    ),
    Figure(
        "NeMo AutoModel", "the same", "16 H100, 2 nodes, tensor 2 x FSDP 8", "4,096; 32 rows",
        "985 tok/s a GPU, 285 TFLOP/s", _AUTOMODEL, "measured; FSDP over the network of the nodes",
        "h100", _decoder("meta-llama/Llama-3.3-70B-Instruct", 4096, 984.85, _lora(16)),
    ),
    Figure(
        "Megatron Bridge", "Llama 3 70B, LoRA on query, key and value, FP8", "8 H100, tensor 2 x pipeline 4",
        "4,096; 32 rows", "2,643 tok/s a GPU, 735 TFLOP/s", _BRIDGE,
        "measured; FP8 products, whose peak is twice that of bfloat16: no MFU to compare; rank not stated there",
        "", _decoder("meta-llama/Meta-Llama-3-70B", 4096, 2643, _lora(16, _QKV)),
    ),
    Figure(
        "torchtune", "Llama 3.1 70B, LoRA", "8 A100", "2,048, packed; 2 rows a GPU",
        "3,497 tok/s in all, 27.6 GiB a GPU", _TORCHTUNE,
        "measured over an epoch; taken as the sum of the GPUs, as one of them cannot do that. Rank 16 as in its recipe",
        "a100", _decoder("meta-llama/Llama-3.1-70B", 2048, 3497 / 8, _lora(16)),
    ),
    Figure(
        "fsdp_qlora", "Llama 2 70B, QLoRA 4 bits, r=64 on all", "4 H100", "2,048; 8 rows a GPU", "667 s for 1,024 rows",
        _ANSWER, "measured, early 2024: 786 tok/s a GPU. Rank by the script's default. The nearest to our QLoRA rows",
        "h100", _decoder("70B", 2048, 1024 * 2048 / 667 / 4, _lora(64)),
    ),
    Figure(
        "fsdp_qlora", "the same", "8 A100 of 40 GB", "2,048; 4 rows a GPU", "672 s for 1,024 rows", _ANSWER,
        "measured: 390 tok/s a GPU", "a100", _decoder("70B", 2048, 1024 * 2048 / 672 / 8, _lora(64)),
    ),
    Figure(
        "Tunix and qwix", "Gemma 4 31B, LoRA", "v5p-8 (4 chips)", "not in the abstract",
        "1.61 times as fast as 2 H100", "arXiv 2605.25645, abstract", "a ratio of two runs, no rate",
    ),
    Figure(
        "Tunix", "Llama 3.1 8B, LoRA and QLoRA", "v5e-4", "256; 4 rows", "the least hardware that it ran on",
        "google/tunix@c7d8950, examples/sft/mtnt/README.md", "fits, no rate; full training there: v5p-8, 128 rows",
    ),
)  # fmt: skip

TRAINED = (
    Figure(
        "MaxText", "Llama 3.1 8B", "v6e-16", "8,192; 3 rows a chip", "7,243 tok/s a chip, 419.5 TFLOP/s",
        _RECIPES + "Llama3.1-8B-MaxText/v6e-16", "measured, synthetic data; attention counted as the whole square",
        "v6e", _decoder("8B", 8192, 7243.378),
    ),
    Figure(
        "MaxText", "Llama 3.1 8B", "256 v6e", "8,192", "7,207 tok/s a chip, 45.46 % MFU", _TIERS,
        "measured; attention counted as the whole square", "v6e", _decoder("8B", 8192, 7207),
    ),
    Figure(
        "MaxText", "Llama 3.1 70B", "32 v6e", "8,192; 2 rows a chip", "921 tok/s a chip, 443.4 TFLOP/s",
        _RECIPES + "Llama3.1-70B-MaxText/v6e-32", "measured, synthetic data; attention counted as the whole square",
        "v6e", _decoder("meta-llama/Llama-3.1-70B", 8192, 920.965),
    ),
    Figure(
        "MaxText", "Llama 2 70B", "512 v5p", "4,096; 4 rows a chip in the recipe",
        "692 tok/s a chip, 65.4 % MFU", _TIERS,
        "measured; four times the chips of our v5p-128", "v5p", _decoder("70B", 4096, 692),
    ),
    Figure(
        "MaxText", "32B and 64B of its own", "Google's v5p-128: 64 chips", "2,048; 6 and 3 rows a chip",
        "328 and 323 TFLOP/s, 71.5 and 70.3 % MFU", _CONFIGS + "v5p",
        "measured, 2023; attention counted as the whole square; tensor 4 x FSDP 16",
    ),
    Figure(
        "MaxText", "32B and 64B of its own", "256 v5e", "2,048; 4 and 2 rows a chip",
        "132 and 118 TFLOP/s, 66.9 and 59.9 % MFU", _CONFIGS + "v5e",
        "measured, 2023 to 2024; attention counted as the whole square; remat full; a full pod, whose axes are rings",
    ),
    Figure(
        "torchtitan", "Llama 3.1 8B, bfloat16, compiled", "8 H100", "2 rows a GPU", "6,667 tok/s a GPU; 33 to 39 % MFU",
        "pytorch/torchtitan@b5bcd76, benchmarks/llama3_h100_202412_torchtitan.md",
        "measured; length not stated in the table; H100 at 500 W with slower memory",
    ),
    Figure(
        "Levanter", "GPT-2 shapes of 13B and 65B", "v3-256 (128 chips)", "not stated", "54.4 and 44.6 % MFU",
        "stanford-crfm/levanter@9263f81, docs/Levanter-1.0-Release.md", "measured, 2023; other shape and chip",
    ),
    Figure(
        "Levanter in Marin", "Qwen3 32B, supervised fine-tuning", "Google's v5p-256: 128 chips", "32,768",
        "65 s a step, 21.1 % MFU", "marin-community/marin, issues 4307 and 4510",
        "measured in a real run; a longer document than ours",
    ),
)  # fmt: skip

AUTOENCODERS = (
    Figure(
        "He et al., TensorFlow", "ViT-H/14, 75 % masked, decoder 8 x 512, ImageNet", "128 TPU v3 cores: 64 chips",
        "256 patches", "34.5 h for 800 epochs", "arXiv 2111.06377, table 2",
        "measured: 129 images/s a chip. Nearly our shape: 65 and 257 tokens against 60 and 240, the same decoder",
        "v3", _images(vit_config("H", (14, 14)), 256, 34.5, 64),
    ),
    Figure(
        "He et al., PyTorch", "ViT-L/16, the same", "64 V100", "196 patches; 4,096 rows", "about 42 h for 800 epochs",
        "facebookresearch/mae@efb2a80, PRETRAIN.md", "measured", "v100",
        _images(vit_config("L", (16, 16)), 196, 42, 64),
    ),
)  # fmt: skip

ANSWERED = (
    Figure(
        "jax-llm-examples", "Llama 3.1 70B int8, decoding", "v5e-16, data 2 x tensor 8", "128 sequences, context 2,048",
        "50.2 tok/s a sequence, 26.8 % of HBM's bandwidth", "jax-ml/jax-llm-examples@8b4b246, llama3/README.md",
        "measured: 402 tok/s a chip. Decoding, not scoring; the length behind its prefill times is not stated",
    ),
    Figure(
        "vLLM", "Llama 3.3 70B, serving", "v6e-8, tensor 8", "1,000 tokens in, 1,000 out, 128 at a time",
        "7,085 tok/s in all, in and out", "AI-Hypercomputer/tpu-recipes@c8cfe2f, inference/trillium/vLLM/Llama3.x",
        "measured: 886 tok/s a chip, half of them read as in scoring, half written one by one",
    ),
)  # fmt: skip

_PARTS = (
    (
        "Adapters",
        "For Llama 3 8B LoRA and Llama 2 70B or Swallow 70B QLoRA (the same shape with a larger vocabulary). None of "
        "MaxText, Levanter and Tunix states a rate of LoRA training that we found: what there is was measured on GPUs. "
        "So tokens/s do not compare with our rows for TPUs. Shares of the peak do, with care: theirs were reached, "
        "ours are bounds that nothing has reached; both leave out what remat computes again.",
        ADAPTED,
    ),
    (
        "Full training",
        "For full fine-tuning of 8B on v5p-128, and for what a bound of 70B on a slice is worth. Pre-training with "
        "the same operations as full fine-tuning, by runs that were tuned for it, with larger batches; a good "
        "fine-tuning will not be faster. LoRA has 4 N instead of 6 N, so its tokens/s are not those of full training.",
        TRAINED,
    ),
    (
        "Masked autoencoders",
        "For ViT-H on v5e-16. Hours were published, not rates; images of 800 epochs by the hours give one.",
        AUTOENCODERS,
    ),
    (
        "Answering",
        "For scoring 70B on v5e-16. Scoring reads whole prompts, as a prefill does, and is bound by computing or "
        "links; what is published writes tokens one by one and is bound by memory. No figure of scoring was found.",
        ANSWERED,
    ),
)


def published() -> str:
    """The tables of published figures with what can be compared, in Markdown, from their heading on."""
    header = (
        "who",
        "model, task",
        "hardware",
        "length; batch",
        "published",
        "by our count",
        "stated in",
        "to be noted",
    )
    parts = [
        "## Published figures of others",
        "Measured by their authors, on their machines; ours are compiled or worked out and were never run. "
        '"By our count" is their rate times the operations that medjax counts (causal attention as half the square, '
        "LoRA as 4 N, nothing for remat), and its share of the chip's bfloat16 peak. MaxText counted the whole square "
        "until July 2025, so its own figures are higher. Rows are those of a whole step unless it says otherwise.",
    ]
    for heading, text, figures in _PARTS:
        lines = [header, ["---"] * len(header)]
        lines += [
            (one.who, one.work, one.hardware, one.batch, one.stated, one.counted, one.source, one.note)
            for one in figures
        ]
        parts += [f"### {heading}", wrapped(text), "\n".join("| " + " | ".join(line) + " |" for line in lines)]
    return "\n\n".join([parts[0], wrapped(parts[1]), *parts[2:]]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(published())
