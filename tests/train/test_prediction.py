"""Detectors and regressors before and after training: targets, what is loaded, predictions, rules, what is refused."""

import math
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tiny_ecg import made_record, settings_of

from medjax.data.batches import to_global
from medjax.data.ecg.builder import write_dataset
from medjax.data.ecg.dataset import EcgDataset
from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.signal import normalise, prepare, window_starts, windows
from medjax.infer.ecg import EcgModel
from medjax.models import ecg_mae
from medjax.models.predictor import Predictor, PredictorConfig, Target
from medjax.store.encoders import load_encoder, save_encoder
from medjax.train.ecg_data import ecg_data
from medjax.train.ecg_program import encoder_config, mae_config, predictor_program
from medjax.train.prediction import decision_rules, predict, prediction_job, validation_areas
from medjax.train.state import path_name, split

# windows of 1.5 s: 4 leads x 3 patches
OPTIONS = {"objective": "classify", "data__validation": 0.3, "data__test": 0.2, "signal__samples": 75}
TARGETS = {"data__targets": ("high",)}


def nothing(*_):
    """Nobody listens."""


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
    for target, name, classes in ((high, "high", ()), (sex, "sex", ("female", "male"))):
        values = trained_values(data, name)
        weights = (1.0, (values == 0).sum() / (values == 1).sum())
        assert target == Target(name, "binary", classes=classes, class_weights=weights)
    assert grade == Target("grade", "ordinal", classes=("0", "1", "2"))
    assert targets_of(job_of(data, "high")) == (Target("high", "binary"),)
    age, twelve = targets_of(job_of(data, "age", "twelve", objective="regress"))
    values = trained_values(data, "age")
    mean = sum(values) / len(values)
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    assert age == Target("age", "regression", mean=age.mean, sd=age.sd, unit="years")
    assert (age.mean, age.sd) == (pytest.approx(mean), pytest.approx(sd))
    assert twelve.unit == ""


def test_classes_have_the_names_that_the_user_gives(data):
    names = ("high=low/tall", "grade=none/mild/severe", "sex=f/m")
    high, sex, grade = targets_of(job_of(data, "high", "sex", "grade", finetune__classes=names))
    assert (high.classes, sex.classes, grade.classes) == (("low", "tall"), ("f", "m"), ("none", "mild", "severe"))
    for wrong, said in (
        (
            ("grade=none/some",),
            r"finetune.classes: got 2 names for grade \(none/some\), expected 3, as its values go fr",
        ),
        (("grade",), r"finetune.classes: got 'grade', expected a target and different names of its classes"),
        (("lvsd=no/yes",), r"finetune.classes: got lvsd, expected some of data.targets: high, sex, grade"),
    ):
        with pytest.raises(ValueError, match=said):
            job_of(data, "high", "sex", "grade", finetune__classes=wrong)
    with pytest.raises(ValueError, match=r"^finetune.classes: got names for age, a number, expected none"):
        job_of(data, "age", objective="regress", finetune__classes=("age=young/old",))


@pytest.mark.parametrize(("part", "value"), [("validation", 2.0), ("validation", 0.5), ("test", 2.0)])
def test_a_class_that_training_does_not_see_is_refused_before_training(tmp_path, part, value):
    """And not when the last step is done, or in silence by an evaluation."""
    records = [made_record(number) for number in range(40)]
    found = ecg_data(settings_of(write_dataset(tmp_path / "a", records).folders[0], **OPTIONS, **TARGETS), nothing)
    odd = int(found.sets[part][0])
    records[odd] = replace(records[odd], labels={"high": value})
    write_dataset(tmp_path / "b", records)
    said = "got 3 values from 0 to 1" if value == 0.5 else f"got 2 in 1 {part} records and in none of the"
    with pytest.raises(ValueError, match=f"^data.targets: high: {said}"):
        prediction_job(settings_of(tmp_path / "b", **OPTIONS, **TARGETS), nothing)


def test_a_target_of_codes_is_trained_on(tmp_path):
    records = [made_record(number) for number in range(40)]
    codes = [(("164873001",) if number % 2 else ("426783006",)) if number < 30 else () for number in range(40)]
    write_dataset(tmp_path, [replace(record, codes=own) for record, own in zip(records, codes, strict=True)])
    job = job_of(tmp_path, "code:164873001")
    assert targets_of(job) == (Target("code:164873001", "binary"),)
    assert job.name.startswith("ecg-code-164873001-full-scratch-")
    known = job.records["data"]["targets"]["code:164873001"]
    assert sum(known[part]["records"] for part in ("train", "validation", "test")) == 30


