"""A tiny model, an exam for it, and models that are compiled once for all tests."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture(scope="session")
def loaded_models():
    """Models by what they were loaded with; each compiles its programs once for all tests."""
    return {}


@pytest.fixture
def compile_once(monkeypatch, loaded_models):
    """Runs take the same model object for the same model, adapter, devices and backend."""
    import medjax.infer.run as run
    from medjax.infer.language_model import LanguageModel

    load_model, with_adapter = run.load_model, LanguageModel.with_adapter

    def load(name, *, chat_template, progress, **options):
        key = (name, *sorted(options.items()))
        if key not in loaded_models:
            loaded_models[key] = load_model(name, chat_template="auto", progress=progress, **options)
        model = loaded_models[key]
        return model if chat_template == "auto" else replace(model, chat=None)

    def adapted(model, path):
        key = (id(model.decoder), str(path))
        if key not in loaded_models:
            loaded_models[key] = with_adapter(model, path)
        found = loaded_models[key]
        return replace(model, programs=found.programs, adapter=found.adapter, adapter_digest=found.adapter_digest)

    monkeypatch.setattr(run, "load_model", load)
    monkeypatch.setattr(LanguageModel, "with_adapter", adapted)


@pytest.fixture(scope="session")
def exam_rows():
    """24 items in two sections: one, two and three answers, a number, prohibited choices, points, an abstract."""
    rng = np.random.default_rng(11)
    words = ["fever", "cough", "chest pain", "心電図", "呼吸困難", "anemia", "発熱", "胸水", "edema", "jaundice"]

    def text(count):
        return " ".join(words[i] for i in rng.integers(0, len(words), count))

    rows = []
    for number in range(24):
        answer = ["abcde"[number % 5]] if number % 4 else ["a", "c", "e"][: 2 + number % 8 // 4]
        row = {
            "id": f"q{number + 1}",
            "question": f"{text(3 + number % 7)}?",
            "choices": [f"{text(1 + (number + i) % 3)} {i}" for i in range(5)],
            "answer": answer,
            "points": 3 if number % 3 == 0 else 1,
            "section": "required" if number < 8 else "general",
        }
        if number % 5 == 1:
            row["prohibited"] = [next(letter for letter in "edcba" if letter not in answer)]
        if number % 6 == 2:
            row["context"] = text(8)
        rows.append(row)
    rows[10] |= {"choices": [], "answer": ["7.20"]}
    return rows


@pytest.fixture
def exam(tmp_path, exam_rows):
    """The exam as a file."""
    path = tmp_path / "ward.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in exam_rows), "utf-8")
    return path
