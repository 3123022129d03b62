"""What remat, offload and the chunked loss do to a training step's memory, by the TPU compiler's own figures.

  python benchmarks/plan_memory.py --json plan_memory.json

One LoRA step after another is compiled for a slice that need not be there (libtpu is needed: pip install 'medjax[tpu]')
and planned as `python -m medjax.plan` does it: the policies of train.remat with the loss as it is, and one of them with
a loss that holds the logits of all tokens, as most training code does. Both losses are first compared in numbers on a
small problem. Nothing is run on the slice; times are a roofline's, bounds from below.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from medjax.config import load
from medjax.models.decoder_config import DecoderConfig
from medjax.models.published import published
from medjax.nn.loss import LossSums, TablePlaces, cross_entropy
from medjax.parallel.topology import Topology, topology
from medjax.plan import program
from medjax.plan.compiled import GIB
from medjax.plan.run import Plan, planned
from medjax.store.provenance import versions
from medjax.train import language_program
from medjax.train.settings import REMAT, TrainSettings

COLUMNS = (
    *("remat", "loss", "fits", "peak, GiB", "temporaries, GiB", "on the host, GiB", "computed, TFLOP", "HBM, GB"),
    *("PCIe, GB", "ms at the least", "limit"),
)
LOSSES = ("chunked", "all logits")


def main() -> int:
    options = _options()
    apart = loss_difference()
    if apart > 1e-5:
        print(f"the two losses differ by {apart:.1e} of the largest gradient, expected 1e-5 at the most")
        return 1
    place = topology(options.topology)
    config = depth(published(options.model) or sys.exit(f"--model: the shape of {options.model} is not known"), options)
    problem = {
        "model": options.model,
        "layers": config.layers,
        "window": options.window,
        "batch_size": options.batch_size,
        "topology": place.name,
        "mesh": options.mesh,
        "trained": "lora, rank 16 on all projections",
        "dtype": "bfloat16",
        "measured": "compiled by libtpu, not run; seconds are a roofline's",
        "versions": versions("libtpu"),
    }
    done = earlier(options.json, problem)
    print(
        f"{options.model}, {config.layers} layers, window {options.window}, batch {options.batch_size}, LoRA;", end=" "
    )
    print(f"{options.topology} ({options.mesh})\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    rows: list[dict[str, Any]] = []
    for remat, plain in [*((one, False) for one in options.remat.split(",")), (options.plain, True)]:
        rows.append(
            done.get((remat, LOSSES[plain])) or row(remat, plain, compiled(options, config, place, remat, plain))
        )
        print(f"| {' | '.join(cells(rows[-1]))} |", flush=True)
        if options.json:  # after every row: a compilation takes a minute, and a killed run goes on with the next
            result = problem | {"loss_difference": apart, "rows": rows}
            Path(options.json).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0


def earlier(path: str | None, problem: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of a file that an earlier run for the same problem and versions wrote, by policy and loss."""
    if not path or not Path(path).is_file():
        return {}
    found = json.loads(Path(path).read_text("utf-8"))
    if any(found.get(name) != value for name, value in problem.items()):
        return {}
    return {(one["remat"], one["loss"]): one for one in found["rows"]}


def depth(config: DecoderConfig, options: argparse.Namespace) -> DecoderConfig:
    """The model with the first layers alone: layers are a loop, so that figures are linear in their number."""
    count = options.layers or config.layers
    return replace(config, layers=count, windows=config.windows[:count], rope_index=config.rope_index[:count])


def compiled(options: argparse.Namespace, config: DecoderConfig, place: Topology, remat: str, plain: bool) -> Plan:
    """The plan of one step.

    plain  the loss holds the logits of all tokens
    """
    given = {
        **{"model.dtype": "bfloat16", "data.window": str(options.window), "train.batch_size": str(options.batch_size)},
        **{"train.remat": remat, "mesh.shape": options.mesh},
    }
    with mock.patch.object(program, "decoder_of", return_value=config), _loss_of_all_tokens(plain):
        return planned(program.planned_step(load(TrainSettings, overrides=given), place.devices()), place)


@contextmanager
def _loss_of_all_tokens(plain: bool) -> Iterator[None]:
    if not plain:
        yield
        return
    with mock.patch.object(language_program, "cross_entropy", whole_cross_entropy):
        yield