def test_a_model_tells_which_leads_training_saw_and_how_far_it_errs(tmp_path):
    """Trained on lead I alone, a record of twelve leads is judged by lead I; and an age has an interval."""
    records = [made_record(number) for number in range(40)]
    bare = [
        replace(
            record,
            signal=np.where(np.arange(12)[:, None] == 0, record.signal, np.nan),
            status=("measured", *["missing"] * 11),
        )
        for record in records
    ]
    write_dataset(tmp_path / "data", bare)
    settings = settings_of(tmp_path / "data", **(OPTIONS | {"objective": "regress", "data__targets": ("age",)}))
    job = prediction_job(settings, nothing)
    variables = job.load(nothing)
    (tmp_path / "run").mkdir()
    job.export(tmp_path / "run", variables)
    facts = load_encoder(tmp_path / "run", job.program.mesh, job.program.rules).facts
    assert facts["leads"] == ["I"]
    model = EcgModel.load(tmp_path / "run")
    found = ecg_data(settings, nothing)
    places = found.sets["validation"]
    values = np.array([p.outputs["age"].value for p in model.predict(bare[place] for place in places)])
    errors = values - found.targets[places, 0]
    assert facts["errors"]["age"]["records"] == len(places)
    assert facts["errors"]["age"]["sd"] == pytest.approx(np.std(errors, ddof=1), rel=1e-5)
    one, whole = model.predict([bare[0], records[0]])
    assert one.outputs == whole.outputs
    assert whole.leads == ("I",)
    assert whole.notes[0] == "leads II V1 V5 left out: the model was not trained on them"
    age = whole.outputs["age"]
    assert age.sd == facts["errors"]["age"]["sd"]
    assert age.high - age.low == pytest.approx(2 * 1.959964 * age.sd)


