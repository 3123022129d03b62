"""`python -m medjax.eval compare`, `audit` and `merge`: what they can be told, and what they print.

Their lists may stand as words after an option or, for the runs to compare, without one: `compare A B --anyway`,
`audit --train notes.jsonl more/ --tasks igakuqa mini`. Everything else is as with the other commands.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medjax.config import field, parse_command
from medjax.data.exams.own_exam import is_exam_file
from medjax.infer.command import exit_status
from medjax.report.drawing import counted
from medjax.report.outcomes import accuracy_items
from medjax.report.table import text_table
from medjax.statistics import bootstrap, intervals

if TYPE_CHECKING:
    from medjax.store.runs import RunFolder

_COMPARE = """Compare finished runs on the questions that all pairs of them asked, or two runs on the same ECGs.

Accuracy with Tango's score interval, McNemar's exact test and effect sizes; kappa, F1, correlation and BLEU, where a
set is graded by them, with paired bootstrap intervals and tests; Holm's correction over all tests; verdicts by exam,
and which questions were won and lost. Runs whose protocol, data or prompts differ are refused. Of ECGs AUROCs by
DeLong's paired test, and every figure by a paired bootstrap, by patient."""
_COMPARE_EPILOG = """examples:
  python -m medjax.eval compare runs/eval/one runs/eval/two
  python -m medjax.eval compare runs/eval/base runs/eval/a runs/eval/b --out runs/compare/all
  python -m medjax.eval compare runs/eval/zero_shot runs/eval/three_shot --anyway
  python -m medjax.eval compare runs/eval/lvsd_small runs/eval/lvsd_large     (of ECGs)
"""
_AUDIT = """Look for exam items in training data: word for word, but for letter case, width, blanks and punctuation, and
as near duplicates by n-grams of letters. Runs named besides are scored again without the items found."""
_AUDIT_EPILOG = """examples:
  python -m medjax.eval audit --train notes.jsonl corpus/ --tasks igakuqa mini
  python -m medjax.eval audit --train pubmedqa:train --tasks pubmedqa:en --run runs/eval/one runs/eval/two
"""
_MERGE = """Put the shards of a run together, as the last of its processes does by itself.

results.json, samples.jsonl and report.html are those of one process. A shard that is missing is named with the command
that makes it. The model is loaded, on devices of the same kind, but computes nothing."""
_MERGE_EPILOG = """example:
  python -m medjax.eval merge runs/eval/one
"""
_STATUS = """
Exit status: 0 done, 1 the work failed, 2 the call or the input was wrong, 75 stopped by Ctrl-C or SIGTERM."""


SUBCOMMANDS = ("compare", "audit", "merge")


@dataclass(frozen=True)
class CompareSettings:
    """Everything `python -m medjax.eval compare` can be told."""

    runs: tuple[str, ...] = field((), help="folders of two or more finished runs; the option itself may be left out")
    anyway: bool = field(False, help="compare runs of other protocols, data or prompts too, and say what differs")
    out: str | None = field(None, help="folder of the result; default: runs/compare/<names of the runs>")
    resamples: int | None = field(
        None, help=f"samples behind bootstrap intervals; default: {intervals.RESAMPLES}, of ECGs {bootstrap.RESAMPLES}"
    )
    seed: int = field(0, help="of the bootstrap")

    def __post_init__(self):
        if len(self.runs) < 2:
            raise ValueError(f"runs: got {len(self.runs)}, expected two or more; write compare RUN_A RUN_B.")
        if self.resamples is not None and self.resamples < 1:
            raise ValueError(f"resamples: got {self.resamples}, expected 1 or more.")


