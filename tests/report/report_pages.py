"""Pages of the report taken apart, and results as medjax.eval writes them."""

import re
from html.parser import HTMLParser

from medjax.report.exam import exam_report

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "link", "br", "img", "input"}


class Node:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent, self.children = tag, attributes, parent, []

    def all(self, tag, **attributes):
        """Descendants with a tag ("*": any); attributes must hold the words given, class_ stands for class."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                wanted = all(w in (child.attributes.get(k.rstrip("_")) or "").split() for k, w in attributes.items())
                found += [child] if tag in ("*", child.tag) and wanted else []
                found += child.all(tag, **attributes)
        return found

    def one(self, tag, **attributes):
        (found,) = self.all(tag, **attributes)
        return found

    @property
    def text(self):
        parts = [child.text if isinstance(child, Node) else child for child in self.children]
        return " ".join(" ".join(parts).split())


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.root = self.at = Node("root", {}, None)
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        node = Node(tag, dict(attrs), self.at)
        self.at.children.append(node)
        if tag not in VOID:
            self.at = node

    def handle_startendtag(self, tag, attrs):
        self.at.children.append(Node(tag, dict(attrs), self.at))

    def handle_endtag(self, tag):
        assert tag == self.at.tag, f"</{tag}> closes <{self.at.tag}>"
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.children.append(data)


def page(results):
    parsed = Page(exam_report(results))
    assert parsed.at is parsed.root, "an element is left open"
    return parsed.root


def cells(table):
    """Text of the rows of a table's body, one list a row."""
    return [[c.text for c in row.children if isinstance(c, Node)] for row in table.one("tbody").all("tr")]


def numbers(text):
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", text)]


def total(correct, items, points=None, points_total=None):
    points, points_total = (correct, items) if points is None else (points, points_total)
    share = {"accuracy": correct / items if items else None, "points_share": points / points_total if items else None}
    return {"items": items, "correct": correct, "points": points, "points_total": points_total, **share}


def score(correct=46, items=120, interval=(0.3, 0.475), *, verdict=None, **more):
    """Scores as medjax.eval.scoring.aggregate writes them."""
    made = {
        **total(correct, items, 57.5, 144),
        "accuracy_interval": list(interval),
        "points_share_interval": [0.3, 0.5],
        **{"required_points": 30, "required_total": 72, "general_points": 27.5, "general_total": 72},
        **{"prohibited": 2, "prohibited_ids": ["q1", "q7"], "unparsed": 3, "withdrawn": 0},
        "chance": {"accuracy": 0.17, "points": 25.2},
        "text_only": total(correct, items),
        "by_section": {"general": total(28, 72), "required": total(18, 48)},
        "by_category": {"免疫": total(0, 1), "循環器": total(2, 8), "神経": total(4, 8)},
        **more,
    }
    return made | ({"verdict": verdict} if verdict else {})


FAIL = {
    "result": "fail",
    "reasons": ["required 30 of 72 points, 58 needed", "general 27.5 of 72 points, 51 needed"],
    **{"required_min": 58, "general_min": 51, "prohibited_max": 3},
}


def evaluation(number=0, scores=None, **more):
    return {
        "id": f"mini_ja_strict-{number}shot",
        **{"task": "mini", "language": "ja", "protocol": f"strict-{number}shot", "n_items": 120, "limit": None},
        "scores": scores or score(by_exam={"mini": score(verdict=FAIL)}),
        "data": {"files": {"mini_ja.jsonl": "ab" * 32}, "digest": "cd" * 32, "note": "the exam", "dropped": {}},
        "prompt_digest": "ef" * 32,
        "work": {"tokens_computed": 1234567, "tokens_saved": 3765433, "tokens_requested": 5000000, "wall_seconds": 9.5},
        **more,
    }


def results(*evaluations, **more):
    return {
        "date": 1763755980.2,
        "medjax": {
            "command": "python -m medjax.eval --tasks mini",
            "model": {"name": "SmolLM2-135M-Instruct", "digest": "12" * 32, "parameters": 134515008}
            | {"dtype": "float32", "tokenizer_digest": "34" * 32},
            "versions": {"medjax": "0.1.0", "jax": "0.10.2"},
            **{"devices": "8 x cpu", "seed": 7, "wall_seconds": 3723.4},
            "evaluations": list(evaluations) or [evaluation()],
            **more,
        },
    }
