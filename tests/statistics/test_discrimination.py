"""ROC, precision-recall and the areas under them against scikit-learn, and their bootstrap against repeated records."""

import time

import numpy as np
import pytest
from sklearn import metrics

from medjax.statistics.bootstrap import PatientBootstrap
from medjax.statistics.discrimination import Ranking, areas, auprc, auroc, macro_areas, paired_difference


def sample(records: int, seed: int, *, ties: bool, share: float = 0.3):
    rng = np.random.default_rng(seed)
    y = rng.random(records) < share
    y[:2] = True, False
    s = rng.normal(size=records) + 1.2 * y
    return y, np.round(s * 2) / 2 if ties else s


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("records", "share"), [(7, 0.5), (500, 0.3), (3000, 0.01)])
def test_areas_and_curves_equal_scikit_learn(records, share, ties):
    y, s = sample(records, 1, ties=ties, share=share)
    assert auroc(y, s) == pytest.approx(metrics.roc_auc_score(y, s), abs=1e-12)
    assert auprc(y, s) == pytest.approx(metrics.average_precision_score(y, s), abs=1e-12)
    fpr, tpr, thresholds = Ranking(y, s).roc()
    expected = metrics.roc_curve(y, s)
    np.testing.assert_allclose(fpr, expected[0], atol=1e-12)
    np.testing.assert_allclose(tpr, expected[1], atol=1e-12)
    np.testing.assert_allclose(thresholds, expected[2], atol=1e-12)
    recall, precision, _ = Ranking(y, s).precision_recall()
    right = metrics.precision_recall_curve(y, s)
    np.testing.assert_allclose(precision[::-1], right[0][:-1], atol=1e-12)
    np.testing.assert_allclose(recall[::-1], right[1][:-1], atol=1e-12)


def test_a_tie_counts_half():
    assert auroc([0, 1, 0, 1], [0.2, 0.7, 0.7, 0.9]) == 0.875
    assert auroc([0, 1, 0, 1], [1, 1, 1, 1]) == 0.5


@pytest.mark.parametrize("ties", [False, True])
def test_weights_equal_repeated_records(ties):
    y, s = sample(60, 3, ties=ties)
    ranking = Ranking(y, s)
    weights = np.concatenate(list(PatientBootstrap(np.arange(60) // 2, resamples=40, seed=1).weights()))
    found = {
        "auroc": ranking.auroc(weights),
        "auprc": ranking.auprc(weights),
        "sensitivity": ranking.sensitivity_at(0.9)(weights),
        "specificity": ranking.specificity_at(0.9)(weights),
        "curve": ranking.sensitivity_on([0.0, 0.1, 0.37, 1.0])(weights),
    }
    for row, weight in enumerate(weights.astype(int)):
        yy, ss = np.repeat(y, weight), np.repeat(s, weight)
        fpr, tpr, _ = metrics.roc_curve(yy, ss, drop_intermediate=False)
        assert found["auroc"][row] == pytest.approx(metrics.roc_auc_score(yy, ss), abs=1e-12)
        assert found["auprc"][row] == pytest.approx(metrics.average_precision_score(yy, ss), abs=1e-12)
        assert found["sensitivity"][row] == pytest.approx(tpr[fpr <= 0.1 + 1e-9].max(), abs=1e-12)
        assert found["specificity"][row] == pytest.approx(1 - fpr[tpr >= 0.9 - 1e-9].min(), abs=1e-12)
        highest = [tpr[fpr == f].max() for f in np.unique(fpr)]
        line = np.interp([0.0, 0.1, 0.37, 1.0], np.unique(fpr), highest)
        np.testing.assert_allclose(found["curve"][row], line, atol=1e-12)


def test_macro_areas_are_the_means_of_scikit_learn():
    rng = np.random.default_rng(5)
    labels = {name: (rng.random(300) < share).astype(float) for name, share in (("a", 0.5), ("b", 0.1), ("c", 0.3))}
    scores = {name: rng.normal(size=300) + y for name, y in labels.items()}
    labels["none"], scores["none"] = np.zeros(300), rng.normal(size=300)
    labels["b"][:20] = np.nan  # unknown
    found = macro_areas(labels, scores, PatientBootstrap(np.arange(300), resamples=300))
    known = ~np.isnan(labels["b"])
    expected = [metrics.roc_auc_score(labels[k][known], scores[k][known]) for k in "b"]
    expected += [metrics.roc_auc_score(labels[k], scores[k]) for k in "ac"]
    assert found["auroc"].value == pytest.approx(np.mean(expected), abs=1e-12)
    assert found["auroc"].low < found["auroc"].value < found["auroc"].high
    assert found["classes"] == ["a", "b", "c"]
    assert found["left_out"] == {"none": "all 300 records are negative"}


def test_areas_are_undefined_without_both_classes():
    found = areas([1, 1, 1], [0.1, 0.2, 0.3], PatientBootstrap(np.arange(3), resamples=10))
    assert (found["auroc"].value, found["auroc"].reason) == (None, "all 3 records are positive")
    assert found["auprc"].reason == "all 3 records are positive"
    assert (auroc([0, 0], [1, 2]), auprc([], [])) == (None, None)
    assert macro_areas({"x": [0, 0]}, {"x": [1, 2]}, PatientBootstrap([1, 2]))["auroc"].value is None


def test_paired_difference_of_the_same_model_is_exactly_nothing():
    y, s = sample(200, 7, ties=True)
    bootstrap = PatientBootstrap(np.arange(200), resamples=200)
    same = paired_difference(y, s, 3 * s - 1, bootstrap)["auroc"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    worse = paired_difference(y, s, np.where(y, s - 0.8, s), bootstrap)["auroc"]
    assert worse.value == pytest.approx(metrics.roc_auc_score(y, np.where(y, s - 0.8, s)) - auroc(y, s), abs=1e-12)
    assert worse.high < 0


def test_two_thousand_resamples_of_ten_thousand_records_take_seconds():
    y, s = sample(10_000, 8, ties=False)
    start = time.perf_counter()
    found = areas(y, s, PatientBootstrap(np.arange(10_000) // 2))
    assert time.perf_counter() - start < 20  # 2 s on 2 idle cores; a plain loop over scikit-learn takes 30
    # DeLong's standard error of independent records, wider by what the pairs of a patient do not add
    assert found["auroc"].high - found["auroc"].low == pytest.approx(2 * 1.96 * 0.0047, rel=0.1)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"labels: got 2, expected 0 or 1"):
        auroc([0, 1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="scores: got 1 of 2 not finite"):
        auroc([0, 1], [1, float("nan")])
    with pytest.raises(ValueError, match="got shapes"):
        auroc([0, 1], [1, 2, 3])
