"""What a finished run prints: one table, what it means, where everything lies, and the next command."""

import re
import shlex
from typing import Any

from medjax.report.table import text_table

_MANY = 0.05  # share of unread answers, cut off, that is worth a hint
_FEW_SHOT_CONTEXT = 4096  # tokens that the longest IgakuQA question needs after three demonstrations, with room


def print_summary(results: dict[str, Any]) -> None:
    """Print the table of a results.json."""
    record = results["medjax"]
    rows = [_row(evaluation) for evaluation in record["evaluations"]]
    header = ["set", "protocol", "items", "accuracy (95 % interval)", "chance", "points"]
    header += ["unparsed", "cut off", "prohibited"]
    print()
    print(text_table(rows, header, align="llrrrrrrr"))
    for evaluation in record["evaluations"]:
        for exam, score in evaluation["scores"]["by_exam"].items():
            verdict = score["verdict"]
            if verdict["result"] in ("pass", "fail"):
                reasons = f" ({'; '.join(verdict['reasons'])})" if verdict["reasons"] else ""
                print(f"{evaluation['id']} {exam}: {verdict['result']}{reasons}")
        if evaluation["truncated_unparsed"] > _MANY * evaluation["n_items"]:
            print(
                f"{evaluation['id']}: {evaluation['truncated_unparsed']} answers were cut off before they could be "
                "read; give them more room with --max-new-tokens"
            )
    if changed := dict.fromkeys(name for e in record["evaluations"] for name in e["data"]["unpinned"]):
        print(f"data differ from the published files: {', '.join(changed)}")
    print()
    work = [evaluation["work"] for evaluation in record["evaluations"]]
    computed, saved = (sum(w[key] for w in work) for key in ("tokens_computed", "tokens_saved"))
    compiled = record["compiled_seconds"]
    print(
        f"{computed:,} tokens computed, {saved:,} saved by sharing; {len(compiled)} programs compiled in "
        f"{sum(compiled.values()):.0f} s; {record['wall_seconds']:.0f} s in all"
    )
    print(f"results  {record['folder']}/results.json  (every item: samples.jsonl, to look at: report.html)")
    print(f"next     {_next(record, results['max_length'])}")


def _row(evaluation: dict[str, Any]) -> list[str]:
    score = evaluation["scores"]
    low, high = score["accuracy_interval"]
    return [
        f"{evaluation['task']} ({evaluation['language']})",
        evaluation["protocol"],
        str(score["items"]),
        f"{score['accuracy']:6.1%} ({low:.1%} to {high:.1%})",
        f"{score['chance']['accuracy']:.1%}",
        f"{score['points']:g} / {score['points_total']:g}",
        str(score["unparsed"]),
        str(evaluation["truncated"]),
        str(score["prohibited"]),
    ]


def _next(record: dict[str, Any], context: int) -> str:
    """A command that goes one step further than this run did."""
    name = record["model"]["name"]
    model = "" if name == "smollm2-135m" else f" --model {shlex.quote(name)}"
    is_mini = all(evaluation["task"] == "mini" for evaluation in record["evaluations"])
    if is_mini and context >= _FEW_SHOT_CONTEXT:
        return f"python -m medjax.eval{model} --tasks igakuqa --protocol kasai --num-fewshot 3 --limit 50"
    if any(evaluation["limit"] for evaluation in record["evaluations"]):
        return re.sub(r" --limit \d+", "", record["command"]) + "  (all items)"
    return "python -m medjax.eval --model <another model> with the same sets and protocol, to compare"
