"""Models on the same items: paired differences with their intervals, within a run or between finished runs.

A base and its adapter are compared by `python -m medjax.eval --adapter`, whose results.json holds both. Runs made apart
are compared by `python -m medjax.eval compare`, every pair of them over the items that both asked, from their
results.json and samples.jsonl. There another protocol, data set or prompt is refused, field by field: the difference
would be one of the questions, not of the models. With `anyway` it is compared, and what differs stands in the result.

Right and wrong are compared by McNemar's test. A set that is graded by something else (kappa, F1, correlation, BLEU) is
compared by that, too (eval.metric_differences). Where no item has a right answer to pick or to count, which is so of
lists, similarities and texts, that is its only test.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations, compress
from pathlib import Path
from typing import Any

from medjax.eval.graded import GradedRun, Key, called, labels
from medjax.eval.metric_differences import gains, has_answers, headlines, item_of, metric_differences, reading_of
from medjax.eval.scoring import in_accuracy
from medjax.eval.settings import FEWSHOT
from medjax.report.comparison import comparison_report
from medjax.statistics import differences, intervals
from medjax.statistics.paired import discordance, holm
from medjax.store.runs import RunFolder

_Samples = Mapping[str, Mapping[str, Any]]
_SHOWN = 12  # characters of a digest
_MOST_REASONS = 8
_TEXT = ("question", "choices", "context")
_EXAMPLES = re.compile(rf"(-({'|'.join(FEWSHOT)}))?-[0-9]+shot$")  # the end of a protocol's id
_SAME = 1e-9  # relative: a metric of the same answers, computed again


def compare(
    first: Sequence[tuple[bool, float]],
    second: Sequence[tuple[bool, float]],
    counted: Sequence[bool] | None = None,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What the second did better than the first, as plain numbers ready for JSON.

    first, second  right or wrong, and points, of the same items in the same order
    counted        which of them the accuracy counts (scoring.in_accuracy); None, and where it counts none: all
    returns        items, of the accuracy; first_accuracy, second_accuracy; accuracy_difference, second minus first, and
                   accuracy_difference_interval, Tango's 95 % score interval [low, high] (statistics.differences);
                   points_difference and its paired bootstrap interval, in points, None where the two differ on every
                   item in the same way, on none or on all; only_first, only_second: items that one of them alone got
                   right; p_value: McNemar's exact test on these; odds_ratio (None: no bound), odds_ratio_interval and
                   cohen_g, their effect sizes (statistics.paired)
    """
    every = [[correct for correct, _ in answers] for answers in (first, second)]
    right = [list(compress(part, counted)) if counted and any(counted) else part for part in every]
    points = [[worth for _, worth in answers] for answers in (first, second)]
    test = intervals.mcnemar(right[0], right[1])
    effect = discordance(test.only_first, test.only_second)
    items = len(right[0])
    accuracy = differences.paired(test.only_first, test.only_second, items)
    gained: list[float] | None = None
    if len({one - two for one, two in zip(*every, strict=True)}) > 1:
        won = intervals.difference_interval(points[1], points[0], resamples=resamples, seed=seed)
        gained = [len(first) * won.low, len(first) * won.high]
    return {
        "items": items,
        "first_accuracy": sum(right[0]) / items,
        "second_accuracy": sum(right[1]) / items,
        "accuracy_difference": accuracy.estimate,
        "accuracy_difference_interval": [accuracy.low, accuracy.high],
        "points_difference": sum(points[1]) - sum(points[0]),
        "points_difference_interval": gained,
        "only_first": test.only_first,
        "only_second": test.only_second,
        "p_value": test.p_value,
        "odds_ratio": effect.odds_ratio,
        "odds_ratio_interval": [effect.low, effect.high],
        "cohen_g": effect.cohen_g,
    }


