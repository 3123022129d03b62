"""Paired comparison: closed forms, and runs that must have asked the same."""

import json

import numpy as np
import pytest
from report_pages import Page
from scipy.stats import binomtest
from small_runs import write_run

from medjax.data.qa import Item
from medjax.eval.__main__ import main
from medjax.eval.comparison import compare, compare_runs
from medjax.eval.metric_differences import item_of, metric_differences
from medjax.eval.metrics import METRICS, grade
from medjax.statistics.differences import paired
from medjax.statistics.intervals import difference_interval, mcnemar
from medjax.statistics.paired import holm

PAIRS = ((0, 1), (0, 2), (1, 2))


def _answers(right, points):
    return [(bool(correct), worth * bool(correct)) for correct, worth in zip(right, points, strict=True)]


def test_what_is_counted():
    rng = np.random.default_rng(2)
    first, second, points = rng.random(90) < 0.4, rng.random(90) < 0.6, rng.integers(1, 4, 90).tolist()
    found = compare(_answers(first, points), _answers(second, points), resamples=500, seed=3)
    only = int((first & ~second).sum()), int((second & ~first).sum())
    interval = paired(*only, 90)
    assert found["items"] == 90
    assert (found["first_accuracy"], found["second_accuracy"]) == (first.mean(), second.mean())
    assert found["accuracy_difference"] == pytest.approx(second.mean() - first.mean())
    assert found["accuracy_difference_interval"] == [interval.low, interval.high]
    assert found["points_difference"] == sum(points * second) - sum(points * first)
    drawn = difference_interval(points * second, points * first, resamples=500, seed=3)
    assert found["points_difference_interval"] == pytest.approx([90 * drawn.low, 90 * drawn.high])
    assert (found["only_first"], found["only_second"]) == ((first & ~second).sum(), (second & ~first).sum())
    assert found["p_value"] == mcnemar(first, second).p_value


@pytest.mark.parametrize("right", [[True] * 8, [False] * 8, [True, False] * 4])
def test_the_same_answers_to_few_items_leave_doubt(right):
    points = [1, 3] * 4
    same = compare(_answers(right, points), _answers(right, points), resamples=200, seed=0)
    half = 1.959964**2 / (8 + 1.959964**2)
    assert same["accuracy_difference_interval"] == pytest.approx([-half, half], abs=1e-6)
    assert (same["points_difference"], same["points_difference_interval"], same["p_value"]) == (0, None, 1.0)


def test_all_items_won_leave_doubt():
    found = compare(_answers([False] * 8, [1] * 8), _answers([True] * 8, [1] * 8), resamples=200, seed=0)
    low, high = found["accuracy_difference_interval"]
    assert (low, high) == (pytest.approx(0.351, abs=1e-3), 1.0)
    assert (found["points_difference"], found["points_difference_interval"]) == (8, None)


def test_pairing_is_narrower():
    right, points = [True, False] * 50, [1] * 100
    better = [True, False, True, True] + [True, False] * 48  # one item more: unpaired, that would be 0.14 wide or more
    low, high = compare(_answers(right, points), _answers(better, points), resamples=2000, seed=0)[
        "accuracy_difference_interval"
    ]
    assert low < 0 < 0.01 < high
    assert high - low < 0.1


def test_runs_are_compared_over_the_items_both_asked(tmp_path, capsys):
    first = write_run(tmp_path / "one", [1, 0, 0, 1])
    second = write_run(tmp_path / "two", [1, 1, 1], ids="srq", points=(4, 3, 2), id="another")
    (found,) = compare_runs([first, second], resamples=100)["comparisons"]
    assert (found["task"], found["language"], found["protocol"]) == ("ward", "en", "strict-0shot")
    assert (found["first"], found["second"], found["left_out"]) == (str(first), str(second), 1)
    assert (found["items"], found["only_first"], found["only_second"]) == (3, 0, 2)
    assert found["accuracy_difference"] == pytest.approx(2 / 3)
    assert found["points_difference"] == 5
    out = str(tmp_path / "out")
    assert main(["compare", f"{first},{second}", "--resamples", "100", "--out", out]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("ward (en)"))
    assert [cell.strip() for cell in row.split("│")][:5] == [
        *("ward (en)", "33.3% → 100.0%", "+66.7 (-26.9 to +93.9)", "+5", "2 / 0"),
    ]
    assert "\nprotocol strict-0shot, runs B - A, items 3, graded by accuracy\n" in printed
    assert "Tango's score interval" in printed
    assert "\nward (en) strict-0shot, B - A: 1 item that cannot be paired left out\n" in printed


