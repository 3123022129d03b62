"""A detector and regressor of ECGs against plain NumPy, the bare module, and itself in another order."""

import jax
import numpy as np
import pytest
from tiny_predictors import (
    AGE,
    AGE_SD,
    GAP,
    GRADE,
    LVSD,
    PREPROCESSING,
    config_of,
    facts_of,
    made_record,
    params_of,
    rule,
    write_predictor,
)

from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.signal import Preprocessing, normalise, prepare, window
from medjax.infer.ecg import EcgModel, outputs_of
from medjax.models.ecg_mae import MaeConfig, abstract_variables
from medjax.models.predictor import Predictor
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import is_box
from medjax.store.encoders import save_encoder

CONFIG = config_of()
RECORDS = [
    made_record(0, age_years=71.0),
    made_record(1, seconds=9.7, rate=500.0),
    made_record(2, seconds=30.0, leads=LEADS[:6]),
    made_record(3, seconds=2.2, rate=128.0, leads=("II",), age_years=30.0),
    made_record(4, leads=()),
    made_record(5, seconds=4.1, rate=100.0, leads=("I", "II", *LEADS[6:])),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_predictor(tmp_path_factory.mktemp("run"), CONFIG, facts_of())


@pytest.fixture(scope="module")
def model(run):
    return EcgModel.load(run)


@pytest.fixture(scope="module")
def predictions(model):
    return model.predict(RECORDS)


def _plain_outputs(record, starts):
    """Outputs of each window straight from the module, one at a time, with the leads that are there and no others."""
    signal, valid = prepare(record, PREPROCESSING)
    rows = [row for row in range(12) if valid[row].any()]
    run = jax.jit(lambda *few: Predictor(CONFIG).apply({"params": params_of(CONFIG)}, *few, leads=rows)[0])
    found = []
    for start in starts:
        cut, known = window(signal, valid, start, PREPROCESSING.samples)
        cut = normalise(cut, known, PREPROCESSING)
        found.append(run(cut[rows][None], known[rows][None]))
    return np.asarray(found, np.float64)


@pytest.mark.parametrize(("number", "starts"), [(0, [0]), (1, [0, 285, 570]), (2, [0, 1300, 2600]), (3, [0])])
def test_outputs_are_those_of_the_windows_and_of_the_leads_that_are_there(predictions, number, starts):
    expected = _plain_outputs(RECORDS[number], starts).mean(0)
    found = predictions[number]
    assert found.windows == len(starts)
    raw = [*found.outputs["lvsd"].raw, *found.outputs["age"].raw, *found.outputs["grade"].raw]
    np.testing.assert_allclose(raw, expected, atol=2e-6)


def test_the_records_differ():
    """Or the tests here would hold for a model that looks at nothing."""
    one, two = _plain_outputs(RECORDS[0], [0]), _plain_outputs(RECORDS[1], [0])
    assert np.abs(one - two).max() > 0.05


def test_a_detector_reads_its_logit_by_its_rule(predictions):
    known = rule()
    for prediction in (predictions[0], predictions[2]):
        found = prediction.outputs["lvsd"]
        (logit,) = found.raw
        a, b = known.calibration.slope, known.calibration.intercept
        assert abs(a - 1) > 0.2  # calibration does something
        p = 1 / (1 + np.exp(-(a * logit + b)))
        assert found.probability == pytest.approx(p, abs=1e-12)
        draws = np.array(known.calibration.draws)
        ends = np.quantile(1 / (1 + np.exp(-(draws[:, 0] * logit + draws[:, 1]))), [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx(tuple(ends), abs=1e-4)
        assert found.low < p < found.high
        assert found.threshold == known.threshold.value
        assert found.positive == (p >= known.threshold.value)
        assert found.decision == ("reduced" if found.positive else "normal")
        assert found.threshold_origin == "validation: sensitivity at least 0.9"
        no, yes = known.conformal.limits[known.conformal.confidences.index(0.9)]
        expected = tuple(name for name, there in (("normal", p <= no), ("reduced", 1 - p <= yes)) if there)
        assert (found.possible, found.confidence) == (expected, 0.9)


def test_age_with_its_error_and_gap(predictions):
    young, unknown = predictions[3].outputs["age"], predictions[1].outputs["age"]
    value = AGE.mean + AGE.sd * young.raw[0]
    assert (young.value, young.unit, young.sd) == (pytest.approx(value), "years", AGE_SD)
    assert (young.low, young.high) == pytest.approx((value - 1.96 * AGE_SD, value + 1.96 * AGE_SD), abs=1e-3)
    assert young.gap == pytest.approx(value - 30)
    assert young.corrected_gap == pytest.approx(value - (GAP.slope * 30 + GAP.intercept))
    assert (unknown.gap, unknown.corrected_gap) == (None, None)
    assert young.notes == ()


def test_ordered_classes(predictions):
    found = predictions[0].outputs["grade"]
    above = 1 / (1 + np.exp(-np.array(found.raw)))
    expected = [1 - above[0], above[0] - above[1], above[1]]
    assert list(found.probabilities) == list(GRADE.classes)
    assert list(found.probabilities.values()) == pytest.approx(expected)
    assert found.decision == GRADE.classes[int(np.argmax(expected))]
    assert found.value == np.argmax(expected)


def test_neither_order_nor_batch_nor_mesh_matter(run, model, predictions):
    """And one program serves every record."""

    def numbers(found):
        return [[value for output in p.outputs.values() for value in output.raw] for p in found if not p.refused]

    expected = numbers(predictions)
    compiled = outputs_of._cache_size()
    assert numbers(model.predict(RECORDS[::-1])[::-1]) == expected
    assert numbers([model.predict([record])[0] for record in RECORDS]) == expected
    assert outputs_of._cache_size() == compiled
    for size in (1, 3, 7):
        np.testing.assert_allclose(numbers(model.predict(RECORDS, batch_size=size)), expected, atol=1e-6)
    other = EcgModel.load(run / "model", mesh="data=2,fsdp=2,tensor=2")
    np.testing.assert_allclose(numbers(other.predict(RECORDS, batch_size=3)), expected, atol=2e-6)
    assert other.digest == model.digest
    assert len(model.digest) == 64
    with pytest.raises(ValueError, match=r"^batch_size: got 0, expected 1 or more"):
        model.predict(RECORDS, batch_size=0)


def test_what_is_not_measured_does_not_reach_the_output(model, predictions):
    """Leads that the reader left out may hold anything in the middle of the pipeline."""
    seen = model.windows([RECORDS[2]])[0]
    disturbed = np.where(seen.valid, seen.signal, 1e3).astype(np.float32)
    np.testing.assert_allclose(model.outputs(disturbed, seen.valid), model.outputs(seen.signal, seen.valid), atol=1e-6)


def test_records_that_cannot_be_judged_are_told(model, predictions):
    empty = predictions[4]
    assert (empty.id, empty.source, empty.windows, dict(empty.outputs)) == ("r4", "made/4", 0, {})
    assert empty.refused == (
        f"got no usable lead, expected at least one of {' '.join(LEADS)}, which the model was trained on; not judged."
    )
    assert [p.refused is None for p in predictions] == [True, True, True, True, False, True]
    (short,) = model.predict([made_record(6, seconds=0.4)])
    assert short.refused == (
        "got 0.4 s without a stretch of 0.5 s in which a lead was measured throughout, expected one at least; not "
        "judged."
    )


def test_what_the_model_could_not_use_is_marked(predictions):
    assert predictions[0].notes == ()
    assert predictions[0].leads == LEADS
    assert predictions[2].leads == LEADS[:6]
    assert predictions[2].notes == (
        "judged by 6 of 12 leads; without V1 V2 V3 V4 V5 V6",
        "judged by 3 stretches of 4 s out of 30 s",
    )
    assert predictions[3].notes == (
        "judged by 1 of 12 leads; without I III aVR aVL aVF V1 V2 V3 V4 V5 V6",
        "2.2 s, the model expects 4 s: the rest is empty",
    )
    assert predictions[5].notes == ("judged by 8 of 12 leads; without III aVR aVL aVF",)


def test_a_slow_recording_is_marked(model):
    (found,) = model.predict([made_record(7, rate=64.0)])
    assert found.notes == ("recorded at 64 Hz, the model expects 100 Hz or more: what lies above 32 Hz is not in it",)


def test_leads_that_training_never_saw_are_left_out(tmp_path, predictions):
    """The answer is that of a record without them; a record of nothing else is refused."""
    model = EcgModel.load(write_predictor(tmp_path, CONFIG, facts_of() | {"leads": list(LEADS[:6])}))
    whole, limbs, chest = model.predict([made_record(2, seconds=30.0), RECORDS[2], made_record(8, leads=LEADS[6:])])
    assert whole.outputs == limbs.outputs == predictions[2].outputs
    assert whole.leads == LEADS[:6]
    assert whole.notes[0] == "leads V1 V2 V3 V4 V5 V6 left out: the model was not trained on them"
    assert limbs.notes == ("judged by 3 stretches of 4 s out of 30 s",)
    assert chest.refused.startswith("got leads V1 V2 V3 V4 V5 V6, expected at least one of I II III aVR aVL aVF, which")


def test_nothing_is_made_up_without_validation_data(tmp_path):
    model = EcgModel.load(write_predictor(tmp_path, CONFIG, {"preprocessing": PREPROCESSING.to_json()}))
    (found,) = model.predict([RECORDS[0]])
    lvsd, age = found.outputs["lvsd"], found.outputs["age"]
    assert lvsd.probability == pytest.approx(1 / (1 + np.exp(-lvsd.raw[0])))
    assert (lvsd.low, lvsd.high, lvsd.possible, lvsd.threshold) == (None, None, None, 0.5)
    assert lvsd.notes == (
        "not calibrated: nothing is stored; the probability is the bare sigmoid",
        "threshold 0.5: none is stored",
    )
    assert (age.low, age.sd, age.corrected_gap) == (None, None, None)
    assert age.gap == pytest.approx(age.value - 71)
    assert age.notes == (
        "no interval: the sd of its errors on validation data is not stored",
        "gap not corrected for regression to the mean: no correction is stored",
    )
    assert found.to_json()["outputs"]["lvsd"].keys() == {
        *("kind", "raw", "probability", "decision", "positive", "threshold", "notes"),
    }


def test_windows_that_disagree_are_told(model):
    logits = np.array([[3.0], [-3.0], [2.0]])
    found = model.reading.of_target(LVSD, logits, None)
    assert found.notes == ("2 of 3 windows alone are called reduced",)
    assert found.raw == (pytest.approx(2 / 3),)


def test_long_records_are_judged_a_portion_at_a_time(model, monkeypatch):
    """As many samples as fit are held together, whatever the number of records; the answers stay."""
    monkeypatch.setattr("medjax.infer.ecg._MOST_NUMBERS", 12 * 30_000)
    read = []

    def records():
        for number in range(6):
            read.append(number)
            yield made_record(number, seconds=130.0)

    judged = []
    for each in model.predict_each(records()):
        judged.append((each, len(read)))
    assert [count for _, count in judged] == [2, 2, 4, 4, 6, 6]  # 26,000 samples each
    (alone,) = model.predict([made_record(3, seconds=130.0)])
    assert judged[3][0].outputs == alone.outputs
    assert alone.windows == 3


def test_broken_weights_are_no_answer(tmp_path):
    params = params_of(CONFIG)
    params["head"]["bias"] = np.array([np.nan, 0, 0], np.float32)
    save_encoder(tmp_path / "model", "ecg_predictor", CONFIG.to_dict(), params, facts_of())
    (found,) = EcgModel.load(tmp_path).predict([RECORDS[0]])
    assert found.refused == "got no finite number from the model, expected one; its weights are damaged."


def test_other_leads_and_normalisation(tmp_path):
    """Eight leads in an order of their own: the rows of the lead embedding follow the preprocessing."""
    p = Preprocessing(sampling_rate_hz=100.0, samples=400, leads=("V1", "V2", "I", "II"), normalisation="lead")
    model = EcgModel.load(write_predictor(tmp_path, CONFIG, facts_of(p)))
    (found,) = model.predict([RECORDS[0]])
    signal, valid = prepare(RECORDS[0], p)
    plain = (signal - signal.mean(-1, keepdims=True)) / signal.std(-1, keepdims=True)
    run = jax.jit(lambda *rows: Predictor(CONFIG).apply({"params": params_of(CONFIG)}, *rows)[0])
    expected = run(plain[None], valid[None])
    assert found.outputs["lvsd"].raw[0] == pytest.approx(float(expected[0]), abs=1e-5)
    assert found.leads == ("V1", "V2", "I", "II")


def test_models_that_cannot_be_used(tmp_path):
    config = MaeConfig(CONFIG.vit, 8, 1, 2)
    boxes = abstract_variables(config)["params"]
    params = jax.tree.map(lambda box: np.zeros(box.value.shape, np.float32), boxes, is_leaf=is_box)
    save_encoder(tmp_path / "mae" / "model", "ecg_mae", config.to_dict(), params, {})
    with pytest.raises(ValueError, match=r"mae: got a masked autoencoder, which predicts nothing yet, expected a det"):
        EcgModel.load(tmp_path / "mae")
    with pytest.raises(FileNotFoundError, match=r"got no medjax\.json, expected a model of kind ecg_mae or ecg_predic"):
        EcgModel.load(tmp_path)
    for facts, message in (
        ({}, r"x: facts: no preprocessing; expected what a training with this version of medjax stores: train again"),
        (facts_of() | {"rules": {"ef": {}}}, r"x: facts: rules: got ef, expected the targets lvsd, age, grade; exp"),
        (
            facts_of() | {"rules": {"lvsd": {}}},
            r"x: facts: DetectorRule: calibration, conformal, threshold missing or unknown, expected",
        ),
        (facts_of() | {"leads": ["V9"]}, r"x: facts: leads: got V9, expected some of those of the preprocessing, I "),
    ):
        with pytest.raises(ValueError, match=message):
            EcgModel(CONFIG, params_of(CONFIG), facts, make_mesh(""), "x")
