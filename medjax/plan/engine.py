"""The programs of the engine (medjax.infer) from shapes alone: no weights, no prompts, the methods of the real run.

`ShapePrograms` is `infer.programs.Programs` whose arrays are shapes with shardings: putting an array gives its shape,
running a program keeps it lowered and gives the shapes of what it returns. What is compiled ahead so is what a run
compiles, to the letter.

  score     rows full: data shards x row_tokens tokens, each of them read
  generate  prefill: the same rows, into the cache; decode: DECODE_STEPS tokens of every sequence, cache full
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from medjax.infer.decoding import Decoding
from medjax.infer.generator import DECODE_STEPS
from medjax.infer.programs import READ_CHUNK, Programs
from medjax.infer.scorer import Read, stack_reads
from medjax.infer.slots import cache_room, slots
from medjax.models.decoder import abstract_variables
from medjax.models.decoder_config import DecoderConfig
from medjax.nn.forest import BLOCK, PREFIX_BLOCK
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, Rules
from medjax.plan.engine_layout import EngineLayout, cached_bytes
from medjax.plan.engine_settings import EnginePlanSettings
from medjax.plan.layout import tree_bytes
from medjax.plan.program import beyond, decoder_of
from medjax.train.flops import attended_pairs
from medjax.train.program import abstract_frozen


@dataclass(frozen=True)
class ShapeDecoder:
    """A decoder whose params are shapes, dtypes and shardings, as store.loading.load_decoder would place them."""

    config: DecoderConfig
    params: Any
    mesh: Mesh
    rules: Rules
    quantisation: str | None


@dataclass(frozen=True)
class EngineProgram:
    """One program of the engine.

    lower   gives it lowered
    """

    mesh: Mesh
    lower: Callable[[], Any]


@dataclass(frozen=True)
class EngineStep:
    """One call of a program of the engine, with the names of plan.program.PlannedStep.

    name    score, prefill or decode
    groups  bytes of one device that its arguments take, by kind
    beside  of these, what lies there but is no argument: keys and values while prompts run
    beyond  what is longer than the model was made for, in words; empty where nothing is
    layout  what its memory and time depend on
    """

    name: str
    program: EngineProgram
    unit: str
    per_step: int
    model_flops: float
    turns: dict[str, int]
    groups: dict[str, int]
    layout: EngineLayout
    kernel_flops: float = 0.0
    beyond: str = ""
    beside: int = 0


class ShapePrograms(Programs):
    """Programs that are not run.

    lowered  by the program's name: gives it lowered
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lowered: dict[str, Callable[[], Any]] = {}

    def put(self, array, by_row: bool = True) -> Any:
        place = self.by_row if by_row else self.whole
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

    def zeros(self, shape: tuple[int, ...], sharding: NamedSharding, dtype: Any = None) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype or self.dtype, sharding=sharding)

    def run(self, name: str, function: Callable, *args: Any, donate: tuple[int, ...] = (), out: Any = None) -> Any:
        self.lowered[name] = partial(self.lower, function, args, donate, out)
        shapes = jax.eval_shape(function, *args)
        if out is None:
            return shapes
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, out
        )


def shape_programs(settings: EnginePlanSettings, devices: list[Any] | None) -> ShapePrograms:
    """The engine of a model that is not there, on these devices; None: all of this machine.

    Raises ValueError for a model whose shape is not known, and for a mesh that does not fit.
    """
    m, e = settings.model, settings.engine
    config, mesh, rules = decoder_of(m.name), make_mesh(e.mesh, devices), PRESETS["default"]
    adapter = None
    if m.adapter:
        from medjax.store.adapters import open_adapter

        adapter = open_adapter(m.adapter, config).lora
    boxes = abstract_variables(config, adapter, m.quantisation)
    placed = abstract_frozen(boxes, mesh, rules, jnp.dtype(m.dtype))
    decoder = ShapeDecoder(config, placed["params"], mesh, rules, m.quantisation)
    lora = (adapter, placed["lora"]) if adapter else None
    return ShapePrograms(decoder, dtype=m.dtype, backend=e.backend, lora=lora)


def engine_steps(settings: EnginePlanSettings, devices: list[Any] | None) -> list[EngineStep]:
    """The programs of a job, in the order in which they run.

    Raises ValueError where model, mesh and context do not fit together.
    """
    programs = shape_programs(settings, devices)
    config, load = programs.config, settings.load
    if settings.objective == "generate" and load.context > config.max_length:
        raise ValueError(
            f"load.context: got {load.context} tokens, expected {config.max_length} at most, the context of "
            f"{settings.model.name}; lower it."
        )
    build = _score_steps if settings.objective == "score" else _generate_steps
    return build(programs, settings)


