"""medjax against lm-evaluation-harness: log-probabilities of the choices of a medical exam, requests a second.

  python benchmarks/eval_vs_lm_eval.py --items 40 --num-fewshot 3 --json result.json

Both sides score the same checkpoint (SmolLM2-135M-Instruct) in float32 on the same IgakuQA items: the prompt of the
exam's authors ends with "答え:", the continuations are " " + choice text. Texts go in and log-probabilities come out on
both clocks, so tokenisation counts. Order in one run: medjax (first call with compilation, then warm runs), the peer,
medjax again, so that a machine that slows down meanwhile shows. Both processes are held to the same CPU cores.

Wall seconds decide; the CPU seconds of both sides are given too, because other work on the same cores distorts wall
seconds more.

Exit status: 0 done, 1 log-probs differ by more than 1e-3, token ids differ or the peer failed, 2 the call or the input
was wrong.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import JAX_PLATFORMS, cores, cpu_name, hold_to_cores, matmul_gflops
from peers import peer_python, peers_folder

from medjax.assets import resolve_model, sha256_file
from medjax.data.exams.tasks import load_task
from medjax.data.qa import Item

if TYPE_CHECKING:
    from medjax.infer.packing import Request
    from medjax.infer.scorer import Score, Work

TOLERANCE = 1e-3  # natural log, sum over a continuation
_PEER_DEVICES = {"cpu": "cpu", "gpu": "cuda", "tpu": "cpu"}  # the harness's HF back end has no TPU path
_BATCH_SIZES = {"cpu": "1,4,8", "gpu": "8,32,64", "tpu": "1,4,8"}

_PER_REQUEST = {"results", "continuation_ids", "context_tokens"}

Pairs = list[tuple[str, str]]


def main() -> int:
    options = _options()
    try:
        hold_to_cores(options.threads, options.device)
        model = resolve_model(options.model)
        questions = exam_pairs(options.year, options.items, options.num_fewshot)
        python = options.peer_python or peer_python("lm-eval")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"eval_vs_lm_eval: {error}", file=sys.stderr)
        return 2
    compared = questions[: options.peer_items or options.items]

    load = [os.getloadavg()]
    medjax = Medjax(model, options.device)
    first = medjax.run(compared)
    before = [medjax.run(compared) for _ in range(options.repeats)]
    load.append(os.getloadavg())
    try:
        peer = run_peer(python, model, [pair for pairs in compared for pair in pairs], options)
    except RuntimeError as error:
        print(f"eval_vs_lm_eval: {error}", file=sys.stderr)
        return 1
    load.append(os.getloadavg())
    after = [medjax.run(compared) for _ in range(options.repeats)]
    whole = []
    if len(questions) > len(compared):
        medjax.run(questions)
        whole = [medjax.run(questions) for _ in range(options.repeats)]
    load.append(os.getloadavg())

    result = compare(first, before, after, peer)
    result["medjax"] |= {"load_seconds": medjax.load_seconds, "programs": dict(medjax.programs.shapes)}
    if whole:
        result["all_items"] = all_items(whole, peer)
    result["settings"] = {
        **{name: getattr(options, name) for name in ("model", "year", "num_fewshot", "items", "threads", "repeats")},
        "peer_items": len(compared),
        "model_sha256": sha256_file(model) if model.is_file() else None,
        "prompts_sha256": hashlib.sha256(json.dumps(compared).encode()).hexdigest(),
    }
    result["device"] = {
        **{"medjax": medjax.device, "lm_eval": peer["device"], "cpu": cpu_name(), "cores": len(cores())},
        "load_average_1min": [round(one, 2) for one, _, _ in load],
    }
    print_table(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False), "utf-8")
    return 0 if result["max_abs_diff"] <= TOLERANCE and not result["ids_differ"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=40, help="text-only five-choice items, 5 requests each (40)")
    parser.add_argument("--num-fewshot", type=int, choices=(0, 3), default=3, help="the authors' demonstrations (3)")
    parser.add_argument("--year", default="2022", help="exam year, 2018 to 2022 (2022)")
    parser.add_argument("--model", default="smollm2-135m", help="registered name, GGUF of SmolLM2 or HF folder")
    parser.add_argument("--device", choices=tuple(JAX_PLATFORMS), default="cpu", help="tpu: the peer runs on the CPU")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores and threads of both sides (2)")
    parser.add_argument("--repeats", type=int, default=3, help="warm medjax runs before, and again after, the peer (3)")
    parser.add_argument("--batch-size", help="of the peer; of several, as in 1,4,8, the fastest is used")
    parser.add_argument("--peer-items", type=int, help="compare on the first so many items only (all)")
    parser.add_argument("--peer-python", type=Path, help="interpreter of a ready peer environment")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    for name in ("items", "threads", "repeats", "peer_items"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')}: got {value}, expected 1 or more")
    if options.peer_items and options.peer_items > options.items:
        parser.error(f"--peer-items: got {options.peer_items}, expected at most --items {options.items}")
    if options.peer_python and not options.peer_python.is_file():
        parser.error(f"--peer-python: got {options.peer_python}, expected the interpreter of a virtual environment")
    options.batch_size = options.batch_size or _BATCH_SIZES[options.device]
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", options.batch_size):
        parser.error(f"--batch-size: got {options.batch_size!r}, expected a number or several, as in 1,4,8")
    return options


def exam_pairs(year: str, items: int, num_fewshot: int) -> list[Pairs]:
    """(context, continuation) of every choice, by item: the completion form of jungokasai/IgakuQA's prompt.

    Raises ValueError when the year has fewer text-only five-choice items.
    """
    task = load_task("igakuqa", years=[year], text_only=True)
    chosen = [item for item in task.items if len(item.choices) == 5][:items]
    if len(chosen) < items:
        raise ValueError(f"--items: got {items}, expected at most {len(chosen)}, the items of year {year}.")
    shots = [line for item in task.fewshot[:num_fewshot] for line in (_question(item), ",".join(item.answer))]
    start = ["医師国家試験を解きます。", *shots]
    return [[("\n".join([*start, _question(item)]), " " + choice) for choice in item.choices] for item in chosen]


def _question(item: Item) -> str:
    choices = "".join(f"{letter}: {text}\n" for letter, text in zip(item.letters, item.choices, strict=True))
    ask = f"必ずa,b,c,d,eの中からちょうど{len(item.answer)}個選んでください。\n答え:"
    return f"問題: {item.question}\n{choices}{ask}"


@dataclass(frozen=True)
class Run:
    """One scoring run of medjax.

    seconds        from texts to scores, wall
    cpu_seconds    of all threads meanwhile
    matmul_gflops  rate measured right after it
    """

    seconds: float
    cpu_seconds: float
    requests: list["Request"]
    scores: list["Score"]
    work: "Work"
    matmul_gflops: float


class Medjax:
    """The medjax side: the model in place and its engine."""

    def __init__(self, model: Path, device: str):
        import jax

        from medjax.data.text.tokenizer import load_tokenizer
        from medjax.data.text.vocabulary import tokenizer_from_gguf
        from medjax.infer.programs import Programs
        from medjax.infer.scorer import Scorer
        from medjax.store.loading import load_decoder

        if device != "cpu":  # accelerators multiply float32 in fewer bits unless told otherwise; torch does not
            jax.config.update("jax_default_matmul_precision", "float32")
        start = time.perf_counter()
        loaded = load_decoder(model)
        self.tokenizer = load_tokenizer(model) if model.is_dir() else tokenizer_from_gguf(loaded.source.metadata)
        self.programs = Programs(loaded, dtype="float32", backend="blockwise")
        self.scorer = Scorer(self.programs)
        self.load_seconds = time.perf_counter() - start
        self.device = f"{jax.devices()[0].device_kind} x {loaded.mesh.size}"

    def run(self, questions: list[Pairs]) -> Run:
        """Score every choice of every item; the first run with new shapes compiles."""
        from medjax.infer.packing import Request
        from medjax.infer.scorer import Work

        self.scorer.work = Work()
        start, cpu_start = time.perf_counter(), time.process_time()
        requests = []
        for pairs in questions:
            context, continuations = self.tokenizer.encode_pairs(pairs[0][0], [text for _, text in pairs])
            requests += [Request(tuple(context), tuple(ids)) for ids in continuations]
        scores = self.scorer.score(requests)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        print(f"medjax: {len(requests)} requests in {seconds:.2f} s", flush=True)
        return Run(seconds, cpu_seconds, requests, scores, self.scorer.work, matmul_gflops())


def run_peer(python: Path, model: Path, pairs: Pairs, options: argparse.Namespace) -> dict[str, Any]:
    """Score the pairs in the peer's environment; returns what lm_eval_peer.py wrote.

    Raises RuntimeError when it fails; its own messages have been shown by then.
    """
    checkpoint = model if model.is_dir() else peers_folder() / "checkpoints" / f"{model.stem}-{sha256_file(model)[:12]}"
    with tempfile.TemporaryDirectory(prefix="medjax-peer-") as name:
        requests, out = Path(name) / "requests.json", Path(name) / "out.json"
        requests.write_text(json.dumps(pairs, ensure_ascii=False), "utf-8")
        command = [str(python), str(Path(__file__).with_name("lm_eval_peer.py"))]
        command += ["--requests", str(requests), "--out", str(out), "--model", str(model)]
        command += ["--checkpoint", str(checkpoint), "--device", _PEER_DEVICES[options.device]]
        command += ["--threads", str(options.threads), "--batch-sizes", options.batch_size]
        print(f"lm-eval: {len(pairs)} requests", flush=True)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        status = subprocess.run(command, check=False, env=environment).returncode
        if status:
            raise RuntimeError(
                f"lm_eval_peer.py: ended with status {status}, expected 0; its messages are above. Out of memory (-9): "
                f"try --batch-size 1. Broken environment: delete {peers_folder() / 'lm-eval'}."
            )
        return json.loads(out.read_text("utf-8"))


def compare(first: Run, before: list[Run], after: list[Run], peer: dict[str, Any]) -> dict[str, Any]:
    """The benchmark's numbers on the requests that both sides scored."""
    warm = before + after
    count = len(first.requests)
    seconds = statistics.median(run.seconds for run in warm)
    differences = [
        abs(score.logprob - logprob)
        for run in (first, *warm)
        for score, (logprob, _) in zip(run.scores, peer["results"], strict=True)
    ]
    ids = zip(first.requests, peer["continuation_ids"], peer["context_tokens"], strict=True)
    greedy = zip(first.scores, peer["results"], strict=True)
    matmul = max(run.matmul_gflops for run in warm)
    gflops = first.work.flops / seconds / 1e9
    best_gflops = first.work.flops / min(run.seconds for run in warm) / 1e9
    ratio = peer["seconds"] / seconds
    cpu_seconds = statistics.median(run.cpu_seconds for run in warm)
    return {
        "ratio": ratio,
        "ratio_lm_eval": ratio,
        "ratio_before_peer": peer["seconds"] / statistics.median(run.seconds for run in before),
        "ratio_after_peer": peer["seconds"] / statistics.median(run.seconds for run in after),
        "ratio_cpu_seconds": peer["cpu_seconds"] / cpu_seconds,
        "max_abs_diff": max(differences),
        "ids_differ": sum(
            request.continuation != tuple(continuation) or len(request.context) != context
            for request, continuation, context in ids
        ),
        "greedy_differ": sum(score.greedy != peer_greedy for score, (_, peer_greedy) in greedy),
        "requests": count,
        "medjax": {
            "requests_per_second": count / seconds,
            "seconds_before_peer": [run.seconds for run in before],
            "seconds_after_peer": [run.seconds for run in after],
            "cpu_seconds": [run.cpu_seconds for run in warm],
            "first_call_seconds": first.seconds,
            "compile_seconds": first.seconds - statistics.median(run.seconds for run in before),
            "work": {**asdict(first.work), "tokens_saved": first.work.tokens_saved},
            "gflops": gflops,
            "matmul_gflops": [run.matmul_gflops for run in (first, *warm)],
            "matmul_fraction": gflops / matmul,
            "best_gflops": best_gflops,
            "best_matmul_fraction": best_gflops / matmul,
        },
        "lm_eval": {
            "requests_per_second": count / peer["seconds"],
            **{name: value for name, value in peer.items() if name not in _PER_REQUEST | {"versions", "device"}},
        },
        "versions": {"medjax": {name: version(name) for name in ("jax", "jaxlib", "flax")}, "lm_eval": peer["versions"]}
        | {"python": platform.python_version()},
    }


