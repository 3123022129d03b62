"""The checks of an attribution, drawn: curves stand where their numbers are, and a map that is too alike turns red."""

import re
from xml.etree import ElementTree

import numpy as np
from predictions import explanation
from report_pages import SVG
from test_curves import Figure, near

from medjax.report.soundness import deletion_figure, randomisation_figure


def test_the_output_as_tokens_are_taken_away():
    check = explanation()["deletion"]
    figure = Figure(deletion_figure(check, "probability"))
    near(max(figure.curves("held"), key=len), list(zip(check["shares"], check["ordered"], strict=True)))
    near(figure.curves("muted")[0], list(zip(check["shares"], check["random"].mean(0), strict=True)))
    (band,) = figure.curves("muted", "area")
    low, high = np.quantile(check["random"], [0.025, 0.975], axis=0)
    near(band, [*zip(check["shares"], high, strict=True), *list(zip(check["shares"], low, strict=True))[::-1]])
    assert "in 40 random orders" in figure.root.find(f"{SVG}desc").text


def test_years_are_not_written_as_shares():
    check = {"shares": [0, 0.5], "ordered": [70.0, 40.0], "random": [[70.0, 60.0], [70.0, 64.0]]}
    svg = deletion_figure(check, "age", share=False)
    texts = [t.text for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert {"age", "40", "70"} <= set(texts)
    assert "age, %" not in texts


def test_likeness_to_shuffled_models():
    good, bad = (randomisation_figure(explanation(passed)["randomisation"]) for passed in (True, False))
    root = ElementTree.fromstring(good)
    dots = [(c.get("class"), float(c.get("cx"))) for c in root.iter(f"{SVG}circle")]
    places = {t.text: float(t.get("x")) for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "middle"}
    read = [(x - places["0"]) / (places["1"] - places["0"]) for _, x in dots]
    assert [round(value, 2) for value in read] == [0.8, 0.45, 0.2, 0.1]
    assert {kind for kind, _ in dots} == {"accent dot"}
    assert re.findall(r'circle class="(\w+)', bad) == ["accent", "accent", "accent", "bad"]
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert {"head", "+ layers 7 to 12", "+ embedding", "0.45"} <= set(texts)
