"""Run in its own process: save into a file system that gets full, and go on. Prints one JSON object.

python full_disk.py FOLDER limit    no file may grow beyond 1 MiB (RLIMIT_FSIZE): writing more gives EFBIG
python full_disk.py FOLDER disk     FOLDER lies on a file system of 8 MiB: writing more gives ENOSPC
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from checkpoint_trees import same_bits
from jax.sharding import NamedSharding, PartitionSpec

from medjax.parallel.mesh import make_mesh
from medjax.store.checkpoints import Checkpoints


def main(folder: str, mode: str) -> None:
    sharding = NamedSharding(make_mesh("fsdp=2"), PartitionSpec("fsdp"))

    def tree(seed: int, kilobytes: int) -> dict:
        values = np.random.default_rng(seed).normal(size=(kilobytes, 256)).astype(np.float32)
        return {"a": jax.device_put(values, sharding)}

    def abstract(kilobytes: int) -> dict:
        return {"a": jax.ShapeDtypeStruct((kilobytes, 256), np.float32, sharding=sharding)}

    if mode == "limit":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    checkpoints = Checkpoints(folder, keep_last=3, keep_best=0, identity={})
    checkpoints.save(1, tree(1, 500), {"loss": 1.5})
    checkpoints.wait()
    found: dict = {"errors": [], "left": []}
    for surface in (checkpoints.wait, lambda: checkpoints.save(3, tree(3, 500), {})):
        try:
            checkpoints.save(2, tree(2, 20_000), {})
            surface()
        except OSError as error:
            found["errors"].append(str(error))
        found["left"].append(sorted(os.listdir(folder)))
    found["intact"] = same_bits(checkpoints.restore(1, abstract(500)), tree(1, 500))
    checkpoints.save(4, tree(4, 600), {})
    checkpoints.close()
    found["steps"] = checkpoints.steps()
    found["after"] = same_bits(checkpoints.restore(4, abstract(600)), tree(4, 600))
    found["files"] = sorted(entry.name for entry in Path(folder).iterdir())
    print(json.dumps(found))


main(*sys.argv[1:])
