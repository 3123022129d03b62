"""medjax against PyTorch: pre-training a masked autoencoder of ECGs, records a second.

  python benchmarks/ecg_mae_vs_torch.py --json result.json
  python benchmarks/ecg_mae_vs_torch.py --device gpu --size H --json result.json      bfloat16; MFU besides
  python benchmarks/ecg_mae_vs_torch.py --size nano --batch-size 8 --steps 1          seconds: both sides agree

The same step on both sides: batch 64 of 12 x 2,500 samples in patches of 1 x 125 (240 tokens), 75 % masked, ViT-S over
the 60 visible ones, decoder of 4 blocks of 256 over all, mean squared error of masked patches, gradients clipped to a
norm of 1, AdamW; float32 on 2 cores. medjax runs the step of `python -m medjax.train` with train.accumulation parts.
The peer (ecg_mae_torch.py) starts from medjax's weights; on the same mask losses and gradient norms must agree.

It runs in three ways: eager on the whole batch (`ratio_eager`), through torch.compile (`ratio_compile`), and the
fastest of both in micro-batches, as found in a trial (`ratio_best`). `ratio` is against the fastest of the three.
Blocks of medjax and of each way take turns; rates are medians over blocks. CPU seconds are given too, because other
work on the same cores distorts wall seconds more.

Without CUDA for torch, `--device gpu` measures medjax alone: the ratios are null and `peer` says why.

Exit status: 0 done, 1 losses or gradient norms differ by more than the tolerance or the peer failed, 2 the call was
wrong.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ecg_mae_sides import MedjaxSide, TorchSide, Variant, step_flops
from machine import JAX_PLATFORMS, cores, cpu_name, hold_to_cores
from peers import peer_python

from medjax.data.ecg.leads import LEADS
from medjax.models.vit import SIZES
from medjax.train.flops import peak_of

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the mean loss, which is near 1
NORM_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # relative
Blocks = dict[str, list[dict[str, Any]]]


def main() -> int:
    options = _options()
    try:
        hold_to_cores(options.threads, options.device)
        with tempfile.TemporaryDirectory(prefix="medjax-peer-") as name:
            result = measure(options, Path(name))
    except RuntimeError as error:
        print(f"ecg_mae_vs_torch: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"ecg_mae_vs_torch: {error}", file=sys.stderr)
        return 2
    print_table(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False), "utf-8")
    return 0 if result["agree"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(JAX_PLATFORMS), default="cpu", help="tpu: the peer is not run")
    parser.add_argument("--size", choices=tuple(SIZES), help="of the encoder (cpu: S, else L)")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), help="of both sides (cpu: float32, else bfloat16)")
    parser.add_argument("--batch-size", type=int, help="records of a step (cpu: 64, else 256)")
    parser.add_argument("--samples", type=int, default=2500, help="of a lead (2500)")
    parser.add_argument("--patch", type=int, default=125, help="samples in a patch (125)")
    parser.add_argument("--decoder-embed", type=int, default=256, help="width of the decoder (256)")
    parser.add_argument("--accumulation", type=int, help="parts of medjax's step (cpu: 8, else 1)")
    parser.add_argument("--remat", default="none", help="what medjax's backward pass recomputes: none, dots, … (none)")
    parser.add_argument("--parts", default="1,4,8,16", help="micro-batches of a step tried for the peer (1,4,8,16)")
    parser.add_argument("--steps", type=int, default=2, help="steps of a block (2)")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each kind (5)")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores and threads of both sides (2)")
    parser.add_argument("--peak-tflops", type=float, help="of the accelerator, when it is not known here")
    parser.add_argument("--peer-python", type=Path, help="interpreter of a ready peer environment")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    options.size = options.size or ("S" if on_cpu else "L")
    options.dtype = options.dtype or ("float32" if on_cpu else "bfloat16")
    options.batch_size = options.batch_size or (64 if on_cpu else 256)
    options.accumulation = options.accumulation or (min(8, options.batch_size) if on_cpu else 1)
    for name in ("batch_size", "accumulation", "steps", "rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(options, name)}, expected 1 or more")
    try:
        options.parts = [int(parts) for parts in options.parts.split(",")]
    except ValueError:
        parser.error(f"--parts: got {options.parts!r}, expected numbers, as in 1,4,8,16")
    options.parts = [parts for parts in options.parts if parts > 0 and options.batch_size % parts == 0] or [1]
    if options.peer_python and not options.peer_python.is_file():
        parser.error(f"--peer-python: got {options.peer_python}, expected the interpreter of a virtual environment")
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run both sides in turn; returns the benchmark's numbers. Raises RuntimeError when the peer fails."""
    load = [os.getloadavg()[0]]
    print("medjax: compiling", flush=True)
    ours = MedjaxSide(options)
    first = {"medjax": ours.first()}
    peer_state, python = peer_to_run(options)
    blocks: Blocks = {"medjax": []}
    probes: dict[str, list[float]] = {"medjax": []}
    trials: dict[str, Any] = {}
    description = None
    if python is None:
        print(f"torch: {peer_state}", flush=True)
        for _ in range(options.rounds):
            blocks["medjax"].append(told("medjax", ours.block(options.steps)))
        probes["medjax"].append(ours.probe())
    else:
        print("torch: loading", flush=True)
        with TorchSide(python, options, ours, folder) as peer:
            description = peer.description
            first["torch"] = peer.first()
            ways, trials = ways_of(peer, options)
            ours.block(1)
            blocks |= {way: [] for way in ways}
            probes["torch"] = []
            for _ in range(options.rounds):
                for way, variant in ways.items():
                    blocks["medjax"].append(told("medjax", ours.block(options.steps)))
                    blocks[way].append(told(f"torch, {way}", peer.block(options.steps, variant)))
                probes["medjax"].append(ours.probe())
                probes["torch"].append(peer.probe())
                load.append(os.getloadavg()[0])
    tokens = len(LEADS) * options.samples // options.patch
    visible = ours.first_batch["keep"].shape[1]
    flops = step_flops(ours.config, tokens, visible)
    return {
        **compare(blocks, first, options),
        **efficiency(blocks, probes, flops, ours, options),
        "peer": peer_state,
        "tokens": tokens,
        "visible": visible,
        "trials": trials,
        "medjax": {
            "blocks": blocks["medjax"],
            "compile_seconds": ours.compile_seconds,
            "temporary_bytes": ours.temporary_bytes,
            "device": ours.device,
            "matmul_gflops": probes["medjax"],
        },
        "torch": {
            "blocks": {way: found for way, found in blocks.items() if way != "medjax"},
            "matmul_gflops": probes.get("torch"),
        }
        | (description or {}),
        "versions": {
            "medjax": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
            "torch": description["versions"] if description else None,
            "python": platform.python_version(),
        },
        "device": {"cpu": cpu_name(), "cores": len(cores()), "load_average_1min": [round(one, 2) for one in load]},
        "settings": {name: value for name, value in vars(options).items() if name not in ("json", "peer_python")},
    }


