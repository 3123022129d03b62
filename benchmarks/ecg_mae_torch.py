"""Train a masked autoencoder of ECGs with PyTorch, block by block; runs in the peer's own environment.

  python ecg_mae_torch.py --job FILE

The same model, loss and optimiser as medjax's, written the way PyTorch is written for speed: one linear layer for
query, key and value, scaled_dot_product_attention, LayerNorm and exact GELU of torch, visible tokens gathered before
the encoder, gradients set to None, fused AdamW (decay on matrices only), gradients clipped to a norm of 1. In bfloat16:
autocast, weights in float32.

job  JSON:
  weights   safetensors with medjax's parameters, names joined by dots, blocks stacked; "positions.encoder" and
            "positions.decoder" [tokens, width] besides
  batch     safetensors with signal [rows, leads, samples], and for the first step slot [rows, tokens] (place of a token
            among the visible ones, their number where it is masked) and keep [rows, visible]
  shape     patch, heads, decoder_heads, norm_eps
  device    cpu or cuda;  dtype  float32 or bfloat16;  threads  of the CPU
  optimizer learning_rate, beta1, beta2, eps, weight_decay, clip

Then it reads commands from standard input and answers on standard output, a line of JSON each:
  {"do": "first"}                             -> {"loss", "grad_norm"} of the batch with the given mask; nothing learnt
  {"do": "block", "steps": N, "parts": N, "compiled": bool}
        -> seconds, cpu_seconds, steps, records, losses; {"failed": why} when it does not compile or fit. A step is one
           batch in `parts` equal micro-batches, each with a mask drawn anew
  {"do": "probe"}                             -> {"matmul_gflops"}
The first answer, before any command, describes the peer. It ends with its input. Started by ecg_mae_vs_torch.py.
"""

import argparse
import contextlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

