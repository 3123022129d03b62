"""What a finished run prints: one table, what it means, where everything lies, and the next command."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medjax.report import drawing
from medjax.report.outcomes import accuracy_items, is_part, named
from medjax.report.table import text_table

_ALWAYS = ("right", "wrong", "unparsed", "cut_off")  # columns, even where they hold zeros
_ALWAYS_SCORED = ("right", "wrong")  # likewise where nothing is written that could not be read
_SHORT = {"no_reference": "to judge"}  # heads of columns
_SHARED = ("set", "protocol", "items", "chance")  # said above a table where all rows hold the same
_UNREAD = ("cut_off", "too_long")  # columns beside unparsed, where some hold more than zeros
_MANY = 0.05  # share of unread answers, cut off, that is worth a hint
_FEW_SHOT_CONTEXT = 4096  # tokens that the longest IgakuQA question needs after three demonstrations, with room


def print_summary(results: dict[str, Any]) -> None:
    """Print the tables of a results.json: scores, how the adapter differs from its base, other figures, verdicts."""
    record = results["medjax"]
    both = "comparisons" in record
    counts = [evaluation["scores"]["outcomes"] for evaluation in record["evaluations"]]
    # those that always say something, and of the others those that happened
    always = _ALWAYS if any(_generates(evaluation) for evaluation in record["evaluations"]) else _ALWAYS_SCORED
    outcomes = [name for name in counts[0] if name in always or any(count[name] for count in counts)]
    has_prohibited = any(_can_be_prohibited(evaluation["scores"]) for evaluation in record["evaluations"])
    rows = [_row(evaluation, both, outcomes, has_prohibited) for evaluation in record["evaluations"]]
    header = ["set", "protocol", *(["graded"] if both else []), "items", "accuracy (95 %)", "chance", "points"]
    header += [_SHORT.get(name) or named(name) for name in outcomes] + ["prohibited"] * has_prohibited
    align = ("lll" if both else "ll") + "r" * (len(header) - 2 - both)
    print()
    print(text_table(rows, header, align=align, once=_SHARED if len(rows) > 1 else ("protocol",)))
    if record.get("comparisons"):
        print()
        print_comparisons(record["comparisons"], ("base", "adapter"))
    _print_graded(record["evaluations"])
    _print_verdicts(record["evaluations"])
    if languages := record.get("languages"):
        print()
        _print_languages(languages)
    print()
    for evaluation in record["evaluations"]:
        for line in _repeats(evaluation):
            print(f"{evaluation['id']}: {line}")
        if count := evaluation["data"].get("left_out_by_protocol"):
            items = "1 item of the set is" if count == 1 else f"{count:,} items of the set are"
            them = "it; it counts" if count == 1 else "them; they count"
            print(
                f"{evaluation['id']}: {items} left out, as the protocol cannot ask {them} in no figure "
                "(docs/protocols.md says which)"
            )
        has_score = "not_graded" not in evaluation["scores"]
        if count := evaluation["scores"]["not_asked"]:
            items = "1 item that asks for a number was" if count == 1 else f"{count} items that ask for a number were"
            worth = f"the accuracy counts {'it' if count == 1 else 'them'} as not right"
            worth = worth if has_score else "there is no score"
            print(f"{evaluation['id']}: {items} not asked, since there are no choices to score; {worth}")
        if count := evaluation["scores"]["no_reference"]:
            questions = "1 open question has" if count == 1 else f"{count} open questions have"
            print(
                f"{evaluation['id']}: {questions} no reference answer and no part in the accuracy; for people to judge "
                "in samples.jsonl"
            )
        if count := evaluation["scores"]["too_long"]:
            items = "1 item is" if count == 1 else f"{count} items are"
            worth = "it wins nothing" if count == 1 else "they win nothing"
            worth = worth if has_score else "there is no score"
            print(
                f"{evaluation['id']}: {items} longer than the model's context with the answer and not sent; {worth}; "
                "ask with fewer examples (--num-fewshot) or new tokens, or take a model with a longer context"
            )
        cut_off = evaluation["scores"]["cut_off"]
        if cut_off > _MANY * evaluation["n_items"]:
            answers = "1 answer was" if cut_off == 1 else f"{cut_off} answers were"
            print(
                f"{evaluation['id']}: {answers} cut off (truncated at the limit of new tokens before anything could be "
                "read): small models often write prose instead of letters alone; give one that reasons more room with "
                "--max-new-tokens"
            )
    if changed := dict.fromkeys(name for e in record["evaluations"] for name in e["data"]["unpinned"]):
        print(f"data differ from the published files: {', '.join(changed)}")
    print()
    work = [evaluation["work"] for evaluation in record["evaluations"]]
    computed, saved = (sum(w[key] for w in work) for key in ("tokens_computed", "tokens_saved"))
    compiled = record["compiled_seconds"]
    print(
        f"{computed:,} tokens computed, {saved:,} saved by sharing; "
        f"{drawing.counted(len(compiled), 'program')} compiled in {sum(compiled.values()):.0f} s; "
        f"{record['wall_seconds']:.0f} s in all"
    )
    print(f"results  {record['folder']}/results.json  (every item: samples.jsonl, to look at: report.html)")
    print(f"next     {_next(record, results['max_length'])}")


def print_comparisons(comparisons: Sequence[Mapping[str, Any]], names: tuple[str, str]) -> None:
    """Print paired differences, second minus first: of right and wrong, and of what sets are graded by besides.

    comparisons  what eval.comparison.compare returns, with metrics (eval.metric_differences) and has_answers
    names        what the tables call the first and the second
    """
    first, second = names
    if rows := [_difference_row(comparison) for comparison in comparisons if comparison["has_answers"]]:
        header = ["set", "protocol", "items", first, second, "difference (95 %)"]
        header += [f"only {first} right", f"only {second} right", "p"]
        print(text_table(rows, header, align="llrrrrrrr", once=("protocol",)))
        print(
            f"Difference: {second} minus {first} in percentage points, paired over the same items; p: McNemar, exact."
        )
    graded = [_metric_row(entry, metric) for entry in comparisons for metric in entry["metrics"]]
    if rows and graded:
        print()
    if graded:
        header = ["set", "protocol", "graded by", "items", first, second, "difference (95 %)", "p"]
        print(text_table(graded, header, align="lllrrrrr", once=("protocol",)))
        print(f"Difference: {second} minus {first}, both computed again on the same resamples of the items, as is p.")
    if not rows and not graded:
        print("No question has a known right answer to compare by: people have to judge (samples.jsonl).")


def _print_languages(entries: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for entry in entries:
        if not entry["has_answers"]:
            continue
        low, high = entry["accuracy_difference_interval"]
        rows.append(
            [
                f"{entry['task']}{' ' + entry['variant'] if 'variant' in entry else ''}",
                entry["protocol"],
                f"{entry['first']} / {entry['second']}",
                str(entry["items"]),
                f"{entry['first_accuracy']:.1%} / {entry['second_accuracy']:.1%}",
                f"{100 * entry['accuracy_difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                *(str(entry[key]) for key in ("both", "only_first", "only_second", "neither")),
                f"{entry['p_value']:.2g}",
            ]
        )
    header = ["set", "protocol", "languages", "items", "accuracy", "difference (95 %)"]
    header += ["both right", "only first", "only second", "neither", "p"]
    if rows:
        print(text_table(rows, header, align="lllrrrrrrrr", once=("set", "protocol", "languages", "items")))
    graded = [
        _metric_row({**entry, "language": f"{entry['first']} / {entry['second']}"}, metric)
        for entry in entries
        for metric in entry["metrics"]
    ]
    if graded:
        header = ["set", "protocol", "graded by", "items", "first", "second", "difference (95 %)", "p"]
        print(text_table(graded, header, align="lllrrrrr", once=("protocol",)))
    print("The same questions in two languages, paired by id; difference: second minus first; p: McNemar, exact, or of")
    print("other figures than accuracy from resamples of the questions, the same for both languages.")


def _print_graded(evaluations: Sequence[Mapping[str, Any]]) -> None:
    """What sets are graded by, the headline first, where that is not accuracy alone."""
    found = [(each, name, graded) for each in evaluations for name, graded in each.get("metrics", {}).items()]
    if not found:
        return
    counts = ["unparsed", *(name for name in _UNREAD if any(graded[name] for _, _, graded in found))]
    rows = []
    for evaluation, name, graded in found:
        value = _none(graded, "undefined") if graded["value"] is None else f"{graded['value']:.3f}"
        if graded["interval"]:
            value += f" ({graded['interval'][0]:.3f} to {graded['interval'][1]:.3f})"
        elif graded["value"] is not None and graded.get("no_interval"):
            value += f" (no interval: {graded['no_interval']})"
        chance = "" if graded["chance"] is None else f"{graded['chance']:.3f}"
        row = [*_place(evaluation), name, str(graded["items"]), value, chance]
        rows.append([*row, *(str(graded[count]) for count in counts)])
    header = ["set", "protocol", "graded by", "items", "value (95 %)", "chance", *map(named, counts)]
    print()
    print(text_table(rows, header, align="lllrrr" + "r" * len(counts), once=("protocol",)))


def _print_verdicts(evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Pass or fail of every exam whose pass marks are known; what keeps an exam from being judged is said once."""
    found = [
        (evaluation, exam, score)
        for evaluation in evaluations
        for exam, score in evaluation["scores"]["by_exam"].items()
        if score["verdict"]["result"] != "none"
    ]
    if not found:
        return
    rows = [
        [*_place(evaluation), exam, score["verdict"]["result"], *_against_cuts(score)]
        for evaluation, exam, score in found
    ]
    header = ["set", "protocol", "exam", "verdict", "required (needed)", "general (needed)", "prohibited (most)"]
    print()
    print(text_table(rows, header, align="llllrrr", once=("set", "protocol")))
    if any("open" in score["verdict"] for _, _, score in found):
        print("+: worth of questions not asked or too long; a fail stands even with all of them right.")
    parts: dict[str, list[str]] = {}
    for evaluation, exam, score in found:
        if is_part(score):
            parts.setdefault("; ".join(score["verdict"]["reasons"]), []).append(
                f"{' '.join(_place(evaluation))} {exam}"
            )
    for reason, exams in parts.items():
        print(f"{', '.join(exams) if len(parts) > 1 else 'incomplete'}: {reason}")


