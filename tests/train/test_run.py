"""The run folder: what goes on and what starts anew, what a checkpoint refuses, what is exported and recorded."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_training import arguments

from medjax.config import load
from medjax.store.adapters import open_adapter
from medjax.store.checkpoints import Checkpoints
from medjax.store.sources import open_source
from medjax.train.__main__ import main
from medjax.train.language import language_job
from medjax.train.run import train
from medjax.train.settings import TrainSettings
from medjax.train.state import path_name, split
from medjax.train.step import make_evaluation


def log(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


def nothing(*_):
    """Nobody listens."""


@pytest.fixture
def copy(reference, tmp_path):
    """The undisturbed run once more, its report and adapter left out."""
    folder = shutil.copytree(reference, tmp_path / "run")
    for name in ("results.json", "report.html", "figure.svg"):
        (folder / name).unlink()
    shutil.rmtree(folder / "adapter")
    return folder


def test_other_settings_move_the_old_run_aside(copy, cached, capsys):
    """Other documents held out are another run; what was there stays whole beside it."""
    before = (copy / "metrics.jsonl").read_bytes()
    assert main([*arguments(cached, copy), "--data.held_out_count", "9"]) == 0
    printed = capsys.readouterr().out
    aside = copy.with_name("run.old1")
    assert f"{copy} held another run (data.held_out_count: 8 -> 9; documents: " in printed
    assert f"it was moved to {aside}, this one starts anew" in printed
    assert (aside / "metrics.jsonl").read_bytes() == before
    assert [line["step"] for line in log(copy)] == [*range(1, 13)]
    assert [line["loss"] for line in log(copy)] != [line["loss"] for line in log(aside)]


def test_logs_and_checkpoints_may_change(copy, cached, capsys):
    """As may the mesh, in test_resume."""
    more = ["--log.every", "5", "--checkpoint.keep_last", "1", "--train.on_bad_step", "stop"]
    assert main([*arguments(cached, copy), *more]) == 0
    assert "going on from the checkpoint of step 12\n" in capsys.readouterr().out
    assert not copy.with_name("run.old1").exists()


def test_a_checkpoint_of_another_base_or_tokenizer_is_refused(reference, cached):
    job = language_job(load(TrainSettings, overrides=arguments(cached, reference)), nothing)
    for key in ("base", "tokenizer"):
        identity = dict(job.identity) | {key: "0" * 64}
        checkpoints = Checkpoints(
            reference / "checkpoints", keep_last=2, keep_best=1, identity=identity, read_only=True
        )
        with pytest.raises(ValueError, match=rf"checkpoints/12: made with another {key}: got {key}=\"\w+\", expected "):
            checkpoints.restore(12, job.program.state)
    other = dict(job.identity) | {"lora": dict(job.identity["lora"]) | {"rank": 8}}
    checkpoints = Checkpoints(reference / "checkpoints", keep_last=2, keep_best=1, identity=other, read_only=True)
    with pytest.raises(ValueError, match=r"made with another lora.rank: got lora.rank=4, expected 8"):
        checkpoints.restore(12, job.program.state)


def test_another_tokenizer_is_another_run(copy, cached, tmp_path):
    """The same weights with one token renamed: nothing of the old run is used."""
    model = shutil.copytree(cached / "model", tmp_path / "model")
    given = arguments(cached, copy, "--model", str(cached / "model"))
    record = json.loads((copy / "run.json").read_text())
    text = (model / "tokenizer.json").read_text("utf-8").replace("<|endoftext|>", "<|end|>")
    (model / "tokenizer.json").write_text(text, "utf-8")
    settings = load(TrainSettings, overrides=[*given, "--model", str(model)])
    job = language_job(settings, nothing)
    assert job.identity["base"] == record["identity"]["base"]
    assert job.identity["tokenizer"] != record["identity"]["tokenizer"]


def test_the_exported_adapter_gives_the_held_out_loss(reference, cached):
    """Read from the adapter folder, beside the base: the loss that the run's last line says."""
    job = language_job(load(TrainSettings, overrides=arguments(cached, reference)), nothing)
    adapter = open_adapter(reference, open_source(cached / "model").config)
    trainable, frozen = split(job.load(nothing), job.program.chosen)
    places = jax.tree.map(lambda leaf: leaf.sharding, trainable)
    values = jax.device_put({"lora": dict(adapter.leaves)}, places)
    evaluate = jax.jit(make_evaluation(job.program.loss))
    sums = [evaluate(values, frozen, job.held_out.batch_at(i)) for i in range(len(job.held_out))]
    loss = sum(float(part["loss"]) for part in sums) / sum(float(part["counted"]) for part in sums)
    last = log(reference, "held_out.jsonl")[-1]
    assert last["step"] == 12
    assert loss == pytest.approx(last["loss"], abs=1e-5)


def test_the_best_checkpoint_is_exported(copy, cached, monkeypatch, capsys):
    """Step 9, were it the best, though the run ended at 12."""
    monkeypatch.setattr(Checkpoints, "best", lambda self: 9)
    assert main(arguments(cached, copy)) == 0
    assert "the held-out loss was lowest after step 9; that checkpoint is exported\n" in capsys.readouterr().out
    job = language_job(load(TrainSettings, overrides=arguments(cached, copy)), nothing)
    checkpoints = Checkpoints(copy / "checkpoints", keep_last=2, keep_best=1, identity=job.identity, read_only=True)
    state = checkpoints.restore(9, job.program.state)
    found = load_file(copy / "adapter" / "adapter.safetensors")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.trainable["lora"]):
        np.testing.assert_array_equal(found[path_name(path)], leaf)


def test_what_is_recorded(reference):
    results = json.loads((reference / "results.json").read_text())
    assert results["steps"] == 12
    assert results["parameters"] == {"trained": 9472, "frozen": 137_664}
    assert results["mesh"] == {"fsdp": 8}
    assert results["skipped_steps"] == 0
    held_out = [line["loss"] for line in log(reference, "held_out.jsonl")]
    assert results["held_out"] == {"start": held_out[0], "end": held_out[-1], "best": min(held_out)}
    assert results["command"].startswith("python -m medjax.train --model ")
    for line in log(reference):
        along = (line["step"] - 1) / 12
        assert line["learning_rate"] == pytest.approx(1e-3 * (1 + np.cos(np.pi * along)) / 2, rel=1e-4)
        assert line["counted_tokens"] > 500
        assert line["tokens_per_s"] <= line["computed_tokens_per_s"]
        assert 0 <= line["accuracy"] <= 1
    config = load(TrainSettings, reference / "config.toml")
    assert (config.train.steps, config.lora.rank, config.lora.dropout) == (12, 4, 0.1)
    assert (reference / "report.html").stat().st_size > 5000
    assert "<svg" in (reference / "figure.svg").read_text()


def test_settings_or_options_but_not_both():
    with pytest.raises(ValueError, match=r"^train: got settings and steps, expected one or the other; put all in "):
        train(TrainSettings(), steps=3)
