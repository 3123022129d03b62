"""ECG paper: a second is 25 mm and a millivolt 10 mm in the coordinates of every format; what is left out is said."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from predictions import signal
from report_pages import SVG

from medjax.report.attribution import Attribution
from medjax.report.ecg_paper import LEADS, Header, ecg_sheet

RATE = 500
HEADER = Header("1234", 63.0, "female", 72.0, "MAC 5500", "2024-03-02 10:15")


def step(rate=RATE, seconds=10.0):
    """Lead II is 1 mV from 2 s to 3 s and else 0, the other leads are 0 with a bump of 0.1 mV at the start."""
    values = np.zeros((12, round(rate * seconds)))
    values[:, :5] = 0.1
    values[1, :5] = 0.0
    values[1, 2 * rate : 3 * rate] = 1.0
    return values


def tree(sheet):
    return ElementTree.fromstring(sheet.svg())


def millimetres(root):
    """Units of the view box a millimetre of the page."""
    width, height = (float(root.get(key).removesuffix("mm")) for key in ("width", "height"))
    _, _, across, down = map(float, root.get("viewBox").split())
    assert across / width == down / height
    return across / width


def paths(root, kind):
    return [path for path in root.iter(f"{SVG}path") if kind in (path.get("class") or "").split(" ")]


def lines(root, kind):
    """Points in mm of the lines of all paths of a class, by a reader of path commands of its own."""
    found = []
    for path in paths(root, kind):
        x = y = 0.0
        for letter, numbers in re.findall(r"([MlhvzZ])([^MlhvzZ]*)", path.get("d")):
            values = [float(number) for number in re.findall(r"-?\d+", numbers)]
            if letter == "M":
                x, y = values
                found.append([(x, y)])
            elif letter in "hv":
                for value in values:
                    x, y = (x + value, y) if letter == "h" else (x, y + value)
                    found[-1].append((x, y))
            else:
                for dx, dy in zip(values[::2], values[1::2], strict=True):
                    x, y = x + dx, y + dy
                    found[-1].append((x, y))
    scale = millimetres(root)
    return [[(x / scale, y / scale) for x, y in line] for line in found]


def texts(root):
    return [text.text for text in root.iter(f"{SVG}text")]


def box(points):
    xs, ys = zip(*points, strict=True)
    return min(xs), max(xs), min(ys), max(ys)


@pytest.mark.parametrize(("speed", "gain"), [(25, 10), (50, 10), (25, 5), (25, 20)])
def test_a_second_and_a_millivolt_in_the_svg(speed, gain):
    root = tree(ecg_sheet(step(), RATE, HEADER, layout="12x1", speed_mm_s=speed, gain_mm_mv=gain))
    (line,) = lines(root, "II")
    top = min(y for _, y in line)
    plateau = [x for x, y in line if y == top]
    ground = max(y for _, y in line)
    assert ground - top == pytest.approx(gain, abs=0.005)
    assert max(plateau) - min(plateau) == pytest.approx(
        speed * (1 - 1 / RATE), abs=0.011
    )  # first to last sample at 1 mV
    left = min(x for x, _ in line)
    assert min(plateau) - left == pytest.approx(2 * speed, abs=0.011)
    pulse = lines(root, "calibration")[0]
    *_, y0, y1 = box(pulse)
    assert y1 - y0 == pytest.approx(gain, abs=1e-9)
    plateau = [x for x, y in pulse if y == y0]
    assert max(plateau) - min(plateau) == pytest.approx(5.0, abs=1e-9)


def test_the_grid_has_lines_each_millimetre_and_each_five():
    root = tree(ecg_sheet(step(), RATE, HEADER))
    fine, coarse = lines(root, "fine"), lines(root, "coarse")
    across = sorted({line[0][0] for line in coarse if line[0][0] == line[1][0]})
    assert np.diff(across) == pytest.approx(5.0)
    every = sorted({line[0][0] for line in [*fine, *coarse] if line[0][0] == line[1][0]})
    assert np.diff(every) == pytest.approx(1.0)
    left = min(x for x, _ in lines(root, "II")[0])
    assert min(abs(left - x) for x in every) < 1e-9  # the trace starts on a line
    assert (root.get("width"), root.get("height")) == ("297mm", "210mm")


def test_a_second_and_a_millivolt_in_the_pdf():
    matplotlib = pytest.importorskip("matplotlib")
    sheet = ecg_sheet(step(), RATE, HEADER, layout="12x1")
    with matplotlib.rc_context({"pdf.compression": 0}):
        pdf = sheet.pdf().decode("latin-1")
    width, height = map(float, re.search(r"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", pdf).groups())
    assert (width / 72 * 25.4, height / 72 * 25.4) == pytest.approx((297, 210), abs=1e-4)
    (line,) = lines(tree(sheet), "II")
    drawn = [
        [tuple(map(float, point.split())) for point in re.findall(r"([-\d.]+ [-\d.]+) [ml]\b", stroke)]
        for stroke in re.findall(r"((?:[-\d.]+ [-\d.]+ [ml]\s+)+)S", pdf)
    ]
    tall = [points for points in drawn if len(points) == len(line) and max(points)[0] - min(points)[0] > 700]
    (found,) = [points for points in tall if np.ptp([y for _, y in points]) > 28]  # of 12 traces 1 mV is in II
    for (x, y), (x_pt, y_pt) in zip(line, found, strict=True):
        assert (x_pt / 72 * 25.4, 210 - y_pt / 72 * 25.4) == pytest.approx((x, y), abs=0.006)  # svg: whole 0.01 mm
    ys = [y for _, y in found]
    assert (max(ys) - min(ys)) / 72 * 25.4 == pytest.approx(10.0, abs=1e-4)


def test_a_second_and_a_millivolt_in_the_png():
    pytest.importorskip("matplotlib")
    from PIL import Image

    sheet = ecg_sheet(step(), RATE, HEADER, layout="12x1")
    data = sheet.png()
    at = data.index(b"pHYs")
    assert data[at + 4 : at + 13] == (10_000).to_bytes(4, "big") * 2 + b"\x01"  # pixels a metre: 10 a millimetre
    image = Image.open(io.BytesIO(data))
    assert image.size == (2970, 2100)
    dark = np.asarray(image.convert("L")) < 90
    (line,) = lines(tree(sheet), "II")
    left, _, top, bottom = box(line)

    def middle_row(seconds):
        """Row of the trace in the column of a time, by the centre of its dark pixels."""
        column = dark[round(10 * top) - 20 : round(10 * bottom) + 20, round(10 * (left + 25 * seconds))]
        return np.flatnonzero(column).mean()

    assert middle_row(1.5) - middle_row(2.5) == pytest.approx(100, abs=0.6)
    row = dark[round(10 * (top + bottom) / 2)]
    edges = np.flatnonzero(row[round(10 * (left + 45)) : round(10 * (left + 80))])
    assert edges.max() - edges[edges < 100].max() == pytest.approx(250, abs=2)


def test_every_sample_lies_within_a_hundredth_of_a_millimetre_of_what_is_drawn():
    values = signal() + np.random.default_rng(0).normal(0, 0.03, (12, 5000))
    root = tree(ecg_sheet(values, RATE, HEADER, layout="12x1"))
    for lead, row in zip(LEADS, values, strict=True):
        (line,) = lines(root, lead)
        xs, ys = np.array(line).T
        time = xs[0] + np.arange(5000) / RATE * 25
        height = (row - np.median(row)) * 10
        base = np.median(np.interp(time, xs, ys) + height)
        # 0.01 mm by thinning, and half of 0.01 mm by the units for each of both ends
        assert np.abs(np.interp(time, xs, ys) - (base - height)).max() < 0.025, lead
    smooth = tree(ecg_sheet(signal(), RATE, HEADER, layout="12x1"))
    assert len(lines(smooth, "II")[0]) < 1500


def test_columns_follow_each_other_and_the_rhythm_strip_takes_all():
    values = np.tile(np.arange(5000) / 5000, (12, 1))  # a ramp of 0.1 mV a second tells the time
    root = tree(ecg_sheet(values, RATE, HEADER))
    for lead, column in (("I", 0), ("aVR", 1), ("V1", 2), ("V4", 3)):
        (line,) = lines(root, lead)
        x0, x1, y0, y1 = box(line)
        assert x0 == pytest.approx(28.5 + 62.5 * column, abs=0.011)
        # the last column ends a sample earlier: there are 5000, and the last is at 9.998 s
        assert x1 - x0 == pytest.approx(62.5 - 0.05 * (column == 3), abs=0.011)
        assert y1 - y0 == pytest.approx(2.5, abs=0.011)
    column, strip = sorted(lines(root, "II"), key=len) if len(lines(root, "II")[0]) < 3 else lines(root, "II")
    assert {round(box(line)[1] - box(line)[0], 1) for line in (column, strip)} == {62.5, 249.9}
    assert [t for t in texts(root) if t in LEADS] == [
        *("I", "aVR", "V1", "V4", "II", "aVL", "V2", "V5", "III", "aVF", "V3", "V6", "II")
    ]
    assert len(lines(root, "separator")) == 2 * 9
    six = tree(ecg_sheet(values, RATE, HEADER, layout="6x2"))
    assert [t for t in texts(six) if t in LEADS] == [
        *("I", "V1", "II", "V2", "III", "V3", "aVR", "V4", "aVL", "V5", "aVF", "V6")
    ]


def test_what_part_is_drawn_is_said():
    long = ecg_sheet(signal(57.9), RATE, HEADER, start_s=12.5)
    assert "12.5 to 22.5 s of 57.9 s · 500 Hz · as recorded · each strip about its median" in texts(tree(long))
    assert "12.5 to 22.5 s of 57.9 s" in long.description
    fast = ecg_sheet(signal(), RATE, Header("1", filters="0.5 to 40 Hz"), speed_mm_s=50)
    assert "0 to 5 s of 10 s · 500 Hz · 0.5 to 40 Hz · each strip about its median" in texts(tree(fast))
    wide = ecg_sheet(signal(), RATE, HEADER, speed_mm_s=50, seconds=10)
    assert "all 10 s" in " ".join(texts(tree(wide)))
    assert wide.width_mm == 547  # 500 mm of trace


def test_a_short_record_shows_each_lead_for_as_long_as_the_column_and_says_when():
    root = tree(ecg_sheet(signal(7.3), RATE, HEADER))
    assert "columns of 2.5 s start at 0, 1.6, 3.2, 4.8 s" in texts(root)
    for lead in ("I", "V4", "V6"):
        x0, x1, *_ = box(lines(root, lead)[0])
        assert x1 - x0 == pytest.approx(62.5, abs=0.06)
    very = tree(ecg_sheet(signal(1.5), RATE, HEADER))
    assert {round(box(line)[1] - box(line)[0], 1) for line in lines(very, "trace")} <= {37.4, 37.5}  # 750 samples


def test_leads_that_are_not_there_are_named_and_gaps_stay_gaps():
    values = signal()
    values[8], values[9] = np.nan, np.nan
    values[3, 2000:2100] = np.nan
    status = ["measured"] * 12
    status[8], status[9], status[2] = "missing", "flat", "derived"
    root = tree(ecg_sheet(values, RATE, HEADER, status=status))
    shown = texts(root)
    assert "V3 not recorded" in shown
    assert "V4 flat line, not drawn" in shown
    assert "III derived" in shown
    assert lines(root, "V3") == lines(root, "V4") == []
    assert len(lines(root, "empty")) == 2
    before, after = lines(root, "aVR")
    assert after[0][0] - before[-1][0] == pytest.approx(101 / RATE * 25, abs=0.02)
    no_second = signal()
    no_second[1] = np.nan
    strips = texts(tree(ecg_sheet(no_second, RATE, HEADER)))
    assert strips.count("V1") == 2  # the rhythm strip falls back
    assert strips.count("II not recorded") == 1


def test_a_lead_that_is_not_measured_in_its_column_says_so():
    values = signal()
    values[11, 3000:] = np.nan
    assert "V6 not measured here" in texts(tree(ecg_sheet(values, RATE, HEADER)))


def test_traces_stay_apart_where_the_sheet_has_room_and_a_crowd_is_said():
    root = tree(ecg_sheet(signal() * 3, RATE, HEADER))  # V6 of 3.6 mV
    assert not any("run over" in text for text in texts(root))
    bottoms = {lead: box(lines(root, lead)[0])[3] for lead in ("V4", "V5")}
    tops = {lead: box(lines(root, lead)[0])[2] for lead in ("V5", "V6")}
    assert bottoms["V4"] < tops["V5"] < bottoms["V5"] < tops["V6"]
    crowd = tree(ecg_sheet(signal() * 3, RATE, HEADER, layout="12x1"))
    assert "traces run over each other at this gain" in texts(crowd)


def test_what_is_cut_off_is_marked_at_its_place():
    values = signal()
    values[7, 3000] = -9.0  # V2 at 6 s: 90 mm down
    root = tree(ecg_sheet(values, RATE, HEADER))
    assert "▲▼ cut off: V2" in texts(root)
    (mark,) = lines(root, "cut")
    x0, x1, _, y1 = box(mark)
    assert (x0 + x1) / 2 == pytest.approx(28.5 + 6.0 * 25, abs=0.02)
    assert y1 <= 190
    assert max(y for _, y in lines(root, "V2")[0]) == pytest.approx(y1, abs=0.011)


def test_a_single_lead_has_a_row_of_its_own():
    root = tree(ecg_sheet(signal(leads=1), RATE, Header("w"), leads=["II"], layout="measured"))
    assert [text for text in texts(root) if text in LEADS] == ["II"]
    assert "age not known · sex not known" in texts(root)


def test_bands_of_an_attribution_stand_where_their_seconds_are():
    weights = np.zeros((12, 20))
    weights[1, 3], weights[1, 4], weights[1, 10] = 0.95, 0.85, -0.45  # 0.5 s each
    weights[6, 11] = 0.19  # blank
    root = tree(ecg_sheet(signal(), RATE, HEADER, attribution=Attribution(weights, 0.5)))
    legend = 2 * 4 * 2
    bands = lines(root, "weight")
    assert len(bands) + len(lines(root, "sign")) == 6 + legend  # lead II: its column (0 to 2.5 s) and the rhythm strip
    first = [box(band) for band in bands if band[0][1] < 190]
    assert sorted({(round(b[0], 2), round(b[1] - b[0], 2)) for b in first}) == [(66.0, 25.0), (153.5, 12.5)]
    colours = [p.get("fill") for p in paths(root, "weight")]
    assert set(colours) == {"#d55e00", "#0072b2"}
    strength = {p.get("fill"): float(p.get("fill-opacity")) for p in paths(root, "weight")[:3]}
    assert strength["#d55e00"] > strength["#0072b2"]
    assert {"raises the probability", "lowers it"} < set(texts(root))
    for path, line in zip(paths(root, "sign"), lines(root, "sign"), strict=True):
        inside = [box(b) for b in bands if box(b)[0] == box(line)[0] and box(b)[2] <= box(line)[2] <= box(b)[3]]
        y0, y1 = inside[0][2:]
        assert (box(line)[2] == pytest.approx(y0)) == (path.get("fill") == "#d55e00")
        assert (box(line)[3] == pytest.approx(y1)) == (path.get("fill") == "#0072b2")


def test_a_map_without_a_sign_has_no_lines_that_tell_it():
    weights = np.zeros((12, 20))
    weights[1, 3] = 0.9
    root = tree(ecg_sheet(signal(), RATE, HEADER, attribution=Attribution(weights, 0.5)))
    assert len(lines(root, "weight")) == 2 + 4  # the column, the rhythm strip and the legend
    assert lines(root, "sign") == []


def test_an_underlaid_trace_is_the_trace_itself():
    weights = np.zeros((12, 5000))
    weights[0, 500:600] = 1.0
    root = tree(ecg_sheet(signal(), RATE, HEADER, layout="6x2", attribution=Attribution(weights, 1 / RATE, "trace")))
    under = lines(root, "weight")[0]
    assert box(under)[0] == pytest.approx(28.5 + 25.0, abs=0.02)
    assert box(under)[1] == pytest.approx(28.5 + 30.0, abs=0.02)
    xs, ys = np.array(lines(root, "I")[0]).T
    for x, y in under:
        assert np.interp(x, xs, ys) == pytest.approx(y, abs=0.03)
    assert "lowers it" not in texts(root)  # nothing does


def test_text_of_a_record_is_escaped_and_nothing_is_loaded():
    svg = ecg_sheet(signal(), RATE, Header("<script>&患者", device="</svg>")).svg()
    root = ElementTree.fromstring(svg)
    assert "<script>&患者" in texts(root)
    assert not re.search(r"(href|src)=|url\(", svg)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "4x3"}, r"layout: got '4x3', expected one of 3x4, 6x2, 12x1, measured"),
        ({"speed_mm_s": 30}, r"speed_mm_s: got 30, expected one of 25.0, 50.0"),
        ({"gain_mm_mv": 1}, r"gain_mm_mv: got 1, expected one of"),
        ({"start_s": 10}, r"start_s: got 10, expected 0 to 10 s, the record's length"),
        ({"seconds": 0.0}, r"seconds: got 0, expected more than 0 s"),
        ({"leads": ["I"]}, r"signal: got shape \(12, 5000\) at 500 Hz with 1 lead names"),
        ({"leads": [*LEADS[:11], "X"]}, r"leads: got X, expected names out of I, II"),
        ({"status": ["measured"]}, r"status: got 1 words, expected 12"),
        ({"attribution": Attribution(np.zeros((3, 4)), 1.0)}, r"attribution.weights: got 3 rows, expected 12"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ecg_sheet(signal(), RATE, HEADER, **change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.full((12, 4), 2.0), 1.0), r"values up to 2, expected \[leads, stretches\] in \[-1, 1\]"),
        ((np.zeros((12, 4)), 0.0), r"Attribution.seconds: got 0, expected more than 0 s"),
        ((np.zeros((12, 4)), 1.0, "dots"), r"Attribution.form: got 'dots', expected one of bands, trace"),
    ],
)
def test_an_attribution_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Attribution(*arguments)
