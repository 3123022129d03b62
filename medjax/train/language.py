"""The job of adapting a decoder to text: settings -> documents, batches, model, loss.

Whatever can be refused without the weights is refused before they are read: data files, overlap with exam items, mesh
and batch sizes, names of trained parameters.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medjax.assets import cache_folder, resolve_model
from medjax.data.exams.training import asked_items, is_training_part, write_training_part
from medjax.data.text.batches import DocumentBatches, HeldOutDocuments
from medjax.data.text.builder import Prepared, prepare
from medjax.data.text.documents import Cut
from medjax.data.text.loading import tokenizer_of
from medjax.data.text.overlap import question_hash, refuse_overlap
from medjax.data.text.packing import Batch
from medjax.data.text.records import read
from medjax.data.text.templates import load_template
from medjax.data.text.tokenizer import Tokenizer
from medjax.data.text.tokenizer_files import tokenizer_files
from medjax.models.decoder import init_lora
from medjax.nn.lora import LoraConfig
from medjax.parallel.distributed import barrier, is_main
from medjax.parallel.sharding import shardings
from medjax.store.adapters import Adapter, files_digest, model_sizes, write_adapter
from medjax.store.loading import load_decoder
from medjax.store.native import NativeSource, save_native
from medjax.store.sources import Source, open_source
from medjax.train.flops import TrainingFlops, attended_pairs, real_tokens
from medjax.train.job import Job, Progress, Work
from medjax.train.language_program import LanguageProgram, step_program
from medjax.train.settings import DataSettings, TrainSettings
from medjax.train.state import Tree


@dataclass(frozen=True)
class _Base:
    """A checkpoint that was looked at, not read: its weights come later."""

    path: Path
    source: Source
    tokenizer: Tokenizer


def language_job(settings: TrainSettings, say: Callable[[str], None]) -> Job:
    """Prepare the data and everything else that a run needs, but the weights.

    say  called with one line for the user at a time

    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    path = resolve_model(settings.model.name, settings.model.revision)
    source = open_source(path)
    base = _Base(path, source, tokenizer_of(path, source.files, source.metadata, source.config.vocab_size))
    settings = _with_stored_quantisation(settings, source)
    step_program(settings, source.config, 10**9)  # whatever does not fit is refused before the data is read
    prepared = _documents(settings, base, say)
    t, window = settings.train, settings.data.window
    train = DocumentBatches(prepared.train, window=window, rows=t.batch_size, seed=t.seed, pack=settings.data.packing)
    held_out = None
    if prepared.held_out:
        rows = t.batch_size // t.accumulation  # as many at one time as a step has
        held_out = HeldOutDocuments(prepared.held_out, window=window, rows=rows, pack=settings.data.packing)
    for part, report in prepared.reports.items():
        say(f"{part.replace('_', '-')}: {report}")
    _check_context(prepared, window, source.config.max_length)
    steps = t.steps or train.steps(t.epochs)
    say(f"{train.rows_per_epoch} rows of {window} tokens an epoch, {100 * train.fill:.1f} % filled; {steps} steps")
    program = step_program(settings, source.config, steps)
    say(f"attention: {program.attention}")
    lora = program.lora
    identity = {
        "base": base_digest(source),
        "tokenizer": base.tokenizer.digest,
        "lora": asdict(lora) if lora else None,
        "quantisation": settings.model.quantisation,
        "trainable": sorted(settings.train.trainable),
    }
    only_head = settings.train.trainable == ("head",)
    flops = TrainingFlops(source.config, "lora" if lora else "head" if only_head else "full", lora)
    return Job(
        name=_name(settings),
        unit="tokens",
        counted="tokens",
        program=program,
        load=partial(load_variables, program),
        train=train,
        held_out=held_out,
        work=partial(_work, flops),
        identity=identity,
        export=partial(_export, settings, base, lora, program.chosen, identity),
        records={
            "steps": steps,
            "attention": asdict(program.attention),
            "data": {
                "digest": prepared.digest,
                "reports": {part: str(report) for part, report in prepared.reports.items()},
                "rows_per_epoch": train.rows_per_epoch,
                "fill": round(train.fill, 4),
            },
            "model": {"name": settings.model.name, "trained": ", ".join(settings.train.trainable)}
            | model_sizes(source.config),
        },
    )


def _name(settings: TrainSettings) -> str:
    data = "-".join(Path(name).stem.replace(":", "-") for name in settings.data.files[:3])
    kind = "-".join(name for name in settings.train.trainable if name.isalnum()) or "some"
    return f"{Path(settings.model.name).name}-{kind}-{data}"


def _with_stored_quantisation(settings: TrainSettings, source: Source) -> TrainSettings:
    """The settings, where the checkpoint holds quantised kernels saying so. Raises ValueError for another kind."""
    stored = source.quantisation if isinstance(source, NativeSource) else None
    if stored is None or settings.model.quantisation == stored:
        return settings
    if settings.model.quantisation:
        raise ValueError(
            f"model.quantisation: got {settings.model.quantisation}, but {settings.model.name} holds its kernels as "
            f"{stored}; leave the setting out, or take the checkpoint they were made from."
        )
    return replace(settings, model=replace(settings.model, quantisation=stored))


def _check_context(prepared: Prepared, window: int, context: int) -> None:
    """Raise ValueError for a document longer than what the model was made for; rows of several documents may be."""
    longest = max(int(part.lengths.max()) for part in (prepared.train, prepared.held_out) if part)
    if longest > context:
        raise ValueError(
            f"data.window: got {window} and a document of {longest} tokens, expected {context} at most, the context of "
            f"the model; use --window {max(context // 128, 1) * 128}, and too_long says what becomes of the rest."
        )


