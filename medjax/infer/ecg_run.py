"""Judging raw ECG files, from settings to predictions.json and pages: the story that `python -m medjax.infer` tells.

find files -> load model -> read each file -> judge -> explain where asked -> predictions.json, pages, a line a record

A file that cannot be read, or a record that cannot be judged, is told on stderr and listed in predictions.json; the
others go on.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medjax.data.ecg.readers import find_ecgs, read_ecg
from medjax.data.ecg.readers.stated import Stated
from medjax.data.ecg.record import EcgFileError, EcgRecord
from medjax.infer.ecg import EcgModel
from medjax.infer.ecg_pages import EcgPages
from medjax.infer.ecg_settings import EcgInferSettings
from medjax.infer.explanation import Explanation, explain
from medjax.infer.prediction import Prediction
from medjax.report.progress import ProgressBar
from medjax.store.provenance import command, versions
from medjax.store.runs import free_name

_PACKAGES = (  # what reads files, as far as it is installed
    "wfdb",
    "pydicom",
    "ecgdatakit",
    "pyedflib",
    "scipy",
)

_RESULT = "predictions.json"
_UNREAD = "a file could not be read; the terminal said why"


def judge_files(settings: EcgInferSettings) -> int:
    """Judge every record of every file; returns how many were judged.

    Raises ValueError or FileNotFoundError with one sentence that says what to do, where nothing can be begun.
    """
    if not settings.files:
        raise ValueError("files: got none, expected ECG files or folders of them; name them as arguments.")
    files = list(dict.fromkeys(_files(settings)))
    stated = Stated(settings.sampling_rate_hz, settings.unit, settings.leads or None)
    out = _out(settings)
    with ProgressBar(True, "weights", "tensor") as bar:
        model = EcgModel.load(str(settings.model.name), mesh=settings.engine.mesh, progress=bar.reach)
    _say(f"{len(files):,} file{'s' if len(files) != 1 else ''}, writing to {out}")
    if (out / _RESULT).exists():
        aside = free_name(out)
        out.rename(aside)
        _say(f"moved the former {out} to {aside}")
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    facts = _facts(settings, model)
    pages = EcgPages(settings.page, model, facts, out)
    records = _records(files, stated, refused)
    with ProgressBar(len(files) > 1, "records", "record") as bar:
        # the records are read as they are judged, and each is held until its page is written
        for number, (record, prediction) in enumerate(_judged(model, records, settings.engine.batch_size), 1):
            shown = record if settings.page.identifiers else _numbered(record, number)
            alias = "" if settings.page.identifiers else f"{shown.id} = "
            if prediction.refused:
                _say(f"{alias}{record.source}, record {record.id}: {prediction.refused}")
                reason = f"{shown.source}, record {shown.id}: {prediction.refused}"
                refused.append({"file": shown.source, "record": shown.id, "reason": reason})
                continue
            explanations = _explanations(settings, model, record)
            told = replace(prediction, id=shown.id, source=shown.source)
            rows.append(_row(shown, told, explanations, pages.write(shown, told, explanations)))
            line = f"{alias}{_line(record, prediction, model)}"
            if not settings.json:
                print(line, flush=True)
            elif alias:
                _say(line)
            bar.advance(1, max(len(files), len(rows)))
    if not settings.page.identifiers:
        unread = [entry for entry in refused if entry["file"] in files]
        refused = [entry for entry in refused if entry["file"] not in files]
        refused += [{"file": None, "record": None, "reason": _UNREAD} for _ in unread]
    found = {**facts, "records": rows, "refused": refused}
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    partial = out / f"{_RESULT}.partial"
    partial.write_text(text, "utf-8")
    os.replace(partial, out / _RESULT)
    if settings.json:
        print(text, end="", flush=True)
    _tell(settings, out, rows, refused)
    return len(rows)


def _out(settings: EcgInferSettings) -> Path:
    if settings.out:
        return Path(settings.out).expanduser()
    model = Path(str(settings.model.name)).expanduser().absolute()
    return Path("runs/infer") / (model.parent if model.name == "model" else model).name


def _files(settings: EcgInferSettings) -> Iterator[str]:
    for name in settings.files:
        path = Path(name).expanduser()
        if path.is_dir():
            found = [str(file) for file in find_ecgs(path)]
            if not found:
                _say(f"{path}: no ECG file in this folder")
            yield from found
        else:
            yield str(path)


def _records(files: list[str], stated: Stated, refused: list[dict[str, Any]]) -> Iterator[EcgRecord]:
    for file in files:
        try:
            yield from read_ecg(file, stated)
        except (EcgFileError, OSError) as error:
            refused.append({"file": file, "record": getattr(error, "record", None), "reason": str(error)})
            _say(str(error))
        except ImportError as error:  # of the extra `ecg`: no other file of the kind would fare better
            raise ValueError(str(error)) from None


def _judged(model: EcgModel, records: Iterator[EcgRecord], batch_size: int) -> Iterator[tuple[EcgRecord, Prediction]]:
    waiting: list[EcgRecord] = []

    def noted() -> Iterator[EcgRecord]:
        for record in records:
            waiting.append(record)
            yield record

    for prediction in model.predict_each(noted(), batch_size=batch_size):
        yield waiting.pop(0), prediction


def _numbered(record: EcgRecord, number: int) -> EcgRecord:
    """The record under a number, without what tells whose it is."""
    name = f"ecg-{number}"
    return replace(record, id=name, source=name, patient=None, time=None, device=None)


def _explanations(settings: EcgInferSettings, model: EcgModel, record: EcgRecord) -> list[Explanation]:
    targets = [target.name for target in model.config.targets if target.kind != "ordinal"]
    found = []
    for method in settings.page.methods:
        for target in targets:
            found.append(explain(model, record, target, method))
            _say(f"{record.id}, {target} by {method}: {found[-1].verdict}")
    return found


def _row(
    record: EcgRecord, prediction: Prediction, explanations: list[Explanation], pages: list[str]
) -> dict[str, Any]:
    about = ("format", "patient", "age_years", "sex", "device", "time", "sampling_rate_hz", "mains_hz")
    return {
        "file": record.source,
        **prediction.to_json(),
        "record": {key: getattr(record, key) for key in about}
        | {"seconds": record.duration_s, "notes": list(record.notes)},
        "explanations": [explanation.to_json() for explanation in explanations],
        "pages": pages,
    }


def _facts(settings: EcgInferSettings, model: EcgModel) -> dict[str, Any]:
    return {
        "model": {
            "name": settings.model.name,
            "digest": model.digest,
            "leads": list(model.reading.leads),
            "preprocessing": model.preprocessing.to_json(),
            "targets": [target.name for target in model.config.targets],
        },
        "command": command(settings if settings.page.identifiers else replace(settings, files=()), "medjax.infer"),
        "versions": versions(*(package for package in _PACKAGES if find_spec(package))),
    }


def _line(record: EcgRecord, prediction: Prediction, model: EcgModel) -> str:
    """The prediction in one line."""
    classes = {target.name: target.classes for target in model.config.targets}
    parts = []
    for output in prediction.outputs.values():
        if output.kind == "binary":
            interval = "" if output.low is None else f" ({100 * output.low:.1f}-{100 * (output.high or 0):.1f})"
            of = f"{output.name}: {classes[output.name][1]}" if classes[output.name] else output.name
            parts.append(f"{of} {100 * (output.probability or 0):.1f} %{interval}, so {output.decision}")
        elif output.kind == "regression":
            error = "" if output.sd is None else f" ± {output.sd:.1f}"
            parts.append(f"{output.name} {output.value:.1f}{error}{' ' + output.unit if output.unit else ''}")
        else:
            parts.append(f"{output.name} {output.decision}")
    which = record.source if record.id == Path(record.source).stem else f"{record.source} {record.id}"
    return f"{which}: {'; '.join(parts)}"


def _tell(settings: EcgInferSettings, out: Path, rows: list[dict[str, Any]], refused: list[dict[str, Any]]) -> None:
    count = f"{len(rows):,} record{'s' if len(rows) != 1 else ''} judged"
    _say(f"{count}, {len(refused):,} refused; {out / _RESULT} holds all of them")
    if not rows:
        _say("nothing could be judged; the lines above say why of each file")
    elif rows[0]["pages"]:
        _say(
            f"next: open {out / rows[0]['pages'][0]}"
            + ("" if settings.page.methods else "; --explain both shows on what it rests")
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
