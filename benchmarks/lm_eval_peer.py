"""Score requests with the HF back end of lm-evaluation-harness; runs in the peer's own environment.

  python lm_eval_peer.py --requests FILE --out FILE --model PATH --checkpoint DIR [--device cpu] [--threads 2]
                         [--batch-sizes 1,4,8]

requests  JSON: a list of [context, continuation]
out       JSON: results [[logprob, is_greedy], ...], continuation_ids, context_tokens, seconds (wall, from texts to
          scores), cpu_seconds, load_seconds, tokens_run (padding included), batch_size, batch_trials {size:
          requests/s}, threads, matmul_gflops, dtype, attention, device, versions
model     a GGUF file, which is turned into a float32 Hugging Face folder at --checkpoint once, or such a folder

With several batch sizes each first scores the same few requests, and the fastest scores them all. The model is warm
when the clock starts. Started by eval_vs_lm_eval.py.
"""

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is local; set before transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from checkpoint import converted
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

_TRIAL_REQUESTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("requests", "out", "model", "checkpoint"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-sizes", default="1,4,8")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    folder = options.model if options.model.is_dir() else converted(options.model, options.checkpoint)

    start = time.perf_counter()
    peer = HFLM(pretrained=str(folder), device=options.device, dtype="float32", batch_size=1)
    load_seconds = time.perf_counter() - start
    tokens_run = [0]
    peer.model.register_forward_pre_hook(lambda module, args: tokens_run.append(args[0].numel()))

    pairs = [tuple(pair) for pair in json.loads(options.requests.read_text("utf-8"))]
    sizes = [int(size) for size in options.batch_sizes.split(",")]
    trial = pairs[: max(_TRIAL_REQUESTS, *sizes)] if len(sizes) > 1 else []
    score(peer, pairs[:1], sizes[0])
    trials = {size: len(trial) / score(peer, trial, size)[1] for size in sizes} if trial else {}
    best = max(trials, key=lambda size: trials[size]) if trials else sizes[0]
    if trials:
        print("lm-eval: batch sizes tried,", {size: f"{rate:.3f} requests/s" for size, rate in trials.items()})
    before = matmul_gflops(peer.device)
    tokens_run.clear()
    cpu_start = time.process_time()
    results, seconds = score(peer, pairs, best)
    cpu_seconds = time.process_time() - cpu_start
    encoded = [peer._encode_pair(*pair) for pair in pairs]
    found = {
        "results": results,
        "continuation_ids": [continuation for _, continuation in encoded],
        "context_tokens": [len(context) for context, _ in encoded],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "load_seconds": load_seconds,
        "tokens_run": sum(tokens_run),
        "batch_size": best,
        "batch_trials": trials,
        "threads": torch.get_num_threads(),
        "matmul_gflops": [before, matmul_gflops(peer.device)],
        "dtype": str(next(peer.model.parameters()).dtype),
        "attention": peer.model.config._attn_implementation,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version(name) for name in ("transformers", "lm_eval", "tokenizers")},
        },
    }
    options.out.write_text(json.dumps(found), "utf-8")


def score(peer: HFLM, pairs: list[tuple[str, str]], batch_size: int) -> tuple[list[tuple[float, bool]], float]:
    """The harness's results for (context, continuation) texts, and the seconds taken."""
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    peer.batch_size_per_gpu = batch_size
    start = time.perf_counter()
    found = peer.loglikelihood(requests, disable_tqdm=not sys.stderr.isatty())
    results = [(float(logprob), bool(greedy)) for logprob, greedy in found]
    return results, time.perf_counter() - start


def matmul_gflops(device: torch.device, repeats: int = 20) -> float:
    """Best rate of [1024, 576] x [576, 1536] x [1536, 576] in float32: a small model's MLP without its activation."""
    x = torch.randn(1024, 576, device=device)
    up, down = torch.randn(576, 1536, device=device) / 24, torch.randn(1536, 576, device=device) / 39
    best = float("inf")
    with torch.inference_mode():
        for _ in range(repeats):
            start = time.perf_counter()
            y = x
            for _ in range(2):
                y = y @ up @ down
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    return 2 * 4 * 1024 * 576 * 1536 / best / 1e9


if __name__ == "__main__":
    main()