def base_digest(source: Source) -> str:
    """sha256 over the files that decide the base model's numbers."""
    return files_digest(source.files)


def load_variables(program: LanguageProgram, progress: Progress) -> Tree:
    """Read the weights and draw the adapters, in place; trained parameters in float32."""
    m = program.settings.model
    loaded = load_decoder(
        resolve_model(m.name, m.revision),
        dtype=m.dtype,
        mesh=program.mesh,
        rules=program.rules,
        quantisation=m.quantisation,
        float32=frozenset(name.removeprefix("params/") for name in program.chosen if name.startswith("params/")),
        progress=progress,
    )
    variables: Tree = {"params": loaded.params}
    if program.lora:
        places = shardings(program.variables["lora"], program.mesh, program.rules)
        draw = jax.jit(partial(init_lora, loaded.config, program.lora), out_shardings=places)
        variables["lora"] = draw(jax.random.key(program.settings.train.seed))
    return variables


def _documents(settings: TrainSettings, base: _Base, say: Callable[[str], None]) -> Prepared:
    d = settings.data
    if not d.files:
        raise ValueError(
            "data.files: got no file, expected at least one; name JSONL, Parquet or text files with --data, or "
            "pubmedqa:train for the training part of an exam set."
        )
    name = d.template
    if name == "auto":
        name = "chat" if base.tokenizer.chat_template else "plain"
    template = load_template(name, base.tokenizer)
    cache = cache_folder() / "documents"
    files = _files(d, d.files, cache / "sets", name == "chat")
    held = _files(d, d.held_out, cache / "sets", name == "chat")
    asked = list(asked_items(d.exams, d.data_dir))
    if asked:
        unchecked = refuse_overlap(read(files), asked)
        sets = ", ".join(dict.fromkeys(item.id.rpartition(" ")[0] for item in asked))
        short = f" ({len(unchecked)} items are too short to tell)" if unchecked else ""
        say(f"data: none of the {len(asked):,} items of {sets} found in it{short}")
    else:
        say("data: not compared with any exam (data.exams)")
    long = {"auto": ("truncate", "split")}.get(d.too_long, (d.too_long, d.too_long))
    make = partial(
        prepare,
        template=template,
        tokenizer=base.tokenizer,
        cut=Cut(d.window, long=long[0], long_text=long[1], counted=d.counted),
        cache=cache,
    )
    if not held:
        return make(files, count=d.held_out_count)
    _check_apart(files, held)
    train, apart = make(files), make(held)
    digest = hashlib.sha256((train.digest + apart.digest).encode()).hexdigest()
    reports = {"train": train.reports["train"], "held_out": apart.reports["train"]}
    return Prepared(digest, train.folder, train.train, apart.train, reports)


def _check_apart(files: Sequence[Path], held_out: Sequence[Path]) -> None:
    """Raise ValueError when a held-out record asks what a training record asks."""
    apart = {question_hash(record): record.where for record in read(held_out)}
    both = [(record.where, apart[number]) for record in read(files) if (number := question_hash(record)) in apart]
    if both:
        raise ValueError(
            f"data.held_out: got {len(both)} training records that ask what a held-out record asks, first {both[0][0]} "
            f"and {both[0][1]}; expected none: remove them from one side, or leave data.held_out out."
        )


def _files(d: DataSettings, names: Sequence[str], folder: Path, chat: bool) -> list[Path]:
    """The files that names mean; training parts of exam sets are written to the folder first."""
    return [
        write_training_part(name, folder, chat=chat, explanations=d.explanations, data_dir=d.data_dir)
        if is_training_part(name)
        else Path(name)
        for name in names
    ]


def _work(flops: TrainingFlops, batch: Batch) -> Work:
    real = real_tokens(batch.positions, batch.ends)
    pairs = attended_pairs(flops.config, batch.positions[real])
    tokens = int(real.sum())
    return Work(tokens, real.size, flops.of_step(tokens, pairs, float(np.sum(batch.weights != 0))))


def _export(
    settings: TrainSettings,
    base: _Base,
    lora: LoraConfig | None,
    chosen: frozenset[str],
    identity: Mapping[str, Any],
    folder: Path,
    variables: Tree,
) -> str:
    """Write RUN/adapter, and RUN/model where parameters of the model were trained; the adapter then fits that one.

    Returns the command to go on with.
    """
    model, digest, config = settings.model.name, identity["base"], base.source.config
    tokenizer = identity["tokenizer"]
    if any(name.startswith("params/") for name in chosen):
        place = folder / "model"
        if is_main():
            shutil.rmtree(place, ignore_errors=True)
        barrier("model folder")
        with tempfile.TemporaryDirectory() as temporary:
            files, _ = tokenizer_files(
                base.source.files, base.source.metadata, config.vocab_size, config.max_length, Path(temporary)
            )
            save_native(place, config, variables["params"], files, quantisation=settings.model.quantisation)
        barrier("model written")
        written = open_source(place)
        model, digest = str(place), base_digest(written)
        # a vocabulary written out of a GGUF file has another digest than inside it
        tokenizer = tokenizer_of(place, written.files, written.metadata, config.vocab_size).digest
    after = f"python -m medjax.eval --model {model}"
    if not lora:
        return after
    sizes = model_sizes(config)
    write_adapter(folder / "adapter", Adapter(lora, variables["lora"], model, digest, tokenizer, sizes))
    return f"{after} --adapter {folder}"
