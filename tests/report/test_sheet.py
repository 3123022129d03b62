"""A sheet in millimetres: thinning keeps to its tolerance, and the three formats hold the same marks."""

import io
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from medjax.report.sheet import Area, Label, Sheet, Stroke, polylines, rectangle, straightened


def sheet(*marks, title="t"):
    return Sheet(40.0, 30.0, title, "d", marks)


def slow_error(values, kept):
    """Largest distance of a value from the straight line between the kept points around it."""
    worst = 0.0
    for begin, end in pairwise(kept):
        for index in range(begin, end + 1):
            share = (index - begin) / (end - begin)
            worst = max(worst, abs(values[index] - (values[begin] + share * (values[end] - values[begin]))))
    return worst


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_thinning_keeps_to_its_tolerance(seed, tolerance):
    generator = np.random.default_rng(seed)
    values = np.cumsum(generator.normal(0, 0.1, 400)).tolist()
    values[200] += 5
    kept = straightened(values, tolerance)
    assert (kept[0], kept[-1]) == (0, 399)
    assert kept == sorted(set(kept))
    assert slow_error(values, kept) <= tolerance + 1e-9
    assert max(values[i] for i in kept) >= max(values) - tolerance  # the peak stays


def test_straight_stretches_need_two_points():
    assert straightened([0.0] * 1000, 0.01) == [0, 999]
    assert straightened([0.0] * 500 + [1.0] * 500, 0.01) == [0, 499, 500, 999]
    assert straightened([0, 1, 2, 3, 2, 1, 0], 0.0) == [0, 3, 6]
    assert (straightened([], 0.1), straightened([1.0], 0.1), straightened([1.0, 5.0], 0.1)) == ([], [0], [0, 1])


def test_gaps_part_a_line_and_a_lone_sample_is_a_dot():
    y = np.array([1.0, 1.0, np.nan, 2.0, np.nan, np.nan, 3.0, 4.0])
    assert list(polylines(np.arange(8.0), y)) == [
        ((0.0, 1.0), (1.0, 1.0)),
        ((3.0, 2.0), (3.25, 2.0)),
        ((6.0, 3.0), (7.0, 4.0)),
    ]
    assert list(polylines(np.arange(2.0), np.full(2, np.nan))) == []


def test_paths_are_steps_in_hundredths_of_a_millimetre():
    line = ((1.0, 2.0), (3.0, 2.0), (3.0, 4.5), (2.5, 4.0), (2.254, 4.004), (2.0, 4.0))
    root = ElementTree.fromstring(sheet(Stroke((line,), "#000000", 0.25, kind="k")).svg())
    (path,) = [p for p in root.iter("{http://www.w3.org/2000/svg}path") if p.get("class") == "k"]
    assert path.get("d") == "M100 200h200v250l-50-50h-25-25"
    assert path.get("stroke-width") == "25"
    assert root.get("viewBox") == "0 0 4000 3000"


def test_rounding_does_not_add_up():
    line = tuple((0.004 * index, 0.0031 * index) for index in range(2001))
    path = re.search(r'class="k".* d="M0 0([^"]*)"', sheet(Stroke((line,), "#000000", 0.1, kind="k")).svg()).group(1)
    x = y = 0
    for letter, numbers in re.findall(r"([hvl])([^hvl]*)", path):
        values = [int(number) for number in re.findall(r"-?\d+", numbers)]
        x += sum(values if letter == "h" else values[::2] if letter == "l" else [])
        y += sum(values if letter == "v" else values[1::2] if letter == "l" else [])
    assert (x, y) == (800, 620)


def test_the_same_sheet_gives_the_same_bytes():
    pytest.importorskip("matplotlib")
    marks = (
        Area(rectangle(1, 1, 5, 5), "#d55e00", 0.5),
        Stroke((((1, 1), (9, 9)),), "#000000", 0.3, dashed=True),
        Label(3, 20, "患者 $x$ <b>", 4, bold=True, halo=True),
    )
    first, second = sheet(*marks), sheet(*marks)
    assert (first.svg(), first.pdf(), first.png()) == (second.svg(), second.pdf(), second.png())
    assert b"CreationDate" not in first.pdf()


def test_areas_have_their_colour_in_the_png():
    pytest.importorskip("matplotlib")
    from PIL import Image

    image = Image.open(io.BytesIO(sheet(Area(rectangle(10, 5, 20, 10), "#0072b2")).png())).convert("RGB")
    assert image.size == (400, 300)
    inside = np.asarray(image)[51:149, 101:299].reshape(-1, 3)
    assert {tuple(pixel) for pixel in inside.tolist()} == {(0, 114, 178)}
    assert np.asarray(image)[:48].min() == 255


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_the_suffix_chooses_the_format(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    made = sheet(Area(rectangle(1, 1, 5, 5), "#000000"))
    data = made.save(tmp_path / f"a.{suffix}").read_bytes()
    assert data == {"svg": made.svg().encode(), "pdf": made.pdf(), "png": made.png()}[suffix]
    assert data.startswith({"svg": b"<svg", "pdf": b"%PDF", "png": b"\x89PNG"}[suffix])
    with pytest.raises(ValueError, match=r"a.gif: got the suffix '.gif', expected .svg, .pdf or .png"):
        made.save(tmp_path / "a.gif")
