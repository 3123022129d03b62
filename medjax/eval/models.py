"""Several models, with and without adapters, graded by the same settings: a run folder each, one table of all, and
every pair compared on the same questions."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medjax.assets import resolve_model
from medjax.eval.comparison import compare_runs, write_comparison
from medjax.eval.run import evaluate
from medjax.eval.settings import EvalSettings
from medjax.report.outcomes import accuracy_items
from medjax.report.table import text_table
from medjax.store.adapters import check_adapter
from medjax.store.runs import RunFolder, changes, named, shortened


@dataclass(frozen=True)
class Entrant:
    """A model that is graded.

    label  of its folder and of its column
    """

    label: str
    model: str
    adapter: str | None

    @classmethod
    def read(cls, text: str) -> "Entrant":
        """MODEL or MODEL+ADAPTER; a path that exists is a model, whatever is in its name."""
        model, plus, adapter = (text, "", "") if Path(text).expanduser().exists() else text.partition("+")
        if not model or (plus and not adapter):
            raise ValueError(f"models: got {text!r}, expected MODEL or MODEL+ADAPTER; write the folder of the adapter.")
        label = named(model).name + (f"+{named(adapter).name}" if adapter else "")
        return cls(shortened(label), model, adapter or None)


def entrants(texts: Sequence[str]) -> list[Entrant]:
    """Raises ValueError for one that stands twice, or where two would have the same folder."""
    found = [Entrant.read(text) for text in texts]
    for number, one in enumerate(found):
        if other := next((other for other in found[:number] if other.label == one.label), None):
            raise ValueError(
                f"models: got {texts[found.index(other)]} and {texts[number]}, which are both called {one.label}, "
                "expected different names; rename a folder, or leave one out."
            )
    return found


def evaluate_models(
    settings: EvalSettings, *, say: Callable[[str], None] = lambda line: None, progress: bool = False
) -> dict[str, Any]:
    """Grade every model of settings.models; returns what results.json of the folder above theirs holds, and
    `place`, that folder.

    models      label, model, adapter, and the folder of each one's own run, in the order in which they were given
    scores      an entry for each set, language and protocol: `values` by column (a model, or a model with its adapter)
                with metric, value, interval, chance and items of what the set is graded by first
    comparison  as `medjax.eval compare` gives it; prompts differ where chat templates do, which it says

    Models are loaded one after the other. A model that is graded already is not graded again.
    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    chosen = entrants(settings.models)
    _check(chosen, settings)
    place = Path(settings.out) if settings.out else Path("runs/eval") / shortened(_name(settings, chosen))
    identity = {"models": [asdict(one) for one in chosen], "task": asdict(settings.task), "seed": settings.seed}
    identity |= {"protocol": asdict(settings.protocol)}
    with RunFolder.open(place, identity, told=_told) as folder:  # now, as it moves what another call has left there
        if folder.note:
            say(folder.note)
    graded = []
    for number, one in enumerate(chosen, 1):
        say(f"\nmodel {number} of {len(chosen)}: {one.label}")
        model = replace(settings.model, name=one.model, adapter=one.adapter)
        own = replace(settings, models=(), model=model, out=str(place / one.label), name=None)
        graded.append(evaluate(own, say=say, progress=progress))
        gc.collect()  # the weights of one are gone before those of the next come
    found = compare_runs(
        [place / one.label for one in chosen], anyway=True, resamples=settings.resamples, seed=settings.seed
    )
    results = {
        "models": [asdict(one) | {"folder": one.label} for one in chosen],
        "scores": scores(chosen, graded),
    }
    with RunFolder.open(place, identity) as folder:
        folders = [one.label for one in chosen]
        write_comparison(folder, found, "report.html", scores=as_text(results["scores"]), folders=folders)
        folder.write_json("results.json", results | {"comparison": found})
    return results | {"comparison": found, "place": str(place)}


