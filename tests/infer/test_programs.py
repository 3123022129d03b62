"""Programs are compiled once, and whoever watches is told for how long."""

from contextlib import contextmanager

import jax.numpy as jnp
import pytest

from medjax.infer.programs import Programs


def test_every_compilation_runs_within_the_watch_and_nothing_else_does(tiny):
    programs = Programs(tiny, dtype="float32", backend="blockwise")
    told = []

    @contextmanager
    def compiling():
        told.append("begins")
        yield
        told.append(sorted(programs.shapes))

    def double(x):
        return 2 * x

    with programs.watched(compiling):
        assert programs.run("two", double, jnp.ones(2)).tolist() == [2, 2]
        assert told == ["begins", []]
        programs.run("two", double, jnp.ones(2))  # there already
        programs.run("three", double, jnp.ones(3))
    assert told == ["begins", [], "begins", ["two"]]
    programs.run("four", double, jnp.ones(4))  # nobody watches any more
    assert len(told) == 4
    assert list(programs.shapes) == ["two", "three", "four"]
    with pytest.raises(KeyError), programs.watched(compiling):
        raise KeyError
    programs.run("five", double, jnp.ones(5))
    assert len(told) == 4
