"""Weights of the electrodes against the laws that tie the leads together."""

import numpy as np
import pytest

from medjax.data.ecg.electrodes import ELECTRODES, NAMES
from medjax.data.ecg.leads import DERIVED, LEADS


def test_electrodes_make_the_leads():
    assert ELECTRODES.shape == (len(LEADS), len(NAMES))
    for lead, (of_first, of_second) in DERIVED.items():
        expected = of_first * ELECTRODES[0] + of_second * ELECTRODES[1]
        np.testing.assert_allclose(ELECTRODES[LEADS.index(lead)], expected, atol=1e-12)
    np.testing.assert_allclose(ELECTRODES.sum(1), 0, atol=1e-12)  # what all electrodes share, no lead sees
    assert ELECTRODES[0].tolist() == [-1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert ELECTRODES[7].tolist() == pytest.approx([-1 / 3, -1 / 3, -1 / 3, 0, 1, 0, 0, 0, 0])
