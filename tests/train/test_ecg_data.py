"""The data of an ECG run: which patients are in which set, what is refused, what is written of who was seen."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_ecg import made_record, settings_of, write_records

from medjax.data.ecg.builder import write_dataset
from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.seen import Seen, hashes
from medjax.data.ecg.splits import share_of
from medjax.train.ecg_data import ecg_data, threads

SHARES = {"data__validation": 0.2, "data__test": 0.3, "signal__samples": 75}  # windows of 1.5 s


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 patients with a record of 2 s, and a second one of each of the first ten, which is shorter than a window."""
    folder = tmp_path_factory.mktemp("data")
    second = [made_record(40 + number, seconds=1.4, patient=f"p{number:03d}") for number in range(10)]
    write_dataset(folder, [made_record(number) for number in range(40)] + second)
    return folder


def opened(folder, **options):
    """The divided data and the lines for the user."""
    lines: list[str] = []
    return ecg_data(settings_of(folder, **(SHARES | options)), lines.append), lines


def ids(found, name):
    return [str(each) for each in found.dataset.index["id"][found.sets[name]]]


def test_patients_are_divided_by_the_hash_of_their_name(data):
    """Test: a share below 0.3; validation: below 0.5."""
    found, lines = opened(data, data__split_seed=4)
    expected = {"train": [], "validation": [], "test": []}
    for number in range(50):
        share = share_of(f"p{number % 40:03d}", 4)
        expected["test" if share < 0.3 else "validation" if share < 0.5 else "train"].append(f"r{number:03d}")
    assert {name: ids(found, name) for name in expected} == expected
    assert all(len(names) > 4 for names in expected.values())
    patients = {name: {int(each[1:]) % 40 for each in names} for name, names in expected.items()}
    assert lines == [f"{name}: {len(expected[name])} records of {len(patients[name])} patients" for name in expected]
    assert found.facts() == {
        "digest": found.dataset.digest,
        "folders": [str(data)],
        "sets": {name: {"records": len(expected[name]), "patients": len(patients[name])} for name in expected},
    }
    assert found.targets is None


def test_folds_are_stratified_by_the_first_target_and_each_patient_is_tested_once(data):
    tested, positive = [], []
    for fold in range(4):
        found, _ = opened(data, objective="classify", data__targets=("high",), data__folds=4, data__fold=fold)
        following, _ = opened(
            data, objective="classify", data__targets=("high",), data__folds=4, data__fold=(fold + 1) % 4
        )
        assert ids(found, "validation") == ids(following, "test")
        tested += ids(found, "test")
        positive.append(found.targets[found.sets["test"], 0].sum())
        assert found.rule.to_json() == {
            **{"seed": 0, "validation": 0.2, "test": 0.3, "folds": 4, "fold": fold, "strata": "high"}
        }
    assert sorted(tested) == [f"r{number:03d}" for number in range(50)]
    assert max(positive) - min(positive) <= 1


def test_a_smaller_share_of_labels_is_part_of_a_larger_and_leaves_the_other_sets(data):
    options = {"objective": "classify", "data__targets": ("high",)}
    whole, half, tenth = (opened(data, **options, data__label_fraction=share)[0] for share in (1.0, 0.5, 0.1))
    assert set(ids(tenth, "train")) < set(ids(half, "train")) < set(ids(whole, "train"))
    expected = [name for name in ids(whole, "train") if share_of(f"labels:p{int(name[1:]) % 40:03d}", 0) < 0.5]
    assert ids(half, "train") == expected
    for name in ("validation", "test"):
        assert ids(half, name) == ids(whole, name)


def test_records_without_any_of_the_labels_are_in_no_set(data):
    """`rare` is known of the first six records, `age` of all."""
    found, _ = opened(data, objective="classify", data__targets=("rare",))
    assert sorted(ids(found, "train") + ids(found, "validation") + ids(found, "test")) == [
        *(f"r{number:03d}" for number in range(6))
    ]
    both, _ = opened(data, objective="regress", data__targets=("rare", "age"))
    assert sum(len(at) for at in both.sets.values()) == 50
    np.testing.assert_array_equal(both.targets[:, 0], [1.0] * 6 + [np.nan] * 44)
    np.testing.assert_array_equal(both.targets[:, 1], [40.0 + 2 * number % 37 for number in range(50)])


