"""python -m medjax.infer on ECG files, from end to end: the model's own predictions, whatever lies beside them."""

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from tiny_predictors import AGE, LVSD, config_of, facts_of, made_record, write_predictor

from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.readers import read_ecg
from medjax.data.ecg.readers.stated import Stated
from medjax.infer.__main__ import _ECG_FLAGS, _files_named, main
from medjax.infer.ecg import EcgModel
from medjax.infer.ecg_settings import EcgInferSettings
from medjax.infer.explanation import explain

ROOT = Path(__file__).resolve().parents[2]
STATED = ("--sampling_rate_hz", "200", "--unit", "mV")
FAST = ("--no-engine.compilation_cache", "--batch-size", "4")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    facts = facts_of()
    return write_predictor(tmp_path_factory.mktemp("train") / "detector", config_of((LVSD, AGE)), facts)


@pytest.fixture(scope="module")
def model(run):
    return EcgModel.load(run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two recordings, a third in a subfolder under a name that is taken, one that cannot be judged, one that is cut."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "b").mkdir()
    for name, record in (
        ("one", made_record(0)),
        ("two, left", made_record(1, seconds=9, leads=("I", "II", "V1"))),
        ("b/one", made_record(2)),
        ("short", made_record(3, seconds=0.4)),
    ):
        there = [lead for lead in LEADS if record.usable[LEADS.index(lead)]]
        rows = record.signal[record.usable].T
        np.savetxt(folder / f"{name}.csv", rows, delimiter=",", header=",".join(there), comments="", fmt="%.6f")
    (folder / "cut.edf").write_bytes(b"0       " + b" " * 100)
    return folder


def _expected(model, path):
    return model.predict(read_ecg(path, Stated(200.0, "mV")), batch_size=4)[0]


def _results(out):
    return json.loads((out / "predictions.json").read_text("utf-8"))


def test_a_folder_is_judged_and_what_cannot_be_is_listed(run, model, folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(folder), "--model", str(run), "--out", str(out), *STATED, *FAST]) == 0
    printed = capsys.readouterr()
    results = _results(out)
    names = [str(folder / name) for name in ("b/one.csv", "one.csv", "two, left.csv")]
    assert [row["file"] for row in results["records"]] == names
    for row, line in zip(results["records"], printed.out.splitlines(), strict=True):
        expected = _expected(model, row["file"])
        assert row["outputs"] == json.loads(json.dumps(expected.to_json()["outputs"]))
        assert row["notes"] == list(expected.notes)
        lvsd, age = expected.outputs["lvsd"], expected.outputs["age"]
        assert line == (
            f"{row['file']}: lvsd: reduced {100 * lvsd.probability:.1f} % ({100 * lvsd.low:.1f}-"
            f"{100 * lvsd.high:.1f}), so {lvsd.decision}; age {age.value:.1f} ± 9.5 years"
        )
    assert results["model"]["digest"] == model.digest
    assert results["command"].startswith("python -m medjax.infer --model")
    assert [Path(entry["file"]).name for entry in results["refused"]] == ["cut.edf", "short.csv"]
    assert "got 0.4 s without a stretch of 0.5 s" in results["refused"][1]["reason"]
    for entry in results["refused"]:
        assert entry["reason"] in printed.err
    assert f"3 records judged, 2 refused; {out / 'predictions.json'} holds all of them" in printed.err
    assert f"next: open {out / 'one.html'}; --explain both shows" in printed.err
    assert [row["pages"] for row in results["records"]] == [["one.html"], ["one-2.html"], ["two_left.html"]]
    assert sorted(file.name for file in out.iterdir()) == sorted(
        ["one.html", "one-2.html", "two_left.html", "predictions.json"]
    )
    page = (out / "two_left.html").read_text("utf-8")
    found = _expected(model, names[2]).outputs["lvsd"]
    assert f"{100 * found.probability:.1f}\u00a0%" in page
    assert f"{100 * found.low:.1f} – {100 * found.high:.1f}" in page
    assert "judged by 7 of 12 leads; without V2 V3 V4 V5 V6" in page
    assert "validation: sensitivity at least 0.9" in page
    worth = "On the validation patients of training: lvsd AUROC 0.87 (0.82–0.91), 1,200 records, 130 positive."
    assert worth in page