def _against_cuts(score: Mapping[str, Any]) -> list[str]:
    """Points of both parts and prohibited picks, with the pass marks where these hold, and what is open."""
    verdict = score["verdict"]
    cells = []
    for name in ("required", "general"):
        limit = "" if is_part(score) else f" ({verdict[f'{name}_min']:g})"
        cells.append(f"{score[f'{name}_points']:g}{_open(verdict, name)} / {score[f'{name}_total']:g}{limit}")
    limit = "" if is_part(score) else f" ({verdict['prohibited_max']})"
    return [*cells, f"{score['prohibited']}{_open(verdict, 'prohibited')}{limit}"]


def _open(verdict: Mapping[str, Any], name: str) -> str:
    left = verdict.get("open", {}).get(name)
    return f" +{left:g}" if left else ""


def _place(evaluation: Mapping[str, Any]) -> list[str]:
    """Set and protocol, with the variant where a run grades two."""
    names = " ".join(evaluation[key] for key in ("protocol", "variant") if key in evaluation)
    return [f"{evaluation['task']} ({evaluation['language']})", names]


def _none(score: Mapping[str, Any], otherwise: str) -> str:
    """What stands in place of a value that is not there."""
    return f"not graded: {score['not_graded']}" if "not_graded" in score else otherwise


