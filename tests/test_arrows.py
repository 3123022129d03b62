"""The rooms of medjax and who may import whom, read from the source with ast; nothing is imported to find out.

Verbs (folders with a command) may use every noun; besides, eval uses infer, and plan uses train and infer. Nouns know
no verb: store -> models -> nn and store -> parallel, where a room may use all that lies downstream; the others stand
alone. Everything may use config and assets.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import medjax

ROOT = Path(__file__).resolve().parents[1]

NOUNS = {"nn", "models", "parallel", "data", "statistics", "store", "report"}
SHARED = {"config", "assets"}
ARROWS = {
    "eval": SHARED | NOUNS | {"infer"},
    "plan": SHARED | NOUNS | {"train", "infer"},
    "train": SHARED | NOUNS,
    "infer": SHARED | NOUNS,
    "convert": SHARED | NOUNS,
    "ingest": SHARED | NOUNS,
    "store": SHARED | {"models", "nn", "parallel"},
    "models": SHARED | {"nn"},
    "nn": SHARED,
    "parallel": SHARED,
    "data": SHARED,
    "statistics": SHARED,
    "report": SHARED,
    "assets": {"config"},
    "config": set(),
}
MOST_LINES = 500
NO_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}
NO_PACKAGES = {"torch", "tensorflow"}  # not at module level: an install without them must import everything
ONE_PLACE = {"lm_eval": "medjax/infer/lm_eval.py"}  # packages of an extra that one file is about


def imports(tree: ast.Module, package: str) -> Iterator[tuple[int, str, bool]]:
    """Yield line, dotted name and whether it is at module level, of every import; relative ones are resolved.

    package is the dotted package of the file. `from a import b` yields a.b, since b may be a module. import_module("a")
    and __import__("a") count as well.
    """

    def visit(node: ast.AST, at_module_level: bool) -> Iterator[tuple[int, str, bool]]:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base += [node.module] if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            names = [str(node.args[0].value)] if called in ("import_module", "__import__") else []
        for name in names:
            yield node.lineno, name, at_module_level
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_module_level and not inside)

    yield from visit(tree, True)


def broken_rules(root: Path) -> list[str]:
    """Return one line for each break of the rules in root/medjax: file, line, import, rule."""
    broken = []
    for path in sorted((root / "medjax").rglob("*.py")):
        where = path.relative_to(root).as_posix()
        parts = path.relative_to(root / "medjax").with_suffix("").parts
        room = parts[0]
        if room not in ARROWS and room != "__init__":
            broken.append(f"{where}: {room} is no room; the rooms are {', '.join(sorted(ARROWS))}")
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=where, feature_version=(3, 11))
        except SyntaxError as error:
            broken.append(f"{where}:{error.lineno}: not Python 3.11: {error.msg}")
            continue
        package = ".".join(("medjax", *parts[:-1]))
        for line, name, at_module_level in imports(tree, package):
            at = f"{where}:{line}: {name}:"
            if at_module_level and name.split(".")[0] in NO_PACKAGES:
                broken.append(f"{at} {name.split('.')[0]} is optional; import it inside the function that needs it")
            target = name.split(".")
            if ONE_PLACE.get(target[0], where) != where:
                broken.append(f"{at} only {ONE_PLACE[target[0]]} may import {target[0]}")
            if target[0] != "medjax":
                continue
            if "__main__" in target:
                broken.append(f"{at} nothing imports a __main__")
            if room == "__init__" or target[1:] == ["__version__"]:
                continue
            if len(target) == 1 or target[1] not in ARROWS:
                broken.append(f"{at} import from the module itself, not through the front door medjax/__init__.py")
            elif target[1] not in ARROWS[room] | {room}:
                broken.append(f"{at} {room} may import {', '.join(sorted(ARROWS[room])) or 'no other room'}")
    return broken


def broken_shapes(root: Path, folders: tuple[str, ...] = ("medjax", "tests", "benchmarks", "launch")) -> list[str]:
    """Return one line for each Python file that is too long or has a grab-bag's name."""
    broken = []
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        where = path.relative_to(root)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            broken.append(f"{where.as_posix()}: {lines} lines, expected {MOST_LINES} at most; it holds two ideas")
        if grab_bags := NO_NAMES & set(where.with_suffix("").parts):
            broken.append(f"{where.as_posix()}: named {grab_bags.pop()}; name it by the noun it holds")
    return broken


def test_arrows_between_rooms():
    assert broken_rules(ROOT) == []


def test_file_lengths_and_names():
    assert broken_shapes(ROOT) == []


def test_front_door_shows_names_of_known_rooms_only():
    assert {target.split(":")[0].split(".")[1] for target in medjax._PUBLIC.values()} <= set(ARROWS)


