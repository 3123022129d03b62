"""The report of a training run: what is drawn and written is what the logs say, and nothing in it can act."""

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from medjax.report import training
from medjax.report.training import loss_figure, training_report

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</style></title><script>alert('x')</script>{{ 7 * 7 }}"


def lines(count=200, every=10):
    """Losses that fall from 3 towards 1, with a ripple, and a learning rate that falls to zero."""
    return [
        {
            **{"step": step, "loss": 1 + 2 * math.exp(-step / 300) + 0.05 * (-1) ** (step // every)},
            **{"learning_rate": 2e-4 * (1 - step / (count * every)), "mfu": 0.31, "time": 1.0},
            **{"tokens_per_s": 800.0, "computed_tokens_per_s": 1000.0, "process_memory_gib": 1 + step / 10000},
        }
        for step in range(every, count * every + 1, every)
    ]


HELD_OUT = [
    {"step": 0, "loss": 3.0, "nll": 3.0, "accuracy": 0.25, "counted_tokens": 3000.0, "time": 1.0},
    {"step": 1000, "loss": 1.2, "nll": 1.2, "accuracy": 0.5, "counted_tokens": 3000.0, "time": 2.0},
    {"step": 2000, "loss": 1.25, "nll": 1.25, "accuracy": 0.625, "counted_tokens": 3000.0, "time": 3.0},
]
RUN = {
    **{"name": "sft run", "date": 1763755980.2, "metrics": lines(), "held_out": HELD_OUT, "devices": "8 x cpu"},
    "model": {"name": "SmolLM2", "parameters": 134515008, "trained": "LoRA, rank 16", "trained_parameters": 4884480},
    "wall": {"step": 75.0, "data": 0.0, "compile": 20.0, "save": 5.0},
    "data": {"train": {"documents": 5200, "truncated": 12}, "files": {"医師国試.jsonl": "ab" * 32}},
    "settings": {"train": {"steps": 2000, "seed": 7}, "optimizer": {"learning_rate": 2e-4}},
    "record": {"versions": {"jax": "0.10.2"}},
    "command": "python -m medjax.train x.toml --out a&b",
}


class Words(HTMLParser):
    """The text of a page, and which tags it has."""

    def __init__(self, html):
        super().__init__()
        self.words, self.tags, self.rows, self.open = [], set(), [], []
        self.feed(html)
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and "style" not in self.open:
            self.words.append(" ".join(data.split()))
            if "tr" in self.open:
                self.rows[-1].append(self.words[-1])


def figure(*args, **more):
    return ElementTree.fromstring(loss_figure(*args, **more))


def curve(tree, kind):
    """Points of the longest curve of a kind (the others are marks of the legend)."""
    paths = [path.get("d") for path in tree.iter(f"{SVG}path") if kind in path.get("class").split()]
    points = [[tuple(map(float, point.split(","))) for point in path[1:].split(" ")] for path in paths]
    return max(points, key=len)


def texts(tree, kind):
    return [text.text for text in tree.iter(f"{SVG}text") if text.get("class") == kind]


def axis(tree):
    """Map from pixels to (step, loss), read off the labels of the axes."""
    labels = [text for text in tree.iter(f"{SVG}text") if text.get("class") == "muted"]
    at = {text.text.replace(",", ""): (float(text.get("x")), float(text.get("y"))) for text in labels}
    (x0, _), (x1, _) = at["0"], at["1000"]
    (_, y1), (_, y2) = at["1"], at["2"]
    return lambda x, y: (1000 * (x - x0) / (x1 - x0), 1 + (y - (y1 - 4)) / ((y2 - 4) - (y1 - 4)))


def test_curves_stand_where_the_axes_say():
    metrics = lines()
    tree = figure(metrics, HELD_OUT, "sft run")
    read = axis(tree)
    logged = [read(*point) for point in curve(tree, "light")]
    assert len(logged) == len(metrics)
    for (step, loss), line in zip(logged[5:], metrics[5:], strict=True):
        assert step == pytest.approx(line["step"], abs=1)
        assert loss == pytest.approx(line["loss"], abs=0.01)
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in tree.iter(f"{SVG}circle")][-3:]
    for (x, y), line in zip(dots, HELD_OUT, strict=True):
        assert read(x, y)[0] == pytest.approx(line["step"], abs=1)
        assert read(x, y)[1] == pytest.approx(line["loss"], abs=0.01)
    assert texts(tree, "held") == ["3.000", "1.250"]  # where it began and ended
    assert texts(tree, "ink") == ["sft run"]


def test_smoothing_does_not_lag_and_shrugs_off_a_spike():
    falling = [(step, 3 - step / 100) for step in range(200)]
    smooth, width = training._smoothed(falling)
    assert width == 13
    for (_, expected), (_, mean) in zip(falling[:-7], smooth[:-7], strict=True):
        assert mean == pytest.approx(expected, abs=1e-12)
    spiked = [(step, 50.0 if step == 100 else 1.0) for step in range(200)]
    assert {mean for _, mean in training._smoothed(spiked)[0]} == {1.0}
    assert training._smoothed(falling[:8]) == (falling[:8], 1)  # too few to smooth


def test_a_spike_is_cut_off_and_a_lost_loss_is_marked():
    metrics = lines()
    metrics[60]["loss"], metrics[70]["loss"] = 500.0, None
    tree = figure(metrics)
    read = axis(tree)
    assert read(*curve(tree, "light")[60])[1] < 4  # the top of the panel
    crosses = [text for text in tree.iter(f"{SVG}text") if text.text == "✕"]
    assert len(crosses) == 2  # legend and mark
    assert read(float(crosses[1].get("x")), 0)[0] == pytest.approx(metrics[70]["step"], abs=1)
    assert "not finite" in texts(tree, "muted")


def test_the_learning_rate_is_drawn_below_to_its_own_scale():
    tree = figure(lines())
    assert "learning rate, up to 0.000199 at the steps that were logged" in texts(tree, "muted")
    points = [y for _, y in curve(tree, "muted")]
    assert points[0] == 330.0  # the top of its panel
    assert points[-1] == 374.0
    assert max(y for _, y in curve(tree, "light")) < 330


@pytest.mark.parametrize(
    ("metrics", "held_out"),
    [([{"step": 1, "loss": 2.0}], []), ([], [{"step": 0, "loss": 2.0}]), ([{"step": 1, "loss": None}], [])],
)
def test_a_run_that_has_hardly_begun_is_drawn(metrics, held_out):
    assert figure(metrics, held_out).tag == f"{SVG}svg"


def test_no_line_is_an_error():
    with pytest.raises(ValueError, match=r"got no line with a step, expected those of metrics\.jsonl"):
        loss_figure([], [])


def test_the_page_says_what_the_logs_say():
    page = Words(training_report(RUN))
    text = " | ".join(page.words)
    assert "Training report · 2025-11-21 20:13 UTC | sft run" in text
    for fact in (
        "Held-out loss | 3.000 → 1.250",
        "Trained | LoRA, rank 16, 4.884\u00a0M weights".replace("\u00a0", " "),
        *("Steps | 2,000", "Devices | 8 x cpu", "Wall time | 1 min 40 s"),
    ):
        assert fact in text
    assert ["Step", "Loss", "Change", "Perplexity", "Accuracy", "Counted tokens"] in page.rows
    assert ["before", "0", "3.0000", "20.09", "0.25", "3,000"] in page.rows
    assert ["best", "1,000", "1.2000", "−1.8000", "3.32", "0.5", "3,000"] in page.rows
    assert ["after", "2,000", "1.2500", "−1.7500", "3.49", "0.625", "3,000"] in page.rows
    assert ["Real tokens a second (median)", "800"] in page.rows
    assert ["Computed tokens a second, padding included", "1,000 (80.0 % real)"] in page.rows
    assert ["Model FLOPs utilisation (MFU)", "31.0 %"] in page.rows
    assert ["Most memory of the process", "1.20 GiB"] in page.rows
    spans = [row for row in page.rows if row and row[0] in training._SPANS.values()]
    assert spans == [
        *(["steps", "75.0 %", "1 min 15 s"], ["compiling", "20.0 %", "20.0 s"], ["saving", "5.0 %", "5.0 s"])
    ]
    for row in (
        *(["train.documents", "5,200"], ["files.医師国試.jsonl", "ab" * 32], ["train.seed", "7"]),
        *(["optimizer.learning_rate", "0.0002"], ["versions.jax", "0.10.2"]),
    ):
        assert row in page.rows
    assert "python -m medjax.train x.toml --out a&b" in text


def test_the_page_loads_nothing_and_nothing_in_it_acts():
    run = {**RUN, "name": HOSTILE, "status": HOSTILE, "settings": {HOSTILE: HOSTILE}, "data": {"files": [HOSTILE]}}
    html = training_report(run)
    page = Words(html)
    assert not {"script", "img", "link", "iframe", "object"} & page.tags
    assert not re.search(r"(src|href)=|url\(|@import", html)
    assert HOSTILE in page.words
    assert "default-src 'none'" in html


def test_a_run_that_was_stopped_says_so_without_what_it_lacks():
    page = Words(training_report({"name": "run", "metrics": lines(3), "status": "stopped early at step 30"}))
    assert "stopped early at step 30" in page.words
    assert not {"Held-out data", "Data", "Where the time went"} & set(page.words)


def test_the_last_evaluation_may_be_the_best():
    page = Words(training_report({"name": "run", "metrics": lines(3), "held_out": HELD_OUT[:2]}))
    assert [row[0] for row in page.rows if row[0] in ("before", "best", "after", "after, and best")] == [
        *("before", "after, and best")
    ]


def test_an_encoder_has_its_own_loss_and_no_perplexity():
    run = {**RUN, "loss_unit": "squared error of masked patches", "held_out": HELD_OUT[:2]}
    run["metrics"] = [{"step": line["step"], "loss": line["loss"], "records_per_s": 11.5} for line in RUN["metrics"]]
    page = Words(training_report(run))
    assert ["Step", "Loss", "Change", "Accuracy", "Counted tokens"] in page.rows
    assert ["after, and best", "1,000", "1.2000", "−1.8000", "0.5", "3,000"] in page.rows
    assert ["Records a second (median)", "11.5"] in page.rows
    text = " ".join(page.words)
    assert "loss, squared error of masked patches" in text
    assert "Loss: squared error of masked patches." in text


ECG = {
    "digest": "ab" * 32,
    "sets": {"train": {"records": 1200, "patients": 1100}, "test": {"records": 60, "patients": 58}},
    "targets": {
        "lvsd": {"kind": "binary", "train": {"records": 1200, "mean": 0.125}, "test": {"records": 0, "mean": None}},
        "age": {"kind": "regression", "train": {"records": 900, "mean": 61.25}, "test": {"records": 60, "mean": 58.0}},
    },
    "rows_per_epoch": 1200,
    "fill": 1.0,
}


def encoder_run(objective, counted):
    held_out = [{"step": step, "loss": loss, counted: 49.0} for step, loss in ((0, 0.7), (20, 0.5))]
    metrics = [{"step": 20, "loss": 0.4, counted: 32.0, "records_per_s": 11.5, "computed_records_per_s": 11.5}]
    settings = {"objective": objective, "finetune": {"start": "runs/train/mae"}}
    return {"name": "run", "metrics": metrics, "held_out": held_out, "settings": settings, "data": ECG}


@pytest.mark.parametrize(
    ("objective", "counted", "unit"),
    [
        ("mae", "counted_patches", "squared error of masked patches"),
        ("classify", "counted_labels", "cross-entropy, mean over known labels"),
        ("regress", "counted_labels", "squared error in SD², mean over known labels"),
    ],
)
def test_the_loss_of_an_encoder_is_told_by_what_it_counts(objective, counted, unit):
    page = Words(training_report(encoder_run(objective, counted)))
    text = " ".join(page.words)
    assert f"loss, {unit}" in text
    assert f"Loss: {unit}." in text
    assert "token" not in text
    assert "Perplexity" not in text
    assert ("Encoder from runs/train/mae" in text) == (objective != "mae")
    assert ["Step", "Loss", "Change", counted.replace("_", " ").capitalize()] in page.rows
    assert ["Records a second (median)", "11.5"] in page.rows
    run = encoder_run(objective, counted)
    expected = unit if objective == "mae" else "mean over known labels"  # the figure knows the lines only
    assert f"loss, {expected}" in texts(figure(run["metrics"], run["held_out"]), "muted")


def test_sets_of_patients_and_labels_have_tables():
    page = Words(training_report(encoder_run("classify", "counted_labels")))
    for row in (
        *(["Set", "Records", "Patients"], ["train", "1,200", "1,100"], ["test", "60", "58"]),
        ["Target", "Kind", "train", "test"],
        ["lvsd", "binary", "12.5 % of 1,200", "–"],
        ["age", "regression", "mean 61.25 of 900", "mean 58 of 60"],
        *(["digest", "ab" * 32], ["rows_per_epoch", "1,200"]),
    ):
        assert row in page.rows
    assert "fill" not in page.words


def test_reconstructions_are_shown_as_they_are():
    run = encoder_run("mae", "counted_patches")
    assert "Reconstructions" not in Words(training_report(run)).words
    page = Words(training_report({**run, "reconstructions": ["<svg><text>JS00001</text></svg>"] * 2}))
    assert page.words.count("JS00001") == 2
    assert "Reconstructions" in page.words
