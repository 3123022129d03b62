"""Compiled programs, and runs, that all tests here share."""

import contextlib

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


@contextlib.contextmanager
def quick(shelf):
    """Runs in this process take documents and compiled programs that others made, and compile in half the time."""
    from jax.experimental.compilation_cache import compilation_cache

    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    before["jax_disable_most_optimizations"] = False  # this one cannot be read
    compilation_cache.reset_cache()
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDJAX_CACHE", str(shelf / "cache"))
        yield shelf
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def cached(shelf):
    with quick(shelf):
        yield shelf


@pytest.fixture(scope="session")
def reference(shelf):
    """The folder of a run that nothing disturbed; it fills the cache of compiled programs."""
    from tiny_training import arguments

    from medjax.train.__main__ import main

    with quick(shelf):
        assert main(arguments(shelf, shelf / "reference")) == 0
    return shelf / "reference"
