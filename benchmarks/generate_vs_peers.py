"""medjax against transformers' `generate` and llama.cpp: new tokens a second on prompts of a medical exam.

  python benchmarks/generate_vs_peers.py --json result.json
  python benchmarks/generate_vs_peers.py --num-fewshot 3 --repeats 2 --json result.json
  python benchmarks/generate_vs_peers.py --device gpu --json result.json             float32 and bfloat16
  python benchmarks/generate_vs_peers.py --prompts 4 --new-tokens 8                  seconds: measures nothing

All sides answer the same IgakuQA prompts (protocol strict without examples, kasai with three) with the same
checkpoint, greedily, from token ids to token ids, prefill included. End tokens end nothing: every side writes exactly
--new-tokens for each prompt, so that tokens a second compare. transformers runs its best batch size of several on
prompts sorted by length; llama.cpp (by xllamacpp) runs --slots sequences at a time with weights and cache in float32,
without flash attention and with it, which is rounded to fewer bits; medjax runs with its own batch size and with as
many sequences as llama.cpp has.

Order in one run: medjax (first calls with compilation, then warm runs), transformers, medjax, llama.cpp, medjax, so
that a machine that slows down meanwhile shows. All processes are held to the same CPU cores. Wall seconds decide; CPU
seconds are given too, because other work on the same cores distorts wall seconds more.

Outputs are compared as well: where an answer first differs from medjax's, medjax's own logits must show a near-tie
(float32), and the log-probabilities that a peer gives its tokens must be medjax's to 1e-3. What is rounded to fewer
bits, bfloat16 and flash attention of llama.cpp, is only reported.

Exit status: 0 done, 1 outputs differ by more than that or a peer failed, 2 the call or the input was wrong.
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
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generate_outputs import agreement, differences, first_difference, largest_difference
from machine import JAX_PLATFORMS, cores, cpu_name, hold_to_cores
from peers import peer_python, peers_folder

from medjax.assets import resolve_model, sha256_file

if TYPE_CHECKING:
    from generate_sides import Medjax, Run

TOLERANCE = 1e-3  # natural log, of one token
PEERS = ("transformers", "llama.cpp")
_PROTOCOLS = {0: "strict", 3: "kasai"}
_DTYPES = {"cpu": "float32", "gpu": "float32,bfloat16", "tpu": "float32"}
_PEER_DEVICES = {"cpu": "cpu", "gpu": "cuda", "tpu": "cpu"}  # neither peer has a TPU path
_FLASH = {"llama_cpp": "off", "llama_cpp_flash": "on"}  # llama.cpp's two ways to attend
_CHECKED = 4  # prompts whose answers' log-probabilities are compared
_NUMBERS = re.compile(r"[1-9]\d*(,[1-9]\d*)*")


def main() -> int:
    options = _options()
    try:
        hold_to_cores(options.threads, options.device)
        path = resolve_model(options.model)
        python = options.peer_python or peer_python("generate")
        cases = []
        for dtype in options.dtypes:
            from generate_sides import Medjax

            medjax = Medjax(options.model, dtype)
            for num_fewshot in options.num_fewshot:
                prompts = exam_prompts(medjax, options.year, options.prompts, num_fewshot, options.new_tokens)
                print(f"\n{_PROTOCOLS[num_fewshot]}-{num_fewshot}shot, {dtype}, {len(prompts)} prompts", flush=True)
                cases.append(
                    {"protocol": f"{_PROTOCOLS[num_fewshot]}-{num_fewshot}shot", "num_fewshot": num_fewshot}
                    | case(medjax, python, path, prompts, dtype, options)
                )
                result = summary(cases, path, options)
                if options.json:  # after every case, so that a run that is stopped leaves those before
                    options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False), "utf-8")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"generate_vs_peers: {error}", file=sys.stderr)
        return 2
    for one in cases:
        print_table(one)
    print(f"\n{result['device']['cpu']}, {result['device']['cores']} cores; {result['versions']}")
    return 0 if all(one["agree"] for one in cases) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64, help="text-only items that are asked (64)")
    parser.add_argument("--new-tokens", type=int, default=128, help="of every answer (128)")
    parser.add_argument("--num-fewshot", default="0,3", help="0: strict, 3: kasai, or both (0,3)")
    parser.add_argument("--year", default="2022", help="exam year, 2018 to 2022 (2022)")
    parser.add_argument("--model", default="smollm2-135m", help="registered name, GGUF of SmolLM2 or HF folder")
    parser.add_argument("--device", choices=tuple(JAX_PLATFORMS), default="cpu", help="tpu: the peers run on the CPU")
    parser.add_argument("--dtypes", help="float32, bfloat16 or both (cpu, tpu: float32; gpu: both)")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores and threads of all sides (2)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of a peer, and of medjax in each block (1)")
    parser.add_argument("--batch-size", type=int, default=64, help="of medjax (64)")
    parser.add_argument("--slots", type=int, default=16, help="of llama.cpp, and of medjax beside it (16)")
    parser.add_argument("--batch-sizes", default="1,4,8,16,32,64", help="of transformers; the fastest is used")
    parser.add_argument("--peers", default=",".join(PEERS), help="transformers, llama.cpp or both (both)")
    parser.add_argument("--peer-python", type=Path, help="interpreter of a ready peer environment")
    parser.add_argument("--json", type=Path, help="write the result here, after every case")
    options = parser.parse_args()
    for name in ("prompts", "new_tokens", "threads", "repeats", "batch_size", "slots"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(options, name)}, expected 1 or more")
    if not _NUMBERS.fullmatch(options.batch_sizes):
        parser.error(f"--batch-sizes: got {options.batch_sizes!r}, expected a number or several, as in 1,4,8")
    if options.peer_python and not options.peer_python.is_file():
        parser.error(f"--peer-python: got {options.peer_python}, expected the interpreter of a virtual environment")
    options.dtypes = options.dtypes or _DTYPES[options.device]
    known = {"num_fewshot": tuple(map(str, _PROTOCOLS)), "dtypes": ("float32", "bfloat16"), "peers": PEERS}
    for name, values in known.items():
        given = getattr(options, name).split(",")
        if not set(given) <= set(values):
            said = getattr(options, name)
            parser.error(f"--{name.replace('_', '-')}: got {said!r}, expected of {', '.join(values)}, with commas")
        setattr(options, name, [int(value) for value in given] if name == "num_fewshot" else given)
    return options


def exam_prompts(medjax: "Medjax", year: str, count: int, num_fewshot: int, new_tokens: int) -> list[tuple[int, ...]]:
    """Token ids of the prompts that `python -m medjax.eval` asks, in the model's chat template.

    Raises ValueError when the year has fewer text-only items or a prompt leaves no room for the answer.
    """
    from medjax.data.exams.tasks import load_task
    from medjax.eval.protocols import Protocol
    from medjax.eval.settings import ProtocolSettings

    task = load_task("igakuqa", years=[year], text_only=True)
    if len(task.items) < count:
        raise ValueError(f"--prompts: got {count}, expected at most {len(task.items)}, the items of year {year}.")
    protocol = Protocol(_PROTOCOLS[num_fewshot], ProtocolSettings(num_fewshot=num_fewshot))
    model = medjax.model
    found = []
    for item in task.items[:count]:
        prompt = protocol.prompt(item, list(task.fewshot[:num_fewshot]), task.language, model.chat)
        bos = False if prompt.is_chat else None
        found.append(tuple(model.tokenizer.encode(prompt.text, bos=bos, special=prompt.is_chat)))
    longest = max(map(len, found)) + new_tokens
    if longest > medjax.programs.config.max_length:
        limit = medjax.programs.config.max_length
        raise ValueError(f"--new-tokens: got {new_tokens}, {longest} with the longest prompt, expected {limit} in all.")
    return found


def case(
    medjax: "Medjax", python: Path, model: Path, prompts: list[tuple[int, ...]], dtype: str, options: argparse.Namespace
) -> dict[str, Any]:
    """All sides on the same prompts; a peer that fails or cannot run is in the result by its reason."""
    own, at_slots = (min(size, len(prompts)) for size in (options.batch_size, options.slots))
    runs: dict[int, list[Run]] = {}
    load = [os.getloadavg()[0]]

    def block(*sizes: int) -> None:
        for _ in range(options.repeats):
            for size in dict.fromkeys(sizes):
                runs.setdefault(size, []).append(medjax.run(prompts, options.new_tokens, size))
        load.append(os.getloadavg()[0])

    def peer(name: str, *more: str) -> dict[str, Any]:
        found = run_peer(name, python, model, prompts, more, options)
        load.append(os.getloadavg()[0])
        return found

    with_llama = "llama.cpp" in options.peers and dtype == "float32"
    used = (own, at_slots) if with_llama else (own,)
    first = {size: medjax.run(prompts, options.new_tokens, size) for size in used}
    block(*used)
    peers = {}
    if "transformers" in options.peers:
        more = "--dtype", dtype, "--batch-sizes", options.batch_sizes
        peers["transformers"] = peer("transformers", *more)
        block(*used)
    if with_llama:
        for key, flash in _FLASH.items():
            peers[key] = peer("llama.cpp", "--slots", str(options.slots), "--flash-attention", flash)
        block(*used)

    sides = {"medjax": _ours(runs[own], first[own], own)}
    if with_llama:
        sides["medjax_at_slots"] = _ours(runs[at_slots], first[at_slots], at_slots)
        apart = (first_difference(*pair) for pair in zip(runs[own][0].tokens, runs[at_slots][0].tokens, strict=True))
        sides["medjax_at_slots"]["differ_from_own_batch_size"] = sum(at is not None for at in apart)
    ratios: dict[str, float] = {}
    for name, found in peers.items():
        sides[name] = _theirs(medjax, prompts, runs[at_slots if name in _FLASH else own], found, options)
        if "tokens_per_second" in sides[name]:
            ratios |= _ratios(name, sides, found)
    sides["medjax"]["load_seconds"] = medjax.load_seconds
    judged = [name for name in peers if _is_judged(name, dtype)]
    checked = [sides[name]["max_abs_diff"] for name in judged if "max_abs_diff" in sides[name]]
    return {
        "dtype": dtype,
        **ratios,
        "max_abs_diff": max(checked, default=None),
        "agree": all(_agrees(sides[name], name in judged) for name in peers),
        "prompts": len(prompts),
        "prompt_tokens": {
            "all": sum(map(len, prompts)),
            "shortest": min(map(len, prompts)),
            "median": statistics.median(map(len, prompts)),
            "longest": max(map(len, prompts)),
        },
        "prompts_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        **sides,
        "load_average_1min": [round(one, 2) for one in load],
        "compiled": dict(medjax.programs.shapes),
        "medjax_device": medjax.device,
    }


def run_peer(
    name: str, python: Path, model: Path, prompts: list, more: tuple[str, ...], options: argparse.Namespace
) -> dict[str, Any]:
    """What a peer's script wrote; {"failed": why} when it failed, its own messages have been shown by then."""
    script = {"transformers": "transformers_peer.py", "llama.cpp": "llama_cpp_peer.py"}[name]
    copy = peers_folder() / "checkpoints" / model.stem
    if model.is_file():
        copy = copy.with_name(f"{model.stem}-{sha256_file(model)[:12]}")
    checkpoint = copy if name == "transformers" else copy.with_name(f"{copy.name}-float32.gguf")
    with tempfile.TemporaryDirectory(prefix="medjax-peer-") as folder:
        requests, out = Path(folder) / "requests.json", Path(folder) / "out.json"
        asked = {"prompts": prompts, "new_tokens": options.new_tokens, "checked": min(_CHECKED, len(prompts))}
        requests.write_text(json.dumps(asked), "utf-8")
        command = [str(python), str(Path(__file__).with_name(script)), "--requests", str(requests), "--out", str(out)]
        command += ["--model", str(model), "--checkpoint", str(checkpoint), "--device", _PEER_DEVICES[options.device]]
        command += ["--threads", str(options.threads), "--repeats", str(options.repeats), *more]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        status = subprocess.run(command, check=False, env=environment).returncode
        if status:
            reason = f"{script} ended with status {status}, expected 0; its messages are above."
            print(f"{name}: {reason} Out of memory (-9): try smaller --batch-sizes or --slots.", file=sys.stderr)
            return {"failed": reason}
        found = json.loads(out.read_text("utf-8"))
    if reason := found.get("left_out"):
        print(f"{name}: left out: {reason}", flush=True)
    else:
        print(f"{name}: {', '.join(f'{one:.2f}' for one in found['seconds'])} s", flush=True)
    return found


