"""medjax against transformers + peft: LoRA fine-tuning, real (non-padding) tokens a second.

  python benchmarks/sft_vs_peft.py --json result.json
  python benchmarks/sft_vs_peft.py --device gpu --shape 8b --json result.json
  python benchmarks/sft_vs_peft.py --shape tiny        seconds: shows that both sides agree, measures nothing

The same job on both sides: LoRA of rank 16, alpha 32, no dropout on all seven linear layers, from the same A (B is 0);
the same documents of real length, cut at the same window; AdamW at a constant 2e-4, no weight decay, gradients clipped
to a norm of 1; the loss is the mean over counted tokens. The peer runs as its users run it (random batches, each padded
to its longest document: `ratio`) and at its best (documents grouped by length, the fastest of several micro-batch
sizes: `ratio_grouped`, and `ratio_computed` by computed tokens, padding included). medjax packs documents into rows.

Order in one run: peer, medjax, peer grouped, again and again, at last the peer once more. Both stay loaded and warm,
and wait while the other runs. Every block of a kind trains on the same batches, which stand for the whole corpus. CPU
seconds are given too, because other work on the same cores distorts wall seconds more.

Exit status: 0 done, 1 first-step losses differ by more than the tolerance or the peer failed, 2 the call or the input
was wrong.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import JAX_PLATFORMS, cores, cpu_name, hold_to_cores
from peers import peer_python, peers_folder
from sft_corpus import (
    KINDS,
    corpus,
    grouped_batches,
    initial_adapters,
    micro_batches,
    padding_fill,
    shuffled_batches,
    spread,
)
from sft_sides import LEARNING_RATE, LORA, MedjaxSide, PeftSide

from medjax.assets import resolve_model, sha256_file
from medjax.data.text.documents import Document
from medjax.models.decoder_config import DecoderConfig, from_hugging_face
from medjax.store.sources import open_source
from medjax.train.flops import TrainingFlops, attended_pairs, peak_of

_FIRST_STEPS = 3  # on one batch: B moves first, then A as well
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}  # natural log, mean over the first step's counted tokens
SHAPES = {  # fields of a Hugging Face config.json; 8b: the dimensions of Llama 3 8B
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
}


def main() -> int:
    options = _options()
    try:
        hold_to_cores(options.threads, options.device)
        model, config = _model(options)
        documents = corpus(
            options.documents, options.window, responses_only=options.loss == "response", vocab_size=config.vocab_size
        )
        if len(documents) < 8 * options.batch_size:
            raise ValueError(f"--batch-size: got {options.batch_size}, expected at most {len(documents) // 8}.")
        python = options.peer_python or peer_python("peft")
        with tempfile.TemporaryDirectory(prefix="medjax-peer-") as name:
            result = measure(options, python, model, config, documents, Path(name))
    except RuntimeError as error:
        print(f"sft_vs_peft: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"sft_vs_peft: {error}", file=sys.stderr)
        return 2
    print_table(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False), "utf-8")
    return 0 if result["first_loss_diff"] <= result["tolerance"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(JAX_PLATFORMS), default="cpu", help="tpu: the peer runs on the CPU")
    parser.add_argument(
        "--shape", choices=("smollm2", *SHAPES), help="smollm2: the real model; others are random (gpu, tpu: 8b)"
    )
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), help="of both sides (cpu: float32, else bfloat16)")
    parser.add_argument("--layers", type=int, help="of a random model, to make it smaller")
    parser.add_argument("--documents", choices=KINDS, help="see sft_corpus.py (mixed; synthetic for random models)")
    parser.add_argument("--loss", choices=("all", "response"), default="all", help="which tokens count (all)")
    parser.add_argument("--window", type=int, default=512, help="tokens after which a document is cut (512)")
    parser.add_argument("--batch-size", type=int, default=4, help="documents of a peer's step (4)")
    parser.add_argument("--micro-batch-sizes", default="1,2,4,8", help="tried for the peer's best (1,2,4,8)")
    parser.add_argument("--row", type=int, help="tokens of a medjax row (the window)")
    parser.add_argument(
        "--rows", type=int, help="rows of a medjax step (as many tokens as --batch-size full documents)"
    )
    parser.add_argument("--remat", default="dots", help="what medjax's backward pass recomputes: none, dots, … (dots)")
    parser.add_argument("--steps", type=int, default=8, help="steps of a block (8)")
    parser.add_argument("--rounds", type=int, default=3, help="blocks of each kind (3)")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores and threads of both sides (2)")
    parser.add_argument("--peak-tflops", type=float, help="of the accelerator in bfloat16, when it is not known here")
    parser.add_argument("--peer-python", type=Path, help="interpreter of a ready peer environment")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    for name in ("layers", "batch_size", "rows", "steps", "rounds", "threads", "peak_tflops"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')}: got {value}, expected 1 or more")
    options.row = options.row or options.window
    if options.window < 64 or options.row < options.window or options.row % 128:
        parser.error(
            f"--window, --row: got {options.window}, {options.row}; expected 64 or more, and a multiple of 128 that is "
            "no smaller"
        )
    if options.peer_python and not options.peer_python.is_file():
        parser.error(f"--peer-python: got {options.peer_python}, expected the interpreter of a virtual environment")
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", options.micro_batch_sizes):
        parser.error(f"--micro-batch-sizes: got {options.micro_batch_sizes!r}, expected numbers, as in 1,2,4,8")
    options.micro_batch_sizes = [int(size) for size in options.micro_batch_sizes.split(",")]
    options.shape = options.shape or ("smollm2" if options.device == "cpu" else "8b")
    if options.layers and options.shape == "smollm2":
        parser.error(f"--layers: got {options.layers} for smollm2, expected it with a random model only")
    options.documents = options.documents or ("mixed" if options.shape == "smollm2" else "synthetic")
    options.rows = options.rows or max(1, options.batch_size * options.window // options.row)
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    return options


def _model(options: argparse.Namespace) -> tuple[dict[str, Any], DecoderConfig]:
    """The model as the peer is told about it, and its config."""
    if options.shape == "smollm2":
        gguf = resolve_model("smollm2-135m")
        folder = peers_folder() / "checkpoints" / f"{gguf.stem}-{sha256_file(gguf)[:12]}"
        return {"gguf": str(gguf), "folder": str(folder)}, open_source(gguf).config
    shape = SHAPES[options.shape] | ({"num_hidden_layers": options.layers} if options.layers else {})
    fixed = {
        "model_type": "llama",
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": shape["hidden_size"] // shape["num_attention_heads"],
    }
    digest = hashlib.sha256(json.dumps(shape | fixed, sort_keys=True).encode()).hexdigest()
    name = f"random-{options.shape}-{options.dtype}-{digest[:12]}"
    described = {"config": shape | fixed, "folder": str(peers_folder() / "checkpoints" / name)}
    return described, from_hugging_face(shape | fixed, f"shape {options.shape}")


def measure(
    options: argparse.Namespace,
    python: Path,
    model: dict[str, Any],
    config: DecoderConfig,
    documents: list[Document],
    folder: Path,
) -> dict[str, Any]:
    """Run both sides in turn; returns the benchmark's numbers. Raises RuntimeError when the peer fails."""
    lengths = [len(document.tokens) for document in documents]
    load = [os.getloadavg()[0]]
    job = {
        "model": model,
        "device": {"gpu": "cuda"}.get(options.device, "cpu"),
        "dtype": options.dtype,
        "threads": options.threads,
        "lora": {"rank": LORA.rank, "alpha": LORA.alpha},
        "learning_rate": LEARNING_RATE,
    }
    adapters = initial_adapters(config, LORA.rank)
    with PeftSide(python, job, adapters, documents, folder) as peer:
        ours = MedjaxSide(options, Path(model.get("gguf", model["folder"])), adapters, documents)
        shuffled = shuffled_batches(lengths, options.batch_size)
        first = shuffled[0]
        losses = {"medjax": ours.first_losses(first, _FIRST_STEPS), "peft": peer.first_losses(first, _FIRST_STEPS)}

        trials = peer.trials(grouped_batches(lengths, max(options.micro_batch_sizes)), options.micro_batch_sizes)
        best = max(trials, key=lambda size: trials[size] or 0.0)
        print(f"peft: computed tokens/s by micro-batch size: {trials}; {best} is used", flush=True)
        grouped = grouped_batches(lengths, max(best, options.batch_size))
        dynamic_steps = spread(shuffled, options.steps, lambda batch: padding_fill(lengths, [batch]))
        count = max(1, options.steps * options.batch_size // len(grouped[0]))
        grouped_steps = spread(grouped, count, lambda batch: max(lengths[i] for i in batch))

        blocks: dict[str, list[dict[str, Any]]] = {"dynamic": [], "grouped": [], "medjax": []}
        probes: dict[str, list[float]] = {"peft": [], "medjax": []}
        for last in [False] * options.rounds + [True]:
            blocks["dynamic"].append(peer.block(micro_batches(dynamic_steps, options.batch_size), "dynamic padding"))
            if last:
                break
            probes["peft"].append(peer.probe())
            blocks["medjax"].append(ours.block(options.steps))
            probes["medjax"].append(ours.probe())
            blocks["grouped"].append(peer.block(micro_batches(grouped_steps, best), "grouped by length"))
            load.append(os.getloadavg()[0])
        return {
            **compare(blocks, losses, options),
            "epoch_fill": {
                "medjax": ours.fill,
                "peft": padding_fill(lengths, shuffled),
                "peft_grouped": padding_fill(lengths, grouped_batches(lengths, best)),
            },
            **efficiency(blocks, probes, config, documents, ours.device, options),
            "batch_trials": trials,
            "micro_batch_size": best,
            "medjax": ours.description() | {"blocks": blocks["medjax"], "matmul_gflops": probes["medjax"]},
            "peft": {name: value for name, value in peer.description.items() if name != "versions"}
            | {"dynamic": blocks["dynamic"], "grouped": blocks["grouped"], "matmul_gflops": probes["peft"]},
            "versions": {
                "medjax": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
                "peft": peer.description["versions"],
                "python": platform.python_version(),
            },
            "device": {"cpu": cpu_name(), "cores": len(cores()), "load_average_1min": [round(one, 2) for one in load]},
            "settings": {name: value for name, value in vars(options).items() if name not in ("json", "peer_python")}
            | {"corpus": len(documents), "corpus_tokens": sum(lengths)},
        }


def compare(
    blocks: dict[str, list[dict[str, Any]]], losses: dict[str, list[float]], options: argparse.Namespace
) -> dict[str, Any]:
    """The ratios, of medians over the blocks."""

    def rate(kind: str, tokens: str = "real_tokens", by: str = "seconds", *, some: slice = slice(None)) -> float:
        return statistics.median(block[tokens] / block[by] for block in blocks[kind][some])

    dynamic, grouped, ours = (rate(kind) for kind in ("dynamic", "grouped", "medjax"))
    best = max(rate(kind, "computed_tokens") for kind in ("dynamic", "grouped"))
    differences = [abs(one - other) for one, other in zip(losses["medjax"], losses["peft"], strict=True)]
    return {
        "ratio": ours / dynamic,
        "ratio_peft": ours / dynamic,
        "ratio_grouped": ours / grouped,
        "ratio_computed": rate("medjax", "computed_tokens") / best,
        "ratio_before": ours / rate("dynamic", some=slice(None, -1)),
        "ratio_after": ours / rate("dynamic", some=slice(1, None)),
        "ratio_cpu_seconds": rate("medjax", by="cpu_seconds") / rate("dynamic", by="cpu_seconds"),
        "ratio_grouped_cpu_seconds": rate("medjax", by="cpu_seconds") / rate("grouped", by="cpu_seconds"),
        "first_losses": losses,
        "first_loss_diff": differences[0],
        "first_losses_diff": differences,
        "tolerance": TOLERANCE[options.dtype],
        "real_tokens_per_second": {"medjax": ours, "peft": dynamic, "peft_grouped": grouped},
        "computed_tokens_per_second": {
            "medjax": rate("medjax", "computed_tokens"),
            "peft": rate("dynamic", "computed_tokens"),
            "peft_grouped": rate("grouped", "computed_tokens"),
        },
    }


def efficiency(
    blocks: dict[str, list[dict[str, Any]]],
    probes: dict[str, list[float]],
    config: DecoderConfig,
    documents: list[Document],
    device: str,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Useful FLOPs a second by the conventions of train.flops, and their shares of the probed rate and of the peak."""
    flops = TrainingFlops(config, "lora", LORA)

    def useful(numbers: list[int]) -> float:
        chosen = [documents[i] for i in numbers]
        pairs = sum(attended_pairs(config, np.arange(len(document.tokens))) for document in chosen)
        counted = sum(int(document.counted.sum()) for document in chosen)
        return flops.of_step(sum(len(document.tokens) for document in chosen), pairs, counted)

    gflops = {
        side: statistics.median(useful(block["documents"]) / block["seconds"] for block in blocks[kind]) / 1e9
        for side, kind in (("medjax", "medjax"), ("peft", "dynamic"), ("peft_grouped", "grouped"))
    }
    probed = {"medjax": max(probes["medjax"]), "peft": max(probes["peft"])} | {"peft_grouped": max(probes["peft"])}
    peak = options.peak_tflops
    if peak is None and (known := peak_of(device)):
        peak = known / 1e12
    return {
        "useful_gflops": gflops,
        "matmul_fraction": {side: gflops[side] / probed[side] for side in gflops},
        "peak_tflops": peak,
        "mfu": {side: value / 1e3 / peak for side, value in gflops.items()} if peak else None,
    }


def print_table(result: dict[str, Any]) -> None:
    """The result as lines for people."""
    settings, device = result["settings"], result["device"]
    real, computed = result["real_tokens_per_second"], result["computed_tokens_per_second"]
    sides = ("medjax", "peft", "peft_grouped")
    rows = [
        ("", "medjax, packed", "peft, dynamic padding", f"peft, grouped, micro-batch {result['micro_batch_size']}"),
        ("real tokens/s", *(f"{real[side]:.1f}" for side in sides)),
        ("computed tokens/s", *(f"{computed[side]:.1f}" for side in sides)),
        ("real share, an epoch", *(f"{result['epoch_fill'][side]:.1%}" for side in sides)),
        ("useful GFLOP/s", *(f"{result['useful_gflops'][side]:.0f}" for side in sides)),
        ("  of the matmul probe", *(f"{result['matmul_fraction'][side]:.0%}" for side in sides)),
    ]
    if result["mfu"]:
        rows.append((f"MFU, {result['peak_tflops']} TFLOP/s", *(f"{result['mfu'][side]:.1%}" for side in sides)))
    print(
        f"\nLoRA r={LORA.rank}, {settings['shape']}, {settings['dtype']}, documents {settings['documents']}: "
        f"{settings['corpus']} of {settings['corpus_tokens']:,} tokens, loss on {settings['loss']} tokens"
    )
    print(f"{device['cpu']}, {device['cores']} cores; medjax on {result['medjax']['device']}, ", end="")
    print(f"peft on {result['peft']['device']}; load average {device['load_average_1min']}")
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, (22, 16, 22, 0), strict=True)))
    losses = result["first_losses"]
    print(
        f"first step's loss: {losses['medjax'][0]:.6f} and {losses['peft'][0]:.6f}, difference "
        f"{result['first_loss_diff']:.1e}, allowed {result['tolerance']:.0e}; in the next steps on the same batch "
        + ", ".join(f"{value:.1e}" for value in result["first_losses_diff"][1:])
    )
    print(
        f"medjax / peft: {result['ratio']:.2f} x real tokens/s against dynamic padding (blocks before medjax's "
        f"{result['ratio_before']:.2f}, after {result['ratio_after']:.2f}; by CPU seconds "
        f"{result['ratio_cpu_seconds']:.2f}), {result['ratio_grouped']:.2f} x against grouped, "
        f"{result['ratio_computed']:.2f} x by computed tokens against its best"
    )


if __name__ == "__main__":
    sys.exit(main())