def test_nothing_that_is_given_away_says_whose_a_record_is(run, folder, tmp_path, capsys):
    """The terminal alone tells which number is which file."""
    source = tmp_path / "Meier_Anna_1950"
    shutil.copytree(folder, source)
    out = tmp_path / "out"
    options = ("--page.identifiers", "false", "--format", "html,svg", "--explain", "gradients")
    assert main([*options, "--model", str(run), "--out", str(out), *STATED, *FAST, str(source)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    for number, (line, name) in enumerate(zip(lines, ("b/one.csv", "one.csv"), strict=False), 1):
        assert line.startswith(f"ecg-{number} = {source / name}: lvsd: reduced ")
    results = _results(out)
    assert [row["file"] for row in results["records"]] == ["ecg-1", "ecg-2", "ecg-4"]
    assert results["records"][0]["pages"] == ["ecg-1.html", "ecg-1.lvsd.svg", "ecg-1.age.svg"]
    assert [(entry["file"], entry["record"]) for entry in results["refused"]] == [("ecg-3", "ecg-3"), (None, None)]
    assert f"ecg-3 = {source / 'short.csv'}" in printed.err
    assert all(row["record"][name] is None for row in results["records"] for name in ("patient", "time", "device"))
    for file in out.iterdir():
        text = file.read_text("utf-8")
        for name in ("Meier", "two, left", "two_left", "short.csv", "cut.edf"):
            assert name not in file.name + text, file.name


def test_a_missing_package_is_one_sentence(run, folder, monkeypatch, capsys):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'scipy.fft'", name="scipy.fft")

    monkeypatch.setattr("medjax.infer.ecg_run.judge_files", missing)
    assert main([str(folder / "one.csv"), "--model", str(run), *FAST]) == 2
    expected = "medjax.infer: got no package scipy, expected it for work on ECGs; pip install 'medjax[ecg]'.\n"
    assert capsys.readouterr().err == expected


def test_json_on_standard_output_and_sheets(run, folder, tmp_path, capsys):
    file, out = str(folder / "one.csv"), tmp_path / "out"
    options = ("--format", "svg,html,png,pdf", "--layout", "6x2")
    assert main(["--json", "--model", str(run / "model"), "--out", str(out), *options, *STATED, *FAST, file]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == _results(out)
    assert _results(out)["records"][0]["pages"] == ["one.svg", "one.html", "one.png", "one.pdf"]
    svg = (out / "one.svg").read_text("utf-8")
    assert 'width="' in svg
    assert "layout 6x2" in svg
    assert (out / "one.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (out / "one.pdf").read_bytes()[:5] == b"%PDF-"


def test_explanations_with_their_checks(run, model, folder, tmp_path, capsys):
    file, out = str(folder / "one.csv"), tmp_path / "out"
    options = ("--explain", "both", "--format", "html,svg")
    assert main([file, "--model", str(run), "--out", str(out), *options, *STATED, *FAST]) == 0
    printed = capsys.readouterr()
    (row,) = _results(out)["records"]
    assert row["pages"] == [
        *("one.gradients.html", "one.gradients.lvsd.svg", "one.gradients.age.svg"),
        *("one.rollout.html", "one.rollout.lvsd.svg", "one.rollout.age.svg"),
    ]
    expected = explain(model, read_ecg(file, Stated(200.0, "mV"))[0], "lvsd")
    found = row["explanations"][0]
    assert (found["method"], found["target"], found["verdict"]) == ("gradients", "lvsd", expected.verdict)
    assert found["deletion"]["area"] == pytest.approx(expected.deletion.area, abs=1e-6)
    assert found["randomisation"]["correlations"] == pytest.approx(expected.randomisation.correlations, abs=1e-3)
    assert f"one, lvsd by gradients: {expected.verdict}" in printed.err
    assert expected.verdict.partition(":")[0] in (out / "one.gradients.html").read_text("utf-8")
    lvsd, rollout = (file.read_text("utf-8") for file in (out / "one.gradients.lvsd.svg", out / "one.rollout.lvsd.svg"))
    assert "raises the probability" in lvsd
    assert "looked at most" in rollout


def test_real_files_of_several_formats(run, model, shared_data, tmp_path, capsys):
    """The same recording as DICOM and as MUSE XML gets the same answer."""
    samples, ludb = shared_data / "ecg" / "format_samples", shared_data / "ecg" / "ludb" / "data" / "1.dat"
    files = [str(samples / "synthetic_muse.dcm"), str(samples / "synthetic_muse.xml"), str(ludb)]
    assert main([*files, "--model", str(run), "--out", str(tmp_path / "out"), "--json", *FAST]) == 0
    dicom, muse, wfdb = json.loads(capsys.readouterr().out)["records"]
    assert dicom["outputs"]["lvsd"]["raw"] == pytest.approx(muse["outputs"]["lvsd"]["raw"], abs=1e-3)
    (record,) = read_ecg(ludb)
    (expected,) = model.predict([record], batch_size=4)
    assert wfdb["outputs"]["age"]["raw"] == pytest.approx(expected.outputs["age"].raw, abs=1e-6)
    assert wfdb["outputs"]["age"]["gap"] == pytest.approx(expected.outputs["age"].value - record.age_years, abs=1e-4)
    assert [row["record"]["format"] for row in (dicom, muse)] == [read_ecg(file)[0].format for file in files[:2]]


def test_a_second_call_keeps_what_the_first_one_wrote(run, folder, tmp_path, capsys):
    out = tmp_path / "out"
    given = ("--model", str(run), "--out", str(out), *STATED, *FAST)
    assert main([str(folder / "one.csv"), *given]) == 0
    first = _results(out)
    assert main([str(tmp_path / "misspelt.csv"), *given]) == 1
    assert f"moved the former {out} to {out}.old1" in capsys.readouterr().err
    assert _results(tmp_path / "out.old1") == first
    assert _results(out)["records"] == []


def test_an_ecg_is_not_asked_of_a_language_model(folder, tmp_path, capsys):
    for given, got in (((), "no --model"), (("--model", "runs/nope"), "--model runs/nope, which is no model of ECGs")):
        for path in (folder, folder / "cut.edf"):
            assert main([str(path), *given]) == 2
            assert f"got {got}, for the ECG file or folder {path}, expected" in capsys.readouterr().err


def test_exit_statuses(run, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(folder / "cut.edf"), "nowhere.xml", "--model", str(run), *FAST]) == 1
    told = capsys.readouterr().err
    assert "nowhere.xml: got nothing there, expected an ECG file" in told
    assert "0 records judged, 2 refused; runs/infer/detector/predictions.json" in told
    assert _results(tmp_path / "runs" / "infer" / "detector")["records"] == []
    for arguments, message in (
        ((), "files: got none, expected ECG files or folders of them; name them as arguments."),
        (("x.csv", "--unit", "mmHg"), "unit: got 'mmHg', expected a voltage: mV, uV, V or nV."),
        (("x.csv", "--mesh", "data=5"), "mesh: 'data=5' needs 5 devices, there are 8; use data=8, or use -1 for one"),
    ):
        assert main([*arguments, "--model", str(run), *FAST]) == 2
        assert capsys.readouterr().err.startswith(f"medjax.infer: {message}")
    (tmp_path / "medjax.json").write_text("{")
    assert main(["x.csv", "--model", str(tmp_path)]) == 2
    assert f"medjax.infer: {tmp_path / 'medjax.json'}: not valid JSON" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["x.csv", "--model", str(run), "--explain", "occlusion"])
    assert ended.value.code == 2
    assert "expected one of none, gradients, rollout, both" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a b.hea", "c,d.csv", "--model", "m"], ["--model", "m", '--files=["a b.hea", "c,d.csv"]']),
        (["--model", "m", "a", "--json", "b"], ["--model", "m", "--json", '--files=["a", "b"]']),
        (["--json", "true", "a"], ["--json", "true", '--files=["a"]']),
        (["--no-json", "a", "--out=o", "b"], ["--no-json", "--out=o", '--files=["a", "b"]']),
        (["run.toml", "--out", "o.toml"], ["run.toml", "--out", "o.toml"]),
        (["--help"], ["--help"]),
    ],
)
def test_arguments_that_are_no_options_are_files(arguments, expected):
    assert _files_named(arguments) == expected


def test_the_flags_are_all_there_are():
    def flags(cls, at=""):
        for key in fields(cls):
            if key.type is bool:
                yield f"--{at}{key.name}"
            elif isinstance(key.type, type) and hasattr(key.type, "__dataclass_fields__"):
                yield from flags(key.type, f"{at}{key.name}.")

    assert set(flags(EcgInferSettings)) == set(_ECG_FLAGS)


def test_help_of_both_kinds_needs_no_jax(run):
    code = """
import sys
from medjax.infer.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit:
    print([name for name in ("jax", "numpy", "scipy") if name in sys.modules])
"""

    def shown(*arguments):
        command = [sys.executable, "-c", code, *arguments, "--help"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    language, ecg = shown(), shown("--model", str(run))
    assert "Decoding is greedy" in language
    assert "see --model RUN --help" in language
    assert "--page.explain, --explain" in ecg
    assert "Judge ECG files of any format" in ecg
    assert language.splitlines()[-1] == ecg.splitlines()[-1] == "[]"
