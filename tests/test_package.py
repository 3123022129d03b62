"""The front door: what `import medjax` costs, what it shows, and how fast a command answers --help."""

import ast
import importlib
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import medjax

ROOT = Path(__file__).resolve().parents[1]

HEAVY = ("jax", "numpy", "flax", "torch", "tensorflow")


def run_python(*arguments: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return time.perf_counter() - start, done


def shortest_seconds(*arguments: str, runs: int) -> float:
    """The least of several wall times: what the work costs, without what else the machine did meanwhile."""
    times = []
    for _ in range(runs):
        seconds, done = run_python(*arguments)
        assert done.returncode == 0, done.stderr
        times.append(seconds)
    return min(times)


def test_import_takes_under_a_fifth_of_a_second():
    bare = shortest_seconds("-c", "pass", runs=5)
    assert shortest_seconds("-c", "import medjax", runs=5) - bare < 0.2


@pytest.mark.parametrize("module", ["medjax", "medjax.config", "medjax.data.qa"])
def test_light_modules_leave_heavy_packages_alone(module):
    _, done = run_python("-c", f"import {module}, sys; print([m for m in {HEAVY} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_is_the_object_of_its_module():
    assert sorted(medjax.__all__) == sorted(medjax._PUBLIC)
    for name, target in medjax._PUBLIC.items():
        module, _, attribute = target.partition(":")
        assert getattr(medjax, name) is getattr(importlib.import_module(module), attribute), name
        assert name in dir(medjax)


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(AttributeError) as caught:
        medjax.load_modle  # noqa: B018
    assert str(caught.value) == (
        "module medjax has no name load_modle; did you mean load_model? "
        "Public names are EcgModel, Generator, Item, Scorer, evaluate, load_config, load_model, read_ecg."
    )


def test_version_is_the_one_in_pyproject():
    assert f'version = "{medjax.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", ["eval", "train", "infer", "convert"])
def test_help_answers_within_a_second(verb):
    assert (ROOT / "medjax" / verb / "__main__.py").is_file()
    assert shortest_seconds("-m", f"medjax.{verb}", "--help", runs=3) < 1.0
    _, done = run_python("-m", f"medjax.{verb}", "--help")
    assert done.stdout.startswith(f"usage: python -m medjax.{verb} [CONFIG.toml]")
    assert done.stderr == ""


def test_lm_evaluation_harness_is_shown_the_model():
    """The entry point names a class that stands there; read as text, as the harness need not be installed."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        target = tomllib.load(file)["project"]["entry-points"]["lm_eval.models"]["medjax"]
    module, _, name = target.partition(":")
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text("utf-8"))
    assert name in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def _raised_texts():
    """Every text of the code that stands in a raise, with its place."""
    for path in sorted((ROOT / "medjax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and node.exc:
                for part in ast.walk(node.exc):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield f"{path.relative_to(ROOT)}:{part.lineno}", part.value


def test_errors_say_what_was_got_and_expected_in_one_sentence():
    texts = list(_raised_texts())
    assert any("expected one of" in text for _, text in texts)
    assert [(place, text) for place, text in texts if re.search(r"\b(Expected|Got)\b", text)] == []
