"""The command: its help, what it refuses and how it says so, its exit statuses."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from made_exports import export, write_wfdb

from medjax.ingest.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def test_help_is_quick_and_lists_every_key():
    code = (
        "import sys\nfrom medjax.ingest.__main__ import main\ntry: main(['ecg', '--help'])\nexcept SystemExit: pass\n"
    )
    code += "print('loaded', [m for m in ('jax', 'numpy', 'tensorflow_datasets', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m medjax.ingest ecg [CONFIG.toml]")
    assert done.stdout.splitlines()[-1] == "loaded []"
    for key in ("source", "out", "labels", "label_columns", "processes", "limit_s", "duplicates", "correlation"):
        assert f"\n  --{key}" in done.stdout
    assert "\n  --beam.runner" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got nothing, expected the kind of data first: ecg; write python -m medjax.ingest ecg"),
        (["xray", "--source", "x"], "got xray, expected the kind of data first: ecg;"),
        (["ecg", "--out", "y"], "source: no value given, expected str"),
        (["ecg", "--source", "x", "--out", "y", "--limit_s", "0"], "--limit_s: got 0, expected more than 0; 60 is us"),
        (["ecg", "--source", "x", "--out", "y", "--correlation", "0.2"], "--correlation: got 0.2, expected 0.5 to 1"),
        (
            ["ecg", "--source", "x", "--out", "y", "--label_columns", "AF"],
            "--label_columns: got names without --labels",
        ),
        (["ecg", "--source", "x", "--out", "y", "--beam.options", "a"], "--beam.options: got options without a runner"),
        (["ecg", "--source", "x", "--out", "y", "--memory_gb", "0"], "--memory_gb: got 0, expected 1 or more; 8 is us"),
        (["ecg", "--source", "x", "--out", "y", "--code_labels", "AF"], "--code_labels: got 'AF', expected NAME=CODE"),
        (["ecg", "--source", "x", "--out", "y", "--institution", "a b"], "--institution: got 'a b', expected letters"),
        (["ecg", "--source", "x", "--out", "y", "--duplicates", "no"], '--duplicates: got "no", expected one of mark'),
        (["ecg", "--source", "nowhere", "--out", "y"], "nowhere: no such folder or file, expected ECG"),
    ],
)
def test_a_wrong_call(arguments, message, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert capsys.readouterr().err.startswith(f"medjax.ingest: {message}")


def test_a_run_and_its_repetition(tmp_path, capsys):
    source, out = export(tmp_path / "export"), tmp_path / "out"
    arguments = ["ecg", "--source", str(source), "--out", str(out), "--processes", "2", "--examples", "0"]
    assert main(arguments) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "6 records of 0 named patients; 3 files or records refused"
    assert told[-1].startswith("next: ")
    page = (out / "report.html").read_text()
    assert f"python -m medjax.ingest ecg --source {source} --out {out} --processes 2 --examples 0" in page
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_only_bad_files_end_with_a_sentence(tmp_path, capsys):
    (tmp_path / "export").mkdir()
    np.savez(tmp_path / "export" / "zero.npz", signal=np.zeros((12, 1000)), fs=500)
    assert main(["ecg", "--source", str(tmp_path / "export"), "--out", str(tmp_path / "out"), "--processes", "1"]) == 2
    assert capsys.readouterr().err.splitlines(keepends=True)[-1] == (
        "medjax.ingest: got no record out of 1 file, expected at least one; the first, zero.npz: got no lead with a "
        f"signal (12 flat), expected at least one; leave it out. All reasons are in {tmp_path}/out.refused.jsonl.\n"
    )


def test_sigterm_leaves_nothing_and_says_how_to_go_on(tmp_path):
    for number in range(60):
        write_wfdb(tmp_path / "export", f"E{number}", number)
    command = [sys.executable, "-m", "medjax.ingest", "ecg", "--source", str(tmp_path / "export")]
    command += ["--out", str(tmp_path / "out"), "--processes", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(path.name.startswith("out.partial") for path in tmp_path.iterdir()) and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert errors.splitlines()[-1] == "medjax.ingest: stopped; nothing was written. The same command starts again."
    assert os.listdir(tmp_path) == ["export"]