def test_a_model_holds_no_path_and_is_written_after_whom_it_saw(data, tmp_path, monkeypatch):
    """Killed between the two, a run has no model whose leaks cannot be found."""
    job = job_of(data, "high")
    variables = job.load(nothing)
    (tmp_path / "run").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("medjax.train.prediction.save_encoder", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job.export(tmp_path / "run", variables)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["seen.json"]
    job.export(tmp_path / "run", variables)
    text = (tmp_path / "run" / "model" / "medjax.json").read_text("utf-8")
    assert str(data) not in text
    assert str(data.parent) not in text
    assert '"training": {\n   "digest"' in text
    assert job.records["data"]["folders"] == [str(data)]


def test_the_report_is_told_of_known_and_positive_records(data):
    found = ecg_data(settings_of(data, data__targets=("high", "grade"), **OPTIONS), nothing)
    facts = job_of(data, "high", "grade").records["data"]
    index = found.dataset.index
    for name in ("high", "grade"):
        for part, at in found.sets.items():
            values = index["labels"][name][at]
            assert facts["targets"][name][part] == {"records": len(at), "mean": round(values.mean(), 4)}
    assert [facts["targets"][name]["kind"] for name in ("high", "grade")] == ["binary", "ordinal"]


def test_the_user_is_told_what_targets_were_taken_for(data):
    said = []
    prediction_job(settings_of(data, data__targets=("high", "grade"), **OPTIONS), said.append)
    found = ecg_data(settings_of(data, data__targets=("high", "grade"), **OPTIONS), nothing)
    counts = [np.bincount(found.targets[found.sets["train"], column].astype(int)) for column in (0, 1)]
    assert f"target high: yes or no; training records of 0: {counts[0][0]}, 1: {counts[0][1]}" in said
    listed = ", ".join(f"{value}: {count}" for value, count in enumerate(counts[1]))
    assert f"target grade: 3 ordered classes; training records of {listed}" in said
    prediction_job(settings_of(data, data__targets=("age",), **(OPTIONS | {"objective": "regress"})), said.append)
    assert said[-2].startswith("target age: a number, ")


def test_a_checkpoint_says_how_good_it_was_on_validation_patients(data):
    settings = settings_of(data, data__targets=("high", "grade"), **OPTIONS)
    found = ecg_data(settings, nothing)
    targets = (Target("high", "binary"), Target("grade", "ordinal", classes=("0", "1", "2")))
    config = PredictorConfig(encoder_config(settings), targets)
    outputs = np.random.default_rng(0).normal(size=(50, 3))
    outputs[:, 0] += found.targets[:50, 0]
    area = validation_areas(config, found, np.arange(50), outputs)
    assert list(area) == ["high"]
    truth = found.targets[:50, 0]
    assert area["high"]["value"] == pytest.approx(roc_auc_score(truth, outputs[:, 0]), abs=1e-12)
    assert area["high"]["low"] < area["high"]["value"] < area["high"]["high"]
    assert (area["high"]["records"], area["high"]["positive"]) == (50, int(truth.sum()))


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
    """And stand in the settings that the run folder and its report show, which repeat the run."""
    said = []
    usual = {"signal__samples": 2500, "signal__leads": LEADS, "signal__sampling_rate_hz": 250.0, "encoder__size": "S"}
    usual |= {"encoder__patch": 125, "signal__normalisation": "record", "encoder__drop_path": 0.3}
    given = settings_of(data, data__targets=("high",), finetune__start=str(start), **(OPTIONS | usual))
    job = prediction_job(given, said.append)
    expected = settings_of("unused", signal__samples=75)
    assert job.identity["preprocessing"] == expected.signal.to_json()
    assert job.identity["model"]["vit"]["patch"] == [25]
    assert job.program.batch.signal.shape == (8, 4, 75)
    assert job.settings.signal == expected.signal
    assert job.settings.encoder == replace(expected.encoder, drop_path=0.3)
    assert said[:2] == [
        f"start: the encoder and the preprocessing of {start}",
        "start: no seen.json beside the model, so nobody will know the patients that pre-training saw",
    ]
    assert prediction_job(job.settings, nothing).settings == job.settings


def test_what_the_start_was_not_trained_with_is_refused(data, start):
    with pytest.raises(
        ValueError,
        match=r"^finetune.start: got .* and signal.samples=30 where it has 75; encoder.registers=2 where it has 0, ",
    ):
        job_of(data, "high", finetune__start=str(start), signal__samples=30, encoder__registers=2)


def test_windows_of_nothing_do_not_count(tmp_path):
    """In the loss, and in what is averaged over a record, as infer leaves them out."""
    records = [made_record(number, seconds=3.0) for number in range(40)]
    gaps = [record.signal.copy() for record in records]
    for signal in gaps:
        signal[:, 130:] = np.nan  # the second window of 1.5 s, and more
    write_dataset(tmp_path, [replace(r, signal=signal) for r, signal in zip(records, gaps, strict=True)])
    settings = settings_of(tmp_path, **OPTIONS, **TARGETS)
    job, found = prediction_job(settings, nothing), ecg_data(settings, nothing)
    config = PredictorConfig.from_dict(job.identity["model"])
    variables, held_out = job.load(nothing), found.held_out(settings)
    places, outputs = predict(job.program, settings, config, variables, held_out, settings.signal.leads)
    assert held_out.filled == 2 * len(places)
    alone = jax.device_get(variables)
    for place, output in zip(places, outputs, strict=True):
        signal, valid = prepare(EcgDataset(tmp_path)[int(place)], settings.signal)
        first = (normalise(signal, valid, settings.signal)[None, :, :75], valid[None, :, :75])
        np.testing.assert_allclose(output, Predictor(config).apply(alone, *first)[0], atol=2e-6)
    batch = held_out.batch_at(0)
    assert batch.weights.sum() == 8
    program = job.program
    trainable, frozen = split(variables, program.chosen)
    sums = program.lower_evaluation().compile()(trainable, frozen, to_global(batch, program.held_out_batch))
    assert float(sums["counted"]) == 4


def test_rules_are_made_of_float32_whatever_training_computes_in(data):
    settings = settings_of(data, **OPTIONS, **TARGETS)
    fast = replace(settings, encoder=replace(settings.encoder, dtype="bfloat16"))
    job = prediction_job(settings, nothing)
    config = PredictorConfig.from_dict(job.identity["model"])
    variables, held_out = job.load(nothing), ecg_data(settings, nothing).held_out(settings)
    program = prediction_job(fast, nothing).program
    leads = settings.signal.leads
    found, expected = (
        predict(each, own, config, variables, held_out, leads)[1]
        for each, own in ((program, fast), (job.program, settings))
    )
    np.testing.assert_array_equal(found, expected)


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
    places, outputs = predict(program, settings, config, variables, held_out, settings.signal.leads)
    assert places.tolist() == found.sets["validation"].tolist()
    assert held_out.filled > len(places)
    assert held_out.filled % settings.train.batch_size
    run = jax.jit(Predictor(config).apply)
    dataset, alone = EcgDataset(data), jax.device_get(variables)
    for place, output in zip(places, outputs, strict=True):
        whole = prepare(dataset[int(place)], settings.signal)
        cuts = windows(*whole, window_starts(whole[0].shape[1], 75), 75)
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


@pytest.mark.parametrize(("method", "fitted"), [("temperature", (True, False)), ("none", (False, False))])
def test_the_calibration_is_the_one_that_was_asked_for(data, method, fitted):
    settings = settings_of(data, data__targets=("high",), finetune__calibration=method, **OPTIONS)
    found = ecg_data(settings, nothing)
    config = PredictorConfig(encoder_config(settings), (Target("high", "binary"),))
    outputs = 3 + np.random.default_rng(0).normal(size=(50, 1)) + 2 * found.targets[:50, :1]
    rule = decision_rules(settings, config, found, np.arange(50), outputs)["high"]["calibration"]
    assert rule["method"] == method
    assert (rule["slope"] != 1, rule["intercept"] != 0) == fitted


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
            r"^data.targets: twelve: got 12 values from 0 to 11, expected classes numbered from 0, 10 at most",
        ),
        (
            {"data__targets": ("half",)},
            r"^data.targets: half: got 4 values from 0 to 1.5, expected classes numbered from 0, 10 at most; use --obj",
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
