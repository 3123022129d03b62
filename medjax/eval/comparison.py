"""Two models on the same items: the paired difference with its interval, within a run or between two finished runs.

A base and its adapter are compared by `python -m medjax.eval --adapter`, whose results.json holds both. Runs made apart
are compared by `--compare`, over the items that both asked, from their results.json and samples.jsonl. There a
different protocol, data set or prompt is refused: the difference would be one of the questions, not of the models.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax.statistics import intervals
from medjax.store.runs import named

_FIELDS = ("doc", "doc_hash", "prompt_hash", "correct", "points")


def compare(
    first: Sequence[tuple[bool, float]], second: Sequence[tuple[bool, float]], *, resamples: int, seed: int
) -> dict[str, Any]:
    """What the second did better than the first, as plain numbers ready for JSON.

    first, second  right or wrong, and points, of the same items in the same order
    returns        items; first_accuracy, second_accuracy; accuracy_difference, second minus first, and
                   accuracy_difference_interval, the paired 95 % bootstrap interval [low, high]; points_difference and
                   its interval, in points; only_first, only_second: items that one of them alone got right; p_value:
                   McNemar's exact test on these
    """
    right = [[correct for correct, _ in answers] for answers in (first, second)]
    points = [[worth for _, worth in answers] for answers in (first, second)]
    accuracy = intervals.difference_interval(right[1], right[0], resamples=resamples, seed=seed)
    won = intervals.difference_interval(points[1], points[0], resamples=resamples, seed=seed)
    test = intervals.mcnemar(right[0], right[1])
    items = len(first)
    return {
        "items": items,
        "first_accuracy": sum(right[0]) / items,
        "second_accuracy": sum(right[1]) / items,
        "accuracy_difference": accuracy.estimate,
        "accuracy_difference_interval": [accuracy.low, accuracy.high],
        "points_difference": sum(points[1]) - sum(points[0]),
        "points_difference_interval": [items * won.low, items * won.high],
        "only_first": test.only_first,
        "only_second": test.only_second,
        "p_value": test.p_value,
    }


def compare_runs(
    first: str | Path, second: str | Path, *, resamples: int = intervals.RESAMPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """Compare two run folders on every set and protocol that both hold; of a run with an adapter the adapter counts.

    returns  one entry a set and protocol: what `compare` returns, with task, language, protocol, first and second (the
             folders), and left_out: items that only one of the runs asked

    Raises FileNotFoundError for a folder without results, and ValueError where nothing can be compared.
    """
    paths = [named(first), named(second)]
    runs = [_evaluations(path) for path in paths]
    shared = [key for key in runs[0] if key in runs[1]]
    if not shared:
        held = [", ".join(" ".join(key) for key in run) for run in runs]
        raise ValueError(
            f"compare: {paths[0]} holds {held[0]}, {paths[1]} holds {held[1]}: got no set with the same language and "
            "protocol in both; scores of different protocols cannot be compared, so run both with the same one."
        )
    samples = [_samples(path, [run[key]["id"] for key in shared]) for path, run in zip(paths, runs, strict=True)]
    found = []
    for key in shared:
        entries = [run[key] for run in runs]
        digests = [entry["data"]["digest"] for entry in entries]
        if digests[0] != digests[1]:
            raise ValueError(
                f"compare: {' '.join(key)}: got data {digests[0][:12]} in {paths[0]} and {digests[1][:12]} in "
                f"{paths[1]}, expected the same files; run both on the same data."
            )
        answers = [by_task[entry["id"]] for by_task, entry in zip(samples, entries, strict=True)]
        both = [item for item in answers[0] if item in answers[1]]
        if not both:
            raise ValueError(f"compare: {' '.join(key)}: got no item that both runs asked; ask both the same part.")
        for item in both:
            _check_same_question(" ".join(key), item, answers[0][item], answers[1][item])
        pairs = [[(bool(a[item]["correct"]), a[item]["points"]) for item in both] for a in answers]
        task, language, protocol = key
        found.append(
            {
                **{"task": task, "language": language, "protocol": protocol},
                **{"first": str(paths[0]), "second": str(paths[1])},
                **compare(pairs[0], pairs[1], resamples=resamples, seed=seed),
                "left_out": len(set(answers[0]) ^ set(answers[1])),
            }
        )
    return found


def _evaluations(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """(task, language, protocol) -> entry of medjax.evaluations; an adapter's entry wins over its base's."""
    file = path / "results.json"
    try:
        record = json.loads(file.read_text("utf-8"))["medjax"]
        # the base comes first, so that the adapter's entry replaces it
        return {(e["task"], e["language"], e["protocol"]): e for e in record["evaluations"]}
    except OSError:
        raise FileNotFoundError(
            f"{path}: got no results.json, expected the folder of a finished run; run it to its end first."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: {type(error).__name__}: {error}; expected what medjax.eval writes; run the evaluation again."
        ) from None


def _samples(path: Path, wanted: Sequence[str]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Evaluation id -> item id -> sample, of the evaluations wanted."""
    file = path / "samples.jsonl"
    found: dict[str, dict[str, Mapping[str, Any]]] = {name: {} for name in wanted}
    try:
        # not splitlines(): generated text may hold U+2028 and other line ends, which JSON lets stand
        lines = file.read_text("utf-8").split("\n")
    except OSError:
        raise FileNotFoundError(f"{file}: no such file; it stands beside results.json, copy both.") from None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            sample = json.loads(line)
            if sample["task"] in found:
                found[sample["task"]][sample["doc"]["id"]] = {name: sample[name] for name in _FIELDS}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}, line {number}: {type(error).__name__}: {error}; expected what medjax.eval writes; run the "
                "evaluation again."
            ) from None
    return found


def _check_same_question(where: str, item: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    if first["doc_hash"] != second["doc_hash"]:
        raise ValueError(
            f"compare: {where}: item {item}: got two different questions under this id; run both on the same data."
        )
    if first["prompt_hash"] != second["prompt_hash"]:
        raise ValueError(
            f"compare: {where}: item {item}: got two different prompts (other worked examples, template or chat "
            "template), expected the same; run both with the same --num-fewshot, --seed and --template, and models "
            "with different chat templates with --chat-template none."
        )