def _ours(runs: list["Run"], first: "Run", batch_size: int) -> dict[str, Any]:
    tokens = sum(map(len, runs[0].tokens))
    return {
        "tokens_per_second": tokens / statistics.median(run.seconds for run in runs),
        "batch_size": batch_size,
        "seconds": [run.seconds for run in runs],
        "cpu_seconds": [run.cpu_seconds for run in runs],
        "prefill_seconds": [run.prefill for run in runs],
        "decode_seconds": [run.decode for run in runs],
        "first_call_seconds": first.seconds,
        "matmul_gflops": [run.matmul_gflops for run in runs],
        "work": asdict(runs[0].work),
    }


def _theirs(
    medjax: "Medjax", prompts: list, runs: list["Run"], found: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """A peer's numbers, and how its outputs compare with medjax's."""
    if "seconds" not in found:
        return found
    answers, checked = found.pop("tokens"), found.pop("checked")
    ours = medjax.logprobs([(prompts[one["prompt"]], one["tokens"]) for one in checked])
    return {
        "tokens_per_second": len(prompts) * options.new_tokens / statistics.median(found["seconds"]),
        **found,
        "max_abs_diff": largest_difference(ours, [one["logprobs"] for one in checked]),
        "outputs": agreement(len(prompts), differences(prompts, runs[0].tokens, answers, medjax.place)),
    }


def _ratios(name: str, sides: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """medjax over a peer; over llama.cpp with as many sequences at a time, and with medjax's own batch size."""
    beside = {f"ratio_{name}": sides["medjax_at_slots" if name in _FLASH else "medjax"]}
    if name in _FLASH:
        beside[f"ratio_{name}_own_batch_size"] = sides["medjax"]
    ratios = {}
    for key, ours in beside.items():
        ratios[key] = ours["tokens_per_second"] / sides[name]["tokens_per_second"]
        ratios[f"{key}_cpu_seconds"] = statistics.median(found["cpu_seconds"]) / statistics.median(ours["cpu_seconds"])
    return ratios


def _is_judged(name: str, dtype: str) -> bool:
    """Whether a peer computes in float32 throughout, so that its outputs must be medjax's but for near-ties."""
    return dtype == "float32" and name != "llama_cpp_flash"


def _agrees(side: dict[str, Any], is_judged: bool) -> bool:
    if "outputs" not in side:
        return "left_out" in side
    return not is_judged or (side["outputs"]["near_ties_only"] and side["max_abs_diff"] <= TOLERANCE)


def summary(cases: list[dict[str, Any]], model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The JSON; its ratios are the least of all cases."""
    names = dict.fromkeys(key for one in cases for key in one if key.startswith("ratio_"))
    ratios = {name: min(one[name] for one in cases if name in one) for name in names}
    diffs = [one["max_abs_diff"] for one in cases if one["max_abs_diff"] is not None]
    peers = {name: one[name] for one in cases for name in ("transformers", *_FLASH) if "versions" in one.get(name, {})}
    named = ("model", "year", "new_tokens", "threads", "repeats", "device", "peers")
    return {
        "ratio": ratios.get("ratio_transformers"),
        **ratios,
        "max_abs_diff": max(diffs, default=None),
        "cases": cases,
        "settings": {name: getattr(options, name) for name in named}
        | {"model_sha256": sha256_file(model) if model.is_file() else None},
        "versions": {"python": platform.python_version(), "medjax": {n: version(n) for n in ("jax", "jaxlib", "flax")}}
        | {name: side["versions"] for name, side in peers.items()},
        "device": {"medjax": cases[0]["medjax_device"], "cpu": cpu_name(), "cores": len(cores())}
        | {name: side["device"] for name, side in peers.items()},
    }


def print_table(one: dict[str, Any]) -> None:
    """A case as lines for people."""
    tokens = one["prompt_tokens"]
    print(f"\n{one['protocol']}, {one['dtype']}, {one['prompts']} prompts of {tokens['all']:,} tokens in all")
    for name in ("medjax", "transformers", "medjax_at_slots", *_FLASH):
        side = one.get(name, {})
        if "tokens_per_second" not in side:
            if side:
                print(f"  {name:<16} {side.get('left_out') or side.get('failed')}")
            continue
        size = side.get("batch_size") or side["slots"]
        line = f"  {name:<16} {side['tokens_per_second']:8.2f} new tokens/s, {size} at a time; seconds"
        line += "".join(f" {value:.2f}" for value in side["seconds"])
        if "prefill_seconds" in side:
            prefill, decode = (statistics.median(side[f"{kind}_seconds"]) for kind in ("prefill", "decode"))
            line += f" (prefill {prefill:.2f}, decoding {decode:.2f})"
        print(line)
        if outputs := side.get("outputs"):
            print(
                f"  {'':<16} {outputs['identical']:.1%} of the answers are medjax's; where others part, the token is "
                f"{outputs['largest_behind']:.1e} behind at most; log-probs differ by {side['max_abs_diff']:.1e}"
            )
    print(f"  load average: {one['load_average_1min']}")
    for key in [key for key in one if key.startswith("ratio_") and not key.endswith("cpu_seconds")]:
        print(f"  {key}: {one[key]:.2f} x (by CPU seconds {one[f'{key}_cpu_seconds']:.2f})")


if __name__ == "__main__":
    sys.exit(main())