@dataclass(frozen=True)
class AuditSettings:
    """Everything `python -m medjax.eval audit` can be told."""

    train: tuple[str, ...] = field(
        (),
        help="training data: files and folders as medjax.train reads them, exam files (.jsonl, .json, .csv, .tsv), or "
        "a set's part (pubmedqa:train)",
    )
    tasks: tuple[str, ...] = field(
        (),
        help="question sets or exam files (.jsonl, .json, .csv, .tsv) to look for; name:language for one of "
        "their languages",
    )
    run: tuple[str, ...] = field((), help="finished runs to score with and without the items found")
    split: str = field("train", help="of folders that tensorflow-datasets wrote")
    data_dir: str | None = field(None, help="folder of the question sets; default: MEDJAX_DATA", alias="--data-dir")
    containment: float = field(0.35, help="near duplicate: least share of an item's n-grams, by weight")
    jaccard: float = field(0.2, help="near duplicate: least Jaccard similarity of item and text")
    ngram_japanese: int = field(5, help="letters of an n-gram in Japanese items")
    ngram: int = field(6, help="letters of an n-gram in other items")
    sketch: int = field(64, help="n-grams of each item that are looked for at first (MinHash)")
    out: str | None = field(None, help="folder of the result; default: runs/audit/<names of data and sets>")
    resamples: int = field(
        10000, help="bootstrap samples behind 95 % intervals, except those of accuracy, which need none"
    )
    seed: int = field(0, help="of the bootstrap")

    def __post_init__(self):
        if not self.train:
            raise ValueError("train: got no training data, expected at least one file or folder; see --help.")
        if not self.tasks:
            raise ValueError("tasks: got no question set, expected at least one such as igakuqa; see --help.")
        if self.resamples < 1:
            raise ValueError(f"resamples: got {self.resamples}, expected 1 or more.")


@dataclass(frozen=True)
class MergeSettings:
    """Everything `python -m medjax.eval merge` can be told."""

    run: tuple[str, ...] = field((), help="folder of the run; the option itself may be left out")

    def __post_init__(self):
        if len(self.run) != 1:
            raise ValueError(f"run: got {len(self.run)} folders, expected one; write merge RUN.")


@dataclass(frozen=True)
class _NoEngine:
    """Nothing is computed on devices."""

    compilation_cache: bool = False
    to_take_less: str = "give fewer runs or question sets at one time."


def run_subcommand(argv: Sequence[str]) -> int:
    """Do what `compare …`, `audit …` or `merge …` asks for; returns the exit status."""
    name, *rest = argv
    prog = f"medjax.eval {name}"
    if name == "compare":
        given = gathered(rest, lists=("--runs",), flags=("--anyway", "--no-anyway"), rest_is="--runs")
        compared = parse_command(
            CompareSettings, given, prog=prog, description=_COMPARE, epilog=_COMPARE_EPILOG + _STATUS
        )
        return exit_status(
            "medjax.eval", lambda: _compare(compared), _NoEngine(), stopped="stopped; nothing was written."
        )
    if name == "merge":
        given = gathered(rest, lists=("--run",), rest_is="--run")
        merged = parse_command(MergeSettings, given, prog=prog, description=_MERGE, epilog=_MERGE_EPILOG + _STATUS)
        return exit_status(
            "medjax.eval", lambda: _merge(merged), _NoEngine(), stopped="stopped; the same command goes on from here."
        )
    given = gathered(rest, lists=("--train", "--tasks", "--run"))
    audited = parse_command(AuditSettings, given, prog=prog, description=_AUDIT, epilog=_AUDIT_EPILOG + _STATUS)
    return exit_status("medjax.eval", lambda: _audit(audited), _NoEngine(), stopped="stopped; nothing was written.")


def gathered(
    argv: Sequence[str], *, lists: Sequence[str], flags: Sequence[str] = (), rest_is: str | None = None
) -> list[str]:
    """The arguments with the words of each list behind its option as one TOML array.

    lists    options that take every word up to the next option; flags: options that take none
    rest_is  the list that words without an option belong to; a .toml file among them stays a file of settings
    """
    words: dict[str, list[str]] = {}
    kept: list[str] = []
    taker = rest_is
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith("-"):
            if taker is None or argument.endswith(".toml"):
                kept.append(argument)
            else:
                words.setdefault(taker, []).append(argument)
        elif (option := argument.partition("=")[0]) in lists:
            taker = option
            words.setdefault(option, []).extend([argument.removeprefix(f"{option}=")] if "=" in argument else [])
        else:
            kept.append(argument)
            taker = rest_is
            if "=" not in argument and argument not in flags and argument not in ("-h", "--help"):
                kept += [value for value in [next(arguments, None)] if value is not None]
    for option, values in words.items():
        # one word may itself be a list with commas
        kept += [
            option,
            *([values[0]] if len(values) == 1 else [json.dumps(values, ensure_ascii=False)] * bool(values)),
        ]
    return kept


