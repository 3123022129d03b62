"""Ways to run the same training on a slice: meshes, batches, remat, quantisation, attention; each as a layout.

What is tried:
  mesh          every way to write the number of devices as data x fsdp x tensor x sequence that the model, the batch
                and the rows can be split by; between slices data alone
  batch         rows of a step, of plan.batches, in parts of 1, 2, 4, … down to one row a device
  remat         none, dots, attention, full; offload too where the run asks for it (train.remat)
  quantisation  of plan.quantisations, where adapters are trained
  context       of attention, where the mesh splits rows: what model.context says, and ring besides heads

Variables are traced once a quantisation; the rest is arithmetic on their shapes. An encoder of ECGs has no rows to
split and is not quantised: for it there are meshes of data x fsdp x tensor, batches and remat.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax.sharding import Mesh

from medjax.models.decoder import abstract_variables
from medjax.models.decoder_config import DecoderConfig
from medjax.nn.context import choose_context
from medjax.parallel.mesh import AXES, make_mesh
from medjax.parallel.sharding import PRESETS, Rules, partition_spec, ways
from medjax.parallel.topology import Topology
from medjax.plan.devices import NamedDevice, named_devices
from medjax.plan.encoder import EncoderLayout, encoder_layout
from medjax.plan.layout import Layout, layout, tree_bytes, with_rows
from medjax.plan.program import PlannedStep, planned_step
from medjax.plan.settings import EcgPlanSettings, LanguagePlanSettings, RunPlanSettings, run_settings
from medjax.train.ecg_settings import EcgTrainSettings
from medjax.train.language_program import LanguageProgram
from medjax.train.program import abstract_frozen
from medjax.train.settings import REMAT, RunSettings, TrainSettings
from medjax.train.state import abstract_state, choose_trainable, split

_BATCH_BYTES = 20  # of a token: five numbers of 4


@dataclass(frozen=True)
class Candidate:
    """One way to run: its settings, and what estimates are made of."""

    settings: RunSettings
    layout: Layout | EncoderLayout

    @property
    def per_step(self) -> int:
        """Tokens or records of a step on all devices."""
        return self.layout.rows * (self.layout.window if isinstance(self.layout, Layout) else 1)

    @property
    def unit(self) -> str:
        return "tokens" if isinstance(self.layout, Layout) else "records"

    @property
    def context(self) -> str:
        """How attention treats rows that the mesh splits; empty where it does not."""
        of = self.layout
        return of.context if isinstance(of, Layout) and of.mesh.shape["sequence"] > 1 else ""

    @property
    def stored(self) -> str:
        """How weights are stored: a quantisation, or the compute dtype."""
        if isinstance(self.settings, TrainSettings):
            return self.settings.model.quantisation or self.settings.model.dtype
        assert isinstance(self.settings, EcgTrainSettings)
        return self.settings.encoder.dtype


def candidates(settings: RunPlanSettings, place: Topology, *, least: bool = False) -> Iterator[Candidate]:
    """Ways to run on a slice that medjax.train would accept, as the top of this file lists them.

    least  only those that take least memory: one row a device at a time, and nothing kept

    Raises ValueError where model and settings do not fit together whatever the mesh.
    """
    if isinstance(settings, EcgPlanSettings):
        return _encoders(settings, place, least)
    return _decoders(settings, place, least)


def _decoders(settings: LanguagePlanSettings, place: Topology, least: bool) -> Iterator[Candidate]:
    run = run_settings(settings)
    assert isinstance(run, TrainSettings)
    devices = named_devices(place)
    step = _base(run, place, devices)
    base, start, config = step.program, layout(step), step.config
    assert isinstance(base, LanguageProgram)
    assert start
    assert config
    rules, dtype = PRESETS[run.mesh.rules], jnp.dtype(run.model.dtype)
    for kind in quantisations(settings, base):
        variables = abstract_variables(config, base.lora, kind)
        frozen_boxes = split(variables, choose_trainable(variables, run.train.trainable))[1]
        sizes_of: dict[tuple[int, int], tuple[int, int, int]] = {}
        for sizes in meshes(place, config, rules, run.data.window):
            try:
                mesh = make_mesh(written(sizes), devices)
            except ValueError:  # JAX finds no place for some meshes on slices with sides of 12 or 20
                continue
            if (parts := (sizes[1], sizes[2])) not in sizes_of:  # no parameter is split by data or sequence
                state = abstract_state(variables, base.chosen, base.tx, mesh, rules)
                frozen = abstract_frozen(frozen_boxes, mesh, rules, dtype)
                sizes_of[parts] = tree_bytes(state.trainable), tree_bytes(state.optimizer), tree_bytes(frozen)
            trained, optimizer, held = sizes_of[parts]
            shards, rows = ways(mesh, rules.seq), ways(mesh, rules.batch)
            placed = replace(start, mesh=mesh, quantisation=kind, trained=trained, optimizer=optimizer, frozen=held)
            placed = replace(placed, rows=rows, batch=_BATCH_BYTES * run.data.window // shards)
            for wanted, context in contexts(run, config, mesh, rules, base.backend):
                model = replace(run.model, quantisation=kind, context=wanted)
                own = replace(run, model=model, mesh=replace(run.mesh, shape=written(sizes)))
                for batch, accumulation in batches(settings, rows, least=least):
                    for remat in remats(run, least=least):
                        steps = replace(run.train, batch_size=batch, accumulation=accumulation, remat=remat)
                        yield Candidate(
                            replace(own, train=steps),
                            with_rows(replace(placed, context=context), batch, accumulation, remat),
                        )


def _encoders(settings: EcgPlanSettings, place: Topology, least: bool) -> Iterator[Candidate]:
    run, devices, count = run_settings(settings), named_devices(place), place.device_count
    assert isinstance(run, EcgTrainSettings)
    for data, fsdp, tensor in itertools.product(_divisors(count), repeat=3):
        if data * fsdp * tensor != count or data % place.slices:
            continue
        mesh = replace(run.mesh, shape=written((data, fsdp, tensor, 1)))
        first = replace(run.train, batch_size=data * fsdp, accumulation=1)
        step = planned_step(replace(run, mesh=mesh, train=first), devices)
        if any(one.vit.embed % fsdp or one.vit.heads % tensor or one.vit.mlp % tensor for one in step.stacks):
            continue
        of = encoder_layout(step)
        for batch, accumulation in batches(settings, data * fsdp, least=least):
            for remat in remats(run, least=least):
                steps = replace(run.train, batch_size=batch, accumulation=accumulation, remat=remat)
                own = replace(
                    of,
                    rows=batch,
                    accumulation=accumulation,
                    remat=remat,
                    batch=of.batch * batch // of.rows,
                )
                yield Candidate(replace(run, mesh=mesh, train=steps), own)


def meshes(place: Topology, config: DecoderConfig, rules: Rules, window: int) -> list[tuple[int, int, int, int]]:
    """Sizes of data, fsdp, tensor, sequence for all devices: those that split what they are meant to split.

    window  tokens of a row, whose parts along sequence are multiples of 128
    """
    count, found = place.device_count, []
    for data, fsdp, tensor in itertools.product(_divisors(count), repeat=3):
        if count % (data * fsdp * tensor) or data % place.slices:
            continue
        sequence = count // (data * fsdp * tensor)
        parts = {"fsdp": fsdp, "tensor": tensor}
        divides = all(
            size % parts.get(str(getattr(rules, axis)), 1) == 0
            for axis, size in (("embed", config.embed), ("heads", config.heads), ("mlp", config.mlp))
        )
        if divides and window % (128 * sequence) == 0:
            found.append((data, fsdp, tensor, sequence))
    return found


def written(sizes: tuple[int, ...]) -> str:
    """Mesh sizes as mesh.shape takes them."""
    return ",".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True) if size > 1) or "data=1"


def batches(settings: RunPlanSettings, rows: int, *, least: bool = False) -> list[tuple[int, int]]:
    """Batch sizes that can be split into `rows` rows at a time, each with its numbers of parts.

    least  the smallest, in as many parts as can be
    """
    own = settings.train.batch_size
    wanted = settings.plan.batches or (own, 2 * own, 4 * own)
    if least:
        smallest = min((size for size in wanted if size % rows == 0), default=0)
        return [(smallest, smallest // rows)] if smallest else []
    return [
        (size, parts)
        for size in wanted
        if size % rows == 0
        for parts in _divisors(size // rows)
        if parts.bit_count() == 1
    ]


def remats(run: RunSettings, *, least: bool = False) -> list[str]:
    """Remat policies to try. offload only where the run names it: nobody has run it on a chip here.

    least  those that keep least on the device
    """
    asked = run.train.remat == "offload"
    return [one for one in (("full", "offload") if least else REMAT) if one != "offload" or asked]


def contexts(
    run: TrainSettings, config: DecoderConfig, mesh: Mesh, rules: Rules, backend: str
) -> list[tuple[str, str]]:
    """How attention may treat rows on a mesh: settings of model.context, and what they come to."""
    wanted = [run.model.context]
    if ways(mesh, rules.seq) > 1 and run.model.context == "auto":
        wanted = ["heads", "ring"]
    found: dict[str, str] = {}
    shape = (1, run.data.window, config.heads, config.head_dim)
    for one in wanted:
        try:
            context = choose_context(
                one,
                shards=ways(mesh, rules.seq),
                heads=config.heads,
                other_ways=ways(mesh, partition_spec((None, None, "heads", None), shape, mesh, rules)[2]),
                window=None if config.is_mixed else config.windows[0] or None,
                backend=backend,
                tokens=run.data.window,
            )
        except ValueError:  # not on this mesh
            continue
        found.setdefault(context, one)
    return [(one, context) for context, one in found.items()]


def quantisations(settings: LanguagePlanSettings, base: LanguageProgram) -> list[str | None]:
    """How frozen projections may be stored: as plan.quantisations says, only as they are where they are trained."""
    if base.lora is None or set(base.chosen) - {name for name in base.chosen if name.startswith("lora/")}:
        return [settings.model.quantisation]
    wanted = settings.plan.quantisations or ("none", "int8", "nf4")
    return [None if kind == "none" else kind for kind in wanted]


def _base(run: TrainSettings, place: Topology, devices: list[NamedDevice]) -> PlannedStep:
    """The run on a mesh that any model and batch can have, for what does not depend on the mesh."""
    steps = replace(run.train, batch_size=place.slices, accumulation=1)
    shape = f"data={place.slices},tensor=-1"
    return planned_step(replace(run, mesh=replace(run.mesh, shape=shape), train=steps), devices)


def _divisors(count: int) -> list[int]:
    return [part for part in range(1, count + 1) if count % part == 0]
