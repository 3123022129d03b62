"""Runs that ask items more than once or of several kinds, from one end to the other, with the tiny model."""

import json
import re

import numpy as np
import pytest
from small_runs import ENGINE, results_of, samples_of

from medjax.data.exams.groups import GROUPS
from medjax.eval.__main__ import main

pytestmark = pytest.mark.usefixtures("compile_once")


def _main(model, exam, out, *more):
    common = ["--model", str(model), "--out", str(out), *ENGINE, "--chat-template", "none"]
    assert main([*common, "--tasks", f"{exam}:en", "--max-new-tokens", "4", *more]) == 0
    return results_of(out)["medjax"]["evaluations"]


def test_rotated_choices_are_scored_under_every_shift(tiny_folder, exam, tmp_path, capsys):
    more = ("--protocol", "choice-logprob", "--limit", "12")
    (plain,) = _main(tiny_folder, exam, tmp_path / "plain", *more)
    (rotated,) = _main(tiny_folder, exam, tmp_path / "rotated", *more, "--protocol.rotate")
    assert (plain["protocol"], rotated["protocol"]) == ("choice-logprob-0shot", "choice-logprob-rotated-0shot")
    assert rotated["asks"] == 11 * 5 + 1  # one asks for a number
    singles, manifold = samples_of(tmp_path / "plain"), samples_of(tmp_path / "rotated")
    robust, means, alike, shifts = [], [], [], np.zeros(5)
    for single, many in zip(singles, manifold, strict=True):
        # the unshifted ask is the plain run's
        assert many["asks"][0]["prompt_hash"] == single["prompt_hash"]
        assert many["asks"][0]["output"] == pytest.approx(single["asks"][0]["output"], abs=1e-4)
        right = []
        for asked in many["asks"]:
            values = [0.0] * len(asked["order"])
            for place, value in zip(asked["order"], asked["output"], strict=True):
                values[place] = value
            best = sorted(np.argsort([-value for value in values])[: len(many["doc"]["answer"])])
            picked = ["abcde"[place] for place in best]
            assert asked["parsed"] == (picked or None)
            right.append(picked == many["doc"]["answer"])
        robust.append(all(right))
        means.append(np.mean(right))
        shifts += right * 5 if len(right) == 1 else right
        if len(right) > 1:
            alike.append(len({tuple(asked["parsed"]) for asked in many["asks"]}) == 1)
    found = rotated["rotation"]
    assert found["robust_accuracy"] == rotated["scores"]["accuracy"] == pytest.approx(np.mean(robust))
    assert found["mean_accuracy"] == pytest.approx(np.mean(means))
    assert found["by_shift"] == pytest.approx(shifts / 12)
    assert np.mean(found["by_shift"]) == pytest.approx(found["mean_accuracy"])
    assert found["consistent"] == pytest.approx(np.mean(alike))
    picked = found["position_bias"]["picked"]
    assert sum(picked.values()) == sum(5 * len(s["doc"]["answer"]) for s in manifold if s["doc"]["choices"])
    printed = capsys.readouterr().out
    assert "ward_en_choice-logprob-rotated-0shot: right under every shift of the choices" in printed
    assert f"{np.mean(alike):.1%} of the items asked under several shifts answered alike under all" in printed
    assert "positions picked (right ones): a " in printed


def test_reasoning_is_cut_at_its_budget_and_an_answer_is_forced(tiny_folder, exam, tmp_path):
    more = ("--protocol", "cot", "--protocol.think_tokens", "6", "--limit", "3")
    (found,) = _main(tiny_folder, exam, tmp_path / "cot", *more)
    assert found["protocol"] == "cot-4tokens-6think-0shot"
    samples = samples_of(tmp_path / "cot")
    forced = [ask for sample in samples for ask in sample["asks"] if ask.get("forced")]
    assert found["forced"] == len(forced) == 3  # a random model says nothing that can be read
    assert all("\nAnswer:" in ask["output"] for ask in forced)
    (journal,) = (tmp_path / "cot" / "journal").iterdir()
    lines = [json.loads(line) for line in journal.read_text("utf-8").split("\n")[1:-1]]
    steps = sorted((line.get("forced", False), line["i"]) for line in lines)
    assert steps == [(forced, i) for forced in (False, True) for i in range(3)]
    before = (tmp_path / "cot" / "samples.jsonl").read_bytes()
    assert _main(tiny_folder, exam, tmp_path / "cot", *more)[0]["work"]["items_reused"] == 3
    assert (tmp_path / "cot" / "samples.jsonl").read_bytes() == before


