"""Shared fixtures: where the real data lies, and one JAX set-up for the whole run."""

import os
from pathlib import Path

import pytest

# 8 fake devices so that sharding is really tested; must be set before jax starts its backend
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

ROOT = Path(__file__).resolve().parents[1]


def shared_data_folder() -> Path | None:
    """The folder of real data: MEDJAX_DATA, else ../shared/data beside the project, else None."""
    folder = Path(os.environ.get("MEDJAX_DATA") or ROOT.parent / "shared" / "data")
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = shared_data_folder()
    if folder is None:
        pytest.skip("real data not found: set MEDJAX_DATA to the data folder to run this test")
    return folder