def all_items(runs: list[Run], peer: dict[str, Any]) -> dict[str, Any]:
    """medjax on all items, against the peer's seconds a token; the peer's time grows with tokens, as it shares none."""
    seconds = statistics.median(run.seconds for run in runs)
    count = len(runs[0].requests)
    asked = sum(len(ids) for ids in peer["continuation_ids"]) + sum(peer["context_tokens"])
    expected = peer["seconds"] / asked * runs[0].work.tokens_requested
    return {
        "requests": count,
        "medjax_seconds": [run.seconds for run in runs],
        "medjax_requests_per_second": count / seconds,
        "lm_eval_seconds_extrapolated": expected,
        "ratio_extrapolated": expected / seconds,
    }


def print_table(result: dict[str, Any]) -> None:
    """The result as lines for people."""
    ours, peer, device = (result[name] for name in ("medjax", "lm_eval", "device"))
    work, settings = ours["work"], result["settings"]
    trials = ", ".join(f"{size}: {rate:.2f}/s" for size, rate in peer["batch_trials"].items()) or "one given"
    rows = [
        ("", "medjax", "lm-eval (HF)"),
        ("requests/s", f"{ours['requests_per_second']:.2f}", f"{peer['requests_per_second']:.2f}"),
        ("seconds, before peer", _seconds(ours["seconds_before_peer"]), _seconds([peer["seconds"]])),
        ("seconds, after peer", _seconds(ours["seconds_after_peer"]), ""),
        ("CPU seconds", f"{statistics.median(ours['cpu_seconds']):.2f} (median)", f"{peer['cpu_seconds']:.2f}"),
        ("compilation, s", f"{ours['compile_seconds']:.1f}", ""),
        ("loading, s", f"{ours['load_seconds']:.1f}", f"{peer['load_seconds']:.1f}"),
        ("tokens computed", f"{work['tokens_computed']:,}", f"{peer['tokens_run']:,} (padding included)"),
        ("matmul probe, GFLOP/s", f"{max(ours['matmul_gflops']):.0f}", f"{max(peer['matmul_gflops']):.0f}"),
        ("model, GFLOP/s", f"{ours['gflops']:.0f} ({ours['matmul_fraction']:.0%} of the probe)", ""),
        ("  in the best run", f"{ours['best_gflops']:.0f} ({ours['best_matmul_fraction']:.0%})", ""),
        ("batch size", "packed rows", f"{peer['batch_size']} (tried {trials})"),
    ]
    print(f"\nIgakuQA {settings['year']}, {settings['num_fewshot']}-shot, {settings['peer_items']} items, float32")
    print(f"{device['cpu']}, {device['cores']} cores; medjax on {device['medjax']}, lm-eval on {device['lm_eval']}")
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, (22, 32, 0), strict=True)))
    print(f"load average before, after medjax, after lm-eval, at the end: {device['load_average_1min']}")
    print(f"tokens saved by sharing: {work['tokens_saved']:,} of {work['tokens_requested']:,}")
    print(
        f"of {result['requests']} requests, token ids differ: {result['ids_differ']}, greedy flags differ: "
        f"{result['greedy_differ']}; largest log-prob difference {result['max_abs_diff']:.1e}, allowed {TOLERANCE:.0e}"
    )
    before, after = result["ratio_before_peer"], result["ratio_after_peer"]
    print(
        f"medjax / lm-eval: {result['ratio']:.2f} x (runs before the peer {before:.2f}, after it {after:.2f}; "
        f"by CPU seconds {result['ratio_cpu_seconds']:.2f})"
    )
    if whole := result.get("all_items"):
        print(
            f"all {settings['items']} items: {whole['medjax_requests_per_second']:.2f} requests/s, "
            f"{whole['ratio_extrapolated']:.2f} x with the peer's seconds scaled by tokens, not measured"
        )


def _seconds(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    sys.exit(main())