def test_held_out_windows_are_those_of_the_validation_records(data):
    """A record of 2 s has two windows of 1.5 s; `most` picks evenly spread records."""
    found, _ = opened(data)
    settings = settings_of(data, **SHARES)
    held_out = found.held_out(settings)
    names = [str(found.dataset.index["id"][place]) for place in held_out.places]
    assert names == [name for name in ids(found, "validation") for _ in range(2 if int(name[1:]) < 40 else 1)]
    assert len(set(names)) < len(names)
    validation = found.sets["validation"]
    assert sorted(set(found.held_out(settings, 2).places)) == [validation[0], validation[-1]]
    nobody, _ = opened(data, data__validation=0.0)
    assert nobody.held_out(settings) is None


def test_a_copy_under_another_name_is_refused_or_left_out(tmp_path):
    """The waveform of a test record once more, of a patient of the training set: the training set loses it."""
    records = [made_record(number) for number in range(40)]
    shares = {number: share_of(f"p{number:03d}", 0) for number in range(40)}
    tested = min(shares, key=shares.get)
    trained = max(shares, key=shares.get)
    copy = replace(made_record(tested), id="copy", source="copy.hea", patient=f"p{trained:03d}")
    write_dataset(tmp_path, [*records, copy])
    with pytest.raises(ValueError, match="data: got in two sets: the same waveform, ") as refused:
        opened(tmp_path)
    assert f"r{tested:03d} (test)" in str(refused.value)
    assert "copy (train)" in str(refused.value)
    assert str(refused.value).endswith("or leave such records out: --data.leaks drop.")
    found, lines = opened(tmp_path, data__leaks="drop")
    assert lines[0] == "data: 1 training and validation records left out, whose patient or recording is elsewhere"
    assert "copy" not in ids(found, "train")
    assert f"r{trained:03d}" in ids(found, "train")
    assert f"r{tested:03d}" in ids(found, "test")


def test_records_without_a_patient_are_counted(tmp_path):
    write_records(tmp_path, 40, patient=None)
    _, lines = opened(tmp_path)
    assert lines[-1] == ("data: 1 records name no patient; each counts as a patient of its own, which cannot be proved")


def test_seen_are_training_and_validation_and_whom_the_start_has_seen(data, tmp_path):
    found, _ = opened(data)
    places = [*found.sets["train"], *found.sets["validation"]]
    index = found.dataset.index
    assert found.seen() == Seen.of(index, np.array(places))
    assert not found.seen().patients & hashes(index["patient"][found.sets["test"]])
    found.seen().write(tmp_path)
    settings = settings_of(data, **SHARES, data__split_seed=1, data__leaks="allow")
    later = ecg_data(settings, lambda line: None, tmp_path)
    assert later.seen() == opened(data, data__split_seed=1)[0].seen() | found.seen()
    assert len(later.seen().patients) > len(found.seen().patients)


def test_a_start_that_has_seen_test_patients_stops_the_run(data, tmp_path):
    """Pre-training divided with another seed, or by shares instead of folds."""
    before, _ = opened(data)
    before.seen().write(tmp_path)
    again, _ = opened(data)
    same = ecg_data(settings_of(data, **SHARES), lambda line: None, tmp_path)
    assert {name: at.tolist() for name, at in same.sets.items()} == {
        name: at.tolist() for name, at in again.sets.items()
    }
    plain, _ = opened(data, data__split_seed=1)
    index = plain.dataset.index
    known = {str(index["patient"][place]) for name in ("train", "validation") for place in before.sets[name]}
    bad = [place for place in plain.sets["test"] if str(index["patient"][place]) in known]
    assert 0 < len(bad) < len(plain.sets["test"])
    count = f"{len(bad)} of {len(plain.sets['test'])} test records"

    def run(leaks):
        lines: list[str] = []
        settings = settings_of(data, **SHARES, data__split_seed=1, data__leaks=leaks, finetune__start="before")
        return ecg_data(settings, lines.append, tmp_path), lines

    with pytest.raises(
        ValueError, match=f"finetune.start: got a run that has seen the patient or recording of {count}"
    ):
        run("refuse")
    kept, lines = run("allow")
    assert kept.sets["test"].tolist() == plain.sets["test"].tolist()
    assert f"data: {count} were seen by before, which flatters a later evaluation" in lines
    dropped, lines = run("drop")
    assert dropped.sets["test"].tolist() == [place for place in plain.sets["test"] if place not in bad]
    assert f"data: {count} left out, which before has seen; medjax.eval needs --leaks drop" in lines