def peer_to_run(options: argparse.Namespace) -> tuple[str, Path | None]:
    """Whether the peer runs, in words, and its interpreter; None where it has no such device."""
    import subprocess

    if options.device == "tpu":
        return "not run: torch has no TPU path here", None
    python = options.peer_python or peer_python("torch")
    if options.device == "gpu":
        asked = [str(python), "-c", "import torch; print(torch.cuda.is_available())"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.stdout.strip() != "True":
            return "not run: torch finds no CUDA device in the peer's environment", None
    return "run", python


def ways_of(peer: TorchSide, options: argparse.Namespace) -> tuple[dict[str, Variant], dict[str, Any]]:
    """The ways in which the peer is measured, and what a trial of one step each, after a warm-up, gave (records/s).

    eager and compile take the whole batch; best is the fastest of all where that is neither.
    """
    rates: dict[str, Any] = {}
    found: dict[str, Variant] = {}

    def attempt(name: str, variant: Variant) -> None:
        blocks = [peer.block(1, variant) for _ in range(2)]
        why = next((block["failed"] for block in blocks if "failed" in block), None)
        rates[name] = why or blocks[-1]["records"] / blocks[-1]["seconds"]
        print(f"torch: trial, {name}: {rates[name]}", flush=True)
        if not why:
            found[name] = variant

    for parts in options.parts:
        attempt(f"eager, {parts} parts", {"parts": parts, "compiled": False})
    fast = max((name for name in found), key=lambda name: rates[name], default=None)
    if fast is None:
        raise RuntimeError(f"torch: no way ran: {rates}; use a smaller --batch-size.")
    best_parts = found[fast]["parts"]
    for parts in dict.fromkeys((1, best_parts)):
        attempt(f"compile, {parts} parts", {"parts": parts, "compiled": True})
    ways = {}
    for way in ("eager", "compile"):
        if (name := f"{way}, 1 parts") in found:
            ways[way] = found[name]
    best = found[max(found, key=lambda name: rates[name])]
    return ways | ({"best": best} if best not in ways.values() else {}), rates


def told(name: str, block: dict[str, Any]) -> dict[str, Any]:
    """Print one line for a finished block and return it. Raises RuntimeError for one that failed."""
    if "failed" in block:
        raise RuntimeError(f"{name}: {block['failed']}; it ran in the trial, so memory is short: end other programs.")
    print(
        f"{name}: {block['records'] / block['seconds']:.2f} records/s, "
        f"{block['records'] / block['cpu_seconds']:.2f} a CPU second",
        flush=True,
    )
    return block


def rate(blocks: list[dict[str, Any]], by: str = "seconds") -> float:
    """Median records a second over the blocks."""
    return statistics.median(block["records"] / block[by] for block in blocks)


def compare(blocks: Blocks, first: dict[str, dict[str, float]], options: argparse.Namespace) -> dict[str, Any]:
    """Rates, ratios of medians over the blocks, and how far the first step's numbers differ."""
    ways = [way for way in blocks if way != "medjax"]
    rates, by_cpu = ({way: rate(found, by) for way, found in blocks.items()} for by in ("seconds", "cpu_seconds"))
    ratios = {f"ratio_{way}": rates["medjax"] / rates[way] for way in ways}
    loss = norm = None
    if "torch" in first:
        loss = abs(first["medjax"]["loss"] - first["torch"]["loss"])
        norm = abs(first["medjax"]["grad_norm"] / first["torch"]["grad_norm"] - 1)
    tolerance, norm_tolerance = TOLERANCE[options.dtype], NORM_TOLERANCE[options.dtype]
    return {
        "ratio": min(ratios.values(), default=None),
        **ratios,
        "ratio_cpu_seconds": min((by_cpu["medjax"] / by_cpu[way] for way in ways), default=None),
        "records_per_s": rates,
        "records_per_cpu_s": by_cpu,
        "first": first,
        "first_loss_diff": loss,
        "first_grad_norm_diff": norm,
        "tolerance": tolerance,
        "grad_norm_tolerance": norm_tolerance,
        "agree": loss is None or (loss <= tolerance and norm is not None and norm <= norm_tolerance),
    }


def efficiency(
    blocks: Blocks, probes: dict[str, list[float]], flops: float, ours: MedjaxSide, options: argparse.Namespace
) -> dict[str, Any]:
    """Operations a second, their share of the probed matmul rate, and of the device's peak (MFU)."""
    gflops = {way: rate(found) * flops / 1e9 for way, found in blocks.items()}
    peak = options.peak_tflops or ((peak_of(ours.device) or 0) / 1e12 or None)
    probed = {way: max(probes["medjax" if way == "medjax" else "torch"]) for way in blocks}
    return {
        "flops_per_record": flops,
        "gflops": gflops,
        "matmul_fraction": {way: gflops[way] / probed[way] for way in blocks},
        "peak_tflops": peak,
        "mfu": {way: value / 1e3 / peak / ours.devices for way, value in gflops.items()} if peak else None,
    }


def print_table(result: dict[str, Any]) -> None:
    """The result as lines for people."""
    s, device = result["settings"], result["device"]
    ways = list(result["records_per_s"])
    rows = [
        ("", *(way if way == "medjax" else f"torch, {way}" for way in ways)),
        ("records/s", *(f"{result['records_per_s'][way]:.2f}" for way in ways)),
        ("records a CPU second", *(f"{result['records_per_cpu_s'][way]:.2f}" for way in ways)),
        ("GFLOP/s", *(f"{result['gflops'][way]:.0f}" for way in ways)),
        ("  of the matmul probe", *(f"{result['matmul_fraction'][way]:.0%}" for way in ways)),
    ]
    if result["mfu"]:
        rows.append((f"MFU, {result['peak_tflops']:g} TFLOP/s", *(f"{result['mfu'][way]:.1%}" for way in ways)))
    print(
        f"\nMAE, ViT-{s['size']}, {s['dtype']}, batch {s['batch_size']} of {len(LEADS)} x {s['samples']}, "
        f"{result['visible']} of {result['tokens']} tokens visible; medjax in {s['accumulation']} parts"
    )
    print(
        f"{device['cpu']}, {device['cores']} cores, {s['threads']} threads; medjax on {result['medjax']['device']}, "
        f"torch on {result['torch'].get('device')} ({result['peer']}); load average {device['load_average_1min']}"
    )
    for row in rows:
        print("  ".join(f"{cell:<22}" for cell in row))
    if result["ratio"] is None:
        return
    first = result["first"]
    print(
        f"first step: loss {first['medjax']['loss']:.6f} and {first['torch']['loss']:.6f}, difference "
        f"{result['first_loss_diff']:.1e} (allowed {result['tolerance']:.0e}); gradient norm "
        f"{first['medjax']['grad_norm']:.5f} and {first['torch']['grad_norm']:.5f}"
    )
    each = ", ".join(f"{way} {result[f'ratio_{way}']:.2f}" for way in ways if way != "medjax")
    print(f"medjax / torch: {result['ratio']:.2f} x ({each}; by CPU seconds {result['ratio_cpu_seconds']:.2f})")


if __name__ == "__main__":
    sys.exit(main())
