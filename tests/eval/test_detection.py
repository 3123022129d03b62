"""A whole evaluation of an ECG model: which records, which figures, what is refused, and going on after a kill."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics
from tiny_ecgs import RULE, write_data, write_model, write_run
from tiny_predictors import facts_of, made_record

from medjax.config import load
from medjax.data.ecg.builder import write_dataset
from medjax.data.ecg.division import SplitRule
from medjax.data.ecg.seen import Seen, hash_of
from medjax.data.ecg.splits import patient_keys
from medjax.eval.__main__ import main
from medjax.eval.detection import evaluate_ecg
from medjax.eval.ecg_comparison import compare_ecg_runs
from medjax.eval.ecg_settings import EcgEvalSettings
from medjax.infer.ecg import EcgModel
from medjax.statistics.detector import DetectorRule


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """hospital: data; one, two: runs of two models trained there; bare: a model without rules."""
    root = tmp_path_factory.mktemp("ecgs")
    model = EcgModel.load(write_model(root / "labels", facts_of()))
    dataset = write_data(root / "hospital", model)
    write_run(root / "one", dataset)
    write_run(root / "two", dataset, seed=1)
    write_run(root / "bare", dataset, rule=None, rules={})
    return root, dataset, model


@pytest.fixture(autouse=True, scope="module")
def _compiled_once():
    """Evaluations take the same model object for the same folder, which is compiled once for all tests."""
    load_model, loaded = EcgModel.load, {}
    with pytest.MonkeyPatch.context() as patch:

        def load(path, **options):
            if str(path) not in loaded:
                loaded[str(path)] = load_model(path, **options)
            return loaded[str(path)]

        patch.setattr(EcgModel, "load", staticmethod(load))
        yield


def settings_of(place, out, **options):
    root, *_ = place
    given = {"model": root / "one", "data": root / "hospital", "resamples": 200, "out": out, **options}
    overrides = {f"--{key.replace('_', '-')}": str(v) for key, v in given.items()}
    return load(EcgEvalSettings, overrides=overrides)


@pytest.fixture(scope="session")
def evaluated(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated") / "run"
    results = evaluate_ecg(settings_of(place, out))
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return out, results, samples


def test_the_test_patients_of_the_rule_are_evaluated(place, evaluated):
    _, dataset, _ = place
    out, results, samples = evaluated
    expected = RULE.divide(dataset.index)["test"]
    assert [sample["id"] for sample in samples] == dataset.index["id"][expected].tolist()
    data = results["protocol"]["data"]
    keys = patient_keys(dataset.index)[expected]
    assert data["chosen"]["records"] == len(expected)
    assert data["chosen"]["patients"] == len(set(keys))
    assert data["chosen"]["without_patient"] == (dataset.index["patient"][expected] == "").sum() > 0
    assert data["leaks"] == {"patients": 0, "waveforms": 0, "allowed": False, "checked": True}
    assert data["digest"] == dataset.digest
    assert data["split_rule"] == RULE.to_json()
    assert json.loads((out / "results.json").read_text()) == results
    assert "<svg" in (out / "report.html").read_text()


def test_figures_of_the_detector_are_those_of_the_samples(place, evaluated):
    _, _, model = place
    _, results, samples = evaluated
    known = [s for s in samples if s["labels"]["lvsd"] is not None]
    y = np.array([s["labels"]["lvsd"] for s in known])
    z = np.array([s["outputs"]["lvsd"]["raw"][0] for s in known])
    p = np.array([s["outputs"]["lvsd"]["probability"] for s in known])
    called = np.array([s["outputs"]["lvsd"]["positive"] for s in known])
    entry = results["targets"][0]
    assert entry["counts"]["records"] == len(known)
    assert entry["counts"]["unknown"] == len(samples) - len(known) > 0
    assert entry["discrimination"]["auroc"]["value"] == pytest.approx(metrics.roc_auc_score(y, z), abs=1e-9)
    assert entry["discrimination"]["auprc"]["value"] == pytest.approx(metrics.average_precision_score(y, z), abs=1e-9)
    point = entry["operating_points"][0]
    tn, fp, fn, tp = metrics.confusion_matrix(y, called).ravel().tolist()
    assert point["confusion"] == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    assert point["sensitivity"]["value"] == pytest.approx(metrics.recall_score(y, called), abs=1e-9)
    assert point["f1"]["value"] == pytest.approx(metrics.f1_score(y, called), abs=1e-9)
    rule: DetectorRule = model.reading.detectors["lvsd"]
    assert point["threshold"] == rule.threshold.value
    assert point["origin"] == "validation: sensitivity at least 0.9"
    assert entry["calibration"]["calibrated"]["brier"]["value"] == pytest.approx(metrics.brier_score_loss(y, p))
    raw = 1 / (1 + np.exp(-z))
    assert entry["calibration"]["raw"]["brier"]["value"] == pytest.approx(metrics.brier_score_loss(y, raw))
    level = entry["conformal"]["levels"][1]
    inside = rule.sets(z, 0.9)
    assert level["coverage"]["value"] == pytest.approx(inside[np.arange(len(y)), y.astype(int)].mean())
    assert sum(level["sets"].values()) == len(y)
    risk = entry["abstention"]["curve"]["risk"]
    assert risk[-1] == pytest.approx((called != y).mean())
    assert entry["abstention"]["aurc"]["value"] < risk[-1]
    sens, spec = point["sensitivity"]["value"], point["specificity"]["value"]
    ppv = 0.02 * sens / (0.02 * sens + 0.98 * (1 - spec))
    assert entry["predictive_values"][1]["ppv"]["value"] == pytest.approx(ppv)
    assert entry["curves"]["histogram"]["positive"] == np.histogram(p[y == 1], np.linspace(0, 1, 21))[0].tolist()


def test_every_number_has_an_interval_or_a_reason(evaluated):
    def numbers(value, at=""):
        if isinstance(value, dict) and set(value) == {"value", "low", "high", "method", "reason"}:
            yield at, value
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from numbers(inner, f"{at}.{key}")
        elif isinstance(value, list):
            for place, inner in enumerate(value):
                yield from numbers(inner, f"{at}[{place}]")

    found = list(numbers(evaluated[1]["targets"]))
    assert len(found) > 150
    for at, number in found:
        if number["value"] is None or number["low"] is None:
            assert number["reason"], at
        else:
            assert number["low"] - 1e-9 <= number["value"] <= number["high"] + 1e-9, at


def test_subgroups_and_trivial_classifiers(evaluated):
    _, results, _ = evaluated
    entry = results["targets"][0]
    groups = {(group["by"], group["value"]): group for group in entry["subgroups"]}
    assert {by for by, _ in groups} == {"age band", "sex", "device", "source"}
    assert {value for by, value in groups if by == "source"} == {"east", "west"}
    for by in ("age band", "sex", "device", "source"):
        assert sum(g["records"] for (b, _), g in groups.items() if b == by) == entry["counts"]["records"]
    assert [b["name"] for b in entry["baselines"]] == ["source and device", "age and sex"]
    source = entry["baselines"][0]
    assert source["features"] == ["source", "device", "format", "sampling rate", "mains"]
    gap = entry["discrimination"]["auroc"]["value"] - source["auroc"]["value"]
    assert source["difference"]["value"] == pytest.approx(gap)
    age = results["targets"][1]
    assert {group["by"] for group in age["subgroups"]} == {"sex", "device", "source"}
    assert [b["features"] for b in age["baselines"]][1] == ["sex"]


def test_figures_of_age_and_grade(evaluated):
    _, results, samples = evaluated
    _, age, grade = results["targets"]
    x = np.array([s["labels"]["age"] for s in samples])
    y = np.array([s["outputs"]["age"]["value"] for s in samples])
    assert age["errors"]["mae"]["value"] == pytest.approx(np.abs(y - x).mean(), abs=1e-9)
    assert age["errors"]["r2"]["value"] == pytest.approx(metrics.r2_score(x, y), abs=1e-9)
    assert age["errors"]["mae_of_mean"]["value"] == pytest.approx(np.abs(x - 60).mean())
    corrected = y + x - (0.4 * x + 35)
    assert age["gap"]["corrected"]["mean"]["value"] == pytest.approx((corrected - x).mean())
    assert age["points"]["corrected"] == pytest.approx(corrected)
    assert sum(row["records"] for row in age["by_decade"]) == len(x)
    true = [int(s["labels"]["grade"]) for s in samples]
    said = [int(s["outputs"]["grade"]["value"]) for s in samples]
    kappa = metrics.cohen_kappa_score(true, said, weights="quadratic", labels=[0, 1, 2])
    assert grade["errors"]["weighted_kappa"]["value"] == pytest.approx(kappa)
    assert grade["confusion"] == metrics.confusion_matrix(true, said, labels=[0, 1, 2]).tolist()


def test_a_killed_run_goes_on_with_the_same_numbers(place, evaluated, tmp_path):
    out, results, _ = evaluated
    again = tmp_path / "again"
    shutil.copytree(out, again)
    for name in ("results.json", "samples.jsonl", "report.html"):
        (again / name).unlink()
    journal = again / "journal" / "predictions.jsonl"
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join(lines[:20]) + b'\n{"i": 77, "predic')
    told = []
    found = evaluate_ecg(settings_of(place, again), say=told.append)
    assert f"{again} holds this run already; going on from there" in told
    assert found["targets"] == results["targets"]
    assert (again / "samples.jsonl").read_text() == (out / "samples.jsonl").read_text()


def test_records_that_training_has_seen_stop_the_run(place, tmp_path):
    _, dataset, _ = place
    with pytest.raises(ValueError, match="records whose patient or recording the training has seen") as caught:
        evaluate_ecg(settings_of(place, tmp_path / "all", split="all"))
    sets = RULE.divide(dataset.index)
    seen = len(sets["train"]) + len(sets["validation"])
    assert str(caught.value).startswith(f"data: got {seen} of {len(dataset)} records")
    assert not (tmp_path / "all").exists()
    dropped = evaluate_ecg(settings_of(place, tmp_path / "drop", split="all", leaks="drop", resamples=20))
    data = dropped["protocol"]["data"]
    assert data["chosen"]["records"] == len(sets["test"])
    assert data["left_out"] == [{"reason": "patient or recording was seen in training", "records": seen}]
    allowed = evaluate_ecg(settings_of(place, tmp_path / "allow", split="all", leaks="allow", resamples=20))
    assert allowed["protocol"]["data"]["chosen"]["records"] == len(dataset)
    keys = patient_keys(dataset.index)[np.r_[sets["train"], sets["validation"]]]
    assert allowed["protocol"]["data"]["leaks"] == {
        "patients": len(set(keys)),
        "waveforms": seen,
        "allowed": True,
        "checked": True,
    }


def test_a_copy_of_a_training_record_under_another_name_is_found(place, tmp_path):
    _, dataset, _ = place
    trained = int(RULE.divide(dataset.index)["train"][0])
    copy = replace(dataset[trained], id="copy", patient="somebody else", source="elsewhere/copy.hea")
    new = replace(made_record(900), patient="new", labels={"lvsd": 1.0, "grade": 0.0}, age_years=50.0)
    write_dataset(tmp_path / "other", [copy, new])
    with pytest.raises(ValueError, match=r"got 1 of 2 records .* \(copy\)"):
        evaluate_ecg(settings_of(place, tmp_path / "run", data=tmp_path / "other", split="all"))


def test_a_copy_of_an_altered_training_record_is_found(place, tmp_path):
    """Training held a record and its twin at half the amplitude; elsewhere lies the twin alone, of somebody else."""
    root, dataset, _ = place
    trained = [dataset[int(i)] for i in RULE.divide(dataset.index)["train"][:8]]
    twin = replace(trained[0], id="twin", signal=trained[0].signal * 0.5, source="/records/east/twin.hea")
    both = write_dataset(tmp_path / "both", [*trained, twin])
    recordings = both.index["recording"][np.isin(both.index["id"], [trained[0].id, "twin"])]
    assert len(set(recordings)) == 1  # ingest saw that they are one
    shutil.copytree(root / "one", tmp_path / "run")
    Seen.of(both.index, np.arange(len(both))).write(tmp_path / "run")
    new = replace(made_record(901), patient="new", labels={"lvsd": 1.0, "grade": 0.0}, age_years=50.0)
    write_dataset(tmp_path / "other", [replace(twin, patient="somebody else"), new])
    with pytest.raises(ValueError, match=r"got 1 of 2 records .* \(twin\)"):
        evaluate_ecg(settings_of(place, tmp_path / "x", model=tmp_path / "run", data=tmp_path / "other", split="all"))


def test_leaks_that_nobody_can_look_for_must_be_allowed(place, tmp_path):
    root, *_ = place
    shutil.copytree(root / "one" / "model", tmp_path / "given" / "model")
    for options, said in (
        (
            {"split": "all"},
            "so these are the data of the training, all of them; expected the file that training writes",
        ),
        ({"leaks": "drop"}, "so what training has seen cannot be known; expected the file that training writes"),
    ):
        with pytest.raises(ValueError, match=f"got no seen.json in .*given, {said}"):
            evaluate_ecg(settings_of(place, tmp_path / "x", model=tmp_path / "given", **options))
    options = {"model": tmp_path / "given", "leaks": "allow", "split": "all", "resamples": 20, "limit": 60}
    found = evaluate_ecg(settings_of(place, tmp_path / "run", **options))
    assert found["protocol"]["data"]["leaks"] == {"patients": 0, "waveforms": 0, "allowed": True, "checked": False}
    assert "These are all of the records that the training has used: the figures are too good." in found["notes"]


def test_labels_of_another_coding_are_refused(place, tmp_path):
    """1 for no and 2 for yes, an ejection fraction, half a class: none of them becomes a score in silence."""
    for name, values in (
        ("lvsd", [1, 2, 2, 1]),
        ("lvsd", [55.0, 30.0, 0, 1]),
        ("grade", [0, 1.7, 2, 1]),
        ("grade", [3] * 4),
    ):
        rows = [
            replace(made_record(600 + i), patient=f"o{i}", labels={"lvsd": 1.0, "grade": 0.0, name: float(value)})
            for i, value in enumerate(values)
        ]
        folder = tmp_path / f"{name}-{values[1]}"
        write_dataset(folder, rows)
        allowed, names = ("0 or 1", "normal/reduced") if name == "lvsd" else ("0, 1 or 2", "none/mild/severe")
        wrong = [value for value in values if value not in range(2 if name == "lvsd" else 3)]
        said = rf"^data: {name}: got {wrong[0]:g} in record r60\d \({len(wrong)} such records\), expected {allowed} "
        with pytest.raises(ValueError, match=rf"{said}\({names}\) as in training; ingest the data with labels of that"):
            evaluate_ecg(settings_of(place, tmp_path / "x", data=folder, split="all"))


def test_patients_are_not_named_in_what_is_compared(place, evaluated):
    _, dataset, _ = place
    _, _, samples = evaluated
    expected = [hash_of(key) for key in patient_keys(dataset.index)[RULE.divide(dataset.index)["test"]]]
    assert [sample["patient"] for sample in samples] == expected


def test_folds_belong_to_the_data_of_the_training(place, tmp_path):
    _, dataset, _ = place
    rule = SplitRule(seed=1, folds=4, fold=2, strata="lvsd")
    write_run(tmp_path / "folded", dataset, rule=rule)
    found = evaluate_ecg(settings_of(place, tmp_path / "run", model=tmp_path / "folded", resamples=20))
    assert found["protocol"]["data"]["chosen"]["records"] == len(rule.divide(dataset.index)["test"])
    write_dataset(tmp_path / "other", [dataset[int(i)] for i in RULE.divide(dataset.index)["test"]])
    with pytest.raises(ValueError, match="which in cross-validation belongs to the data of the training"):
        evaluate_ecg(settings_of(place, tmp_path / "x", model=tmp_path / "folded", data=tmp_path / "other"))


def test_a_validation_run_says_so(place, tmp_path):
    results = evaluate_ecg(settings_of(place, tmp_path / "run", split="validation", resamples=20, limit=12))
    assert results["notes"][0] == "These are validation records, which the training has used: the figures are too good."
    assert results["protocol"]["data"]["chosen"]["records"] == 12


def test_a_model_without_rules_is_judged_by_the_sigmoid(place, tmp_path):
    root, *_ = place
    out = tmp_path / "run"
    results = evaluate_ecg(settings_of(place, out, model=root / "bare", split="all", resamples=20, leaks="allow"))
    entry = results["targets"][0]
    assert (entry["calibration"]["method"], entry["operating_points"][0]["threshold"]) == ("none", 0.5)
    assert entry["conformal"] is None
    assert results["targets"][1]["gap"]["corrected"] is None
    assert "lvsd: threshold: the checkpoint stores none." in results["notes"]
    assert any("no search for leaks was made" in note for note in results["notes"])


def test_one_class_is_reported_and_not_a_crash(place, tmp_path):
    rows = [
        replace(made_record(800 + i), patient=f"n{i}", labels={"lvsd": 0.0, "grade": 1.0}, age_years=40.0 + i)
        for i in range(12)
    ]
    rows[3] = replace(rows[3], signal=np.full_like(rows[3].signal, np.nan), status=("missing",) * 12)
    write_dataset(tmp_path / "negatives", rows)
    found = evaluate_ecg(settings_of(place, tmp_path / "run", data=tmp_path / "negatives", split="all", resamples=50))
    entry = found["targets"][0]
    assert entry["discrimination"]["auroc"] == {
        "value": None,
        "low": None,
        "high": None,
        "method": "",
        "reason": "all 11 records are negative",
    }
    assert entry["operating_points"][0]["sensitivity"]["reason"] == "no record is positive"
    assert entry["operating_points"][0]["specificity"]["value"] is not None
    assert found["protocol"]["data"]["left_out"][0]["records"] == 1
    assert "no usable lead" in found["protocol"]["data"]["left_out"][0]["reason"]
    assert "all 11 records are negative" in (tmp_path / "run" / "report.html").read_text()


def test_a_target_without_labels_is_left_out_and_named(place, tmp_path):
    rows = [replace(made_record(700 + i), patient=f"m{i}", labels={"lvsd": float(i % 2)}) for i in range(8)]
    write_dataset(tmp_path / "some", rows)
    found = evaluate_ecg(settings_of(place, tmp_path / "run", data=tmp_path / "some", split="all", resamples=20))
    assert [entry["name"] for entry in found["targets"]] == ["lvsd"]
    assert "grade is not evaluated: no record here has a label of that name." in found["notes"]
    write_dataset(tmp_path / "none", [replace(row, labels={"ef": 40.0}) for row in rows])
    with pytest.raises(ValueError, match=r"got no label of lvsd, age, grade among the 8 records .* Its labels: ef"):
        evaluate_ecg(settings_of(place, tmp_path / "x", data=tmp_path / "none", split="all"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nowhere"}, "model.name: nowhere: got no model of ECGs there"),
        (
            {"data": ""},
            r"data.folders: got no folder, expected one that medjax.ingest wrote \(the model was trained on",
        ),
        ({"model": "bare"}, "data.split: got test, but .*bare records no rule that divides patients"),
        ({"subgroups": "shoe size"}, "shoe size"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(place, tmp_path, options, message):
    root, *_ = place
    options = options | ({"model": root / "bare"} if options.get("model") == "bare" else {})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate_ecg(settings_of(place, tmp_path / "run", **options))


def test_the_command_evaluates_and_compares(place, tmp_path, capsys):
    root, *_ = place
    for name in ("one", "two"):
        out = str(tmp_path / name)
        more = ["--engine.compilation_cache=false", "--resamples", "100"]
        assert main(["--model", str(root / name), "--data", str(root / "hospital"), "--out", out, *more]) == 0
    printed = capsys.readouterr().out
    runs = [str(tmp_path / name) for name in ("one", "two")]
    assert f"next     python -m medjax.eval compare {runs[1]} <the folder" in printed
    assert "AUROC (95 % interval)" in printed
    assert "lvsd: source and device alone: AUROC" in printed
    assert main(["compare", *runs, "--resamples", "100", "--out", str(tmp_path / "out")]) == 0
    assert "DeLong, paired, by patient" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))
    assert written == compare_ecg_runs(*runs, resamples=100)
    assert main(["--model", str(root / "one"), "--data", str(tmp_path / "none")]) == 2
    assert "index.parquet: no such file" in capsys.readouterr().err
