"""Paired comparison: closed forms, and two runs that must have asked the same."""

import json

import numpy as np
import pytest

from medjax.eval.__main__ import main
from medjax.eval.comparison import compare, compare_runs
from medjax.statistics.intervals import difference_interval, mcnemar


def _answers(right, points):
    return [(bool(correct), worth * bool(correct)) for correct, worth in zip(right, points, strict=True)]


def test_what_is_counted():
    rng = np.random.default_rng(2)
    first, second, points = rng.random(90) < 0.4, rng.random(90) < 0.6, rng.integers(1, 4, 90).tolist()
    found = compare(_answers(first, points), _answers(second, points), resamples=500, seed=3)
    interval = difference_interval(second, first, resamples=500, seed=3)
    assert found["items"] == 90
    assert (found["first_accuracy"], found["second_accuracy"]) == (first.mean(), second.mean())
    assert found["accuracy_difference"] == pytest.approx(second.mean() - first.mean())
    assert found["accuracy_difference_interval"] == [interval.low, interval.high]
    assert found["points_difference"] == sum(points * second) - sum(points * first)
    low, high = found["points_difference_interval"]
    assert low < found["points_difference"] < high
    assert (found["only_first"], found["only_second"]) == ((first & ~second).sum(), (second & ~first).sum())
    assert found["p_value"] == mcnemar(first, second).p_value


def test_the_same_answers_differ_by_nothing_and_pairing_is_narrower():
    right, points = [True, False] * 50, [1] * 100
    same = compare(_answers(right, points), _answers(right, points), resamples=200, seed=0)
    assert same["accuracy_difference_interval"] == same["points_difference_interval"] == [0.0, 0.0]
    assert same["p_value"] == 1.0
    better = [True, False, True, True] + [True, False] * 48  # one item more: unpaired, that would be 0.14 wide or more
    low, high = compare(_answers(right, points), _answers(better, points), resamples=2000, seed=0)[
        "accuracy_difference_interval"
    ]
    assert (low, high) == (0.0, pytest.approx(0.03, abs=0.011))


def write_run(folder, right, *, points=(1, 2, 3, 4), ids="pqrs", changes=(), **evaluation):
    """What a run of one evaluation leaves, as far as a comparison reads it; changes: to the samples' fields."""
    entry = {"id": "x", "task": "ward", "language": "en", "protocol": "strict-0shot", "data": {"digest": "d" * 64}}
    entry |= evaluation
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"medjax": {"evaluations": [entry]}}))
    lines = []
    for name, correct, worth in zip(ids, right, points, strict=False):
        sample = {"task": entry["id"], "doc": {"id": name}, "doc_hash": f"doc {name}", "prompt_hash": f"prompt {name}"}
        sample |= {"correct": bool(correct), "points": worth * correct, "text": "\u2028"} | dict(changes)
        lines.append(json.dumps(sample, ensure_ascii=False) + "\n")
    (folder / "samples.jsonl").write_text("".join(lines), "utf-8")
    return folder


def test_runs_are_compared_over_the_items_both_asked(tmp_path, capsys):
    first = write_run(tmp_path / "one", [1, 0, 0, 1])
    second = write_run(tmp_path / "two", [1, 1, 1], ids="srq", points=(4, 3, 2), id="another")
    (found,) = compare_runs(first, second, resamples=100)
    assert (found["task"], found["language"], found["protocol"]) == ("ward", "en", "strict-0shot")
    assert (found["first"], found["second"], found["left_out"]) == (str(first), str(second), 1)
    assert (found["items"], found["only_first"], found["only_second"]) == (3, 0, 2)
    assert found["accuracy_difference"] == pytest.approx(2 / 3)
    assert found["points_difference"] == 5
    assert main(["--compare", f"{first},{second}", "--resamples", "100"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("ward (en)"))
    assert [cell.strip() for cell in row.split("│")] == [
        *("ward (en)", "strict-0shot", "3", "33.3%", "100.0%", "+66.7 (+0.0 to +100.0)", "0", "2", "0.5"),
    ]
    assert "ward: 1 item that only one run asked is left out" in printed


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
    (found,) = compare_runs(first, second, resamples=10)
    assert (found["first_accuracy"], found["second_accuracy"], found["items"]) == (0, 0.75, 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"protocol": "kasai-3shot"}, "got no set with the same language and protocol in both"),
        ({"language": "ja"}, "holds ward en strict-0shot, .* holds ward ja strict-0shot"),
        (
            {"data": {"digest": "e" * 64}},
            "ward en strict-0shot: got data d{12} in .*one and e{12} in .*two",
        ),
        ({"ids": "wxyz"}, "got no item that both runs asked"),
        ({"changes": {"doc_hash": "other"}}, "item p: got two different questions under this id"),
        ({"changes": {"prompt_hash": "other"}}, "item p: got two different prompts .* --chat-template none"),
        ({"changes": {"task": 7, "doc": 7}}, "got no item that both runs asked"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, changed, message):
    first = write_run(tmp_path / "one", [1, 0, 0, 1])
    second = write_run(tmp_path / "two", [1, 0, 0, 1], **changed)
    with pytest.raises(ValueError, match=message):
        compare_runs(first, second)


def test_folders_that_hold_no_finished_run(tmp_path, capsys):
    run = write_run(tmp_path / "one", [1, 0])
    assert main(["--compare", f"{run},{tmp_path / 'none'}"]) == 2
    assert capsys.readouterr().err == (
        f"medjax.eval: {tmp_path / 'none'}: got no results.json, expected the folder of a finished run; run it to its "
        "end first.\n"
    )
    (run / "samples.jsonl").write_text('{"task": "x"}\n')
    with pytest.raises(ValueError, match=r"samples.jsonl, line 1: KeyError: 'doc'; expected what medjax.eval writes"):
        compare_runs(run, run)
    (run / "samples.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"stands beside results\.json"):
        compare_runs(run, run)
    (run / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"results.json: TypeError: .* expected what medjax.eval writes"):
        compare_runs(run, run)
    for runs in ("one", "one,two,three"):
        with pytest.raises(SystemExit):
            main(["--compare", runs])
        assert f"--compare: got {runs.count(',') + 1} runs, expected two" in capsys.readouterr().err
