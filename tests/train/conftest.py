"""Compiled programs, and runs, that all tests here share."""

import pytest


@pytest.fixture(scope="session")
def runs():
    """Compiled tiny programs by their options; each starts anew when it is taken."""
    from tiny_training import Run, program_of

    made = {}

    def take(devices: int = 1, **options) -> Run:
        key = (devices, *sorted(options.items()))
        if key not in made:
            made[key] = Run(program_of(devices, **options))
        return made[key].anew()

    return take


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """A folder with a tiny model, its documents, and a cache of these."""
    from tiny_training import write_model, write_notes

    folder = tmp_path_factory.mktemp("training")
    write_model(folder / "model")
    write_notes(folder / "notes.jsonl")
    return folder


@pytest.fixture
def cached(shelf, monkeypatch):
    """The shelf, and documents taken from its cache, where another run prepared them."""
    monkeypatch.setenv("MEDJAX_CACHE", str(shelf / "cache"))
    return shelf


@pytest.fixture(scope="session")
def reference(shelf):
    """The folder of a run that nothing disturbed."""
    import jax
    from tiny_training import arguments

    from medjax.train.__main__ import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDJAX_CACHE", str(shelf / "cache"))
        # as in the processes that it is compared with to the bit; quick_compilation comes later, and ends it
        jax.config.update("jax_disable_most_optimizations", True)
        assert main(arguments(shelf, shelf / "reference")) == 0
    return shelf / "reference"