def _compare(settings: CompareSettings) -> None:
    from medjax.eval.comparison import compare_runs, write_comparison
    from medjax.eval.ecg_comparison import compare_ecg_runs, is_ecg_run
    from medjax.eval.ecg_summary import print_ecg_comparison
    from medjax.store.runs import RunFolder, named, shortened

    on_ecgs = [run for run in settings.runs if is_ecg_run(run)]
    if on_ecgs and settings.runs != tuple(on_ecgs[:2]):
        others = [run for run in settings.runs if run not in on_ecgs]
        got = f"{on_ecgs[0]}, a run on ECGs, and {others[0]}" if others else f"{len(on_ecgs)} runs on ECGs"
        raise ValueError(f"compare: got {got}, expected runs on questions, or two runs on ECGs; leave the others out.")
    names = "_vs_".join(named(run).name for run in settings.runs)
    place = Path(settings.out) if settings.out else Path("runs/compare") / shortened(names)
    RunFolder.check(place)
    identity = {"compare": [str(named(run)) for run in settings.runs]}
    if on_ecgs:
        found = compare_ecg_runs(*on_ecgs, resamples=settings.resamples or bootstrap.RESAMPLES, seed=settings.seed)
        with RunFolder.open(place, identity) as folder:
            _say_moved(folder)
            folder.write_json("comparison.json", found)
        print_ecg_comparison(found)
        print(f"\nresults  {folder.path}/comparison.json")
        return
    found = compare_runs(
        settings.runs,
        anyway=settings.anyway,
        resamples=settings.resamples or intervals.RESAMPLES,
        seed=settings.seed,
    )
    with RunFolder.open(place, identity) as folder:
        _say_moved(folder)
        write_comparison(folder, found)
    print_compared(found)
    print(f"\nresults  {folder.path}/comparison.json, questions.json (won and lost), comparison.html (to look at)")
    if found["comparisons"]:
        print("next     open comparison.html; a difference whose interval holds 0 is not shown by these questions")
    else:
        print("next     nothing was compared, see the notes above: grade the sets so that both runs have a score")


def print_compared(found: Mapping[str, Any]) -> None:
    """Print the tables of a comparison."""
    from medjax.report.comparison import run_letters

    letters = run_letters(found["runs"])
    for run in found["runs"]:
        model = run["model"] + (f" + {run['adapter']}" if run["adapter"] else "")
        print(f"{letters[run['label']]}  {run['path']}  {model}".rstrip())
    for difference in found["differences"]:
        first, second = difference["values"]
        print(
            f"DIFFERS  {difference['evaluation']}: {difference['field']}: {first} in {letters[difference['first']]}, "
            f"{second} in {letters[difference['second']]}; compared anyway"
        )
    for note in found["notes"]:
        print(f"note     {note}")
    rows = [row for entry in found["comparisons"] for row in _compared_rows(entry, letters)]
    header = ["set", "protocol", "runs", "items", "graded by", "score", "difference (95 %)", "points", "won / lost"]
    header += ["odds ratio (95 %)", "p", "p Holm"]
    if not rows:
        return
    print()
    print(text_table(rows, header, align="lllrlrrrrrrr", once=("set", "protocol", "runs", "items", "graded by")))
    print(
        "Paired over the same questions; accuracy: Tango's score interval, p: McNemar, exact; other figures: interval"
    )
    print("and p by bootstrap; p Holm: corrected over all rows. Cohen's g: comparison.html.")
    reasons = {
        metric["no_interval"]: None
        for entry in found["comparisons"]
        for metric in entry["metrics"]
        if metric["difference"] is not None and metric["no_interval"]
    }
    if reasons:
        print(f"No interval: {' or '.join(reasons)}.")
    for entry in found["comparisons"]:
        if count := entry["left_out"]:
            left_out = f"{counted(count, 'item')} that cannot be paired left out"
            print(f"{_evaluation(entry)}, {_pair(entry, letters)}: {left_out}")
    for exam in found["exams"]:
        shown = ", ".join(
            f"{letter} {row['result'] if row else 'not asked'}"
            for letter, row in zip(letters.values(), exam["runs"], strict=True)
        )
        ending = "  (changed)" if exam["changed"] else "" if exam["alike"] else "  (not asked the same)"
        print(f"{_evaluation(exam)}, exam {exam['exam']}: {shown}{ending}")


