"""A quantised kernel that is split over fsdp travels as it is stored."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.nn.quant import dequantise, quantise
from medjax.nn.transformer import Projection
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, Constraint, shardings

INTO, OUT = 512, 256
STORED = {"nf4": "u8", "int4": "u8", "int8": "s8"}


def mesh() -> Mesh:
    return make_mesh("fsdp=4,tensor=2", jax.devices()[:8])


def product(kind: str, axes: tuple[str, str], constrain=None):
    options = {"constrain": constrain} if constrain else {}
    return Projection("btd,df->btf", (INTO, OUT), axes, quantisation=kind, **options)


def compiled(kind: str, axes: tuple[str, str], rows: int):
    """The product's sum of squares and its gradient, on a mesh; what it takes, and what it should give."""
    place = Constraint(mesh(), PRESETS["default"])
    module = product(kind, axes, place)
    kernel = np.random.default_rng(1).normal(size=(OUT, INTO)).astype(np.float32)
    x = np.random.default_rng(2).normal(size=(rows, 8, INTO)).astype(np.float32)
    abstract = jax.eval_shape(module.init, jax.random.key(0), x)
    held = jax.device_put({"params": {"kernel": quantise(kind, kernel)}}, shardings(abstract, mesh(), place.rules))
    split = jax.device_put(x, NamedSharding(mesh(), PartitionSpec(("data", "fsdp"))))

    def loss(x, variables):
        return jnp.sum(module.apply(variables, x) ** 2)

    program = jax.jit(jax.value_and_grad(loss)).lower(split, nn.meta.unbox(held)).compile()
    return program, (split, nn.meta.unbox(held)), x, np.asarray(dequantise(kind, quantise(kind, kernel)), np.float64)


def gathered(text: str) -> list[tuple[str, int]]:
    """Type and number of elements of what all-gathers give."""
    return [
        (kind, int(np.prod([int(size) for size in shape.split(",")])))
        for kind, shape in re.findall(r"= (\w+)\[([\d,]+)\][^=]* all-gather\(", text)
    ]


@pytest.mark.parametrize("axes", [("embed", "mlp"), ("mlp", "embed")])
@pytest.mark.parametrize("kind", STORED)
def test_codes_travel_and_not_what_they_stand_for(kind, axes):
    program, given, x, matrix = compiled(kind, axes, rows=24)
    value, gradient = program(*given)
    y = x.astype(np.float64) @ matrix.T
    np.testing.assert_allclose(value, (y**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * y @ matrix, rtol=1e-3, atol=0.05)
    sent = gathered(program.as_text())
    codes = OUT * INTO // (1 if kind == "int8" else 2)
    assert (STORED[kind], codes // 2) in sent  # half of the kernel: the other axis is split over tensor
    assert not [size for kind, size in sent if kind == "f32" and size >= OUT * INTO // 2]


def test_one_device_is_told_nothing():
    place = Constraint(make_mesh("data=1", jax.devices()[:1]), PRESETS["default"])
    module = product("int8", ("embed", "mlp"), place)
    x = jnp.ones((64, 8, INTO))
    text = jax.jit(module.init_with_output).lower(jax.random.key(0), x).as_text()
    assert "sharding_constraint" not in text
    assert "@Sharding" not in text