def test_templates_are_graded_one_by_one_or_by_their_majority(tiny_folder, exam, tmp_path):
    files = []
    for name, source in (("short", "{{question}} "), ("long", "Q: {{question}}\n{{input}}\nA: ")):
        (tmp_path / f"{name}.txt").write_text(source)
        files.append(str(tmp_path / f"{name}.txt"))
    more = ("--protocol", "choice-logprob", "--limit", "4", "--template", ",".join(files))
    single = _main(tiny_folder, exam, tmp_path / "single", *more)
    (voted,) = _main(tiny_folder, exam, tmp_path / "voted", *more, "--protocol.majority")
    assert len({entry["protocol"] for entry in single}) == 2
    alone = [entry["scores"]["accuracy"] for entry in single]
    assert [voted["templates"][name]["accuracy"] for name in ("short", "long")] == pytest.approx(alone)
    first = samples_of(tmp_path / "voted")[0]
    assert [ask["template"] for ask in first["asks"]] == ["short", "long"]
    # of two different readings the first one counts
    assert first["picked"] == first["asks"][0]["parsed"]


def test_two_languages_stand_side_by_side(tiny_folder, exam, tmp_path, capsys):
    tasks = ("--tasks", f"{exam}:ja,{exam}:en", "--protocol", "choice-logprob", "--limit", "6")
    _main(tiny_folder, exam, tmp_path / "two", *tasks)
    results = results_of(tmp_path / "two")
    (paired,) = results["medjax"]["languages"]
    by_language = {name: samples_of(tmp_path / "two", f"ward_{name}_choice-logprob-0shot") for name in ("ja", "en")}
    right = {name: [sample["correct"] for sample in samples] for name, samples in by_language.items()}
    pairs = list(zip(right["ja"], right["en"], strict=True))
    assert [paired[key] for key in ("both", "only_first", "only_second", "neither")] == [
        pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))
    ]
    assert "The same questions in two languages, paired by id" in capsys.readouterr().out


def test_an_item_longer_than_the_context_is_counted_apart(tiny_folder, exam, tmp_path, capsys):
    long = {"id": "long", "question": "心" * 900, "choices": ["x", "y"], "answer": ["a"], "points": 2}
    rows = exam.read_text("utf-8").splitlines()[:2]
    exam.write_text("\n".join([json.dumps(long), *rows]) + "\n", "utf-8")
    found = _main(tiny_folder, exam, tmp_path / "long", "--protocol", "strict,choice-logprob")
    for entry in found:
        scores = entry["scores"]
        assert (scores["items"], scores["too_long"], scores["outcomes"]["too_long"]) == (3, 1, 1)
        assert sum(scores["outcomes"].values()) == 3
        first = samples_of(tmp_path / "long", entry["protocol"])[0]
        assert (first["outcome"], first["points"], first["correct"], first["resps"]) == ("too_long", 0, False, [])
        assert len(first["arguments"]) > 0  # what would have been asked
    printed = capsys.readouterr().out
    assert "too long" in printed
    assert "ward_en_strict-4tokens-0shot: 1 item is longer than the model's context with the answer" in printed
    assert printed.count("too long") == 1  # the head of a column


def test_drawn_answers_do_not_depend_on_what_is_drawn_beside_them(tiny_folder, exam, tmp_path):
    more = ("--protocol", "strict", "--limit", "4", "--protocol.samples", "3", "--protocol.temperature", "1.5")
    (found,) = _main(tiny_folder, exam, tmp_path / "one", *more)
    assert found["protocol"] == "strict-4tokens-3samples-t1.5-0shot"
    assert (found["asks"], found["samples"]["count"]) == (12, 3)
    drawn = [[ask["output"] for ask in sample["asks"]] for sample in samples_of(tmp_path / "one")]
    assert all(len(set(outputs)) > 1 for outputs in drawn)
    _main(tiny_folder, exam, tmp_path / "two", *more, "--batch-size", "3")
    assert [[ask["output"] for ask in s["asks"]] for s in samples_of(tmp_path / "two")] == drawn
    _main(tiny_folder, exam, tmp_path / "three", *more, "--seed", "1")
    assert [[ask["output"] for ask in s["asks"]] for s in samples_of(tmp_path / "three")] != drawn


def test_a_group_is_asked_by_its_sets_and_each_is_graded_by_its_own_metrics(
    tiny_folder, shared_data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(GROUPS, "both", ("mini:en", "mrner-disease", "jcsts"))
    out = tmp_path / "both"
    more = ("--tasks", "both", "--limit", "2", "--data-dir", str(shared_data), "--protocol", "choice-logprob,strict")
    assert [e["id"] for e in _main(tiny_folder, "", out, *more)] == [
        *("mini_en_choice-logprob-0shot", "mini_en_strict-4tokens-0shot", "mrner-disease_ja_strict-4tokens-0shot"),
    ]
    printed = capsys.readouterr().out
    assert "both: jcsts is left out: " in printed
    assert "mrner-disease is left out under choice-logprob, which asks none of its items" in printed
    found = results_of(out)
    graded = found["medjax"]["evaluations"][2]["metrics"]
    assert list(graded) == ["entity_partial_f1", "entity_exact_f1", "entity_partial_f1_published"]
    values = found["results"]["mrner-disease_ja_strict-4tokens-0shot"]
    assert values["entity_partial_f1,none"] == pytest.approx(graded["entity_partial_f1"]["value"])
    assert re.search(r"│ entity_partial_f1 +│", printed)