def _repeats(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """What repeated asks of the items say, a line each."""
    if forced := evaluation.get("forced"):
        yield f"{forced} of {evaluation.get('asks', evaluation['n_items'])} answers were forced after their reasoning"
    prompt = "shift of each item" if "rotation" in evaluation else "item"
    has_accuracy = evaluation["scores"]["accuracy"] is not None
    if samples := evaluation.get("samples"):
        alone = f"; one alone is right {samples['accuracy']:.1%} of the time" if has_accuracy else ""
        yield f"{samples['count']} answers drawn for each {prompt} at temperature {samples['temperature']:g}{alone}"
    for name, score in evaluation.get("templates", {}).items() if has_accuracy else ():
        low, high = score["accuracy_interval"]
        yield f"template {name} alone: {score['accuracy']:.1%} ({low:.1%} to {high:.1%})"
    if evaluation.get("agreement"):  # where nothing could be read there is none to speak of
        yield f"{evaluation['agreement']:.1%} of an item's answers say what counts, on average"
    if rotation := evaluation.get("rotation"):
        low, high = rotation["mean_accuracy_interval"]
        bias = rotation["position_bias"]
        if has_accuracy:
            yield (
                f"right under every shift of the choices {rotation['robust_accuracy']:.1%}, mean over shifts "
                f"{rotation['mean_accuracy']:.1%} ({low:.1%} to {high:.1%})"
            )
        if rotation["consistent"] is not None:
            yield f"{rotation['consistent']:.1%} of the items asked under several shifts answered alike under all"
        unread = f"{bias['unread']} of {bias['asks']} asks could not be read"
        if bias["p_value"] is not None:
            picked = ", ".join(f"{letter} {count} ({bias['gold'][letter]})" for letter, count in bias["picked"].items())
            yield (
                f"positions picked (right ones): {picked}; p = {bias['p_value']:.2g} that it does not matter where a "
                f"choice stands; {unread}"
            )
        elif bias["unread"]:
            yield f"positions picked: none, {unread}"


def _difference_row(comparison: Mapping[str, Any]) -> list[str]:
    low, high = comparison["accuracy_difference_interval"]
    return [
        f"{comparison['task']} ({comparison['language']})",
        comparison["protocol"],
        str(comparison["items"]),
        f"{comparison['first_accuracy']:.1%}",
        f"{comparison['second_accuracy']:.1%}",
        f"{100 * comparison['accuracy_difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
        str(comparison["only_first"]),
        str(comparison["only_second"]),
        f"{comparison['p_value']:.2g}",
    ]


def _metric_row(comparison: Mapping[str, Any], metric: Mapping[str, Any]) -> list[str]:
    first, second, p_value = (
        "undefined" if metric[name] is None else format(metric[name], form)
        for name, form in (("first", ".3f"), ("second", ".3f"), ("p_value", ".2g"))
    )
    difference = "undefined" if metric["difference"] is None else f"{metric['difference']:+.3f}"
    if ends := metric["difference_interval"]:
        difference += f" ({ends[0]:+.3f} to {ends[1]:+.3f})"
    elif metric["difference"] is not None:
        difference += f" (no interval: {metric['no_interval']})"
    return [
        f"{comparison['task']} ({comparison['language']})",
        comparison["protocol"],
        metric["metric"] if metric["higher_is_better"] else f"{metric['metric']}, lower is better",
        *(str(metric["items"]), first, second, difference, p_value),
    ]


def _generates(evaluation: Mapping[str, Any]) -> bool:
    return not evaluation["protocol"].startswith("choice-logprob")


def _can_be_prohibited(score: Mapping[str, Any]) -> bool:
    """Whether the number of prohibited picks says something: there are some, or an exam's rule has a word on them."""
    return bool(score["prohibited"]) or any("prohibited_max" in e["verdict"] for e in score["by_exam"].values())


def _row(evaluation: dict[str, Any], both: bool, outcomes: Sequence[str], has_prohibited: bool) -> list[str]:
    score = evaluation["scores"]
    counted = accuracy_items(score)
    # why it is not graded stand the columns beside
    accuracy = "not graded" if counted or "not_graded" in score else "for people to judge"
    points = f"– / {score['points_total']:g}"
    if score["accuracy"] is not None:
        low, high = score["accuracy_interval"]
        accuracy = f"{score['accuracy']:6.1%} ({100 * low:.1f} to {100 * high:.1f})"
        if counted < score["items"]:
            accuracy += f" of {counted}"
    if "not_graded" not in score:
        points = f"{score['points']:g} / {score['points_total']:g}"
    return [
        f"{evaluation['task']} ({evaluation['language']})",
        evaluation["protocol"],
        *([evaluation["variant"]] if both else []),
        str(score["items"]),
        accuracy,
        f"{score['chance']['accuracy']:.1%}" if counted else "",
        points,
        *(str(score["outcomes"][name]) for name in outcomes),
        *([str(score["prohibited"])] * has_prohibited),
    ]


def _next(record: dict[str, Any], context: int) -> str:
    """A command that goes one step further than this run did, or what keeps it from having graded anything."""
    scores = [evaluation["scores"] for evaluation in record["evaluations"]]
    if all("not_graded" in score or score["no_reference"] == score["items"] for score in scores):
        return _first_grade(record["command"], scores, context)
    name = record["model"]["name"]
    model = "" if name == "smollm2-135m" else f" --model {shlex.quote(name)}"
    model += f" --adapter {shlex.quote(record['adapter']['name'])}" if "adapter" in record else ""
    is_mini = all(evaluation["task"] == "mini" for evaluation in record["evaluations"])
    if is_mini and context >= _FEW_SHOT_CONTEXT:
        return f"python -m medjax.eval{model} --tasks igakuqa --protocol kasai --num-fewshot 3 --limit 50"
    if any(evaluation["limit"] for evaluation in record["evaluations"]):
        return re.sub(r" --limit \d+", "", record["command"]) + "  (all items)"
    return (
        "python -m medjax.eval --model <another model> with the same sets and protocol, then python -m medjax.eval "
        f"compare {shlex.quote(record['folder'])} <its folder>"
    )


def _first_grade(command: str, scores: Sequence[Mapping[str, Any]], context: int) -> str:
    """What to do after a run without a score: another model would have none either."""
    if any(score["too_long"] for score in scores):
        if " --num-fewshot " in command:
            return re.sub(r" --num-fewshot \d+", "", command) + "  (without examples: questions are too long with them)"
        return f"take a model whose context is longer than {context:,} tokens, or leave less room with --max-new-tokens"
    if any(score["not_asked"] for score in scores):
        return re.sub(r" --protocol \S+", "", command) + " --protocol strict  (which asks for numbers, too)"
    return "read the answers in report.html: without reference answers people judge them, nothing is graded"
