"""Whole runs on tiny ECGs: masked autoencoder -> detector, probe, regressor; what they learn, write, and go on from."""

import hashlib
import json
import math
import shlex
from dataclasses import replace
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
from tiny_ecg import made_record, settings_of

from medjax.config import load
from medjax.data.ecg.batches import EcgHeldOut
from medjax.data.ecg.builder import write_dataset
from medjax.data.ecg.splits import share_of
from medjax.eval.detection import evaluate_ecg
from medjax.eval.ecg_settings import EcgEvalSettings
from medjax.infer.ecg import EcgModel
from medjax.models.predictor import PredictorConfig
from medjax.store.encoders import load_encoder
from medjax.train.__main__ import main
from medjax.train.ecg_data import ecg_data
from medjax.train.ecg_program import mae_config
from medjax.train.ecg_settings import EcgTrainSettings
from medjax.train.mae import mae_job, reconstruct
from medjax.train.prediction import predict, prediction_job
from medjax.train.run import train
from medjax.train.state import path_name
from medjax.train.stopping import Preemption, Stopped

PATIENTS = 64
OPTIONS = {
    "data__validation": 0.25,
    "data__test": 0.25,
    "signal__samples": 75,  # windows of 1.5 s
    "encoder__patch": 15,
    "encoder__registers": 1,
    "log__every": 1,
    "mesh__shape": "data=8",
}
RUNS = {
    "mae": {"train__steps": 4, "log__held_out_every": 2, "mae__normalised_targets": True},
    "full": {
        "objective": "classify",
        "data__targets": ("high", "sex", "grade"),
        "train__steps": 24,
        "train__batch_size": 16,
        "optimizer__learning_rate": 2e-3,
        "finetune__layer_decay": 0.75,
    },
    "probe": {"objective": "classify", "data__targets": ("high",), "train__steps": 4, "finetune__trained": "probe"},
    "age": {
        "objective": "regress",
        "data__targets": ("age",),
        "data__split_seed": 1,  # other patients than the start's, of which some are tested here
        "data__leaks": "allow",
        "train__steps": 4,
        "finetune__trained": "probe",
    },
}


def nothing(*_):
    """Nobody listens."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set: records of 2 s, which are two windows, and for ten patients a second, shorter one."""
    folder = tmp_path_factory.mktemp("runs")
    records = [made_record(number) for number in range(PATIENTS)]
    records += [made_record(PATIENTS + number, seconds=1.4, patient=f"p{number:03d}") for number in range(10)]
    write_dataset(folder / "data", records)
    return folder


def settings_for(place, name, **options):
    start = {} if name == "mae" else {"finetune__start": str(place / "mae" / ("model" if name == "age" else ""))}
    return settings_of(place / "data", **(OPTIONS | {"out": str(place / name)} | start | RUNS[name] | options))


@pytest.fixture(scope="module")
def runs(place):
    """Results of the four runs by name; their folders lie in `place`."""
    return {name: train(settings_for(place, name)) for name in RUNS}