_LINEAR = {"qkv": "attention.qkv", "out": "attention.out", "up": "mlp.up", "down": "mlp.down"}
_NORMS = ("attention_norm", "mlp_norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, required=True)
    job = json.loads(parser.parse_args().job.read_text("utf-8"))
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not mix with the answers
    torch.set_num_threads(job["threads"])
    peer = Peer(job)
    print(json.dumps(peer.description()), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        run = {"first": peer.first, "block": peer.block, "probe": peer.probe}[command.pop("do")]
        print(json.dumps(run(**command)), file=answers, flush=True)


class Block(nn.Module):
    """Pre-norm attention and MLP: x [b, t, d] -> the same."""

    def __init__(self, d: int, heads: int, mlp: int, eps: float):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(d, eps=eps), nn.LayerNorm(d, eps=eps)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down, self.act = nn.Linear(d, mlp), nn.Linear(mlp, d), nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(self.act(self.up(self.mlp_norm(x))))


class Stack(nn.Module):
    """Embedding, places, blocks and final norm, of the encoder or of the decoder."""

    def __init__(self, weights: dict[str, torch.Tensor], name: str, heads: int, eps: float):
        super().__init__()
        into, d = weights[f"{name}.embedding.kernel"].shape
        layers, _, mlp = weights[f"{name}.layers.mlp.up.kernel"].shape
        self.embedding = nn.Linear(into, d)
        self.leads = nn.Parameter(torch.empty(weights[f"{name}.leads"].shape))
        self.blocks = nn.ModuleList(Block(d, heads, mlp, eps) for _ in range(layers))
        self.norm = nn.LayerNorm(d, eps=eps)
        self.register_buffer("positions", weights[f"positions.{name}"])
        self._load(weights, name)

    @torch.no_grad()
    def _load(self, weights: dict[str, torch.Tensor], name: str) -> None:
        copy_linear(self.embedding, weights[f"{name}.embedding.kernel"], weights[f"{name}.embedding.bias"])
        copy_norm(self.norm, weights, f"{name}.norm")
        self.leads.copy_(weights[f"{name}.leads"])
        for i, block in enumerate(self.blocks):
            for own, theirs in _LINEAR.items():
                kernel, bias = (weights[f"{name}.layers.{theirs}.{part}"][i] for part in ("kernel", "bias"))
                copy_linear(getattr(block, own), kernel, bias)
            for norm in _NORMS:
                copy_norm(getattr(block, norm), weights, f"{name}.layers.{norm}", i)

    def places(self) -> torch.Tensor:
        """[tokens, d]: fixed position plus learned lead, lead-major."""
        times = len(self.positions) // len(self.leads)
        return self.positions + self.leads.repeat_interleave(times, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Mae(nn.Module):
    """Signal and mask -> sum over masked patches of their mean squared error, and the number of masked patches."""

    def __init__(self, weights: dict[str, torch.Tensor], shape: dict[str, Any]):
        super().__init__()
        self.patch = shape["patch"]
        self.encoder = Stack(weights, "encoder", shape["heads"], shape["norm_eps"])
        self.decoder = Stack(weights, "decoder", shape["decoder_heads"], shape["norm_eps"])
        self.mask_token = nn.Parameter(weights["decoder.mask_token"].clone())
        kernel = weights["decoder.head.kernel"]
        self.head = nn.Linear(*kernel.shape)
        copy_linear(self.head, kernel, weights["decoder.head.bias"])

    def forward(self, signal: torch.Tensor, keep: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        b, visible = keep.shape
        patches = signal.reshape(b, -1, self.patch)
        shown = torch.gather(patches, 1, keep[..., None].expand(-1, -1, self.patch))
        x = self.encoder(self.encoder.embedding(shown) + self.encoder.places()[keep])
        x = self.decoder.embedding(x)
        # one row of mask tokens after the visible ones: masked tokens all have the slot behind the last visible one
        x = torch.cat([x, self.mask_token.to(x.dtype).expand(b, 1, -1)], 1)
        x = torch.gather(x, 1, slot[..., None].expand(-1, -1, x.shape[-1])) + self.decoder.places()
        error = (self.head(self.decoder(x)).float() - patches).square().mean(-1)
        return (error * (slot == visible)).sum()


def copy_linear(layer: nn.Linear, kernel: torch.Tensor, bias: torch.Tensor) -> None:
    """A kernel [in…, out…] and a bias of medjax into a torch layer, whose weight is [out, in]."""
    with torch.no_grad():
        layer.weight.copy_(kernel.reshape(layer.in_features, layer.out_features).T)
        layer.bias.copy_(bias.reshape(-1))


def copy_norm(layer: nn.LayerNorm, weights: dict[str, torch.Tensor], name: str, i: int | None = None) -> None:
    """Scale and bias of a norm, of layer i where they are stacked."""
    with torch.no_grad():
        for own, theirs in ((layer.weight, "scale"), (layer.bias, "bias")):
            value = weights[f"{name}.{theirs}"]
            own.copy_(value if i is None else value[i])


class Peer:
    """Model, optimiser and batch in place."""

    def __init__(self, job: dict[str, Any]):
        torch.manual_seed(0)
        self.device, self.dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
        self.model = Mae(load_file(job["weights"]), job["shape"]).to(self.device)
        batch = {name: value.to(self.device) for name, value in load_file(job["batch"]).items()}
        self.signal, self.keep, self.slot = batch["signal"], batch["keep"].long(), batch["slot"].long()
        o = job["optimizer"]
        self.clip = o["clip"]
        named = list(self.model.named_parameters())
        # medjax decays matrices, but neither the learned lead and mask tokens nor scales and biases
        decayed = [p for name, p in named if p.ndim > 1 and not name.endswith("leads")]
        others = [p for name, p in named if p.ndim == 1 or name.endswith("leads")]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": o["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
            lr=o["learning_rate"],
            betas=(o["beta1"], o["beta2"]),
            eps=o["eps"],
            fused=True,
        )
        self.compiled: Any = None

    def description(self) -> dict[str, Any]:
        """What runs here: versions, device, sizes."""
        return {
            "threads": torch.get_num_threads(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        }

    def _autocast(self) -> contextlib.AbstractContextManager:
        low = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype) if low else contextlib.nullcontext()

    def _draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A new mask for every row: keep [rows, visible], slot [rows, tokens]."""
        visible = self.keep.shape[1]
        order = torch.rand(self.slot.shape, device=self.device).argsort(1)
        return order[:, :visible], order.argsort(1).clamp_(max=visible)

    def first(self) -> dict[str, Any]:
        """Mean loss and gradient norm before any step, with the mask that the job gave; changes nothing."""
        with self._autocast():
            loss = self.model(self.signal, self.keep, self.slot)
        loss = loss / (self.slot == self.keep.shape[1]).sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), float("inf"))
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": float(loss.detach()), "grad_norm": float(norm)}

    def _step(self, model: Any, parts: int) -> torch.Tensor:
        keep, slot = self._draw()
        counted = slot.numel() - keep.numel()
        total = torch.zeros((), device=self.device)
        rows = len(keep) // parts
        for part in (slice(start, start + rows) for start in range(0, len(keep), rows)):
            with self._autocast():
                loss = model(self.signal[part], keep[part], slot[part]) / counted
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def block(self, steps: int, parts: int, compiled: bool) -> dict[str, Any]:
        """Train; the clock covers drawing masks, forward, backward and the optimiser, up to the last step's end."""
        model = self.model
        if compiled:
            self.compiled = model = torch.compile(self.model) if self.compiled is None else self.compiled
        try:
            self._wait()
            start, cpu_start = time.perf_counter(), time.process_time()
            losses = [self._step(model, parts) for _ in range(steps)]
            self._wait()
        except Exception as error:  # out of memory, no compiler, …: the caller tells and goes on without this variant
            self.optimizer.zero_grad(set_to_none=True)
            return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"}
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # the other side shares the GPU
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "steps": steps,
            "records": steps * len(self.signal),
            "losses": [float(loss) for loss in losses],
        }

    def probe(self, rows: int, width: int, wide: int, repeats: int = 10) -> dict[str, Any]:
        """Best rate of [rows, width] x [width, wide] x [wide, width], dtype as the model."""
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
