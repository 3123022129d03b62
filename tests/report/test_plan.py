"""The picture of a search: every near way a dot, the front a line, the device's memory, the best with its figures."""

import re

from medjax.report.plan import pareto_figure

WAYS = [(4.0, 10.0), (8.0, 8.0), (9.0, 9.0), (20.0, 7.0), (5.0, 40.0), (90.0, 8.0)]


def test_dots_line_and_limit():
    """What is more than twice as slow as the fastest, or twice as large as a device, is left out."""
    figure = pareto_figure(WAYS, [WAYS[0], WAYS[1], WAYS[3]], [(8.5, 8.2)], (8.5, 8.2), 16.0, "v5e:4x4")
    assert "4 ways to run, by arithmetic; 1 of them compiled; a device has 16.00 GiB" in figure
    marks = figure[figure.index("<g ") :]
    assert len(re.findall('class="muted dot"', marks)) == 4
    assert len(re.findall('class="held dot"', marks)) == 1
    assert len(re.findall('class="ink dot"', marks)) == 1
    assert "8.2 ms, 8.5 GiB" in marks
    line = re.search('class="accent curve" d="M([^"]*)"', marks)[1].split()
    assert len(line) == 3
    assert float(line[0].split(",")[0]) < float(line[1].split(",")[0]) < float(line[2].split(",")[0])
    limit = re.search('class="bad curve" d="M([^"]*)"', marks)[1].split()
    assert {point.split(",")[0] for point in limit} == {f"{46 + 338 * 16 / (1.05 * 20):.1f}"}


def test_ways_stay_in_the_picture_beside_much_faster_or_slower_compiled_ones():
    """The axis holds all that the legend counts: a compiled way may be far from arithmetic."""
    for compiled in ((8.5, 1.0), (8.5, 100.0)):
        figure = pareto_figure(WAYS, WAYS[:2], [compiled], compiled, 16.0, "v5e:4x4")
        assert "4 ways to run, by arithmetic" in figure
        heights = [float(y) for y in re.findall('class="muted dot" cx="[^"]*" cy="([^"]*)"', figure)][-4:]
        assert len(set(heights)) == 4  # none is held at the axis's end


def test_a_device_whose_memory_is_not_known_and_nothing_that_fits():
    figure = pareto_figure(WAYS[:3], WAYS[:2], [], None, 0.0, "cpu:8")
    assert "the best" not in figure
    assert "the device" not in figure
    assert pareto_figure([], [], [], None, 0.0, "cpu:8").startswith("<svg")