def compare_runs(
    paths: Sequence[str | Path], *, anyway: bool = False, resamples: int = intervals.RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Compare every pair of run folders on every set and protocol that both hold; of an adapter's run the adapter.

    anyway   compare what differs in protocol, data or prompts too
    returns  runs: label, path, model, adapter, dtype, quantisation, date and digests of each; comparisons: what
             `compare` returns, with task, language, protocol, first and second (the folders), first_label and
             second_label, has_answers (whether right and wrong are a test), metrics (what `metric_differences`
             returns), left_out (items that cannot be paired), won and lost (questions that the second, the first
             answered better, with both answers) and their counts; p_holm beside every p_value, corrected over all
             tests of the result, None for what is none; differences: what `anyway` let pass; notes: what else differs;
             exams: the verdicts of every run on every exam, under each protocol
    A set of which no item reached a model has no score: it is noted, not compared.

    Raises FileNotFoundError for a folder without results, and ValueError where nothing can be compared.
    """
    if len(paths) < 2:
        raise ValueError(f"compare: got {len(paths)} run, expected two or more; name the folders of finished runs.")
    runs = [GradedRun.read(path) for path in paths]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ValueError("compare: got the same run twice, expected different ones; name each folder once.")
    names = labels(runs)
    keys = [{key for other in runs if other is not run for key in _alike(run, other)} for run in runs]
    samples = [run.samples(sorted(wanted)) for run, wanted in zip(runs, keys, strict=True)]
    pairs: list[tuple[_Pair, Key, Key]] = []
    every: list[_Pair] = []
    shared: set[Key] = set()
    for i, j in combinations(range(len(runs)), 2):
        pair = _Pair((runs[i], runs[j]), (names[i], names[j]), (samples[i], samples[j]))
        matched = _matched(runs[i], runs[j])
        if not matched:
            held = [", ".join(map(called, run.evaluations)) for run in pair.runs]
            way = f", or leave {names[i]} or {names[j]} out" if len(runs) > 2 else ""
            if _alike(runs[i], runs[j]):
                way += (
                    "; to compare two protocols with --anyway, name runs that asked a set under one each, or under "
                    "several that differ in their worked examples alone"
                )
            apart = (
                "got no set with the same language and protocol in both; scores of different protocols cannot be "
                "compared, so run both with the same one"
                if _alike(runs[i], runs[j])
                else "got no set in common, expected one that both asked in the same language; run both with the same "
                "--tasks (and --language)"
            )
            raise ValueError(f"compare: {runs[i].path} holds {held[0]}, {runs[j].path} holds {held[1]}: {apart}{way}.")
        for key, other in matched:
            reasons = {names[i]: runs[i].not_graded(key), names[j]: runs[j].not_graded(other)}
            if any(reasons.values()):
                shown = ", ".join(f"{reason} in {name}" for name, reason in reasons.items() if reason)
                pair.notes.append(f"{called(key)}: not compared, since no item reached a model: {shown}")
            else:
                pairs.append((pair, key, other))
        every.append(pair)
        shared |= {key for both in matched for key in both}
    told: list[dict[str, Any]] = []
    unlike: set[Key] = set()  # under one protocol, but of other data or prompts
    for pair, *both in pairs:
        if differing := pair.differences(*both):
            told += differing
            unlike |= {both[0]} & {both[1]}
    if told and not anyway:
        asked = dict.fromkeys(line for pair, *both in pairs for line in pair.items_apart(*both))
        alone = _in_one_run_alone(runs, names, shared)
        raise ValueError(_refusal(told, [*asked, *alone]))
    found = [pair.comparison(*both, resamples=resamples, seed=seed) for pair, *both in pairs]
    _put_holm(found)
    return {
        "runs": [_run(run, name) for run, name in zip(runs, names, strict=True)],
        "comparisons": found,
        "differences": told,
        "notes": [
            *_notes(runs, names, shared),
            *dict.fromkeys(note for pair in every for note in pair.notes),
        ],
        "exams": _exams(runs, {key for wanted in keys for key in wanted}, unlike),
        "anyway": anyway,
        "resamples": resamples,
        "seed": seed,
    }


def write_comparison(folder: RunFolder, found: dict[str, Any], page: str = "comparison.html", **more: Any) -> None:
    """Write what `compare_runs` returns: comparison.json, questions.json (won and lost, taken out of it), and a page.

    more  of report.comparison.comparison_report
    """
    questions = [{key: entry.pop(key) for key in ("won", "lost")} for entry in found["comparisons"]]
    folder.write_json("comparison.json", found)
    names_of = ("task", "language", "protocol", "first_label", "second_label")
    both = zip(found["comparisons"], questions, strict=True)
    folder.write_json("questions.json", [{name: entry[name] for name in names_of} | part for entry, part in both])
    folder.write_text(page, comparison_report(found, questions, **more))


def _alike(run: GradedRun, other: GradedRun) -> list[Key]:
    """The run's evaluations of sets that the other asked in the same language."""
    sets = {key[:2] for key in other.evaluations}
    return [key for key in run.evaluations if key[:2] in sets]


def _matched(first: GradedRun, second: GradedRun) -> list[tuple[Key, Key]]:
    """Evaluations to compare: the same ones, and where a set has none, those of other protocols.

    Of other protocols that is the only one of each run, or those which differ in their worked examples alone.
    """
    found: list[tuple[Key, Key]] = []
    for place in dict.fromkeys(key[:2] for key in _alike(first, second)):
        mine, others = ([key for key in run.evaluations if key[:2] == place] for run in (first, second))
        same = [(key, key) for key in mine if key in others]
        if not same and len(mine) == len(others) == 1:
            same = [(mine[0], others[0])]
        if not same:
            families, theirs = _families(mine), _families(others)
            same = [
                (keys[0], theirs[name][0])
                for name, keys in families.items()
                if len(keys) == len(theirs.get(name, ())) == 1
            ]
        found += same
    return found


def _families(keys: Sequence[Key]) -> dict[str, list[Key]]:
    """Evaluations of a set by their protocol without its worked examples."""
    found: dict[str, list[Key]] = {}
    for key in keys:
        found.setdefault(_EXAMPLES.sub("", key[2]), []).append(key)
    return found


def _put_holm(comparisons: Sequence[dict[str, Any]]) -> None:
    """Write p_holm, corrected over all tests, into every entry and its metrics."""
    entries = [one for entry in comparisons for one in (entry, *entry["metrics"])]
    for entry in entries:
        entry["p_holm"] = None
    tests = [entry for entry in entries if entry["p_value"] is not None and entry.get("has_answers", True)]
    for entry, p_value in zip(tests, holm([entry["p_value"] for entry in tests]), strict=True):
        entry["p_holm"] = p_value


class _Pair:
    """Two runs and their samples; notes: what was seen while they were compared."""

    def __init__(
        self,
        runs: tuple[GradedRun, GradedRun],
        names: tuple[str, str],
        samples: tuple[Mapping[Key, _Samples], Mapping[Key, _Samples]],
    ) -> None:
        self.runs = runs
        self.notes: list[str] = []
        self._names = names
        self._samples = samples

    def differences(self, first: Key, second: Key) -> list[dict[str, Any]]:
        """What makes the two scores those of different questions, field by field."""
        entries = [run.evaluations[key] for run, key in zip(self.runs, (first, second), strict=True)]
        answers = self._samples[0][first], self._samples[1][second]
        both = [item for item in answers[0] if item in answers[1]]
        found = []

        def differ(field: str, values: Sequence[Any]) -> None:
            if values[0] != values[1]:
                where = {"evaluation": called(first), "first": self._names[0], "second": self._names[1]}
                found.append({**where, "field": field, "values": list(values)})

        differ("protocol", [first[2], second[2]])
        differ("data", [entry["data"]["digest"][:_SHOWN] for entry in entries])
        if docs := [item for item in both if answers[0][item]["doc_hash"] != answers[1][item]["doc_hash"]]:
            hashes = [str(each[docs[0]]["doc_hash"])[:_SHOWN] for each in answers]
            differ(f"questions of {len(docs)} of {len(both)} items, the first {docs[0]}", hashes)
        prompts = [item for item in both if answers[0][item]["prompt_hash"] != answers[1][item]["prompt_hash"]]
        if prompts:
            for field in ("num_fewshot", "chat_template", "seed"):
                differ(field, [_setting(run, entry, field) for run, entry in zip(self.runs, entries, strict=True)])
            hashes = [str(each[prompts[0]]["prompt_hash"])[:_SHOWN] for each in answers]
            differ(f"prompts of {len(prompts)} of {len(both)} items, the first {prompts[0]}", hashes)
        return found

    def items_apart(self, first: Key, second: Key) -> list[str]:
        """A line where the two did not ask the same items: such are left out of a comparison, and refuse none."""
        asked = set(self._samples[0][first]), set(self._samples[1][second])
        if asked[0] == asked[1]:
            return []
        counts = ", ".join(f"{len(items)} in {name}" for items, name in zip(asked, self._names, strict=True))
        return [f"{called(first)}: items: {counts}, {len(asked[0] & asked[1])} in both"]

    def comparison(self, first: Key, second: Key, *, resamples: int, seed: int) -> dict[str, Any]:
        """The entry of two evaluations, over the questions that both asked."""
        answers = self._samples[0][first], self._samples[1][second]
        both = [
            item for item in answers[0] if item in answers[1] and _asked(answers[0][item]) == _asked(answers[1][item])
        ]
        if not both:
            raise ValueError(f"compare: {called(first)}: got no item that both runs asked; ask both the same part.")
        rows = [[each[item] for item in both] for each in answers]
        pairs = [[(bool(row["correct"]), row["points"]) for row in run] for run in rows]
        metrics, better = self._graded((first, second), rows, resamples=resamples, seed=seed)
        docs = [row["doc"] for row in rows[0]]
        known = [(doc.get("kind", "choice"), doc.get("answer", ())) for doc in docs]
        is_answered = has_answers(known, metrics)
        if not is_answered and not metrics:
            self.notes.append(
                f"{called(first)}: no question has a known right answer to compare by; people have to judge"
            )
        # the largest gain and the largest loss first
        won = sorted((number for number, gain in enumerate(better) if gain > 0), key=lambda number: -better[number])
        lost = sorted((number for number, gain in enumerate(better) if gain < 0), key=lambda number: better[number])
        task, language, _ = first
        return {
            **{"task": task, "language": language},
            "protocol": first[2] if first == second else f"{first[2]} / {second[2]}",
            **{"first": str(self.runs[0].path), "second": str(self.runs[1].path)},
            **{"first_label": self._names[0], "second_label": self._names[1]},
            **compare(pairs[0], pairs[1], in_accuracy(known), resamples=resamples, seed=seed),
            "has_answers": is_answered,
            "metrics": metrics,
            "left_out": len(set(answers[0]) | set(answers[1])) - len(both),
            **{"won_count": len(won), "lost_count": len(lost)},
            "won": [_question(rows[0][number], rows[1][number]) for number in won],
            "lost": [_question(rows[0][number], rows[1][number]) for number in lost],
        }

    def _graded(
        self, keys: tuple[Key, Key], rows: Sequence[Sequence[Mapping[str, Any]]], *, resamples: int, seed: int
    ) -> tuple[list[dict[str, Any]], list[float]]:
        """Differences by what the set is graded by besides accuracy, and by how much the second is better on each item.

        An item without a value of its own is 1 better where the second alone is right, and 1 worse the other way.
        """
        right = [float(row["correct"]) - float(other["correct"]) for other, row in zip(*rows, strict=True)]
        stored = [run.evaluations[key].get("metrics", {}) for run, key in zip(self.runs, keys, strict=True)]
        names = [name for name in stored[0] if name in stored[1]]
        if not set(names) - {"accuracy"}:
            return [], right
        items = [item_of(row["doc"]) for row in rows[0]]
        first, second = ([reading_of(row.get("picked")) for row in run] for run in rows)
        metrics = headlines(names, items)
        found = metric_differences(metrics, items, first, second, resamples=resamples, seed=seed)
        for side, name in enumerate(("first", "second")):
            if len(items) == len(self._samples[side][keys[side]]):
                self._check(side, keys[side], {entry["metric"]: entry[name] for entry in found}, stored[side])
        by_metric = gains(metrics, items, first, second)
        return found, [gain if by is None else by for gain, by in zip(right, by_metric, strict=True)]

    def _check(
        self, side: int, key: Key, computed: Mapping[str, float | None], stored: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Note a figure that results.json has otherwise."""
        for name, value in computed.items():
            said = stored[name]["value"]
            if value is None or said is None:
                same = value is said
            else:
                same = math.isclose(value, said, rel_tol=_SAME, abs_tol=_SAME)
            if not same:
                shown, told = ("undefined" if each is None else f"{each:.6g}" for each in (value, said))
                self.notes.append(
                    f"{called(key)}: {name} of the samples of {self._names[side]} is {shown}, in its results.json "
                    f"{told}; grade it again with this version"
                )


def _asked(sample: Mapping[str, Any]) -> list[Any]:
    doc = sample["doc"]
    texts = [doc.get(name) for name in _TEXT]
    return texts if any(texts) else [sample["doc_hash"]]


def _question(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    doc = second["doc"]
    kept = ("id", "exam", "section", "category", "points", "context", "question", "choices", "answer", "prohibited")
    given = ("picked", "output", "unparsed", "truncated")
    return {
        **{name: doc[name] for name in kept if name in doc},
        "first": {name: first.get(name) for name in given},
        "second": {name: second.get(name) for name in given},
    }


def _setting(run: GradedRun, entry: Mapping[str, Any], field: str) -> Any:
    if field == "num_fewshot":
        return run.results.get("configs", {}).get(entry["id"], {}).get("num_fewshot")
    if field == "chat_template":
        digest = run.results.get("chat_template_sha")
        return digest[:_SHOWN] if digest else "none"
    return run.record.get("seed")


def _refusal(told: Sequence[Mapping[str, Any]], besides: Sequence[str]) -> str:
    """told: what is refused; besides: what else differs, which alone would only be left out."""
    lines = [
        f"{d['evaluation']}: {d['field']}: {d['values'][0]} in {d['first']}, {d['values'][1]} in {d['second']}"
        for d in told
    ]
    more = f"\nBesides, what one run alone asked would be left out:{_listed(besides)}" if besides else ""
    return (
        "compare: got runs that were not asked the same, expected the same protocol, data and prompts:"
        f"{_listed(lines)}{more}\n"
        "run them with the same settings on the same data (models with different chat templates with --chat-template "
        "none), or give --anyway, which compares them and says in the result what differs."
    )


def _listed(lines: Sequence[str]) -> str:
    shown = [*lines[:_MOST_REASONS], *([f"and {len(lines) - _MOST_REASONS} more"] * (len(lines) > _MOST_REASONS))]
    return "".join(f"\n  {line}" for line in shown)


def _run(run: GradedRun, label: str) -> dict[str, Any]:
    model, adapter = run.record.get("model", {}), run.record.get("adapter", {})
    return {
        **{"label": label, "path": str(run.path), "model": model.get("name", ""), "adapter": adapter.get("name", "")},
        **{"dtype": model.get("dtype"), "quantisation": model.get("quantisation"), "date": run.results.get("date")},
        "model_digest": model.get("digest"),
        "adapter_digest": adapter.get("digest"),
    }


def _notes(runs: Sequence[GradedRun], names: Sequence[str], compared: set[Key]) -> list[str]:
    """What differs and may move a score, but does not change what was asked; and what was not compared at all."""
    fields = {
        "dtype": [run.record.get("model", {}).get("dtype") for run in runs],
        "quantisation": [run.record.get("model", {}).get("quantisation") for run in runs],
        "kv_cache": [run.record.get("model", {}).get("kv_cache") for run in runs],
        "medjax": [run.record.get("versions", {}).get("medjax") for run in runs],
        "devices": [run.record.get("devices") for run in runs],
    }
    found = []
    for field, values in fields.items():
        if len({str(value) for value in values}) > 1:
            shown = ", ".join(f"{value or 'none'} in {name}" for value, name in zip(values, names, strict=True))
            found.append(f"{field}: {shown}")
    return found + _in_one_run_alone(runs, names, compared)


def _in_one_run_alone(runs: Sequence[GradedRun], names: Sequence[str], compared: set[Key]) -> list[str]:
    """A line for each evaluation that no pair of runs shares."""
    holders = {key: name for run, name in zip(runs, names, strict=True) for key in run.evaluations}
    return [f"{called(key)}: in {holders[key]} alone" for key in sorted(set(holders) - compared)]


def _exams(runs: Sequence[GradedRun], keys: set[Key], unlike: set[Key]) -> list[dict[str, Any]]:
    """One entry an exam with pass marks, set, language and protocol.

    It holds what every run made of it (None: not asked under this protocol), whether they were asked the same, and
    whether their verdicts then differ. unlike: evaluations of which some runs were not asked the same.
    """
    found = []
    for key in sorted(keys):
        scores = [run.evaluations.get(key, {}).get("scores", {}).get("by_exam", {}) for run in runs]
        for exam in dict.fromkeys(exam for each in scores for exam in each):
            rows = [_exam(each[exam]) if exam in each else None for each in scores]
            results = {row["result"] for row in rows if row}
            if results - {"none"}:
                task, language, protocol = key
                entry = {"task": task, "language": language, "protocol": protocol, "exam": exam}
                alike = key not in unlike
                found.append({**entry, "runs": rows, "alike": alike, "changed": alike and len(results) > 1})
    return found


def _exam(score: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("items", "accuracy", "points", "points_total", "required_points", "required_total", "prohibited")
    verdict = score.get("verdict", {})
    return {
        "result": verdict.get("result", "none"),
        "reasons": verdict.get("reasons", []),
        **{name: score[name] for name in kept if name in score},
    }
