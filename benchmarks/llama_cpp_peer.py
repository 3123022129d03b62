"""Greedy answers of llama.cpp's server, by xllamacpp; runs in the peer's own environment.

  python llama_cpp_peer.py --requests FILE --out FILE --model GGUF --checkpoint FILE [--device cpu] [--threads 2]
                           [--slots 16] [--flash-attention off] [--repeats 1]

requests  JSON: prompts (lists of token ids), new_tokens, checked (number of prompts whose log-probabilities are wanted)
out       JSON: tokens (new ones by prompt), seconds, cpu_seconds (lists, one a repeat), slots, room (tokens of a slot),
          cached_tokens (prompt tokens that were in a slot already), flash_attention, checked [{prompt, tokens, logprobs
          (null: not told)}], load_seconds, threads, weights, cache, build, device, versions; or left_out: why it cannot
          run here
model     a GGUF file, of which a float32 copy is made at --checkpoint once

Weights and the cache of keys and values are float32. So is attention without flash attention; with it, on a CPU, it is
rounded to fewer bits (log-probabilities move by 1e-2). All prompts are handed over at once; the server keeps `slots` of
them going (continuous batching) and keeps a slot's common beginning with its next prompt, as it does by default. Each
repeat has a new server, so that no prompt is in its cache from the time before.

In the float32 copy the control tokens are ordinary ones under other names: end tokens end nothing, as on the other
sides, and are not forbidden either, which the server's ignore_eos would do. Started by generate_vs_peers.py.
"""

import argparse
import json
import os
import platform
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

from generate_outputs import values_by_place

_CONTROL, _UNUSED = 3, 5  # token types of a GGUF vocabulary
_ROOM = 256  # tokens; llama.cpp rounds a slot's room up to a multiple of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("requests", "out", "model", "checkpoint"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--flash-attention", choices=("on", "off"), default="off")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    reason = left_out(options.device, options.model)
    found = {"left_out": reason} if reason else measured(options)
    options.out.write_text(json.dumps(found), "utf-8")


def left_out(device: str, model: Path) -> str | None:
    """Why llama.cpp cannot run here, if so."""
    try:
        import xllamacpp
    except ImportError as error:
        return f"xllamacpp cannot be imported ({error}); pip install xllamacpp into the peer's environment."
    if model.is_dir():
        return f"{model} is a folder, expected a GGUF file; give the GGUF file of this checkpoint."
    kinds = [one["type"].name for one in xllamacpp.get_device_info()]
    if device == "cuda" and not any("GPU" in kind for kind in kinds):
        return f"this wheel of xllamacpp knows no GPU (devices: {', '.join(kinds)}); install one with CUDA."
    return None


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """What goes into --out."""
    import xllamacpp

    model = float32_copy(options.model, options.checkpoint)
    asked = json.loads(options.requests.read_text("utf-8"))
    prompts, new_tokens = asked["prompts"], asked["new_tokens"]
    room = -(-(max(map(len, prompts)) + new_tokens) // _ROOM) * _ROOM

    seconds, cpu_seconds = [], []
    for number in range(options.repeats):
        side = Server(model, room, options)
        start, cpu_start = time.perf_counter(), time.process_time()
        answers = side.answer(prompts, new_tokens)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        if number + 1 < options.repeats:
            side.close()
    checked = side.answer(prompts[: asked["checked"]], new_tokens, n_probs=1)
    return {
        "tokens": [answer["tokens"] for answer in answers],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "slots": options.slots,
        "room": room,
        "cached_tokens": sum(answer["timings"]["cache_n"] for answer in answers),
        "flash_attention": options.flash_attention,
        "checked": [
            {"prompt": i, "tokens": answer["tokens"], "logprobs": _logprobs(answer)} for i, answer in enumerate(checked)
        ],
        "load_seconds": side.load_seconds,
        "threads": options.threads,
        "weights": "float32",
        "cache": "float32",
        "build": xllamacpp.get_system_info().strip(),
        "device": ", ".join(one["description"] for one in xllamacpp.get_device_info()),
        "versions": {"python": platform.python_version(), "xllamacpp": version("xllamacpp")},
    }


def _logprobs(answer: dict[str, Any]) -> list[float | None]:
    """Of every token; the server tells none for tokens that leave a character unfinished."""
    told = [(one["id"], one["logprob"]) for one in answer["completion_probabilities"]]
    return values_by_place(answer["tokens"], told)


class Server:
    """llama.cpp's server in this process, warm; load_seconds: until it answers."""

    def __init__(self, model: Path, room: int, options: argparse.Namespace):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_parallel, params.n_ctx = options.slots, options.slots * room
        params.cont_batching = True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        kinds = xllamacpp.llama_flash_attn_type
        on, off = kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED, kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.flash_attn_type = on if options.flash_attention == "on" else off
        params.n_gpu_layers = 0 if options.device == "cpu" else 999
        params.fit_params = params.ui = False
        params.verbosity = 1  # errors
        start = time.perf_counter()
        self._server = xllamacpp.Server(params)
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # it is on this machine
        self.answer([[1]] * options.slots, 1)
        self.load_seconds = time.perf_counter() - start

    def answer(self, prompts: list[list[int]], new_tokens: int, **settings: int) -> list[dict[str, Any]]:
        """What the server says of every prompt, all handed over in one request."""
        asked = {"prompt": prompts, "n_predict": new_tokens, "return_tokens": True, **settings}
        asked |= {"samplers": ["top_k"], "top_k": 1, "cache_prompt": True}  # greedy, nothing else is computed
        request = urllib.request.Request(
            f"{self._server.listening_address}/completion",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with self._open(request) as reply:
            found = json.loads(reply.read())
        found = sorted(found if isinstance(found, list) else [found], key=lambda one: one["index"])
        for one in found:
            if one["truncated"] or len(one["tokens"]) != new_tokens:
                raise RuntimeError(
                    f"llama.cpp: prompt {one['index']}: got {len(one['tokens'])} new tokens ({one['stop_type']}), "
                    f"expected {new_tokens}; its context or the end tokens of its vocabulary are wrong."
                )
        return found

    def close(self) -> None:
        """Free the model and the cache."""
        del self._server


def float32_copy(gguf: Path, path: Path) -> Path:
    """A GGUF file with every tensor as float32 and its control tokens as ordinary ones; made once, then renamed."""
    import numpy as np
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, dequantize

    if path.is_file():
        return path
    print(f"peer: converting {gguf.name} to {path} (once)", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    reader = GGUFReader(gguf)
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    kinds = values["tokenizer.ggml.token_type"]
    control = [i for i, kind in enumerate(kinds) if kind == _CONTROL]
    for i in control:
        values["tokenizer.ggml.tokens"][i], kinds[i] = f"[control {i}]", _UNUSED
    if control:  # one token must end answers: the last control token, which greedy decoding is not known to choose
        values |= {name: control[-1] for name in values if name.endswith("_token_id")}
    values["general.file_type"] = int(LlamaFileType.ALL_F32)
    writer = GGUFWriter(partial, values["general.architecture"])
    for name, value in values.items():
        if name not in ("general.architecture", "general.quantization_version"):
            kind, *inner = reader.fields[name].types
            writer.add_key_value(name, value, kind, inner[-1] if kind == GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        dequantised = dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(dequantised, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
    return path


if __name__ == "__main__":
    main()
