"""Runs of other protocols, data or prompts compared all the same: what is paired, told, and claimed of exams."""

import json

import pytest
from small_runs import write_run

from medjax.eval.__main__ import main
from medjax.eval.comparison import compare_runs


def test_anyway_compares_and_says_what_differs(tmp_path):
    first = write_run(tmp_path / "one", [1, 0, 0, 1])
    second = write_run(tmp_path / "two", [1, 1, 1, 0], protocol="kasai-3shot", changes={"prompt_hash": "other"})
    found = compare_runs([first, second], anyway=True, resamples=10)
    (entry,) = found["comparisons"]
    assert (entry["protocol"], entry["items"], entry["only_first"], entry["only_second"]) == (
        *("strict-0shot / kasai-3shot", 4),
        *(1, 2),
    )
    assert [(each["field"], each["values"]) for each in found["differences"]] == [
        ("protocol", ["strict-0shot", "kasai-3shot"]),
        ("prompts of 4 of 4 items, the first p", ["prompt p", "other"]),
    ]
    assert found["notes"] == []  # neither protocol stands alone
    # two questions under one id are never a pair
    other = write_run(tmp_path / "other", [1, 1, 1, 0], data={"digest": "e" * 64}, changes={"doc_hash": "q"})
    with pytest.raises(ValueError, match="got no item that both runs asked"):
        compare_runs([first, other], anyway=True)


def _merged(folder, *runs):
    """One run of the evaluations of several; their samples go under ids of their own."""
    folder.mkdir()
    records = [json.loads((run / "results.json").read_text()) for run in runs]
    entries = [entry for record in records for entry in record["medjax"]["evaluations"]]
    (folder / "results.json").write_text(json.dumps({"medjax": {"evaluations": entries}}))
    (folder / "samples.jsonl").write_text("".join((run / "samples.jsonl").read_text("utf-8") for run in runs), "utf-8")
    return folder


def _verdict(result):
    return {"scores": {"by_exam": {"2022": {"verdict": {"result": result, "reasons": []}}}}}


def test_verdicts_under_two_protocols_are_told_apart_and_claim_no_change(tmp_path, capsys):
    first = write_run(tmp_path / "one", [1, 0, 0, 1], **_verdict("fail"))
    other = {"protocol": "strict-3shot", "changes": {"prompt_hash": "other"}}
    second = write_run(tmp_path / "two", [1, 1, 1, 0], **other, **_verdict("pass"))
    third = write_run(tmp_path / "three", [1, 1, 1, 1], **other, **_verdict("fail"))
    out = ["--anyway", "--out", str(tmp_path / "out"), "--resamples", "9"]
    assert main(["compare", str(first), str(second), str(third), *out]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "exam 2022" in line] == [
        "ward (en) strict-0shot, exam 2022: A fail, B not asked, C not asked",
        "ward (en) strict-3shot, exam 2022: A not asked, B pass, C fail  (changed)",
    ]
    page = tmp_path / "out" / "comparison.html"
    assert "<small>not asked the same<" not in page.read_text("utf-8")
    # under one protocol, but with other prompts
    unlike = write_run(tmp_path / "unlike", [1, 1, 1, 1], changes={"prompt_hash": "chat"}, **_verdict("pass"))
    assert main(["compare", str(first), str(unlike), *out]) == 0
    assert "\nward (en) strict-0shot, exam 2022: A fail, B pass  (not asked the same)\n" in capsys.readouterr().out
    assert "<small>strict-0shot</small><small>not asked the same</small></th>" in page.read_text("utf-8")
    (exam,) = json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))["exams"]
    assert (exam["alike"], exam["changed"]) == (False, False)


def test_protocols_that_differ_in_their_examples_are_matched_within_runs_of_several(tmp_path):
    def run(name, protocols, changes=()):
        parts = [
            write_run(tmp_path / f"{name} {number}", right, id=f"x{number}", protocol=protocol, changes=changes)
            for number, (protocol, right) in enumerate(protocols.items())
        ]
        return _merged(tmp_path / name, *parts)

    zero = run("zero", {"strict-0shot": [1, 0, 0, 0], "choice-logprob-0shot": [0, 0, 0, 0]})
    three = run(
        "three", {"choice-logprob-nearest-3shot": [1, 1, 1, 1], "strict-3shot": [1, 1, 0, 0]}, {"prompt_hash": "o"}
    )
    with pytest.raises(ValueError, match="got runs that were not asked the same"):
        compare_runs([zero, three])
    found = compare_runs([zero, three], anyway=True, resamples=9)
    assert [
        (entry["protocol"], entry["first_accuracy"], entry["second_accuracy"]) for entry in found["comparisons"]
    ] == [
        ("strict-0shot / strict-3shot", 0.25, 0.5),
        ("choice-logprob-0shot / choice-logprob-nearest-3shot", 0, 1),
    ]
    assert found["notes"] == []
    # which of the two is not for us to choose
    several = run("several", {"strict-1shot": [1, 0, 0, 0], "strict-3shot": [0, 0, 0, 0]})
    one = write_run(tmp_path / "one", [1, 0, 0, 0], protocol="strict-0shot")
    with pytest.raises(
        ValueError, match="; to compare two protocols with --anyway, name runs that asked a set under one"
    ):
        compare_runs([several, one], anyway=True)
