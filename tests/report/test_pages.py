"""What all pages share: one head, one policy, one look of plots."""

from pathlib import Path

import pytest
from report_pages import Page

import medjax.report
from medjax.report import pages

FOLDER = Path(medjax.report.__file__).parent
TEMPLATES = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.html")}
PAGES = [name for name, text in TEMPLATES.items() if "{% block body %}" in text and name != "page.html"]


def test_head_and_plots_are_written_once():
    assert len(PAGES) == 7
    assert [name for name, text in TEMPLATES.items() if "<!DOCTYPE" in text or "http-equiv" in text] == ["page.html"]
    assert [name for name, text in TEMPLATES.items() if ".plot .cap" in text] == ["plot_style.html"]


@pytest.mark.parametrize("name", PAGES)
def test_every_page_fills_the_blocks_of_the_shared_one(name):
    text = TEMPLATES[name]
    assert text.startswith('{% extends "page.html" %}\n')
    assert [text.count(f"{{% block {block} %}}") for block in ("title", "style", "body")] == [1, 1, 1]


def test_a_page_runs_no_script_unless_its_policy_names_one():
    values = {"train": ["<a>"], "tasks": [], "records": 0, "letters": "0.0", "axis": "", "runs": [], "matches": []}
    values |= {
        "count": 0,
        "unchecked": [],
        "not_alone": [],
        "contexts": False,
        "thresholds": dict.fromkeys(("ngram", "ngram_japanese"), 5),
    }
    values["thresholds"] |= {"containment": 0.35, "jaccard": 0.2}

    def policy(**more):
        root = Page(pages.render("audit.html", values | more)).root
        assert root.one("title").text == "<a>: exam items in training data"
        return root.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]

    assert policy() == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert policy(policy="default-src 'none'; script-src 'sha256-x'") == "default-src 'none'; script-src 'sha256-x'"
