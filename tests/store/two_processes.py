"""Run as each of two processes with two devices each: save checkpoints and a model together, restore them together.

python two_processes.py FOLDER PORT INDEX     prints one JSON object
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from checkpoint_trees import abstract, host_tree
from tiny_decoders import CONFIGS

from medjax.models.decoder import abstract_params
from medjax.models.decoder_config import from_hugging_face
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, is_box, shardings
from medjax.store.checkpoints import Checkpoints
from medjax.store.native import NativeSource, save_native


def main(folder: str, port: str, index: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
    written, other = make_mesh("fsdp=2,tensor=2"), make_mesh("data=4")

    def on(values, wanted):
        return jax.tree.map(
            lambda value, leaf: jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i: value[i]),
            values,
            wanted,
        )

    def right(tree, values):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(values), strict=True)
        return all(
            np.asarray(shard.data).tobytes() == np.ascontiguousarray(value[shard.index]).tobytes()
            for leaf, value in pairs
            for shard in leaf.addressable_shards
        )

    with Checkpoints(folder, keep_last=1, keep_best=1, identity={"base": "b"}) as checkpoints:
        for step, metric in ((1, 2.0), (2, 1.0), (3, 3.0), (4, 4.0)):
            checkpoints.save(step, on(host_tree(step), abstract(written)), {"process": index}, metric)
        checkpoints.wait()
        jax.experimental.multihost_utils.sync_global_devices("pruned")
        found = {"steps": checkpoints.steps(), "best": checkpoints.best(), "saved_by": checkpoints.meta(4)["process"]}
        found["right"] = [
            right(checkpoints.restore(step, abstract(mesh)), host_tree(step))
            for step in (2, 4)
            for mesh in (written, other)
        ]
    config = from_hugging_face(CONFIGS["llama"])
    boxes = abstract_params(config)
    params = jax.tree.map(lambda box: np.random.default_rng(1).normal(size=box.value.shape), boxes, is_leaf=is_box)
    params = jax.tree.map(lambda value: value.astype(np.float32), params)
    places = shardings(boxes, written, PRESETS["default"])
    shapes = jax.tree.map(lambda v, place: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=place), params, places)
    model = save_native(f"{folder}/native", config, on(params, shapes))
    found["right"].append(right(NativeSource(model).load(other, PRESETS["default"]), params))
    print(json.dumps(found | {"index": jax.process_index(), "devices": jax.device_count()}))


main(*sys.argv[1:])