def test_the_arrows_have_no_cycle():
    left = {room: set(to) for room, to in ARROWS.items()}
    while free := [room for room, to in left.items() if not to & set(left)]:
        for room in free:
            del left[room]
    assert left == {}


@pytest.fixture
def house(tmp_path):
    """Write files of a made-up house and return its root."""

    def build(files: dict[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    return build


def test_allowed_imports_pass(house):
    root = house(
        {
            "medjax/__init__.py": "from medjax.eval.run import evaluate",
            "medjax/eval/run.py": "from medjax.infer import scorer\nimport medjax.store.loading\nfrom . import tasks",
            "medjax/plan/step.py": "from medjax.train.loop import step\nfrom ..infer.scorer import Scorer",
            "medjax/store/loading.py": "from ..models import decoder\nfrom medjax import parallel\nimport medjax.nn",
            "medjax/models/decoder.py": "from medjax.nn import rope\nfrom medjax import __version__",
            "medjax/data/qa.py": "from medjax import config\nfrom .. import assets\nimport jaxtorch",
            "medjax/nn/ops.py": "def f():\n    import torch",
        }
    )
    assert broken_rules(root) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "medjax/nn/rope.py",
            "import jax\n\nfrom medjax.data.qa import Item",
            "medjax/nn/rope.py:3: medjax.data.qa.Item: nn may import assets, config",
        ),
        (
            "medjax/models/decoder.py",
            "def f():\n    from medjax import parallel",
            "medjax/models/decoder.py:2: medjax.parallel: models may import assets, config, nn",
        ),
        (
            "medjax/store/hf.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..infer.scorer import Scorer",
            "medjax/store/hf.py:3: medjax.infer.scorer.Scorer: store may import assets, config, models, nn, parallel",
        ),
        (
            "medjax/data/ecg/wfdb.py",
            "from ...report import paper",
            "medjax/data/ecg/wfdb.py:1: medjax.report.paper: data may import assets, config",
        ),
        (
            "medjax/infer/scorer.py",
            "import importlib\nx = importlib.import_module('medjax.eval.tasks')",
            "medjax/infer/scorer.py:2: medjax.eval.tasks: infer may import "
            "assets, config, data, models, nn, parallel, report, statistics, store",
        ),
        (
            "medjax/train/loop.py",
            "from medjax.infer.scorer import Scorer",
            "medjax/train/loop.py:1: medjax.infer.scorer.Scorer: train may import "
            "assets, config, data, models, nn, parallel, report, statistics, store",
        ),
        (
            "medjax/config.py",
            "from medjax import assets",
            "medjax/config.py:1: medjax.assets: config may import no other room",
        ),
        (
            "medjax/eval/run.py",
            "from medjax.eval.__main__ import main",
            "medjax/eval/run.py:1: medjax.eval.__main__.main: nothing imports a __main__",
        ),
        (
            "medjax/eval/run.py",
            "from .__main__ import main",
            "medjax/eval/run.py:1: medjax.eval.__main__.main: nothing imports a __main__",
        ),
        (
            "medjax/eval/run.py",
            "from medjax import Scorer",
            "medjax/eval/run.py:1: medjax.Scorer: "
            "import from the module itself, not through the front door medjax/__init__.py",
        ),
        (
            "medjax/store/hf.py",
            "try:\n    import torch.nn\nexcept ImportError:\n    pass",
            "medjax/store/hf.py:2: torch.nn: torch is optional; import it inside the function that needs it",
        ),
        (
            "medjax/data/text.py",
            "class A:\n    from tensorflow import io",
            "medjax/data/text.py:2: tensorflow.io: tensorflow is optional; import it inside the function that needs it",
        ),
        (
            "medjax/eval/run.py",
            "def f():\n    from lm_eval.utils import env",
            "medjax/eval/run.py:2: lm_eval.utils.env: only medjax/infer/lm_eval.py may import lm_eval",
        ),
        ("medjax/nn/ops.py", "x = (1,\n", "medjax/nn/ops.py:1: not Python 3.11: '(' was never closed"),
        (
            "medjax/extra/x.py",
            "",
            f"medjax/extra/x.py: extra is no room; the rooms are {', '.join(sorted(ARROWS))}",
        ),
    ],
)
def test_each_broken_rule_is_caught(house, name, text, expected):
    assert broken_rules(house({name: text})) == [expected]


def test_long_files_and_grab_bags_are_caught(house):
    root = house(
        {
            "medjax/nn/rope.py": "x = 1\n" * 501,
            "medjax/nn/ops.py": "x = 1\n" * 500,
            "medjax/data/utils.py": "",
            "tests/common/test_x.py": "",
        }
    )
    assert broken_shapes(root) == [
        "medjax/data/utils.py: named utils; name it by the noun it holds",
        "medjax/nn/rope.py: 501 lines, expected 500 at most; it holds two ideas",
        "tests/common/test_x.py: named common; name it by the noun it holds",
    ]
