"""Fixtures of the tests of nn."""

import importlib.util

import pytest


@pytest.fixture
def tpu_devices(monkeypatch):
    """name -> the devices of a TPU topology that is not there, to compile for; what was patched before is undone."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("compiling for TPU needs libtpu: pip install 'medjax[tpu]'")
    from jax.experimental import topologies

    monkeypatch.undo()
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else a second process that compiles is refused
    return lambda name: list(topologies.get_topology_desc(name, "tpu").devices)
