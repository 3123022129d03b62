"""Several models in one command: one table, a run folder each, every pair compared."""

import json
from dataclasses import asdict

import pytest

from medjax.config import load
from medjax.eval.models import Entrant, _told, as_text, entrants, evaluate_models, headline, scores, shown
from medjax.eval.settings import EvalSettings


def test_a_model_and_its_adapter_are_told_apart(tmp_path, monkeypatch):
    assert Entrant.read("org/base+runs/train/one/") == Entrant("base+one", "org/base", "runs/train/one/")
    assert Entrant.read("smollm2-135m") == Entrant("smollm2-135m", "smollm2-135m", None)
    (tmp_path / "a+b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Entrant.read("a+b") == Entrant("a+b", "a+b", None)
    for text in ("base+", "+adapter"):
        with pytest.raises(ValueError, match=r"expected MODEL or MODEL\+ADAPTER"):
            Entrant.read(text)


def test_two_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"got x/base and y/base, which are both called base"):
        entrants(["x/base", "other", "y/base"])


def test_what_is_missing_is_told_before_the_first_model_is_graded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()

    def refused(error, models, message):
        with pytest.raises(error, match=message):
            evaluate_models(load(EvalSettings, overrides={"models": models, "out": "suite"}))
        assert not (tmp_path / "suite").exists()

    refused(ValueError, "one", r"models: got 1, expected two or more to compare; give one by --model")
    refused(FileNotFoundError, "one,./three", r"model: got './three', which is no file or folder here")
    refused(FileNotFoundError, "one,two+three", r"^three: no such folder; expected an adapter folder")


def test_another_suite_in_the_folder_is_told_by_its_models_and_settings():
    old, new = (
        {"models": [asdict(Entrant.read(name)) for name in names], "task": {"limit": limit}}
        for names, limit in ((("a", "b+runs/x"), 5), (("a", "c"), None))
    )
    assert _told(old, new) == ["models: a, b+x -> a, c", "task.limit: 5 -> absent"]
    assert _told(old, old | {"task": {"limit": 6}}) == ["task.limit: 5 -> 6"]
    assert _told({}, new)[0] == "models: none -> a, c"


@pytest.mark.parametrize("more", [{"shard": "1/2"}, {"model.adapter": "runs/x"}])
def test_what_belongs_to_one_model_is_refused_beside_several(more):
    with pytest.raises(ValueError, match=r"models: got .* expected models alone"):
        load(EvalSettings, overrides={"models": "a,b"} | more)


def _evaluation(task, accuracy, variant=None, **more):
    return {
        **{"task": task, "language": "ja", "protocol": "strict-0shot"},
        "scores": {
            **{"accuracy": accuracy, "accuracy_interval": [accuracy - 0.1, accuracy + 0.1], "items": 40},
            "chance": {"accuracy": 0.2},
        },
        **({"variant": variant} if variant else {}),
        **more,
    }


def _metric(value, **more):
    return {"value": value, "interval": [0.1, 0.3], "chance": 0.0, "items": 30, **more}


def test_the_table_has_a_column_a_model_and_one_for_each_adapter():
    kappa = {"kappa": _metric(0.21), "accuracy": _metric(0.5)}
    graded = [
        {"medjax": {"evaluations": [_evaluation("igakuqa", 0.3), _evaluation("smdis", 0.5, metrics=kappa)]}},
        {"medjax": {"evaluations": [_evaluation("igakuqa", v, name) for v, name in ((0.3, "base"), (0.4, "adapter"))]}},
        {"medjax": {"evaluations": [_evaluation("igakuqa", 0.25)]}},
    ]
    rows = scores(entrants(["m/one", "m/one+runs/x", "two"]), graded)
    assert [(row["task"], list(row["values"])) for row in rows] == [
        ("igakuqa", ["one", "one+x", "two"]),
        ("smdis", ["one"]),
    ]
    assert [row["values"][name]["value"] for row in rows for name in row["values"]] == [0.3, 0.4, 0.25, 0.21]
    first, second = as_text(rows)
    assert first["values"] == {
        "one": "30.0 % (20.0 to 40.0)",
        "one+x": "40.0 % (30.0 to 50.0)",
        "two": "25.0 % (15.0 to 35.0)",
    }
    assert (first["metric"], first["items"], first["chance"]) == ("accuracy", "40", "20.0 %")
    assert (second["metric"], second["items"], second["values"]) == ("kappa", "30", {"one": "0.210 (0.100 to 0.300)"})


def test_the_headline_is_what_the_set_is_graded_by_first():
    first = {"accuracy": _metric(0.9), "kappa": _metric(0.1)}
    assert headline(_evaluation("jmmlu-medical", 0.5, metrics=first))["metric"] == "accuracy"
    assert shown(headline(_evaluation("crade", 0.5, metrics={"kappa_linear": _metric(None)}))) == "undefined"
    assert shown(None) == ""
    sure = _metric(1.0) | {"interval": None, "no_interval": "a single item"}
    certain = _evaluation("crade", 0.5, metrics={"kappa": sure})
    assert shown(headline(certain)) == "1.000 (no interval: a single item)"
    (row,) = as_text(scores(entrants(["one"]), [{"medjax": {"evaluations": [certain]}}]))
    assert row["chance"] == "0.000"  # which has no interval to speak of


def test_two_models_end_to_end(tmp_path, capsys, shared_data):
    from medjax.assets import resolve_model
    from medjax.eval.__main__ import main

    exam = tmp_path / "ward.jsonl"
    items = [
        {"id": f"q{i}", "question": f"Which one is {i}?", "choices": ["zero", "one", "two"], "answer": ["abc"[i % 3]]}
        for i in range(6)
    ]
    exam.write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
    out = tmp_path / "suite"
    copy = tmp_path / "copy"
    copy.symlink_to(resolve_model("stories260k"))
    command = ["--models", f"stories260k,{copy}", "--tasks", str(exam), "--protocol", "choice-logprob"]
    command += ["--resamples", "200", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "model 2 of 2: copy" in printed
    results = json.loads((out / "results.json").read_text("utf-8"))
    (row,) = results["scores"]
    assert row["values"]["stories260k"] == row["values"]["copy"]
    (pair,) = results["comparison"]["comparisons"]
    assert (pair["items"], pair["only_first"], pair["only_second"]) == (6, 0, 0)
    page = (out / "report.html").read_text("utf-8")
    assert 'href="stories260k/report.html"' in page
    for label in ("stories260k", "copy"):
        assert json.loads((out / label / "results.json").read_text("utf-8"))["medjax"]["evaluations"]
    assert main(command) == 0  # again: nothing is lost, the same numbers
    assert json.loads((out / "results.json").read_text("utf-8"))["scores"] == results["scores"]
