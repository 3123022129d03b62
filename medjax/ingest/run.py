"""One ingest, from settings to a folder: the story that `python -m medjax.ingest ecg` tells.

which files -> labels -> read, check and store each -> names, copies, labels of all -> index -> report
"""

import dataclasses
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medjax.assets import sha256_file
from medjax.config import to_dict
from medjax.data.ecg.builder import read_facts
from medjax.data.ecg.dataset import EcgDataset, open_examples
from medjax.data.ecg.duplicates import find_twins
from medjax.data.ecg.index import write_index
from medjax.data.ecg.labels import read_code_labels, read_labels
from medjax.data.folders import partial_folder
from medjax.ingest.decisions import decide
from medjax.ingest.examples import drawn_examples
from medjax.ingest.pipeline import REFUSED, NothingReadError, read_here, read_with_beam
from medjax.ingest.reading import Refusal
from medjax.ingest.settings import IngestSettings
from medjax.ingest.sources import Sources, find_sources, passed_over_words
from medjax.ingest.summary import summarise
from medjax.report.ingest import ingest_report
from medjax.report.progress import ProgressBar
from medjax.store.runs import changes, free_name, named

REPORT, PAGE, REFUSALS = "report.json", "report.html", "refused.jsonl"
Say = Callable[[str], None]