def _evaluation(entry: Mapping[str, Any]) -> str:
    return f"{entry['task']} ({entry['language']}) {entry['protocol']}"


def _pair(entry: Mapping[str, Any], letters: Mapping[str, str]) -> str:
    return f"{letters[entry['second_label']]} - {letters[entry['first_label']]}"


def _merge(settings: MergeSettings) -> None:
    from medjax.eval.run import merge
    from medjax.eval.summary import print_summary

    print_summary(merge(settings.run[0], say=lambda line: print(line, flush=True), progress=True))


def _say_moved(folder: "RunFolder") -> None:
    """Say where another result went that stood in the folder; the same one made again is written over."""
    if folder.note and not folder.resumed:
        print(folder.note)


def _compared_rows(entry: Mapping[str, Any], letters: Mapping[str, str]) -> Iterator[list[str]]:
    """Rows of the table: right and wrong, and what else the set is graded by."""
    place = [f"{entry['task']} ({entry['language']})", entry["protocol"]]
    place.append(_pair(entry, letters))
    if entry["has_answers"]:
        low, high = entry["accuracy_difference_interval"]
        yield [
            *(*place, str(entry["items"]), "accuracy"),
            f"{entry['first_accuracy']:.1%} → {entry['second_accuracy']:.1%}",
            f"{100 * entry['accuracy_difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            f"{entry['points_difference']:+g}",
            f"{entry['only_second']} / {entry['only_first']}",
            _odds(entry),
            f"{entry['p_value']:.2g}",
            f"{entry['p_holm']:.2g}",
        ]
    for metric in entry["metrics"]:
        first, second, difference = (_number(metric[name], ".3f") for name in ("first", "second", "difference"))
        name = metric["metric"] if metric["higher_is_better"] else f"{metric['metric']}, lower is better"
        if ends := metric["difference_interval"]:
            difference = f"{metric['difference']:+.3f} ({ends[0]:+.3f} to {ends[1]:+.3f})"
        elif metric["difference"] is not None:
            difference = f"{metric['difference']:+.3f} (no interval)"
        won_and_lost = "" if entry["has_answers"] else f"{entry['won_count']} / {entry['lost_count']}"
        yield [
            *(*place, str(metric["items"]), name, f"{first} → {second}", difference, "", won_and_lost, ""),
            *(_number(metric[name], ".2g") for name in ("p_value", "p_holm")),
        ]


def _number(value: float | None, form: str) -> str:
    return "undefined" if value is None else format(value, form)


def _odds(entry: Mapping[str, Any]) -> str:
    if entry["cohen_g"] is None:
        return ""
    value, low, high = ("∞" if x is None else f"{x:.2f}" for x in (entry["odds_ratio"], *entry["odds_ratio_interval"]))
    return f"{value} ({low} to {high})"


def _audit(settings: AuditSettings) -> None:
    from medjax.eval.audit import audit
    from medjax.report.audit import audit_report
    from medjax.store.runs import RunFolder, named, shortened

    data = "+".join(named(path).name for path in settings.train)
    sets = "+".join(named(name).stem if is_exam_file(name) else name.replace(":", "_") for name in settings.tasks)
    place = Path(settings.out) if settings.out else Path("runs/audit") / shortened(f"{data}-{sets}")
    RunFolder.check(place)
    found = audit(settings, say=lambda line: print(line, flush=True), progress=True)
    with RunFolder.open(place, {"audit": list(settings.train), "tasks": list(settings.tasks)}) as folder:
        _say_moved(folder)
        folder.write_json("audit.json", found)
        folder.write_text("audit.html", audit_report(found))
    print_audited(found)
    print(f"\nresults  {folder.path}/audit.json, audit.html (both texts side by side)")
    if any(match["level"] != "context" for match in found["matches"]):
        print("next     look at audit.html, take the records found out of the training data, or report both scores")
    elif found["matches"]:
        print("next     look at audit.html: contexts stand in the training data, none of their questions does")