def log(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


def record(folder):
    return json.loads((folder / "model" / "medjax.json").read_text("utf-8"))


def leaves(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def params(place, name, job):
    return load_encoder(place / name, job.program.mesh, job.program.rules).params


def test_a_probe_leaves_the_encoder_and_full_training_moves_it(runs, place):
    job = prediction_job(settings_for(place, "probe"), nothing)
    before = leaves(params(place, "mae", job)["encoder"])
    probed, trained = (leaves(params(place, name, job)["encoder"]) for name in ("probe", "full"))
    assert set(before) == set(probed) == set(trained)
    for name, leaf in before.items():
        np.testing.assert_array_equal(probed[name], leaf, err_msg=name)
        assert not np.array_equal(trained[name], leaf), name
    head = leaves(params(place, "probe", job)["head"])
    fresh = leaves(job.load(nothing)["params"]["head"])
    assert all(not np.array_equal(head[name], fresh[name]) for name in head)
    assert runs["probe"]["parameters"]["trained"] == sum(leaf.size for leaf in head.values()) == 65
    assert runs["full"]["parameters"]["frozen"] == 0


def predicted(place, name, part):
    """Labels and raw outputs of the records of a set, by the model on disk; and its rules."""
    settings = settings_for(place, name)
    job = prediction_job(settings, nothing)
    data = ecg_data(settings, nothing)
    held_out = EcgHeldOut(
        data.dataset, data.sets[part], settings.signal, rows=settings.train.batch_size, targets=data.targets
    )
    config = PredictorConfig.from_dict(record(place / name)["config"])
    variables = {"params": params(place, name, job)}
    places, outputs = predict(job.program, settings, config, variables, held_out, settings.signal.leads)
    return data.targets[places], outputs, record(place / name)["facts"]["rules"]


def auroc(labels, scores):
    """Pair by pair."""
    pairs = [(p > n) + (p == n) / 2 for p in scores[labels == 1] for n in scores[labels == 0]]
    return sum(pairs) / len(pairs)


def test_the_detector_learns_the_height_of_beats_and_nothing_of_what_no_beat_tells(runs, place):
    labels, outputs, _ = predicted(place, "full", "test")
    assert len(labels) > 12
    assert auroc(labels[:, 0], outputs[:, 0]) > 0.95
    # one in a thousand, of as many men and women that are told by chance
    men = labels[:, 1].sum()
    spread = math.sqrt((len(labels) + 1) / (12 * men * (len(labels) - men)))
    assert abs(auroc(labels[:, 1], outputs[:, 1]) - 0.5) < 3.3 * spread
    assert runs["full"]["held_out"]["end"] < runs["full"]["held_out"]["start"]


def test_calibration_and_threshold_are_those_of_the_validation_patients(runs, place):
    labels, outputs, rules = predicted(place, "full", "validation")
    assert list(rules) == ["high", "sex"]
    for column, name in enumerate(rules):
        y, rule = labels[:, column], rules[name]
        slope, intercept = (rule["calibration"][key] for key in ("slope", "intercept"))
        chance = 1 / (1 + np.exp(-(slope * outputs[:, column] + intercept)))
        positive = np.sort(chance[y == 1])[::-1]
        needed = math.ceil(0.9 * len(positive) - 1e-9)
        lowest = positive[needed - 1]
        under = chance[chance < lowest]
        expected = (lowest + under.max()) / 2 if under.size else lowest
        assert rule["threshold"]["value"] == pytest.approx(expected, abs=1e-4)
        assert rule["threshold"]["sensitivity"] == pytest.approx(needed / len(positive))
        assert (rule["threshold"]["rule"], rule["threshold"]["at"]) == ("sensitivity", 0.9)
        assert rule["calibration"]["origin"] == f"validation, {len(y)} records"


def test_a_regression_keeps_mean_and_sd_of_training_and_the_line_of_validation(runs, place):
    data = ecg_data(settings_for(place, "age"), nothing)
    ages = data.targets[data.sets["train"], 0]
    (target,) = PredictorConfig.from_dict(record(place / "age")["config"]).targets
    assert (target.mean, target.sd) == (pytest.approx(ages.mean()), pytest.approx(ages.std()))
    labels, outputs, rules = predicted(place, "age", "validation")
    slope, intercept = np.polyfit(labels[:, 0], outputs[:, 0] * target.sd + target.mean, 1)
    assert rules["age"]["slope"] == pytest.approx(slope, abs=1e-6)
    assert rules["age"]["intercept"] == pytest.approx(intercept, abs=1e-4)
    error = log(place / "age", "held_out.jsonl")[-1]["absolute_error"]
    assert error == pytest.approx(np.abs(outputs[:, 0] * target.sd + target.mean - labels[:, 0]).mean(), rel=0.2)
    assert record(place / "age")["facts"]["errors"]["age"]["sd"] == pytest.approx(
        np.std(outputs[:, 0] * target.sd + target.mean - labels[:, 0], ddof=1), rel=1e-5
    )


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_facts_and_what_was_seen(runs, place):
    patients = [f"p{number:03d}" for number in range(PATIENTS)]
    for name in RUNS:
        seed = RUNS[name].get("data__split_seed", 0)
        facts = record(place / name)["facts"]
        assert facts["preprocessing"] == settings_for(place, name).signal.to_json()
        assert facts["split"] == {
            **{"seed": seed, "validation": 0.25, "test": 0.25, "folds": 0, "fold": 0, "strata": ""}
        }
        trained = sum(share_of(patient, seed) >= 0.5 for patient in patients)
        assert facts["training"] == {"digest": runs[name]["data"]["digest"]}
        assert facts["leads"] == ["I", "II", "V1", "V5"]
        assert runs[name]["data"]["sets"]["train"]["patients"] == trained
        # by the run itself, and by the one that it started from
        known = [number for number, each in enumerate(patients) if max(share_of(each, s) for s in (0, seed)) >= 0.25]
        seen = json.loads((place / name / "seen.json").read_text())
        assert seen["patients"] == sorted(sha(patients[number]) for number in known)
        assert len(seen["recordings"]) == len(known) + sum(number < 10 for number in known)
    job = mae_job(settings_for(place, "mae"), nothing)
    digest = load_encoder(place / "mae", job.program.mesh, job.program.rules).digest()
    assert [record(place / name)["facts"].get("start") for name in RUNS] == [None, digest, digest, digest]
    assert not (place / "full" / "model" / "seen.json").exists()


@pytest.mark.parametrize(("name", "stop"), [("mae", 3), ("probe", 1)])
def test_a_run_that_was_stopped_takes_the_same_steps_to_the_same_bits(runs, place, monkeypatch, name, stop):
    settings = settings_for(place, name, out=str(place / f"{name}-stopped"))
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "asked", lambda self, step: step == stop)
        with pytest.raises(
            Stopped, match=rf"^stopped after step {stop} of 4, which is saved; the same command goes on"
        ):
            train(settings)
    folder = place / f"{name}-stopped"
    assert not (folder / "model").exists()
    said = []
    train(settings, say=said.append)
    assert f"going on from the checkpoint of step {stop}" in said
    for file in ("metrics.jsonl", "held_out.jsonl"):
        found, expected = log(folder, file), log(place / name, file)
        assert [line["step"] for line in found] == [line["step"] for line in expected]
        for key in ("loss", "grad_norm", "learning_rate"):
            assert [line.get(key) for line in found] == [line.get(key) for line in expected]
    job = (mae_job if name == "mae" else prediction_job)(settings, nothing)
    again, once = (leaves(params(place, each, job)) for each in (folder.name, name))
    for key, leaf in once.items():
        np.testing.assert_array_equal(again[key], leaf, err_msg=key)


def test_reconstructions_have_the_error_that_the_held_out_loss_says(runs, place):
    """The targets are normalised patch by patch; what is drawn is on the scale of the signal."""
    settings = settings_for(place, "mae")
    job, config = mae_job(settings, nothing), mae_config(settings)
    held_out = ecg_data(settings, nothing).held_out(settings)
    variables = {"params": params(place, "mae", job)}
    original, made, masked = reconstruct(job.program, settings, config, variables, held_out)
    assert original.shape == made.shape == (held_out.filled, 4, 75)
    true, drawn = (values.reshape(-1, 4, 5, 15)[masked] for values in (original, made))  # patches of 15
    mean, sd = true.mean(1, keepdims=True), np.sqrt(true.var(1, keepdims=True) + 1e-6)
    last = log(place / "mae", "held_out.jsonl")[-1]
    assert len(true) == last["counted_patches"]
    assert np.mean(((true - drawn) / sd) ** 2) == pytest.approx(last["loss"], rel=1e-4)
    short = np.isnan(original[:, 0, 70:]).all(1)  # 1.4 s of 1.5 s: the last patch is never asked for
    assert short.any()
    assert not masked[short, :, 4].any()
    # the same weights, were they trained on plain patches
    plain = reconstruct(job.program, settings, replace(config, normalised_targets=False), variables, held_out)
    np.testing.assert_array_equal(plain[2], masked)
    np.testing.assert_allclose(plain[1].reshape(-1, 4, 5, 15)[masked] * sd + mean, drawn, atol=1e-5)


def test_the_page_tells_of_records_patients_and_labels(runs, place):
    for number in (1, 2, 3):
        text = (place / "mae" / f"reconstruction-{number}.svg").read_text("utf-8")
        words = [each.text for each in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
        assert words[0].startswith("Held-out record r")
        assert [word for word in words if word in ("I", "II", "V1", "V5")] == ["I", "II", "V1", "V5"]
    assert not (place / "mae" / "reconstruction-4.svg").exists()
    page = (place / "full" / "report.html").read_text("utf-8")
    sets = runs["full"]["data"]["sets"]
    for name in ("train", "validation", "test"):
        counts = f'<td class="num">{sets[name]["records"]}</td><td class="num">{sets[name]["patients"]}</td>'
        assert f'<th scope="row">{name}</th>{counts}' in page
    assert "cross-entropy, mean over known labels" in page
    assert "Records a second (median)" in page
    assert "tokens" not in page
    results = json.loads((place / "full" / "results.json").read_text())
    assert results["next"] == f"python -m medjax.eval --model {place / 'full'} --data {place / 'data'}"
    settings = load(EcgTrainSettings, place / "full" / "config.toml")
    assert settings.data.targets == ("high", "sex", "grade")
    assert settings.signal.samples == 75
    for name in RUNS:
        objective = RUNS[name].get("objective", "mae")
        assert f"python -m medjax.train --objective {objective} --data " in runs[name]["command"]


def test_from_training_over_raw_records_to_an_evaluation(runs, place, tmp_path, monkeypatch):
    """What was trained is judged the same by every command that reads it, from a folder that is named from here."""
    monkeypatch.chdir(place)
    model = EcgModel.load("full")
    settings = settings_for(place, "full")
    data = ecg_data(settings, nothing)
    job = prediction_job(settings, nothing)
    held_out = EcgHeldOut(data.dataset, data.sets["validation"], settings.signal, rows=16, targets=data.targets)
    variables = {"params": params(place, "full", job)}
    places, outputs = predict(job.program, settings, model.config, variables, held_out, settings.signal.leads)
    judged = model.predict(data.dataset.read(places))
    raw = [[value for output in each.outputs.values() for value in output.raw] for each in judged]
    np.testing.assert_allclose(raw, outputs, atol=1e-5)
    assert {each.outputs["sex"].decision for each in judged} <= {"female", "male"}

    assert shlex.split(runs["full"]["next"])[:3] == ["python", "-m", "medjax.eval"]
    out = tmp_path / "evaluated"
    options = {"--model": "full", "--data": "data", "--out": str(out), "--resamples": 20}
    results = evaluate_ecg(load(EcgEvalSettings, overrides=options))
    tested = data.sets["test"]
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [sample["id"] for sample in samples] == data.dataset.index["id"][tested].tolist()
    labels, expected, rules = predicted(place, "full", "test")
    scores = [[v for output in sample["outputs"].values() for v in output["raw"]] for sample in samples]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    high = results["targets"][0]
    assert high["discrimination"]["auroc"]["value"] == pytest.approx(auroc(labels[:, 0], expected[:, 0]), abs=1e-9)
    assert high["operating_points"][0]["threshold"] == rules["high"]["threshold"]["value"]
    assert results["protocol"]["data"]["leaks"] == {"patients": 0, "waveforms": 0, "allowed": False, "checked": True}
    text = "".join((out / "samples.jsonl").read_text("utf-8"))
    assert not any(f'"{patient}"' in text for patient in set(data.dataset.index["patient"]))
    with pytest.raises(ValueError, match="whose patient or recording the training has seen"):
        evaluate_ecg(load(EcgEvalSettings, overrides=options | {"--split": "all", "--out": str(tmp_path / "all")}))


def test_help_names_the_keys_of_ecgs(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--objective", "mae", "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for text in ("--mae.masked", "--signal.sampling_rate_hz", "--finetune.start", "--data.label_fraction", "--targets"):
        assert text in printed
    assert "--lora.rank" not in printed


def test_unknown_keys_are_refused_with_the_nearest(capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(["--objective", "classify", "--finetune.layerdecay", "0.5"])
    assert end.value.code == 2
    assert "unknown option --finetune.layerdecay; did you mean --finetune.layer_decay?" in capsys.readouterr().err
    config = tmp_path / "x.toml"
    config.write_text('objective = "mae"\n[encoder]\npatches = 25\n')
    with pytest.raises(SystemExit) as end:
        main([str(config)])
    assert end.value.code == 2
    assert f"{config}: unknown key encoder.patches; did you mean encoder.patch?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--objective", "maee"],
            "objective: got maee, expected language for a language model, or mae, classify or regress for ECGs.",
        ),
        (["--objective", "mae"], "data.folders: got no folder, expected one that `python -m medjax.ingest ecg --out` "),
        (
            ["--objective", "classify", "--data", "{data}", "--targets", "lvsd"],
            "data.targets: got lvsd, expected labels of the data: age, sex, grade, high, rare; ingest it with ",
        ),
        (["--objective", "mae", "--data", "{data}", "--encoder.patch", "7"], "encoder.patch: got 7 samples, expected "),
        (["--objective", "mae", "--data", "{data}/nowhere"], "{data}/nowhere"),
        (
            ["--objective", "classify", "--data", "{data}", "--targets", "high", "--finetune.trained", "probe"],
            "finetune.trained: got probe with finetune.start=scratch, expected ",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(place, capsys, tmp_path, options, said):
    argv = [each.format(data=place / "data") for each in options]
    assert main([*argv, "--compilation_cache", "false", "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"medjax.train: {said.format(data=place / 'data')}")
    assert not (tmp_path / "run").exists()