def ingest(settings: IngestSettings, *, say: Say = lambda line: None, progress: bool = False) -> EcgDataset:
    """Read ECG files into a data set; returns it.

    say       called with one line for the user at a time
    progress  show progress bars on stderr

    An OUT that holds this very ingest is left as it is; one that holds another is moved aside when the new one is
    complete. Where no record can be read, OUT is not written, and OUT.refused.jsonl says why of each file. Raises
    ValueError or FileNotFoundError with one sentence that says what to do, OSError when the disk is full.
    """
    started = time.time()
    out = named(settings.out)
    before = _found(out)
    labels = read_labels(settings.labels, settings.label_columns) if settings.labels else None
    sources = find_sources(settings.source)
    identity = _identity(settings, sources)
    if before is not None:
        if not (changed := changes(before, identity)):
            say(f"{out} holds these files already; nothing to do")
            _say_next(out, say)
            return EcgDataset(out)
        say(f"{out} holds another ingest ({'; '.join(changed[:3])}); it will be moved aside")
    say(f"{len(sources.files):,} files in {settings.source}; writing to {out}")
    if sources.passed_over:
        say(f"{passed_over_words(sources.passed_over)}; no ECG by name or content")
    beside = out.with_name(f"{out.name}.{REFUSALS}")
    with partial_folder(out, lambda partial: _place(partial, out, say)) as folder:
        try:
            refused = _read(folder, sources, settings, progress)
        except NothingReadError as error:
            _write_refused(beside, error.refused)
            raise ValueError(f"{error} All reasons are in {beside}.") from error
        facts = sorted(read_facts(folder), key=lambda fact: (fact.source, fact.number))
        examples = open_examples(folder)
        with ProgressBar(progress, "comparing", "pair") as bar:
            twins = find_twins(
                facts, examples, correlation=settings.correlation, processes=_processes(settings), progress=bar.reach
            )
        decided = decide(
            facts,
            twins,
            labels,
            root=sources.root,
            drop_copies=settings.duplicates == "drop",
            institution=settings.institution,
            code_labels=read_code_labels(settings.code_labels),
        )
        write_index(folder, decided.index)
        _write_refused(folder / REFUSALS, refused)
        shutil.rmtree(folder / REFUSED, ignore_errors=True)
        report = summarise(decided, refused, files=len(sources.files), passed_over=sources.passed_over, labels=labels)
        report = {
            "date": started,
            "name": out.name,
            "command": _command(settings),
            "wall_seconds": time.time() - started,
            "versions": {name: version(name) for name in ("medjax", "tensorflow-datasets", "numpy")},
            "settings": to_dict(settings),
            "identity": identity,
            "digest": EcgDataset(folder).digest,
            **report,
        }
        (folder / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", "utf-8")
        drawings = drawn_examples(EcgDataset(folder), settings.examples)
        (folder / PAGE).write_text(ingest_report(report, drawings), "utf-8")
    beside.unlink(missing_ok=True)  # of a former try
    _say_result(report, out, say)
    return EcgDataset(out)


def _found(out: Path) -> dict[str, Any] | None:
    """The identity of the ingest that OUT holds; None for no folder or an empty one."""
    if (out / REPORT).is_file():
        try:
            return json.loads((out / REPORT).read_text("utf-8"))["identity"]
        except (ValueError, KeyError, TypeError):
            return {}
    if out.is_dir():
        if held := sorted(file.name for file in out.iterdir()):
            raise ValueError(
                f"{out}: got a folder that holds {held[0]}, expected a data set or none; choose another --out."
            )
        return None
    nearest = next(place for place in (out, *out.parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise ValueError(f"{nearest}: got a file, expected a folder or nothing; choose another --out.")
    return None


def _identity(settings: IngestSettings, sources: Sources) -> dict[str, Any]:
    """What decides the data set: the files' states, the labels, the settings that matter."""
    return {
        "files": sources.digest,
        "labels": sha256_file(Path(settings.labels)) if settings.labels else None,
        "label_columns": list(settings.label_columns),
        "code_labels": list(settings.code_labels),
        "institution": settings.institution,
        "duplicates": settings.duplicates,
        "correlation": settings.correlation,
        "medjax": version("medjax"),
    }


def _read(folder: Path, sources: Sources, settings: IngestSettings, progress: bool) -> list[Refusal]:
    if settings.beam.runner:
        return read_with_beam(folder, sources, settings.beam, limit_s=settings.limit_s, memory_gb=settings.memory_gb)
    with ProgressBar(progress, "reading", "file") as bar:
        return read_here(
            folder,
            sources,
            processes=_processes(settings),
            limit_s=settings.limit_s,
            memory_gb=settings.memory_gb,
            progress=bar.reach,
        )


def _processes(settings: IngestSettings) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.processes or cores


def _write_refused(path: Path, refused: list[Refusal]) -> None:
    lines = [json.dumps(refusal.to_json(), ensure_ascii=False) + "\n" for refusal in refused]
    path.write_text("".join(lines), "utf-8")


def _place(partial: Path, out: Path, say: Say) -> None:
    if out.is_dir() and any(out.iterdir()):
        aside = free_name(out)
        out.rename(aside)
        say(f"moved the former {out} to {aside}")
    os.replace(partial, out)  # onto an empty folder too


def _command(settings: IngestSettings) -> str:
    parts = ["python -m medjax.ingest ecg"]
    for key in dataclasses.fields(settings):
        value = getattr(settings, key.name)
        if key.name == "beam":
            parts += [f"--beam.runner {value.runner}"] if value.runner else []
            parts += [f"--beam.options={shlex.quote(','.join(value.options))}"] if value.options else []
        elif value != key.default:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            parts.append(f"--{key.name} {shlex.quote(text)}")
    return " ".join(parts)


def _say_result(report: dict[str, Any], out: Path, say: Say) -> None:
    records, refused = report["records"]["stored"], report["refused"]["count"]
    say(f"{records:,} records of {report['patients']['named']:,} named patients; {refused:,} files or records refused")
    for reason, count in list(report["refused"]["reasons"].items())[:5]:
        say(f"  {count:,} x {reason}")
    copies = report["duplicates"]
    if copies["exact"] or copies["near"]:
        say(f"copies of recordings: {len(copies['exact']):,} exact, {len(copies['near']):,} altered")
    if copies["crowded"]:
        say(f"note: {copies['crowded']:,} records have more look-alikes than were compared; altered copies may be left")
    for name, told in report["labels"]["not_numbers"].items():
        say(f"labels: {told['count']:,} cells of {name} are no number and left unknown, the first in {told['first']}")
    for name, told in report["labels"]["columns"].items():
        if told.get("odd"):
            values = ", ".join(f"{value:g}" for value in told["odd"])
            say(
                f"labels: {name} is 0 or 1 but for {told['odd_count']:,} of {told['known']:,} records ({values}), "
                "which makes it one of ordered classes: are they slips?"
            )
    if report["labels"]["unknown"]:
        say(f"labels of {report['labels']['unknown']:,} lines name no stored record; the report lists them")
    if report["labels"]["file"] and not report["labels"]["labelled"]:
        say(f"note: no line of {report['labels']['file']} names a record; compare its first column with the report")
    say(f"wrote {out}")
    _say_next(out, say)


def _say_next(out: Path, say: Say) -> None:
    say(f"next: open {out / PAGE}; then python -m medjax.train configs/ecg/mae_tiny_cpu.toml --data {out}")