def test_pre_training_by_folds_leaves_the_same_patients_out_as_fine_tuning(data):
    """Stratified by the label that pre-training does not use otherwise."""
    folds = {"data__targets": ("high",), "data__folds": 4, "data__fold": 1}
    before, _ = opened(data, objective="mae", **folds)
    after, _ = opened(data, objective="classify", **folds)
    assert before.rule == after.rule
    assert before.targets is None
    for name, at in after.sets.items():
        assert before.sets[name].tolist() == at.tolist()
    # and a later run of another target, which names that label
    age, _ = opened(data, objective="regress", **(folds | {"data__targets": ("age",), "data__strata": "high"}))
    assert {name: at.tolist() for name, at in age.sets.items()} == {
        name: at.tolist() for name, at in before.sets.items()
    }
    with pytest.raises(ValueError, match=r"data.targets: got high for objective mae without data.folds, expected none"):
        opened(data, objective="mae", data__targets=("high",))


def test_records_without_any_lead_of_the_preprocessing_are_in_no_set(tmp_path):
    """And the leads that training saw are those that its records have."""
    records = [made_record(number) for number in range(40)]
    limbs = [replace(only(record, LEADS[:6]), id=f"limbs{i}") for i, record in enumerate(records[:20])]
    chest = [replace(only(record, LEADS[6:]), id=f"chest{i}") for i, record in enumerate(records[20:])]
    write_dataset(tmp_path, limbs + chest)
    settings = settings_of(tmp_path, **(SHARES | {"signal__leads": ("I", "II")}))
    lines: list[str] = []
    found = ecg_data(settings, lines.append)
    assert lines[0] == "data: 20 records left out, which have none of the leads I II"
    assert all(name.startswith("limbs") for part in found.sets for name in ids(found, part))
    assert sum(len(at) for at in found.sets.values()) == 20
    wide = settings_of(tmp_path, **(SHARES | {"signal__leads": ("V1", "I", "aVF")}))
    assert found.leads(wide) == ("I", "aVF")


def only(record, leads):
    """The record with these leads alone."""
    there = np.array([lead in leads for lead in LEADS])
    status = tuple(old if known else "missing" for old, known in zip(record.status, there, strict=True))
    return replace(record, signal=np.where(there[:, None], record.signal, np.nan), status=status)


def test_threads_are_as_many_as_cores_or_as_was_said(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(7)), raising=False)
    assert threads(settings_of("unused")) == 7
    assert threads(settings_of("unused", data__threads=3)) == 3
    with pytest.raises(ValueError, match=r"threads: got -1, expected 1 or more, or 0"):
        settings_of("unused", data__threads=-1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data__folders": ()}, r"^data.folders: got no folder, expected one that `python -m medjax.ingest ecg --out`"),
        (
            {"objective": "classify", "data__targets": ("lvsd",)},
            r"^data.targets: got lvsd, expected labels of the data: age, sex, grade, high, rare; ingest it with",
        ),
        (
            {"data__validation": 0.5, "data__test": 0.499999},
            r"^data: got 50 records and none of them to train on, expected at least one; see data.targets, ",
        ),
        (
            {"objective": "classify", "data__targets": ("high",), "data__label_fraction": 1e-9},
            r"^data: got 50 records and none of them to train on, .* data.test, data.label_fraction and signal.leads.$",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused(data, options, said):
    with pytest.raises(ValueError, match=said):
        ecg_data(settings_of(data, **{**SHARES, **options}), lambda line: None)


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected .*medjax.ingest ecg"):
        ecg_data(settings_of(tmp_path), lambda line: None)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ecg_data(settings_of(tmp_path / "nowhere"), lambda line: None)