def print_audited(found: Mapping[str, Any]) -> None:
    """Print the tables of an audit."""
    named = {"items": "items", "exact": "exact", "normalised": "normalised", "near": "near"}
    if any(task["contexts"] for task in found["tasks"]):
        named["context"] = "context alone"
    named |= {"records": "records", "unchecked": "too short"}
    rows = [[f"{task['task']} ({task['language']})", *(f"{task[name]:,}" for name in named)] for task in found["tasks"]]
    print()
    print(text_table(rows, ["set", *named.values()]))
    for task in found["tasks"]:
        places = task["contexts_of_found"]
        if asked := sum(places.values()):
            print(
                f"{task['task']} ({task['language']}): {counted(asked, 'question')} found that refer to a context; of "
                f"the contexts {places['same record']:,} in the same record, {places['another record']:,} in another, "
                f"{places['not found']:,} nowhere"
            )
    if any(task["context"] for task in found["tasks"]):
        print("Context alone: what an item refers to is there, its question is not; not counted as found.")
    for task in found["tasks"]:
        if count := task["not_alone"]:
            print(
                f"{task['task']} ({task['language']}): {counted(count, 'question')} too short to be told from other "
                "text without choices or context: not looked for alone"
            )
    letters = found["letters"]
    read = f"{letters / 1e6:,.1f} million letters" if letters >= 1e5 else counted(letters, "letter")
    print(f"{counted(found['records'], 'record')}, {read} read")
    if not found["runs"]:
        return
    rows = []
    for score in found["runs"]:
        is_clean = not score["matched"]["items"]
        for part in ("all",) if is_clean else ("all", "without", "matched"):
            entry = score[part]
            low, high = entry["accuracy_interval"] or (0.0, 0.0)
            shown = f"{entry['accuracy']:.1%} ({low:.1%} to {high:.1%})" if entry["accuracy_interval"] else ""
            if shown and (of_these := accuracy_items(entry)) < entry["items"]:
                shown += f" of {of_these}"
            points = f"{entry['points']:g} / {entry['points_total']:g}"
            graded = ", ".join(_graded(name, metric) for name, metric in entry["metrics"].items())
            name = f"{score['label']}  {score['evaluation']}" if part == "all" else ""
            items = "all, none found" if is_clean else {"matched": "found in training"}.get(part, part)
            rows.append([name, items, str(entry["items"]), shown, points, graded])
        for key, items in (("matched_minus_without", "found - without"), ("all_minus_without", "all - without")):
            moved = {each["metric"]: each[key] for each in score["differences"]}
            if moved:
                accuracy = _moved(moved.pop("accuracy"), "+.1f", 100)
                others = ", ".join(f"{name} {_moved(each, '+.3f', 1)}" for name, each in moved.items())
                rows.append(["", items, "", accuracy, "", others])
    header = ["run", "items", "count", "accuracy (95 % interval)", "points", "graded by (95 % interval)"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    print()
    print(text_table(rows, header, align="llrrrl"[: len(header)]))
    if any(score["differences"] for score in found["runs"]):
        print("Differences in percentage points, Newcombe's interval of two samples; other figures: by bootstrap.")


def _moved(difference: Mapping[str, Any], form: str, factor: int) -> str:
    """A difference of parts with its interval, as tables show it."""
    if difference["value"] is None:
        return "undefined"
    ends = [f"{factor * end:{form}}" for end in difference["interval"] or ()]
    reason = f"no interval: {difference['no_interval']}"
    return f"{factor * difference['value']:{form}} ({' to '.join(ends) or reason})"


def _graded(name: str, metric: Mapping[str, Any]) -> str:
    beside = f"no interval: {metric['no_interval']}" if metric["value"] is not None and metric["no_interval"] else ""
    if ends := metric["interval"]:
        beside = f"{ends[0]:.3f} to {ends[1]:.3f}"
    return f"{name} {_number(metric['value'], '.3f')}" + (f" ({beside})" if beside else "")