def test_of_a_run_with_an_adapter_the_adapter_counts(tmp_path):
    first = write_run(tmp_path / "one", [0, 0, 0, 0])
    second = write_run(tmp_path / "two", [0, 0, 0, 0], id="x")
    record = json.loads((second / "results.json").read_text())
    record["medjax"]["evaluations"][0]["variant"] = "base"
    record["medjax"]["evaluations"].append(
        record["medjax"]["evaluations"][0] | {"id": "x_adapter", "variant": "adapter"}
    )
    (second / "results.json").write_text(json.dumps(record))
    better = write_run(tmp_path / "better", [1, 1, 1, 0], id="x_adapter")
    with (second / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write((better / "samples.jsonl").read_text("utf-8"))
    (found,) = compare_runs([first, second], resamples=10)["comparisons"]
    assert (found["first_accuracy"], found["second_accuracy"], found["items"]) == (0, 0.75, 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"protocol": "kasai-3shot"},
            r"\n  ward \(en\) strict-0shot: protocol: strict-0shot in one, kasai-3shot in two\n",
        ),
        (
            {"language": "ja"},
            r"holds ward \(en\) strict-0shot, .* holds ward \(ja\) strict-0shot: got no set in common, .* language",
        ),
        ({"data": {"digest": "e" * 64}}, r"ward \(en\) strict-0shot: data: d{12} in one, e{12} in two"),
        ({"ids": "wxyz"}, "got no item that both runs asked"),
        (
            {"changes": {"doc_hash": "other"}},
            "strict-0shot: questions of 4 of 4 items, the first p: doc p in one, other in two",
        ),
        (
            {"changes": {"prompt_hash": "other"}},
            "strict-0shot: prompts of 4 of 4 items, the first p: prompt p in one, other in two\nrun them "
            "with the same .*--chat-template none.* give --anyway",
        ),
        ({"changes": {"task": 7, "doc": 7}}, "got no item that both runs asked"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, changed, message):
    first = write_run(tmp_path / "one", [1, 0, 0, 1])
    second = write_run(tmp_path / "two", [1, 0, 0, 1], **changed)
    with pytest.raises(ValueError, match=message):
        compare_runs([first, second])


