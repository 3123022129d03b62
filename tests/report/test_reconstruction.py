"""The figure of a masked autoencoder: masked patches are shaded, and the reconstruction is drawn there only."""

from xml.etree import ElementTree

import numpy as np
import pytest
from predictions import signal
from report_pages import SVG

from medjax.report.reconstruction import reconstruction_figure

LEADS = ("I", "II", "V1")


def parts():
    original = signal(4.0, 100, 3)
    masked = np.zeros((3, 8), bool)
    masked[0, 2:4] = masked[1, 7] = True  # 0.5 s each
    return original, original + 0.1, masked


def points(path):
    return [tuple(map(float, point.split(","))) for point in path.get("d").rstrip("Z")[1:].split(" ")]


def test_shades_and_reconstructions_stand_where_the_patches_are():
    root = ElementTree.fromstring(reconstruction_figure(*parts(), LEADS, 100.0, columns=1))
    shades = [points(p) for p in root.iter(f"{SVG}path") if p.get("class") == "light area"][1:]  # first: legend
    seconds = [[4 * (x - 16) / 368 for x in (shade[0][0], shade[1][0])] for shade in shades]
    assert seconds == [pytest.approx([1.0, 2.0], abs=0.01), pytest.approx([3.5, 4.0], abs=0.01)]
    made = [points(p) for p in root.iter(f"{SVG}path") if p.get("class") == "held curve"][1:]
    for line, shade in zip(made, shades, strict=True):
        assert line[0][0] == pytest.approx(shade[0][0], abs=0.06)
        assert line[-1][0] == pytest.approx(shade[1][0] - 0.92, abs=0.06)  # the last of 50 samples, 0.92 pixels each
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert "12% of 24 patches masked; error² there 0.01 mV²" in texts  # 3 of 24, (0.1 mV)²
    assert [t for t in texts if t in LEADS] == list(LEADS)


def test_reconstruction_and_original_share_a_scale():
    original, made, masked = parts()
    root = ElementTree.fromstring(reconstruction_figure(original, original, masked, LEADS, 100.0, columns=1))
    curves = {
        kind: [points(p) for p in root.iter(f"{SVG}path") if p.get("class") == f"{kind} curve"][1:]
        for kind in ("muted", "held")
    }
    for line, whole in zip(curves["held"], curves["muted"][:2], strict=True):
        drawn = dict(whole)
        assert [y for x, y in line if x in drawn] == [drawn[x] for x, _ in line if x in drawn]
    shifted = ElementTree.fromstring(reconstruction_figure(original, made, masked, LEADS, 100.0, columns=1))
    high = [points(p) for p in shifted.iter(f"{SVG}path") if p.get("class") == "held curve"][1:]
    scale = 58 / np.quantile(original, 0.9995)  # pixels of a row over its range, which starts at 0 mV
    assert curves["held"][0][0][1] - high[0][0][1] == pytest.approx(0.1 * scale, abs=0.06)


def test_what_was_not_measured_is_a_gap():
    original, made, masked = parts()
    original[2, 100:200] = np.nan
    root = ElementTree.fromstring(reconstruction_figure(original, made, masked, LEADS, 100.0))
    lines = [p for p in root.iter(f"{SVG}path") if p.get("class") == "muted curve"][1:]
    assert len(lines) == 4  # two whole leads, two stretches of the third
    assert root.get("width") == "800"


def test_shapes_that_do_not_fit_are_refused():
    original, made, masked = parts()
    with pytest.raises(ValueError, match=r"got original \(3, 400\), reconstruction \(3, 400\), masked \(3, 7\) and 3"):
        reconstruction_figure(original, made, masked[:, :7], LEADS, 100.0)
