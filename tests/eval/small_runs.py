"""The command line of a run of the tiny model, and what it leaves."""

import json

ENGINE = ("--engine.row_tokens", "256", "--batch-size", "8", "--no-engine.compilation_cache")
PROTOCOLS = ("--protocol", "choice-logprob,strict", "--chat-template", "none", "--max-new-tokens", "8")


def arguments(model, exam, out, *more):
    return ["--model", str(model), "--tasks", f"{exam}:en", "--out", str(out), *ENGINE, *PROTOCOLS, *more]


def results_of(folder):
    return json.loads((folder / "results.json").read_text("utf-8"))


def samples_of(folder, ending=""):
    lines = (folder / "samples.jsonl").read_text("utf-8").split("\n")[:-1]
    return [sample for sample in map(json.loads, lines) if sample["task"].endswith(ending)]