def _score_steps(programs: ShapePrograms, settings: EnginePlanSettings) -> list[EngineStep]:
    rows, length = programs.data_shards, settings.engine.row_tokens
    prefix = programs.prefix((0,) * settings.load.prefix, length)
    everything = list(range(length))
    reads = stack_reads([Read(everything, everything, everything)], length, rows)
    programs.score([], length, prefix, reads)
    groups = {"weights": tree_bytes(programs.variables), "prefix": tree_bytes(prefix)}
    return [_row_step("score", programs, settings, groups, reads=rows * length)]


def _generate_steps(programs: ShapePrograms, settings: EnginePlanSettings) -> list[EngineStep]:
    config, load = programs.config, settings.load
    prefix = programs.prefix((0,) * load.prefix, settings.engine.row_tokens)
    decoding = Decoding(programs)
    count = slots(settings.engine.batch_size, decoding.slot_shards)
    cache = decoding.empty_cache(count, [cache_room(load.context - load.prefix)], settings.model.kv_cache == "int8")
    groups = {
        "weights": tree_bytes(programs.variables),
        "keys and values": tree_bytes(cache),
        "prefix": tree_bytes(prefix),
    }
    decoding.prefill([], settings.engine.row_tokens, prefix, cache, count)
    prefill = _row_step("prefill", programs, settings, groups, reads=count)
    token = programs.put(np.zeros(count, np.int32))
    decoding.decode(token, token, cache, prefix, DECODE_STEPS)
    tokens = count * DECODE_STEPS
    pairs = attended_pairs(config, np.full(tokens, load.context - 1))
    flops = _forward_flops(config, tokens, pairs, tokens)
    held = groups["keys and values"]
    layout = _layout(
        programs,
        groups,
        flops,
        tokens=max(count // programs.data_shards, 1),
        passes=DECODE_STEPS,
        keys=load.context,
        reads=max(count // programs.data_shards, 1),
        kept=0,
        cache=held + groups["prefix"],
    )
    decode = EngineStep("decode", _newest(programs, "decode"), "tokens", tokens, flops, {}, groups, layout)
    return [prefill, decode]


def _row_step(
    name: str, programs: ShapePrograms, settings: EnginePlanSettings, groups: dict[str, int], *, reads: int
) -> EngineStep:
    """The newest program, which runs full rows of one document each.

    reads  places whose logits are computed
    """
    rows, length, before = programs.data_shards, settings.engine.row_tokens, settings.load.prefix
    pairs = rows * attended_pairs(programs.config, before + np.arange(length))
    flops = _forward_flops(programs.config, rows * length, pairs, reads)
    turns = {
        "vocabulary": length // READ_CHUNK,
        "prefix_end": ceil(before % PREFIX_BLOCK / BLOCK),
        "prefix": before // PREFIX_BLOCK,
        "attention": ceil((length // BLOCK + 1) / 2),  # a query block meets half of the row's key blocks on average
    }
    config, mesh, rules = programs.config, programs.mesh, programs.model.rules
    kept = cached_bytes(config, mesh, rules, length, programs.dtype.itemsize) if name == "prefill" else 0
    layout = _layout(
        programs,
        groups,
        flops,
        tokens=length,
        passes=1,
        keys=before + length / 2,
        reads=max(min(READ_CHUNK, reads // rows), 1),
        kept=kept,
        cache=groups["prefix"],
    )
    # prefill packs prompts, which load.context bounds; a row that is scored may be one document
    longer = beyond(config, "engine.row_tokens and load.prefix", before + length) if name == "score" else ""
    beside = groups.get("keys and values", 0)
    program = _newest(programs, name)
    return EngineStep(
        name, program, "tokens", rows * length, flops, turns, groups, layout, beyond=longer, beside=beside
    )


def _layout(programs: ShapePrograms, groups: dict[str, int], flops: float, **sizes: Any) -> EngineLayout:
    return EngineLayout(
        config=programs.config,
        mesh=programs.mesh,
        rules=programs.model.rules,
        width=programs.dtype.itemsize,
        quantisation=programs.model.quantisation,
        held=sum(groups.values()),
        weights=groups["weights"],
        model_flops=flops,
        on_tpu=programs.mesh.devices.flat[0].platform == "tpu",
        **sizes,
    )


def _newest(programs: ShapePrograms, kind: str) -> EngineProgram:
    return EngineProgram(
        programs.mesh, [lower for name, lower in programs.lowered.items() if name.startswith(kind)][-1]
    )


def _forward_flops(config: DecoderConfig, tokens: int, pairs: float, logits: int) -> float:
    """Operations of a forward pass by the conventions of train.flops; pairs over all layers."""
    attention = 4 * config.heads * config.head_dim * pairs
    return 2.0 * config.matmul_params * tokens + attention + 2.0 * config.vocab_size * config.embed * logits
