"""The training loss with rows that the mesh splits into more parts than there are heads."""

import jax
import numpy as np
import pytest
from tiny_training import LLAMA, batch_of, placed, program_of, variables_of

from medjax.models.decoder_config import from_hugging_face
from medjax.train.state import join, split

FEW_HEADS = from_hugging_face(LLAMA | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16})
WINDOW = 1024


def sums_and_gradients(devices, **options):
    program = program_of(devices, FEW_HEADS, data__window=WINDOW, train__batch_size=2, **options)
    trainable, frozen = split(variables_of(program), program.chosen)

    def total(trainable, frozen, batch):
        return program.loss(join(trainable, frozen), batch, None)

    found = jax.jit(jax.grad(total, has_aux=True))(trainable, frozen, placed(program, batch_of(3, 2, WINDOW)))
    return program.context, *jax.device_get(found)


@pytest.fixture(scope="module")
def expected():
    return sums_and_gradients(1)


@pytest.mark.parametrize("context", ["auto", pytest.param("gather", marks=pytest.mark.slow)])
def test_loss_and_gradients_are_those_of_one_device(expected, context):
    chosen, gradients, sums = sums_and_gradients(8, mesh__shape="fsdp=2,sequence=4", model__context=context)
    assert (expected[0], chosen) == ("heads", "ring" if context == "auto" else context)
    for name, value in expected[2].items():
        assert float(sums[name]) == pytest.approx(float(value), rel=1e-5), name
    for got, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * float(np.abs(wanted).max()))