def test_folders_that_hold_no_finished_run(tmp_path, capsys):
    run = write_run(tmp_path / "one", [1, 0])
    assert main(["compare", str(run), str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == (
        f"medjax.eval: {tmp_path / 'none'}: got no results.json, expected the folder of a finished run; run it to its "
        "end first.\n"
    )
    write_run(tmp_path / "two", [1, 0])
    (run / "samples.jsonl").write_text('{"task": "x"}\n')
    with pytest.raises(ValueError, match=r"samples.jsonl, line 1: KeyError: 'doc'; expected what medjax.eval writes"):
        compare_runs([run, tmp_path / "two"])
    (run / "samples.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"stands beside results\.json"):
        compare_runs([run, tmp_path / "two"])
    (run / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"results.json: TypeError: .* expected what medjax.eval writes"):
        compare_runs([run, tmp_path / "two"])


@pytest.mark.parametrize("call", [["--compare", "one,two"], ["--model", "x", "--compare=one,two"]])
def test_the_spelling_of_old_names_the_command(call, capsys):
    assert main(call) == 2
    assert capsys.readouterr().err == (
        "medjax.eval: got --compare, expected the command compare; write python -m medjax.eval compare RUN_A RUN_B, "
        "for runs on questions and on ECGs alike.\n"
    )


def test_settings_that_explain_other_prompts_are_named(tmp_path):
    first = write_run(tmp_path / "one", [1, 0, 0, 1])
    second = write_run(tmp_path / "two", [1, 0, 0, 1], changes={"prompt_hash": "other"})
    for run, shots, chat in ((first, 0, None), (second, 3, "c" * 64)):
        record = json.loads((run / "results.json").read_text())
        record |= {"configs": {"x": {"num_fewshot": shots}}, "chat_template_sha": chat}
        (run / "results.json").write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"num_fewshot: 0 in one, 3 in two\n.*chat_template: none in one, c{12} in two\n"
    ):
        compare_runs([first, second])


def test_other_items_and_sets_are_told_beside_another_protocol(tmp_path):
    first = write_run(tmp_path / "one", [1, 0, 0, 1])
    second = write_run(tmp_path / "two", [1, 1], ids="rx", protocol="kasai-3shot")
    third = write_run(tmp_path / "three", [1, 0], id="y", task="clinic")
    record = json.loads((first / "results.json").read_text())
    record["medjax"]["evaluations"] += json.loads((third / "results.json").read_text())["medjax"]["evaluations"]
    (first / "results.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="were not asked the same") as error:
        compare_runs([first, second])
    lines = str(error.value).split("\n")
    assert lines[1:6] == [
        "  ward (en) strict-0shot: protocol: strict-0shot in one, kasai-3shot in two",
        "Besides, what one run alone asked would be left out:",
        "  ward (en) strict-0shot: items: 4 in one, 2 in two, 1 in both",
        "  clinic (en) strict-0shot: in one alone",
        lines[5],
    ]
    assert lines[5].startswith("run them with the same settings")
    # other items alone are no reason to refuse
    same = write_run(tmp_path / "same", [1, 1], ids="rx")
    (entry,) = compare_runs([first, same], resamples=9)["comparisons"]
    assert (entry["items"], entry["left_out"]) == (1, 4)


def test_a_set_that_no_model_has_seen_is_noted_and_not_compared(tmp_path, capsys):
    first = write_run(tmp_path / "one", [0, 0, 0, 0], scores={"not_graded": "too long 4/4"})
    second = write_run(tmp_path / "two", [1, 0, 0, 1])
    found = compare_runs([first, second], resamples=9)
    note = "ward (en) strict-0shot: not compared, since no item reached a model: too long 4/4 in one"
    assert (found["comparisons"], found["notes"]) == ([], [note])
    assert main(["compare", str(first), str(second), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"note     {note}\n" in printed
    assert printed.endswith(
        "next     nothing was compared, see the notes above: grade the sets so that both runs have a score\n"
    )
    assert note in (tmp_path / "out" / "comparison.html").read_text("utf-8")


def test_three_runs_are_corrected_together(tmp_path):
    rng = np.random.default_rng(5)
    ids, points = [f"q{i}" for i in range(60)], [1] * 60
    right = [rng.random(60) < share for share in (0.3, 0.5, 0.8)]
    runs = [write_run(tmp_path / f"r{i}", each, ids=ids, points=points) for i, each in enumerate(right)]
    found = compare_runs(runs, resamples=50)["comparisons"]
    assert [(entry["first_label"], entry["second_label"]) for entry in found] == [
        ("r0", "r1"),
        ("r0", "r2"),
        ("r1", "r2"),
    ]
    p_values = [
        binomtest(int((b & ~a).sum()), int((a ^ b).sum())).pvalue for a, b in ((right[i], right[j]) for i, j in PAIRS)
    ]
    assert [entry["p_value"] for entry in found] == pytest.approx(p_values)
    ranks = sorted(range(3), key=lambda i: p_values[i])
    by_hand = [min(1, 3 * p_values[ranks[0]]), 2 * p_values[ranks[1]], p_values[ranks[2]]]
    by_hand = np.maximum.accumulate(by_hand)
    assert [found[i]["p_holm"] for i in ranks] == pytest.approx(by_hand)


def test_of_several_runs_the_pair_that_shares_nothing_is_named(tmp_path):
    runs = [write_run(tmp_path / name, [1, 0]) for name in ("one", "two")]
    runs.append(write_run(tmp_path / "three", [1, 0], task="clinic"))
    with pytest.raises(ValueError, match="got no set in common, expected one that both asked") as error:
        compare_runs(runs, resamples=9)
    told = str(error.value)
    assert told.startswith(f"compare: {runs[0]} holds ward (en) strict-0shot, {runs[2]} holds clinic (en) strict-0shot")
    assert "protocol" not in told  # theirs are the same
    assert told.endswith("run both with the same --tasks (and --language), or leave one or three out.")
    # of two runs none can be left out
    with pytest.raises(ValueError, match=r"; run both with the same --tasks \(and --language\)\.$"):
        compare_runs(runs[1:], resamples=9)


def test_questions_won_and_lost_and_verdicts_that_changed(tmp_path, monkeypatch, capsys):
    doc = {"question": "Which?", "choices": ["x", "y"], "answer": ["a"]}
    runs = []
    for name, right, result in (("one", [1, 0, 0, 1], "fail"), ("two", [1, 1, 1, 0], "pass")):
        run = write_run(
            tmp_path / name,
            right,
            scores={
                "by_exam": {"2022": {"points": 2, "points_total": 10, "verdict": {"result": result, "reasons": []}}}
            },
        )
        lines = [json.loads(line) for line in (run / "samples.jsonl").read_text("utf-8").split("\n") if line]
        for line, correct in zip(lines, right, strict=True):
            line["doc"] |= doc
            picked = ["a"] if correct else None
            # the second draw is the answer
            line |= {"picked": picked, "asks": [{"parsed": ["b"], "output": "not this"}]}
            line["asks"].append({"parsed": picked, "output": f"{name} <says> {line['doc']['id']}"})
        (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(str(run))
    assert main(["compare", *runs, "--out", str(tmp_path / "out"), "--resamples", "50"]) == 0
    (questions,) = json.loads((tmp_path / "out" / "questions.json").read_text("utf-8"))
    assert [question["id"] for question in questions["won"]] == ["q", "r"]
    (lost,) = questions["lost"]
    assert (lost["id"], lost["question"], lost["choices"]) == ("s", "Which?", ["x", "y"])
    assert lost["first"] == {"picked": ["a"], "output": "one <says> s", "unparsed": None, "truncated": None}
    assert lost["second"]["picked"] is None
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))
    (exam,) = comparison["exams"]
    assert (exam["exam"], exam["changed"], [row["result"] for row in exam["runs"]]) == ("2022", True, ["fail", "pass"])
    printed = capsys.readouterr().out
    assert "\nward (en) strict-0shot, exam 2022: A fail, B pass  (changed)\n" in printed
    row = next(line for line in printed.splitlines() if line.startswith("ward (en)"))
    assert [cell.strip() for cell in row.split("│")][1:] == [
        *("50.0% → 75.0%", "+25.0 (-50.5 to +77.8)", "+1", "2 / 1", "2.00 (0.10 to 117.99)", "1", "1"),
    ]
    html = (tmp_path / "out" / "comparison.html").read_text("utf-8")
    assert "one &lt;says&gt; s" in html
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")


def graded_run(folder, gold, said, *, metrics, kind=None, choices=()):
    """A run of a set that is graded by metrics; gold and said: the answers, None was not read."""
    docs = [
        {"id": f"q{n}", "question": f"Q{n}?", "choices": list(choices), "answer": answer}
        | ({"kind": kind} if kind else {})
        for n, answer in enumerate(gold)
    ]
    items = [item_of(doc) for doc in docs]
    stored = grade(metrics, items, [None if each is None else tuple(each) for each in said], resamples=10)
    write_run(folder, [1] * len(gold), ids=[doc["id"] for doc in docs], points=[1] * len(gold), metrics=stored)
    lines = []
    for doc, picked in zip(docs, said, strict=True):
        sample = {"task": "x", "doc": doc, "doc_hash": doc["id"], "prompt_hash": "", "picked": picked}
        sample |= {"correct": picked == doc["answer"], "points": int(picked == doc["answer"])}
        lines.append(json.dumps(sample, ensure_ascii=False) + "\n")
    (folder / "samples.jsonl").write_text("".join(lines), "utf-8")
    return str(folder)


def test_a_set_graded_by_kappa_is_compared_by_that_too(tmp_path, capsys):
    rng = np.random.default_rng(3)
    gold = [["abc"[i]] for i in rng.integers(0, 3, 80)]
    said = [[g if rng.random() < share else ["abc"[rng.integers(0, 3)]] for g in gold] for share in (0.2, 0.7)]
    runs = [
        graded_run(tmp_path / name, gold, each, metrics=("kappa", "accuracy"), choices="xyz")
        for name, each in zip(("one", "two"), said, strict=True)
    ]
    assert main(["compare", *runs, "--out", str(tmp_path / "out"), "--resamples", "400"]) == 0
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))
    (entry,) = comparison["comparisons"]
    (metric,) = entry["metrics"]
    sides = [[(each[0],) for each in run] for run in said]
    items = [Item(f"q{n}", "?", tuple("xyz"), tuple(answer)) for n, answer in enumerate(gold)]
    (alone,) = metric_differences([METRICS["kappa"]], items, *sides, resamples=400, seed=0)
    assert {name: metric[name] for name in alone} == alone
    assert metric["p_value"] == pytest.approx(2 / 401)
    # both tests are corrected together
    assert (metric["p_holm"], entry["p_holm"]) == pytest.approx(holm([metric["p_value"], entry["p_value"]]))
    assert comparison["notes"] == []
    printed = [[c.strip() for c in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    head = next(number for number, row in enumerate(printed) if row[0] == "graded by")
    assert printed[head - 1][0].startswith("set ward (en), protocol strict-0shot, runs B - A, items ")
    accuracy, kappa = printed[head + 2 : head + 4]
    assert (accuracy[0], kappa[0]) == ("accuracy", "kappa")
    low, high = metric["difference_interval"]
    assert kappa[1:] == [
        f"{metric['first']:.3f} → {metric['second']:.3f}",
        f"{metric['difference']:+.3f} ({low:+.3f} to {high:+.3f})",
        *("", "", "", f"{metric['p_value']:.2g}", f"{metric['p_holm']:.2g}"),
    ]
    root = Page((tmp_path / "out" / "comparison.html").read_text("utf-8")).root
    (row,) = root.one("table", id="graded").one("tbody").all("tr")
    assert [cell.text for cell in row.all("td")][1] == "kappa"
    assert len(root.one("table", id="comparisons").one("tbody").all("tr")) == 1


def test_runs_that_agree_on_every_item_have_no_interval_of_other_figures(tmp_path, capsys):
    gold = [[letter] for letter in "abcabcab"]
    runs = [
        graded_run(tmp_path / name, gold, gold, metrics=("kappa", "accuracy"), choices="xyz") for name in ("one", "two")
    ]
    assert main(["compare", *runs, "--out", str(tmp_path / "out"), "--resamples", "100"]) == 0
    (entry,) = json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))["comparisons"]
    (metric,) = entry["metrics"]
    assert (metric["difference"], metric["difference_interval"], metric["p_value"]) == (0, None, 1)
    printed = capsys.readouterr().out
    rows = [[c.strip() for c in line.split("│")] for line in printed.splitlines()]
    (accuracy,), (kappa,) = ([row for row in rows if row[0] == name] for name in ("accuracy", "kappa"))
    assert accuracy[2] == "+0.0 (-32.4 to +32.4)"
    assert kappa[2] == "+0.000 (no interval)"
    assert "\nNo interval: the same on every resample.\n" in printed
    root = Page((tmp_path / "out" / "comparison.html").read_text("utf-8")).root
    (accuracy,) = root.one("table", id="comparisons").one("tbody").all("tr")
    assert [cell.text for cell in accuracy.all("td")][3:] == [
        *("0.0 −32.4 to +32.4", "", "0", "0 / 0", "–", "–", "1 Holm 1"),
    ]
    assert root.one("section", class_="pair").all("details") == []
    assert "No question was right in one of them alone." in root.text
    (row,) = root.one("table", id="graded").one("tbody").all("tr")
    assert "no interval: the same on every resample" in row.text
    assert "Tango" in root.text


def test_lists_are_compared_by_their_f1_alone(tmp_path, capsys):
    gold = [["咳", "熱"], ["腹痛"], [], ["めまい"]]
    said = ([["咳"], ["頭痛"], [], ["めまい"]], [["咳", "熱"], ["腹痛"], [], None])
    runs = [
        graded_run(tmp_path / name, gold, each, metrics=("entity_partial_f1", "entity_exact_f1"), kind="entities")
        for name, each in zip(("one", "two"), said, strict=True)
    ]
    plain = [write_run(tmp_path / f"plain{n}", right, ids="abcd", id="y", task="other")
             for n, right in enumerate(([1, 0, 0, 0], [1, 1, 1, 1]))]  # fmt: skip
    for run, more in zip(runs, plain, strict=True):  # each run asked both sets
        path = tmp_path / run
        record = json.loads((path / "results.json").read_text())
        record["medjax"]["evaluations"] += json.loads((more / "results.json").read_text())["medjax"]["evaluations"]
        (path / "results.json").write_text(json.dumps(record))
        with (path / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.write((more / "samples.jsonl").read_text("utf-8"))
    assert main(["compare", *runs, "--out", str(tmp_path / "out"), "--resamples", "100"]) == 0
    entries = json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))["comparisons"]
    by_task = {entry["task"]: entry for entry in entries}
    assert (by_task["ward"]["has_answers"], by_task["ward"]["p_holm"]) == (False, None)
    (metric,) = by_task["ward"]["metrics"]
    assert metric["metric"] == "entity_partial_f1"
    # 2 tests, not 3
    p_values = [metric["p_value"], by_task["other"]["p_value"]]
    assert [metric["p_holm"], by_task["other"]["p_holm"]] == pytest.approx(holm(p_values))
    assert (by_task["other"]["metrics"], by_task["other"]["p_value"]) == ([], 0.25)
    questions = json.loads((tmp_path / "out" / "questions.json").read_text("utf-8"))
    (ward,) = [each for each in questions if each["task"] == "ward"]
    # one gained a whole list, the other a half: the largest gain first
    assert [question["id"] for question in ward["won"]] == ["q1", "q0"]
    assert [question["id"] for question in ward["lost"]] == ["q3"]
    printed = [[c.strip() for c in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    (row,) = [row for row in printed if row[0] == "ward (en)"]
    head = next(cells for cells in printed if cells[0] == "set")
    shown = dict(zip(head, row, strict=True))
    assert (shown["graded by"], shown["won / lost"]) == ("entity_partial_f1", "2 / 1")
    assert "Better in B" in (tmp_path / "out" / "comparison.html").read_text("utf-8")


def test_open_questions_without_a_reference_are_not_compared(tmp_path):
    runs = [
        graded_run(tmp_path / name, [[], []], said, metrics=("chrf",), kind="text")
        for name, said in (("one", [["輸液"], None]), ("two", [["安静"], ["手術"]]))
    ]
    found = compare_runs(runs, resamples=9)
    (entry,) = found["comparisons"]
    assert (entry["has_answers"], entry["metrics"], entry["p_holm"]) == (False, [], None)
    assert found["notes"] == [
        "ward (en) strict-0shot: no question has a known right answer to compare by; people have to judge"
    ]


def test_a_figure_that_results_json_has_otherwise_is_noted(tmp_path):
    gold = [["a"], ["b"], ["a"]]
    runs = [
        graded_run(tmp_path / name, gold, said, metrics=("kappa",), choices="xy")
        for name, said in (("one", gold), ("two", [["a"], ["b"], ["b"]]))
    ]
    path = tmp_path / "two" / "results.json"
    record = json.loads(path.read_text())
    assert record["medjax"]["evaluations"][0]["metrics"]["kappa"]["value"] == pytest.approx(0.4)
    record["medjax"]["evaluations"][0]["metrics"]["kappa"]["value"] = 0.5
    path.write_text(json.dumps(record))
    (note,) = compare_runs(runs, resamples=10)["notes"]
    assert note == (
        "ward (en) strict-0shot: kappa of the samples of two is 0.4, in its results.json 0.5; grade it again with this "
        "version"
    )


def test_wrong_calls_of_compare(tmp_path, capsys):
    run = write_run(tmp_path / "one", [1, 0])
    with pytest.raises(SystemExit) as left:
        main(["compare", str(run)])
    assert left.value.code == 2
    assert "runs: got 1, expected two or more; write compare RUN_A RUN_B." in capsys.readouterr().err
    assert main(["compare", str(run), str(run)]) == 2
    assert "got the same run twice" in capsys.readouterr().err
    heart = tmp_path / "heart"
    heart.mkdir()
    (heart / "results.json").write_text('{"kind": "ecg_predictor", "targets": []}')
    assert main(["compare", str(run), str(heart)]) == 2
    assert f"got {heart}, a run on ECGs, and {run}, expected runs on questions, or two runs" in capsys.readouterr().err
    assert main(["compare", *[str(heart)] * 3]) == 2
    assert "got 3 runs on ECGs, expected runs on questions, or two runs on ECGs" in capsys.readouterr().err
    other = write_run(tmp_path / "two", [1, 0], protocol="kasai-0shot")
    assert main(["compare", str(run), str(other), "--out", str(tmp_path / "out")]) == 2
    assert "protocol: strict-0shot in one, kasai-0shot in two" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["compare", "--anyway", str(run), str(other), "--out", str(tmp_path / "out"), "--resamples", "9"]) == 0
    assert "DIFFERS  ward (en) strict-0shot: protocol: strict-0shot in A, kasai-0shot in B" in capsys.readouterr().out
    assert "were not asked the same" in (tmp_path / "out" / "comparison.html").read_text("utf-8")
