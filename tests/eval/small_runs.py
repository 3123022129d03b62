"""The command line of a run of the tiny model, and what it leaves; and what a run of four items would have left."""

import json

from medjax.data.exams.tasks import load_task

ENGINE = ("--engine.row_tokens", "256", "--batch-size", "8", "--no-engine.compilation_cache")
PROTOCOLS = ("--protocol", "choice-logprob,strict", "--chat-template", "none", "--max-new-tokens", "8")


def arguments(model, exam, out, *more):
    return ["--model", str(model), "--tasks", f"{exam}:en", "--out", str(out), *ENGINE, *PROTOCOLS, *more]


def results_of(folder):
    return json.loads((folder / "results.json").read_text("utf-8"))


def samples_of(folder, ending=""):
    lines = (folder / "samples.jsonl").read_text("utf-8").split("\n")[:-1]
    return [sample for sample in map(json.loads, lines) if sample["task"].endswith(ending)]


def write_run(folder, right, *, points=(1, 2, 3, 4), ids="pqrs", changes=(), **evaluation):
    """What a run of one evaluation leaves, as far as a comparison reads it; changes: to the samples' fields."""
    entry = {"id": "x", "task": "ward", "language": "en", "protocol": "strict-0shot", "data": {"digest": "d" * 64}}
    entry |= evaluation
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"medjax": {"evaluations": [entry]}}))
    lines = []
    for name, correct, worth in zip(ids, right, points, strict=False):
        sample = {"task": entry["id"], "doc": {"id": name}, "doc_hash": f"doc {name}", "prompt_hash": f"prompt {name}"}
        sample |= {"correct": bool(correct), "points": worth * int(correct), "text": "\u2028"} | dict(changes)
        lines.append(json.dumps(sample, ensure_ascii=False) + "\n")
    (folder / "samples.jsonl").write_text("".join(lines), "utf-8")
    return folder


def write_graded(folder, exam):
    """A run that got a, c and d right."""
    task = load_task(str(exam))
    entry = {"id": "x", "task": task.name, "language": task.language, "protocol": "strict-0shot"}
    folder.mkdir()
    record = {"evaluations": [entry | {"data": {"digest": task.digest}}]}
    (folder / "results.json").write_text(json.dumps({"medjax": record}))
    lines = []
    for item in task.items:
        right = item.id != "b"
        sample = {"task": "x", "doc": {"id": item.id}, "doc_hash": "", "prompt_hash": "", "correct": right}
        lines.append(json.dumps(sample | {"points": item.points * right}) + "\n")
    (folder / "samples.jsonl").write_text("".join(lines))
    return folder
