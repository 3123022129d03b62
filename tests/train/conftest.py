"""Compiled programs, and runs, that all tests here share."""

import jax
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
    """A folder with a tiny model, its documents, and a cache: of these, and of compiled programs for every process."""
    from tiny_training import write_model, write_notes

    folder = tmp_path_factory.mktemp("training")
    write_model(folder / "model")
    write_notes(folder / "notes.jsonl")
    return folder


@pytest.fixture
def cached(shelf, monkeypatch):
    """Commands run in this process find documents and compiled programs that other tests made."""
    from jax.experimental.compilation_cache import compilation_cache

    monkeypatch.setenv("MEDJAX_CACHE", str(shelf / "cache"))
    compilation_cache.reset_cache()
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    yield shelf
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def reference(shelf):
    """The folder of a run that nothing disturbed; it fills the cache of compiled programs."""
    from jax.experimental.compilation_cache import compilation_cache
    from tiny_training import arguments

    from medjax.train.__main__ import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDJAX_CACHE", str(shelf / "cache"))
        before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
        compilation_cache.reset_cache()
        assert main(arguments(shelf, shelf / "reference")) == 0
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
        compilation_cache.reset_cache()
    return shelf / "reference"
