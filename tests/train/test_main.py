"""What `python -m medjax.train` says and returns: help, bad input (status 2), bad steps (1), the end of a run (0)."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_training import arguments

from medjax.train.__main__ import main


def answer(capsys, argv) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(argv)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def refused(cached, tmp_path, capsys):
    """The one line of the error for arguments added to good ones; nothing is written."""

    def run(*more: str, without: str | None = None) -> str:
        argv = arguments(cached, tmp_path / "run", *more)
        if without:
            place = argv.index(without)
            del argv[place : place + 2]
        status, _, error = answer(capsys, argv)
        assert status == 2, error
        assert not (tmp_path / "run").exists()
        return error.splitlines()[-1]

    return run


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for text in ("--lora.rank", "--train.z_loss", "--mesh", "75 stopped by Ctrl-C or SIGTERM", "smollm2_lora_cpu.toml"):
        assert text in printed


def test_unknown_keys_are_refused_with_the_nearest(cached, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments(cached, tmp_path / "run", "--optimizer.learningrate", "1"))
    assert end.value.code == 2
    assert "unknown option --optimizer.learningrate; did you mean --optimizer.learning_rate?" in capsys.readouterr().err
    config = tmp_path / "x.toml"
    config.write_text("[train]\nbatchsize = 8\n")
    with pytest.raises(SystemExit) as end:
        main([str(config)])
    assert end.value.code == 2
    assert f"{config}: unknown key train.batchsize; did you mean train.batch_size?" in capsys.readouterr().err


def test_no_file_a_missing_one_and_an_empty_one(refused, tmp_path):
    assert refused(without="--data") == (
        "medjax.train: data.files: got no file, expected at least one; name JSONL, Parquet or text files with --data, "
        "or pubmedqa:train for the training part of an exam set."
    )
    (tmp_path / "notes.jsonl").write_text("")
    assert refused("--data", str(tmp_path / "note.jsonl")) == (
        f"medjax.train: {tmp_path}/note.jsonl: no such file or folder, expected training data; "
        f"did you mean {tmp_path}/notes.jsonl?"
    )
    assert refused("--data", str(tmp_path / "notes.jsonl")) == (
        f"medjax.train: {tmp_path}/notes.jsonl: got no records, expected at least one; leave the file out, or fill it."
    )


def test_nothing_left_to_train_on(refused, tmp_path):
    (tmp_path / "few.jsonl").write_text(json.dumps({"text": "Fever for three days."}) + "\n")
    assert "expected fewer than the 1 different questions" in refused("--data", str(tmp_path / "few.jsonl"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mesh", "data=3"], "mesh: 'data=3' needs 3 devices, there are 8"),
        (["--mesh", "dat=8"], "mesh: got 'dat=8', expected axis=size with an axis of data, fsdp, tensor, sequence;"),
        (
            ["--batch-size", "12"],
            "train.batch_size: got 12 rows, expected a multiple of 8 (fsdp=8, accumulation 1); use 16, or change the",
        ),
        (
            ["--mesh", "fsdp=4,sequence=2"],
            "data.window: got 128 tokens, expected a multiple of 256, since sequence=2 splits rows into parts",
        ),
        (["--trainable", "lorra"], "train.trainable: 'lorra' matches no parameter; did you mean lora? expected lora,"),
        (["--trainable", "full", "--quantisation", "nf4"], "is quantised and cannot be trained; train adapters (lora)"),
        (
            ["--optimizer.warmup", "12"],
            "optimizer.warmup: got 12 steps of 12, expected fewer; lower it or train for lo",
        ),
        (["--data.exams", "igakuqua"], "igakuqua"),
        (
            ["--data.held_out_count", "60"],
            "held out: got a count of 60, expected fewer than the 60 different questions",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_read(refused, options, message):
    assert message in refused(*options)


def test_a_tokenizer_that_does_not_fit_the_embedding(refused, cached, tmp_path):
    small = shutil.copytree(cached / "model", tmp_path / "small")
    tensors = load_file(small / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.ascontiguousarray(tensors[name][:300])
    save_file(tensors, small / "model.safetensors")
    config = json.loads((small / "config.json").read_text()) | {"vocab_size": 300}
    (small / "config.json").write_text(json.dumps(config))
    found = refused("--model", str(small))
    assert found.startswith(f"medjax.train: {small}: the tokenizer has ")
    assert found.endswith("tokens, the embedding 300 rows; expected a tokenizer that fits: take the one that came with "
                          "the weights.")  # fmt: skip


def test_data_that_holds_exam_items_is_refused(refused, tmp_path):
    """A question of a set, hidden in a longer note with other spaces and case."""
    asked = (
        "A 67-year-old man has had progressive exertional dyspnoea and bilateral ankle swelling for three weeks; which "
        "of the following findings is the most specific for a raised left ventricular filling pressure in him?"
    )
    exam = tmp_path / "exam.jsonl"
    choices = ["third heart sound", "ankle oedema", "crackles", "cough"]
    row = {"id": "heart-1", "question": asked, "choices": choices, "answer": ["a"]}
    exam.write_text(json.dumps(row) + "\n")
    notes = tmp_path / "notes.jsonl"
    rows = [{"id": f"n{i}", "text": f"Unrelated note {i} about a sprained ankle."} for i in range(9)]
    rows.append({"id": "leak", "text": "Discussed today. " + asked.upper().replace(" ", "  ") + " Answer: a."})
    notes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = refused("--data", str(notes), "--data.exams", str(exam), "--data.held_out_count", "1")
    assert "heart-1" in found
    assert "leak" in found


def test_the_end_of_a_run(reference, cached, capsys):
    """A run that is done already, asked for again: it writes its report anew and says what to do next."""
    status, printed, _ = answer(capsys, arguments(cached, reference))
    assert status == 0
    results = json.loads((reference / "results.json").read_text())
    held_out = results["held_out"]
    assert printed.splitlines()[-3:] == [
        f"held-out loss {held_out['start']:.4f} -> {held_out['end']:.4f} (lowest {held_out['best']:.4f})",
        f"report: {reference}/report.html",
        f"next:   python -m medjax.eval --model {cached / 'model'} --adapter {reference}",
    ]
    assert held_out["end"] < held_out["start"] - 0.5


@pytest.fixture
def poisoned(monkeypatch):
    """Batch 3 (step 4) holds a NaN."""
    from medjax.data.text.batches import DocumentBatches

    original = DocumentBatches.batch_at

    def batch_at(self, step, rows=None):
        batch = original(self, step, rows)
        return batch._replace(weights=batch.weights * np.nan) if step == 3 else batch

    monkeypatch.setattr(DocumentBatches, "batch_at", batch_at)


def test_a_bad_step_stops_the_run_or_is_left_out(poisoned, reference, cached, tmp_path, capsys):
    """With on_bad_step=stop the run fails; the same folder goes on once it is skip, without that step's update."""
    out = tmp_path / "run"
    given = arguments(cached, out)
    status, _, error = answer(capsys, [*given, "--train.on_bad_step", "stop"])
    assert status == 1
    assert error.splitlines()[-1] == (
        "medjax.train: step 4: loss nan, gradient norm nan; its update is left out, and train.on_bad_step is stop. Its "
        f"documents are in {out}/bad_steps.jsonl: look at them, lower the learning rate, or set on_bad_step to skip."
    )
    status, printed, error = answer(capsys, given)
    assert status == 0
    assert "going on from the checkpoint of step 3\n" in printed
    assert f"step 4: loss nan, gradient norm nan; its update is left out (documents: {out}/bad_steps.jsonl)" in error
    (bad,) = [json.loads(line) for line in (out / "bad_steps.jsonl").read_text().splitlines()]
    assert (bad["step"], bad["loss"]) == (4, "nan")
    assert len(bad["documents"]) >= 8
    assert all(name.startswith("note") for name in bad["documents"])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 0, *[1] * 9]
    assert lines[3]["loss"] is None
    untouched = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines[:3]] == [line["loss"] for line in untouched[:3]]
    assert 0 < lines[11]["loss"] < lines[0]["loss"] - 0.5
