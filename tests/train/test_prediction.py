"""Detectors and regressors before and after training: targets, what is loaded, predictions, rules, what is refused."""

import math
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from tiny_ecg import made_record, quick_compilation, settings_of

from medjax.data.ecg.builder import write_dataset
from medjax.data.ecg.dataset import EcgDataset
from medjax.data.ecg.signal import normalise, prepare, windows
from medjax.models import ecg_mae
from medjax.models.predictor import Predictor, PredictorConfig, Target
from medjax.store.encoders import load_encoder, save_encoder
from medjax.train.ecg_data import ecg_data
from medjax.train.ecg_program import encoder_config, mae_config, predictor_program
from medjax.train.prediction import decision_rules, predict, prediction_job
from medjax.train.state import path_name

# windows of 1.5 s: 4 leads x 3 patches
OPTIONS = {"objective": "classify", "data__validation": 0.3, "data__test": 0.2, "signal__samples": 75}


def nothing(*_):
    """Nobody listens."""


@pytest.fixture(scope="module", autouse=True)
def _quick(tmp_path_factory):
    with quick_compilation(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 patients with a record of 2 s, so two windows, and a second one of each of the first ten, which is shorter."""
    folder = tmp_path_factory.mktemp("data")
    records = [made_record(number) for number in range(40)]
    records += [made_record(40 + number, seconds=1.4, patient=f"p{number:03d}") for number in range(10)]
    more = [{"twelve": number % 12, "three": 3.0, "half": number / 2 % 2} for number in range(50)]
    write_dataset(
        folder,
        [replace(record, labels={**record.labels, **own}) for record, own in zip(records, more, strict=True)],
    )
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A run with a masked autoencoder that nobody trained."""
    folder = tmp_path_factory.mktemp("start")
    settings = settings_of("unused", signal__samples=75, encoder__drop_path=0.1)
    config = mae_config(settings)
    params = jax.jit(partial(ecg_mae.init_variables, config))(jax.random.key(7))["params"]
    save_encoder(folder / "model", "ecg_mae", config.to_dict(), params, {"preprocessing": settings.signal.to_json()})
    return folder


def job_of(data, *targets, **options):
    return prediction_job(settings_of(data, data__targets=targets, **(OPTIONS | options)), nothing)


def targets_of(job):
    return PredictorConfig.from_dict(job.identity["model"]).targets


def trained_values(data, name):
    """Known values of the training records, and their number."""
    found = ecg_data(settings_of(data, data__targets=(name,), **OPTIONS), nothing)
    values = found.targets[found.sets["train"], 0]
    return values[~np.isnan(values)]


def test_targets_are_what_the_training_labels_say(data):
    high, sex, grade = targets_of(job_of(data, "high", "sex", "grade", finetune__balance=True))
    for target, name in ((high, "high"), (sex, "sex")):
        values = trained_values(data, name)
        assert target == Target(name, "binary", class_weights=(1.0, (values == 0).sum() / (values == 1).sum()))
    assert grade == Target("grade", "ordinal", classes=("0", "1", "2"))
    assert targets_of(job_of(data, "high")) == (Target("high", "binary"),)
    age, twelve = targets_of(job_of(data, "age", "twelve", objective="regress"))
    values = trained_values(data, "age")
    mean = sum(values) / len(values)
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    assert age == Target("age", "regression", mean=age.mean, sd=age.sd, unit="years")
    assert (age.mean, age.sd) == (pytest.approx(mean), pytest.approx(sd))
    assert twelve.unit == ""


def test_the_report_is_told_of_known_and_positive_records(data):
    found = ecg_data(settings_of(data, data__targets=("high", "grade"), **OPTIONS), nothing)
    facts = job_of(data, "high", "grade").records["data"]
    index = found.dataset.index
    for name in ("high", "grade"):
        for part, at in found.sets.items():
            values = index["labels"][name][at]
            assert facts["targets"][name][part] == {"records": len(at), "mean": round(values.mean(), 4)}
    assert [facts["targets"][name]["kind"] for name in ("high", "grade")] == ["binary", "ordinal"]


@pytest.mark.parametrize("trained", ["full", "probe"])
def test_the_encoder_comes_from_the_start_and_the_head_is_new(data, start, trained):
    job = job_of(data, "high", finetune__start=str(start), finetune__trained=trained, encoder__drop_path=0.2)
    params = job.load(nothing)["params"]
    loaded = load_encoder(start, job.program.mesh, job.program.rules)
    expected = jax.tree_util.tree_leaves_with_path(loaded.params["encoder"])
    found = jax.tree_util.tree_leaves_with_path(params["encoder"])
    assert len(found) == len(expected) > 10
    for (path, leaf), (_, known) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(leaf, known, err_msg=path_name(path))
    fresh = job_of(data, "high").load(nothing)["params"]  # of the same seed
    np.testing.assert_array_equal(params["head"]["kernel"], fresh["head"]["kernel"])
    assert np.abs(params["encoder"]["embedding"]["kernel"] - fresh["encoder"]["embedding"]["kernel"]).max() > 0.01
    assert all(name.startswith("params/head") for name in job.program.chosen) == (trained == "probe")
    assert job.identity["model"]["vit"]["drop_path"] == 0.2
    assert job.identity["start"] == loaded.digest()


def test_preprocessing_and_patches_come_from_the_start(data, start):
    """Whatever the settings say of windows, leads and patches."""
    said = []
    options = {"signal__samples": 30, "signal__leads": ("V1",), "encoder__patch": 30, "encoder__size": "Ti"}
    given = settings_of(data, data__targets=("high",), finetune__start=str(start), **(OPTIONS | options))
    job = prediction_job(given, said.append)
    assert job.identity["preprocessing"] == settings_of("unused", signal__samples=75).signal.to_json()
    assert job.identity["model"]["vit"]["patch"] == [25]
    assert job.program.batch.signal.shape == (8, 4, 75)
    assert said[:2] == [
        f"start: the encoder and the preprocessing of {start}",
        "start: no seen.json beside the model, so medjax.eval will not know the patients that pre-training saw",
    ]


def test_a_prediction_is_the_mean_over_the_windows_of_a_record(data):
    """Against record after record, window after window; the last batch is filled up."""
    settings = settings_of(data, data__targets=("high", "grade"), **OPTIONS)
    found = ecg_data(settings, nothing)
    config = PredictorConfig(
        encoder_config(settings), (Target("high", "binary"), Target("grade", "ordinal", classes=("0", "1", "2")))
    )
    program = predictor_program(settings, config, 10)
    job = job_of(data, "high", "grade")
    variables = job.load(nothing)
    held_out = found.held_out(settings)
    places, outputs = predict(program, settings, config, variables, held_out)
    assert places.tolist() == found.sets["validation"].tolist()
    assert held_out.filled > len(places)
    assert held_out.filled % settings.train.batch_size
    run = jax.jit(Predictor(config).apply)
    dataset, alone = EcgDataset(data), jax.device_get(variables)
    for place, output in zip(places, outputs, strict=True):
        cuts = windows(*prepare(dataset[int(place)], settings.signal), settings.signal)
        each = [
            np.asarray(run(alone, normalise(signal, valid, settings.signal)[None], valid[None]))[0]
            for signal, valid in zip(*cuts, strict=True)
        ]
        assert len(each) == (2 if place < 40 else 1)
        np.testing.assert_allclose(output, np.mean(each, axis=0), atol=2e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_rules_are_chosen_on_these_records_and_can_be_worked_out_by_hand(data):
    settings = settings_of(data, data__targets=("high", "grade", "sex"), finetune__sensitivity=0.8, **OPTIONS)
    found = ecg_data(settings, nothing)
    config = PredictorConfig(
        encoder_config(settings),
        (Target("high", "binary"), Target("grade", "ordinal", classes=("0", "1", "2")), Target("sex", "binary")),
    )
    places = np.arange(0, 50)
    outputs = np.random.default_rng(0).normal(size=(50, 4))
    outputs[:, 0] += found.targets[places, 0]
    outputs[:, 3] += 2 * found.targets[places, 2] - 1
    rules = decision_rules(settings, config, found, places, outputs)
    assert list(rules) == ["high", "sex"]
    for name, column, target in (("high", 0, 0), ("sex", 3, 2)):
        logits, labels, rule = outputs[:, column], found.targets[places, target], rules[name]
        slope, intercept = (rule["calibration"][key] for key in ("slope", "intercept"))
        positives, negatives = labels.sum(), (1 - labels).sum()
        # Platt's targets, at which the gradient of the cross-entropy is zero
        smooth = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
        error = sigmoid(slope * logits + intercept) - smooth
        np.testing.assert_allclose([error.sum(), (error * logits).sum()], 0, atol=1e-5)
        probability = np.sort(sigmoid(slope * logits + intercept)[labels == 1])[::-1]
        needed = math.ceil(0.8 * positives - 1e-9)
        lowest = probability[needed - 1]
        below = max(p for p in sigmoid(slope * logits + intercept) if p < lowest)
        assert rule["threshold"]["value"] == pytest.approx((lowest + below) / 2)
        assert rule["threshold"]["sensitivity"] == pytest.approx(needed / positives)
        assert rule["threshold"]["origin"] == "validation"
        assert rule["conformal"] is not None


def test_a_gap_is_corrected_by_the_line_through_these_records(data):
    settings = settings_of(data, data__targets=("age",), **(OPTIONS | {"objective": "regress"}))
    found = ecg_data(settings, nothing)
    config = PredictorConfig(encoder_config(settings), (Target("age", "regression", mean=58.0, sd=11.0),))
    places = np.arange(3, 40)
    outputs = np.random.default_rng(0).normal(size=(37, 1))
    rule = decision_rules(settings, config, found, places, outputs)["age"]
    ages = 40.0 + 2 * places % 37
    slope, intercept = np.polyfit(ages, 58 + 11 * outputs[:, 0], 1)
    assert (rule["slope"], rule["intercept"]) == (pytest.approx(slope), pytest.approx(intercept))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"data__targets": ("rare",)},
            r"^data.targets: rare: got 1 in all \d training records, expected both 0 and 1; nothing can be learned f",
        ),
        (
            {"data__targets": ("three",)},
            r"^data.targets: three: got 3 in all \d+ training records, expected at least two classes; nothing can be ",
        ),
        (
            {"data__targets": ("twelve",)},
            r"^data.targets: twelve: got 9 values from 0 to 11, expected classes numbered from 0, 10 at most",
        ),
        (
            {"data__targets": ("half",)},
            r"^data.targets: half: got 3 values from 0 to 1.5, expected classes numbered from 0, 10 at most; use --obj",
        ),
        (
            {"data__targets": ("high", "three"), "objective": "regress"},
            r"^data.targets: three: got 3 in all \d+ training records, expected a spread\.",
        ),
        (
            {"data__targets": ("high",), "finetune__trained": "probe"},
            r"^finetune.trained: got probe with finetune.start=scratch, expected a run to start from, as a head on an ",
        ),
        (
            {"data__targets": ("high",), "finetune__start": "nowhere"},
            r"^finetune.start: got nowhere, where there is no encoder of ECGs, expected a masked autoencoder; name ",
        ),
        (
            {"data__targets": ("high",), "encoder__patch": 30},
            r"^encoder.patch: got 30 samples, expected a divisor of signal.samples=75; choose signal.samples=60, or ",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(data, options, said):
    with pytest.raises(ValueError, match=said):
        prediction_job(settings_of(data, **(OPTIONS | options)), nothing)


def test_a_predictor_is_no_start(data, tmp_path):
    job = job_of(data, "high")
    save_encoder(tmp_path / "model", "ecg_predictor", job.identity["model"], job.load(nothing)["params"], {})
    with pytest.raises(
        ValueError, match=r"where there is ecg_predictor, expected a masked autoencoder; name the folde"
    ):
        job_of(data, "high", finetune__start=str(tmp_path))


def test_targets_must_be_named():
    with pytest.raises(ValueError, match=r"data.targets: got nothing for objective regress, expected names of labels"):
        settings_of("unused", objective="regress")