def _told(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What another suite in the folder differs in: the names of its models, then its settings by their keys."""
    names = [", ".join(str(one["label"]) for one in identity.get("models", ())) for identity in (old, new)]
    found = [f"models: {names[0] or 'none'} -> {names[1]}"] if old.get("models") != new["models"] else []
    before, now = ({key: value for key, value in identity.items() if key != "models"} for identity in (old, new))
    return found + changes(before, now)


def _check(chosen: Sequence[Entrant], settings: EvalSettings) -> None:
    """Find every model and adapter, so that the last is not found missing when the others are graded."""
    if len(chosen) < 2:
        raise ValueError(
            f"models: got {len(chosen)}, expected two or more to compare; give one by --model, with its --adapter."
        )
    for one in chosen:
        resolve_model(one.model, settings.model.revision)
        if one.adapter:
            check_adapter(one.adapter)


def scores(chosen: Sequence[Entrant], graded: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table of all: see evaluate_models. graded: the results.json of each."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for one, results in zip(chosen, graded, strict=True):
        for evaluation in results["medjax"]["evaluations"]:
            key = evaluation["task"], evaluation["language"], evaluation["protocol"]
            row = rows.setdefault(key, dict(zip(("task", "language", "protocol"), key, strict=True)) | {"values": {}})
            column = one.label if evaluation.get("variant") != "base" else named(one.model).name
            row["values"].setdefault(column, headline(evaluation))
    return list(rows.values())


def headline(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation is graded by first: metric, value, interval, chance, items; why some of it is missing."""
    for name, metric in evaluation.get("metrics", {}).items():
        if name != "accuracy":
            kept = ("value", "interval", "chance", "items", "not_graded", "no_interval")
            return {"metric": name} | {key: metric[key] for key in kept if key in metric}
        break
    score = evaluation["scores"]
    return {
        "metric": "accuracy",
        "value": score["accuracy"],
        "interval": score["accuracy_interval"],
        "chance": score["chance"]["accuracy"],
        "items": accuracy_items(score),
        **({"not_graded": score["not_graded"]} if "not_graded" in score else {}),
    }


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The models of a table, in the order in which they were graded."""
    return list(dict.fromkeys(column for row in rows for column in row["values"]))


def shown(value: Mapping[str, Any] | None) -> str:
    """A cell: 38.3 % (35.1 to 41.6) for shares, 0.41 (0.33 to 0.49) for the rest."""
    if value is None:
        return ""
    if value["value"] is None:
        return f"not graded: {value['not_graded']}" if "not_graded" in value else "undefined"
    text, unit, digits = _number(value["value"], value["metric"])
    if not value["interval"]:
        return f"{text} (no interval: {reason})" if (reason := value.get("no_interval")) else text
    low, high = (f"{unit * bound:.{digits}f}" for bound in value["interval"])
    return f"{text} ({low} to {high})"


def _number(value: float, metric: str) -> tuple[str, int, int]:
    """In words, and the unit and digits in which it is given."""
    unit, digits, end = (100, 1, " %") if metric == "accuracy" else (1, 3, "")
    return f"{unit * value:.{digits}f}{end}", unit, digits


def as_text(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table in words: task, language, protocol, metric, items, chance, and `values` by column."""
    found = []
    for row in rows:
        first = next(iter(row["values"].values()))
        chance = "" if first["chance"] is None else _number(first["chance"], first["metric"])[0]
        found.append(
            {key: row[key] for key in ("task", "language", "protocol")}
            | {"metric": first["metric"], "items": str(first["items"]), "chance": chance}
            | {"values": {name: shown(value) for name, value in row["values"].items()}}
        )
    return found


def print_scores(results: Mapping[str, Any]) -> None:
    """Print the one table."""
    rows, names = as_text(results["scores"]), columns(results["scores"])
    lines = [
        [
            f"{row['task']} ({row['language']})",
            *(row[key] for key in ("protocol", "metric", "items", "chance")),
            *(row["values"].get(name, "") for name in names),
        ]
        for row in rows
    ]
    header = ["set", "protocol", "graded by", "items", "chance", *names]
    print()
    print(text_table(lines, header, align="lll" + "r" * (2 + len(names)), once=header[1:5]))


def _name(settings: EvalSettings, chosen: Sequence[Entrant]) -> str:
    return settings.name or "_".join(one.label for one in chosen) + "-" + "+".join(settings.task.names).replace(
        ":", "_"
    )
