"""Fine-tune LoRA adapters with transformers + peft, block by block; runs in the peer's own environment.

  python peft_peer.py --job FILE

A plain PyTorch loop: what transformers' Trainer does in a step, without its callbacks and logging. Documents are padded
on the right to the longest of their batch, attention is SDPA, the loss is the model's own (labels -100 where a token
does not count), gradients are clipped to a norm of 1, AdamW is the fused one, without weight decay. In bfloat16 the
adapters are float32 (peft's default) under autocast.

job  JSON:
  model          {"gguf": FILE, "folder": DIR}, {"folder": DIR}, or {"config": of a random model, "folder": DIR}
  device         cpu or cuda;  dtype  float32 or bfloat16;  threads  of the CPU
  lora           {"rank", "alpha"}: on all seven linear layers, no dropout
  adapters       safetensors with the initial A of every layer, "layers.0.self_attn.q_proj" [rank, in], …; B is 0
  learning_rate  constant
  documents      list of {"tokens": [...], "counted": [...]}; counted[i]: token i is a loss target

Then it reads commands from standard input and answers on standard output, a line of JSON each:
  {"do": "block", "steps": [[[i, …], …], …]}  -> seconds, cpu_seconds, steps, real_tokens, computed_tokens (padding
        included), counted_tokens, losses; a step is one or more micro-batches, a micro-batch the numbers of its
        documents; {"out_of_memory": true} when a step does not fit
  {"do": "probe"}                              -> {"matmul_gflops"}
The first answer, before any command, describes the peer. It ends with its input. Started by sft_vs_peft.py.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is local; set before transformers is imported

import peft
import torch
import transformers
from checkpoint import converted, random_model
from safetensors.torch import load_file

_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_IGNORED = -100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, required=True)
    job = json.loads(parser.parse_args().job.read_text("utf-8"))
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not mix with the answers
    torch.set_num_threads(job["threads"])
    transformers.utils.logging.disable_progress_bar()
    peer = Peer(job)
    print(json.dumps(peer.description()), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        run = {"block": peer.block, "probe": peer.probe}[command.pop("do")]
        print(json.dumps(run(**command)), file=answers, flush=True)


class Peer:
    """The model with its adapters and optimiser, in place."""

    def __init__(self, job: dict[str, Any]):
        start = time.perf_counter()
        self.device, self.dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
        folder = self._folder(job["model"])
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=self.dtype, attn_implementation="sdpa"
        )
        model.config.use_cache = False
        lora = peft.LoraConfig(
            r=job["lora"]["rank"],
            lora_alpha=job["lora"]["alpha"],
            target_modules=list(_LINEAR),
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        self.model = peft.get_peft_model(model.to(self.device), lora).train()
        self._set_adapters(load_file(job["adapters"]))
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=job["learning_rate"], weight_decay=0.0, fused=True)
        self.documents = [
            (torch.tensor(one["tokens"]), torch.tensor(one["counted"], dtype=torch.bool)) for one in job["documents"]
        ]
        self.pad = model.config.pad_token_id or 0
        self.load_seconds = time.perf_counter() - start

    def _folder(self, model: dict[str, Any]) -> Path:
        folder = Path(model["folder"])
        if "gguf" in model:
            return converted(Path(model["gguf"]), folder)
        if "config" in model:
            return random_model(model["config"], folder, self.dtype, str(self.device))
        return folder

    def _set_adapters(self, initial: dict[str, torch.Tensor]) -> None:
        left = dict(initial)
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                if ".lora_A." in name:
                    module = name.split(".lora_A.")[0]
                    value.copy_(left.pop(module[module.index("layers.") :]))
                elif ".lora_B." in name:
                    value.zero_()
        if left:
            raise ValueError(f"adapters: got {len(left)} tensors without a layer here, such as {next(iter(left))}.")

    def description(self) -> dict[str, Any]:
        """What runs here: versions, device, sizes."""
        return {
            "load_seconds": self.load_seconds,
            "threads": torch.get_num_threads(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "adapter_dtype": str(self.trained[0].dtype).removeprefix("torch."),
            "attention": self.model.config._attn_implementation,
            "trained_parameters": sum(p.numel() for p in self.trained),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                **{name: version(name) for name in ("transformers", "peft", "accelerate")},
            },
        }

    def _collate(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """Documents padded on the right to the longest: input_ids, attention_mask, labels [documents, longest]."""
        chosen = [self.documents[i] for i in indices]
        shape = len(chosen), max(len(tokens) for tokens, _ in chosen)
        batch = {
            "input_ids": torch.full(shape, self.pad),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, _IGNORED),
        }
        for row, (tokens, counted) in enumerate(chosen):
            batch["input_ids"][row, : len(tokens)] = tokens
            batch["attention_mask"][row, : len(tokens)] = 1
            batch["labels"][row, : len(tokens)] = torch.where(counted, tokens, _IGNORED)
        return {name: value.to(self.device) for name, value in batch.items()}

    def _gradients(self, batch: dict[str, torch.Tensor], counted: int) -> torch.Tensor:
        """Add the gradients of (summed loss / counted) and return that share of the step's loss."""
        low = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype) if low else contextlib.nullcontext():
            loss = self.model(**batch, num_items_in_batch=counted).loss
        loss.backward()
        return loss.detach()

    def _counted(self, indices: list[int]) -> int:
        # a document's first token has nothing before it that could predict it
        return sum(int(self.documents[i][1][1:].sum()) for i in indices)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def block(self, steps: list[list[list[int]]]) -> dict[str, Any]:
        """Train; the clock covers padding, transfer, forward, backward and the optimiser, up to the last step's end."""
        losses: list[torch.Tensor] = []
        real = computed = counted_tokens = 0
        self._wait()
        start, cpu_start = time.perf_counter(), time.process_time()
        try:
            for micro_batches in steps:
                counted = self._counted([i for indices in micro_batches for i in indices])
                loss = torch.zeros((), device=self.device)
                for indices in micro_batches:
                    batch = self._collate(indices)
                    loss = loss + self._gradients(batch, counted)
                    real += sum(len(self.documents[i][0]) for i in indices)
                    computed += batch["input_ids"].numel()
                torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                losses.append(loss)
                counted_tokens += counted
            self._wait()
        except torch.OutOfMemoryError:
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            return {"out_of_memory": True}
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # the other side shares the GPU
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "steps": len(steps),
            "real_tokens": real,
            "computed_tokens": computed,
            "counted_tokens": counted_tokens,
            "losses": [float(loss) for loss in losses],
        }

    def probe(self, repeats: int = 20) -> dict[str, Any]:
        """Best rate of [1024, 576] x [576, 1536] x [1536, 576], on a GPU of larger matrices; dtype as the model."""
        rows, width, wide = (4096, 4096, 14336) if self.device.type == "cuda" else (1024, 576, 1536)
        x, up, down = (
            (torch.randn(shape, device=self.device) / shape[0] ** 0.5).to(self.dtype)
            for shape in ((rows, width), (width, wide), (wide, width))
        )
        best = float("inf")
        with torch.inference_mode():
            for _ in range(repeats):
                self._wait()
                start = time.perf_counter()
                y = x
                for _ in range(2):
                    y = y @ up @ down
                self._wait()
                best = min(best, time.perf_counter() - start)
        return {"matmul_gflops": 2 * 4 * rows * width * wide / best / 1e9}


if __name__ == "__main__":
    main()