def whole_cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_weight: float = 0.0,
    shards: tuple[int, int] = (1, 1),
    trains_table: bool = False,
    places: TablePlaces | None = None,
) -> tuple[jax.Array, LossSums]:
    """As medjax.nn.loss.cross_entropy, with logits [b, t, v] float32 and JAX's own derivative.

    shards, places  of no matter
    """
    table = table if trains_table else jax.lax.stop_gradient(table)
    logits = jnp.einsum("btd,vd->btv", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1)
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    sums = LossSums(
        jnp.sum(weights * (total - at_target)),
        jnp.sum(weights * total * total) * z_weight,
        jnp.sum((weights != 0) & (at_target >= jnp.max(logits, axis=-1))).astype(jnp.float32),
    )
    return sums.nll + sums.z, jax.lax.stop_gradient(sums)


def loss_difference() -> float:
    """Largest difference between both losses' gradients on a small problem, as a share of the largest gradient."""
    rng = np.random.default_rng(0)
    hidden, table = rng.normal(size=(2, 40, 16)).astype("float32"), rng.normal(size=(90, 16)).astype("float32")
    targets, weights = rng.integers(90, size=(2, 40)), rng.integers(2, size=(2, 40)).astype("float32")

    def gradient(loss: Any, **more: Any) -> jax.Array:
        def total(hidden: jax.Array) -> jax.Array:
            return loss(hidden, jnp.asarray(table), jnp.asarray(targets), jnp.asarray(weights), **more)[0]

        with jax.default_matmul_precision("highest"):
            return jax.grad(total)(jnp.asarray(hidden))

    one, other = gradient(cross_entropy, chunk=16), gradient(whole_cross_entropy)
    return float(jnp.max(jnp.abs(one - other)) / jnp.max(jnp.abs(other)))


def row(remat: str, plain: bool, found: Plan) -> dict[str, Any]:
    """What is kept of a plan; None where the compiler found no room and said no more than the bytes that it needs."""
    memory, line = found.compiled.memory if found.compiled else None, found.roofline
    return {
        "remat": remat,
        "loss": LOSSES[plain],
        "fits": found.fits(),
        "peak_bytes": found.peak,
        "usable_bytes": found.usable,
        "memory": memory.to_json() if memory else None,
        "arithmetic_peak_bytes": found.estimated.peak if found.estimated and not plain else None,
        "flops": found.flops or None,
        "hbm_bytes": found.hbm_bytes or None,
        "host_bytes": found.host_bytes if memory else None,
        "seconds": {"compute": line.compute, "HBM": line.memory, "host": line.host, "links": dict(line.links)}
        if line
        else None,
        "step_s": line.step if line else None,
        "limit": line.limit if line else None,
    }


def cells(of: dict[str, Any]) -> list[str]:
    """A row of the table; – where nothing is known."""
    memory = of["memory"] or {}

    def number(value: float | None, by: float, digits: int = 2) -> str:
        return "–" if value is None else f"{value / by:,.{digits}f}"

    return [
        *(of["remat"], of["loss"], "yes" if of["fits"] else "NO", number(of["peak_bytes"], GIB)),
        *(number(memory.get("temporary"), GIB), number(memory.get("host"), GIB)),
        *(number(of["flops"], 1e12, 1), number(of["hbm_bytes"], 1e9, 1), number(of["host_bytes"], 1e9, 1)),
        *(number(of["step_s"], 1e-3, 0), of["limit"] or "–"),
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="meta-llama/Llama-3.1-8B", help="a shape that medjax.plan knows")
    parser.add_argument("--layers", type=int, default=4, help="of the model; 0: all (4)")
    parser.add_argument("--window", type=int, default=8192, help="tokens of a row (8192)")
    parser.add_argument("--batch-size", type=int, default=1, help="rows of a step (1)")
    parser.add_argument("--topology", default="v5e:1x1", help="slice to compile for (v5e:1x1)")
    parser.add_argument("--mesh", default="data=1", help="as mesh.shape (data=1)")
    parser.add_argument("--remat", default=",".join(REMAT), help=f"policies to compile ({','.join(REMAT)})")
    parser.add_argument("--plain", default="full", choices=REMAT, help="policy beside the loss of all logits (full)")
    parser.add_argument("--json", help="file to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
