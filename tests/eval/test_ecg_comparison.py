"""Two ECG runs on the same patients: paired differences, and what cannot be compared."""

import json

import numpy as np
import pytest

from medjax.eval.ecg_comparison import compare_ecg_runs, is_ecg_run
from medjax.statistics import delong
from medjax.statistics.bootstrap import PatientBootstrap, weighted_mean


def write_run(folder, y, logits, ages, *, first=0, kind="binary"):
    folder.mkdir()
    targets = [{"name": "lvsd", "kind": kind}, {"name": "age", "kind": "regression"}]
    (folder / "results.json").write_text(json.dumps({"kind": "ecg_predictor", "targets": targets}))
    lines = []
    for i, (label, z, age) in enumerate(zip(y, logits, ages, strict=True)):
        p = 1 / (1 + np.exp(-z))
        outputs = {
            "lvsd": {"raw": [float(z)], "probability": float(p), "positive": bool(p >= 0.5)},
            "age": {"value": float(age), "raw": [0.0]},
        }
        number = first + i
        lines.append(
            json.dumps(
                {
                    "id": f"r{number}",
                    "waveform": f"w{number}",
                    "patient": f"p{number // 2}",
                    "labels": {"lvsd": float(label), "age": 50.0 + number % 30},
                    "refused": None,
                    "outputs": outputs,
                }
            )
        )
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_differences_are_paired(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.random(200) < 0.4
    shared = rng.normal(size=200) + y
    one, two = shared + rng.normal(size=200), shared + 0.2 * rng.normal(size=200)
    age = 50.0 + np.arange(200) % 30
    ages = age + rng.normal(0, 6, 200), age + rng.normal(0, 3, 200)
    found = compare_ecg_runs(
        write_run(tmp_path / "a", y, one, ages[0]), write_run(tmp_path / "b", y, two, ages[1]), resamples=300
    )
    assert (found["records"], found["patients"], found["left_out"]) == (200, 100, 0)
    lvsd, years = found["targets"]
    test = delong.compare(y, one, two, np.arange(200) // 2)
    assert lvsd["p_value"] == pytest.approx(test.p_value, rel=1e-9)
    assert lvsd["difference"] == pytest.approx(test.difference.to_json())
    called = [run >= 0 for run in (one, two)]
    assert lvsd["bootstrap"]["sensitivity"]["value"] == pytest.approx(called[1][y].mean() - called[0][y].mean())
    drawn = lvsd["bootstrap"]["auroc"]
    assert (drawn["low"], drawn["high"]) == pytest.approx((test.difference.low, test.difference.high), abs=0.02)
    gain = np.abs(ages[1] - age) - np.abs(ages[0] - age)
    expected = PatientBootstrap(np.arange(200) // 2, resamples=300).estimate(weighted_mean(gain))
    assert years["difference"]["value"] == pytest.approx(expected.value)
    assert (years["difference"]["low"], years["difference"]["high"]) == pytest.approx((expected.low, expected.high))


def test_records_of_one_run_alone_are_left_out(tmp_path):
    y = np.tile([0, 1], 20)
    z = np.arange(40.0) % 7
    one = write_run(tmp_path / "a", y, z, z)
    two = write_run(tmp_path / "b", y, z, z, first=10)
    found = compare_ecg_runs(one, two, resamples=20)
    assert (found["records"], found["left_out"]) == (30, 20)


def test_what_cannot_be_compared_is_refused(tmp_path):
    y, z = np.tile([0, 1], 5), np.arange(10.0)
    one = write_run(tmp_path / "a", y, z, z)
    other = write_run(tmp_path / "b", 1 - y, z, z)
    with pytest.raises(ValueError, match=r"record r0: got lvsd=0.0 in one run and 1.0 in the other"):
        compare_ecg_runs(one, other, resamples=5)
    elsewhere = write_run(tmp_path / "c", y, z, z, first=100)
    with pytest.raises(ValueError, match="got no record that both"):
        compare_ecg_runs(one, elsewhere, resamples=5)
    with pytest.raises(FileNotFoundError, match=r"got no results\.json"):
        compare_ecg_runs(one, tmp_path / "none", resamples=5)
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "results.json").write_text('{"medjax": {}}')
    with pytest.raises(ValueError, match=r"expected what medjax\.eval writes of a run on ECGs; name such"):
        compare_ecg_runs(one, tmp_path / "exam", resamples=5)
    assert is_ecg_run(one)
    assert not is_ecg_run(tmp_path / "exam")
    assert not is_ecg_run(tmp_path / "none")
