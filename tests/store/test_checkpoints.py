"""Checkpoints: every bit back on any mesh, the right ones kept, half of one never seen, errors that say what to do."""

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_trees import abstract, host_tree, placed, same_bits, shardings
from jax.sharding import NamedSharding, PartitionSpec

from medjax.parallel.mesh import make_mesh
from medjax.store import arrays
from medjax.store.checkpoints import Checkpoints

EIGHT = "data=2,fsdp=2,tensor=2"
IDENTITY = {"base": "b" * 8, "tokenizer": "t" * 8, "lora": {"rank": 8, "targets": ["query", "up"]}}


def opened(folder, **options) -> Checkpoints:
    return Checkpoints(folder, **({"keep_last": 2, "keep_best": 1, "identity": IDENTITY} | options))


def small(value: float = 0.0) -> dict:
    return {"a": np.full(3, value, np.float32)}


def small_abstract(**leaves) -> dict:
    sharding = NamedSharding(make_mesh(""), PartitionSpec())
    leaves = leaves or {"a": ((3,), np.float32)}
    return {name: jax.ShapeDtypeStruct(*leaf, sharding=sharding) for name, leaf in leaves.items()}


@pytest.fixture(scope="module")
def of_eight(tmp_path_factory):
    """A folder with one checkpoint that 8 devices saved."""
    folder = tmp_path_factory.mktemp("eight") / "checkpoints"
    with opened(folder) as checkpoints:
        checkpoints.save(7, placed(host_tree(7), make_mesh(EIGHT)), {"position": 12, "loss": 1.25}, metric=1.25)
    return folder


@pytest.mark.parametrize(
    ("mesh", "devices"), [(EIGHT, 8), ("fsdp=4,tensor=2", 8), ("fsdp=2,tensor=2", 4), ("data=4", 4), ("", 1)]
)
def test_every_bit_comes_back_on_another_mesh(of_eight, mesh, devices):
    """And lies where it was asked for. NaN payloads, -0.0 and subnormals are among the bits."""
    mesh = make_mesh(mesh, jax.devices()[:devices])
    found = opened(of_eight, read_only=True).restore(7, abstract(mesh))
    assert same_bits(found, host_tree(7))
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == shardings(mesh)
    assert found["optimiser"][0].mu["a"].addressable_shards[0].data.shape[0] == 16 // (
        mesh.shape["data"] * mesh.shape["fsdp"]
    )


def test_a_mesh_that_saved_on_fewer_devices(tmp_path):
    """1 -> 8 -> 4: saved on each from what was restored on the one before."""
    tree, checkpoints = placed(host_tree(3), make_mesh("", jax.devices()[:1])), opened(tmp_path)
    for step, (mesh, devices) in enumerate([(EIGHT, 8), ("fsdp=2,tensor=2", 4), (EIGHT, 8)]):
        checkpoints.save(step, tree, {})
        tree = checkpoints.restore(step, abstract(make_mesh(mesh, jax.devices()[:devices])))
    assert same_bits(tree, host_tree(3))


def test_replicas_that_share_the_writing(tmp_path, monkeypatch):
    """As they do for large arrays: each device writes a part of what it holds in common with others."""
    monkeypatch.setattr(arrays, "_SHARED", 1)
    checkpoints = opened(tmp_path)
    checkpoints.save(1, placed(host_tree(1), make_mesh(EIGHT)), {})
    assert same_bits(checkpoints.restore(1, abstract(make_mesh("fsdp=2,tensor=2", jax.devices()[:4]))), host_tree(1))


def test_meta_and_listing(of_eight):
    checkpoints = opened(of_eight, read_only=True)
    assert checkpoints.meta(7) == {"position": 12, "loss": 1.25}
    assert (checkpoints.steps(), checkpoints.latest(), checkpoints.best()) == ([7], 7, 7)
    with pytest.raises(FileNotFoundError, match=r"checkpoints/8: no complete checkpoint of step 8, there are: 7; name"):
        checkpoints.meta(8)
    with pytest.raises(ValueError, match="opened read_only, which saves nothing"):
        checkpoints.save(8, small(), {})


def test_nothing_there(tmp_path):
    checkpoints = opened(tmp_path / "absent")
    assert (checkpoints.steps(), checkpoints.latest(), checkpoints.best()) == ([], None, None)
    assert not (tmp_path / "absent").exists()
    with pytest.raises(FileNotFoundError, match=r"no complete checkpoint of step 0, there are: none"):
        checkpoints.restore(0, small_abstract())


def test_best_and_last_are_kept(tmp_path):
    """The best outlives every newer one; of equal ones the earlier; NaN and no metric at all are never the best."""
    nan, checkpoints = float("nan"), opened(tmp_path, keep_last=2, keep_best=2)
    kept = []
    for step, metric in enumerate([nan, 5.0, 3.0, 4.0, 3.0, None, 9.0, float("inf")]):
        checkpoints.save(step, small(step), {}, metric)
        checkpoints.wait()
        kept.append(checkpoints.steps())
    assert kept == [[0], [0, 1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 4, 5, 6], [2, 4, 6, 7]]
    assert (checkpoints.best(), checkpoints.latest()) == (2, 7)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["2", "4", "6", "7"]
    assert opened(tmp_path, keep_last=1, keep_best=0).best() == 2  # opening deletes nothing


def test_training_goes_on_while_the_files_are_written(tmp_path, monkeypatch):
    """save returns before the checkpoint has its name, and what training overwrites meanwhile does not reach it."""
    mesh, go, rename = make_mesh(EIGHT), threading.Event(), os.rename
    monkeypatch.setattr(os, "rename", lambda *names, **options: (go.wait(30), rename(*names, **options))[1])
    tree, host = placed(host_tree(1), mesh), np.ones(5, np.float32)
    expected = host_tree(1)
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 + 7, tree), donate_argnums=0)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, {"tree": tree, "host": host}, {})
        for _ in range(3):
            tree = step(tree)
        jax.block_until_ready(tree)
        host[:] = 9
        assert checkpoints.steps() == []
        go.set()
        checkpoints.wait()
        assert checkpoints.steps() == [1]
        whole = {
            "tree": abstract(mesh),
            "host": jax.ShapeDtypeStruct((5,), np.float32, sharding=shardings(mesh)["key"]),
        }
        found = checkpoints.restore(1, whole)
    assert same_bits(found, {"tree": expected, "host": np.ones(5, np.float32)})


def test_synchronous(tmp_path):
    checkpoints = opened(tmp_path, asynchronous=False)
    checkpoints.save(1, small(1.0), {})
    assert checkpoints.steps() == [1]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"base": "other"}, r'made with another base: got base="bbbbbbbb", expected "other"; go on with the base that'),
        ({"tokenizer": None}, r'made with another tokenizer: got tokenizer="tttttttt", expected null; go on with'),
        ({"lora": {"rank": 16, "targets": ["query", "up"]}}, r"another lora\.rank: got lora\.rank=8, expected 16; go"),
        ({"base": "x", "tokenizer": "y"}, r'another base \(and tokenizer\): got base="bbbbbbbb", expected "x"'),
        ({"seed": 3}, r"another seed: got seed=null, expected 3"),
    ],
)
def test_another_identity_is_refused(of_eight, found, message):
    checkpoints = opened(of_eight, read_only=True, identity=IDENTITY | found)
    with pytest.raises(ValueError, match=rf"checkpoints/7: made with another .*{message.split('another ', 1)[-1]}"):
        checkpoints.restore(7, abstract(make_mesh(EIGHT)))


def test_leaves_that_differ_are_named(tmp_path):
    checkpoints = opened(tmp_path)
    checkpoints.save(1, {"a": np.zeros(3, np.float32), "deep": {"b": (np.zeros((2, 4), np.int8),)}}, {})
    ask = {"a": ((3,), np.float32), "b": ((2, 4), np.int8)}

    def restore(a=ask["a"], b=ask["b"], **more):
        leaves = small_abstract(a=a, b=b, **more)
        return checkpoints.restore(1, {"a": leaves["a"], "deep": {"b": (leaves.pop("b"),)}} | leaves)

    np.testing.assert_array_equal(restore()["deep"]["b"][0], np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"/1: deep/b/0: got int8\[2, 4\], expected int8\[4, 2\]; use the model"):
        restore(b=((4, 2), np.int8))
    with pytest.raises(ValueError, match=r"a: got float32\[3\], expected bfloat16\[3\]; use the model, optimiser"):
        restore(a=((3,), jnp.bfloat16))
    with pytest.raises(ValueError, match=r"/1: c: got no such leaf, expected float32\[1\]; use the model"):
        restore(c=((1,), np.float32))
    with pytest.raises(ValueError, match=r"/1: deep/b/0: got int8\[2, 4\], expected no such leaf; use the model"):
        checkpoints.restore(1, small_abstract())
    with pytest.raises(ValueError, match=r"; and 6 more; use the model"):
        checkpoints.restore(1, small_abstract(**{f"x{i}": ((1,), np.float32) for i in range(8)}))
    whole = {"a": jax.ShapeDtypeStruct((3,), np.float32), "deep": {"b": (small_abstract(b=ask["b"])["b"],)}}
    with pytest.raises(ValueError, match=r"^a: got a shape without a sharding, expected where to put it; give jax"):
        checkpoints.restore(1, whole)
    whole["a"] = jax.ShapeDtypeStruct((3,), np.float32, sharding=NamedSharding(make_mesh(""), PartitionSpec("data")))
    with pytest.raises(ValueError, match=r"^a: got P\w*\('data',\) for shape \(3,\), expected a sharding that"):
        checkpoints.restore(1, whole)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"lr": 0.1}, r"^lr: got float, expected an array; make it jnp\.asarray\(value\), or keep it in meta"),
        ({"n": np.zeros(2, np.int64)}, r"^n: got int64, expected at most 32 bits"),
        ({"k": jax.eval_shape(lambda: jax.random.key(0))}, r"^k: got a typed key .*store jax\.random\.key_data\(key\)"),
        ({"a/b": np.zeros(1, np.int8), "a": {"b": np.zeros(1, np.int8)}}, r"two leaves named a/b, expected one"),
    ],
)
def test_leaves_that_cannot_come_back_are_refused(tmp_path, tree, message):
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "none").save(1, tree, {})
    assert not (tmp_path / "none").exists()


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"keep_last: got 0, expected 1 or more"):
        opened(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match=r"keep_best: got -1, expected 0 or more"):
        opened(tmp_path, keep_best=-1)
    with pytest.raises(ValueError, match=r"got gs://bucket/run, expected a path of a file system.*mount the bucket"):
        opened("gs://bucket/run")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file: got a file, expected a folder or none"):
        opened(tmp_path / "file")
    checkpoints = opened(tmp_path)
    with pytest.raises(ValueError, match=r"step 1: got a value that JSON cannot hold \(Out of range"):
        checkpoints.save(1, small(), {"loss": float("nan")})
    checkpoints.save(1, small(), {})
    for step, what in ((1, "there already"), (-1, "negative")):
        with pytest.raises(ValueError, match=rf"/{step}: got a step that is {what}, expected a new one"):
            checkpoints.save(step, small(), {})


def test_leftovers_are_neither_listed_nor_kept(tmp_path):
    """Partial folders go when a training opens the folder, not when a reader does; what is not ours stays."""
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, small(1.0), {})
    for name in ("2.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-1763", "0.deleted", "notes", "04"):
        shutil.copytree(tmp_path / "1", tmp_path / name)
    (tmp_path / "5" / "record").mkdir(parents=True)
    (tmp_path / "5" / "record" / "record.json").write_text('{"format": 1, "st')
    assert opened(tmp_path, read_only=True).steps() == [1]
    assert len(list(tmp_path.iterdir())) == 7
    assert opened(tmp_path).steps() == [1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["04", "1", "5", "notes"]


def test_damaged_files_are_noticed(tmp_path):
    """A lost data file, and a chunk that is missing, which must not be read as zeros."""
    import tensorstore

    checkpoints = opened(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"a": np.ones(999, np.float32)}, {})
    checkpoints.wait()
    ask = small_abstract(a=((999,), np.float32))
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{tmp_path}/1/state/"}).result()
    store.delete_range(tensorstore.KvStore.KeyRange("a/0", "a/9")).result()
    with pytest.raises(
        ValueError, match=r'1/state: the arrays cannot be read \(NOT_FOUND: chunk \{0\} .*"a/0".*damaged'
    ):
        checkpoints.restore(1, ask)
    for file in (tmp_path / "2" / "state" / "d").iterdir():
        file.unlink()
    with pytest.raises(
        ValueError, match=r"2/state: the arrays cannot be read \(.*\); files are missing or damaged: use"
    ):
        checkpoints.restore(2, ask)


def test_an_error_in_the_background_comes_with_the_next_call(tmp_path, monkeypatch):
    checkpoints = opened(tmp_path)
    checkpoints.save(1, small(1.0), {})
    checkpoints.wait()
    rename = os.rename

    def fails(source, target, **options):
        if Path(target).name == "2":
            raise PermissionError(13, "Permission denied", str(target))
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", fails)
    for surfacing in (
        checkpoints.wait,
        checkpoints.close,
        lambda: checkpoints.save(3, small(), {}),
        lambda: checkpoints.restore(1, small_abstract()),
    ):
        checkpoints.save(2, small(2.0), {})
        with pytest.raises(
            OSError, match=r"step 2 could not be written \(\[Errno 13\].*\); the last good .* is step 1:"
        ):
            surfacing()
        assert [entry.name for entry in tmp_path.iterdir()] == ["1"]
    checkpoints.save(2, small(2.0), {})
    with pytest.raises(ZeroDivisionError) as caught, checkpoints:
        raise ZeroDivisionError("the training's own error")
    assert re.search("step 2 could not be written", caught.value.__notes__[0])
    checkpoints.save(4, small(4.0), {})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 4]


def test_orbax_is_silent(tmp_path, caplog, capfd):
    with caplog.at_level(logging.DEBUG), opened(tmp_path) as checkpoints:
        logging.getLogger("absl").setLevel(logging.DEBUG)
        checkpoints.save(1, small(), {})
        checkpoints.restore(1, small_abstract())
        logging.getLogger("absl").warning("others are heard")
    said = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert said == ["others are heard"]
    assert "orbax" not in capfd.readouterr().err


def program(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments)]


def environment() -> dict[str, str]:
    here = Path(__file__)
    paths = [str(here.parents[2]), str(here.parents[1] / "models"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def output(command: list[str]) -> list[dict]:
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_importing_is_light():
    code = "import sys, medjax.store.checkpoints; print(sorted({'orbax', 'tensorstore'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_at_any_moment_and_started_again(tmp_path):
    """Ten kills in one folder: each start finds whole checkpoints only, with every bit as it was saved at that step."""
    rng = np.random.default_rng()  # other moments each time
    chosen = [str(int(moment)) for moment in rng.uniform(0, 1200, 5)]
    moments = ["1500", chosen[0], "rename", *chosen[1:3], "delete", *chosen[3:], "delete", "rename", "end"]
    rounds = output(program("killed_saves.py", tmp_path / "c", *moments))
    print(*rounds, sep="\n")
    assert [line["moment"] for line in rounds] == moments
    assert rounds[0] == {"moment": "1500", "left": [], "cleaned": True, "latest": None, "right": None, "steps": []}
    for before, after in pairwise(rounds):
        assert after["cleaned"]
        assert after["right"] in (True, None)
        assert after["right"] is not None or after["steps"] == []
        assert after["latest"] == max(after["steps"], default=None)
        assert before["latest"] is None or after["latest"] >= before["latest"]  # work once saved is not lost
        if before["moment"] == "rename":
            assert any("orbax-checkpoint-tmp" in name for name in after["left"])
        if before["moment"] == "delete":
            assert [name.split(".")[1] for name in after["left"]].count("deleted") == 1
    assert rounds[-1]["latest"] >= 3
    assert len(rounds[-1]["steps"]) <= 5  # two of the newest, the best, and what a kill kept from being deleted


def full_disk_runs(tmp_path: Path) -> dict[str, list[str]]:
    """The program under a limit on file sizes, and on a small file system where a user may mount one."""
    runs = {"limit": program("full_disk.py", tmp_path / "c", "limit")}
    small = tmp_path / "small"
    small.mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size=8m tmpfs {small}"
    try:
        allowed = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, timeout=30).returncode == 0
    except OSError:
        allowed = False
    if allowed:
        run = " ".join(program("full_disk.py", small / "c", "disk"))
        runs["disk"] = ["unshare", "-rm", "sh", "-c", f"{mount} && exec {run}"]
    return runs


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (
            "disk",
            r"the disk is full \(No space left on device\); it takes 19\.5 MiB, [567]\.\d MiB are free without it",
        ),
        ("limit", r"the disk does not take files of this size \(File too large\); it takes 19\.5 MiB, "),
    ],
)
def test_full_disk(tmp_path, mode, words):
    """The save fails and says so, leaves nothing behind, harms nothing, and a smaller one succeeds afterwards."""
    run = full_disk_runs(tmp_path).get(mode)
    if run is None:
        pytest.skip("no small file system may be mounted here")
    (found,) = output(run)
    assert len(found["errors"]) == 2  # at wait, and at the next save
    for error in found["errors"]:
        assert re.search(
            rf"c/2: the checkpoint of step 2 could not be written: {words}.*; the last good checkpoint is step 1: free "
            "space, or keep fewer checkpoints, and save again",
            error,
        ), error
    assert found["left"] == [["1"], ["1"]]
    assert found["intact"] is True
    assert found["steps"] == [1, 4]
    assert found["after"] is True
    assert found["files"] == ["1", "4"]


def test_two_processes_share_a_folder(tmp_path):
    """Two processes with two devices each: saved on one mesh, restored on it and on another, best and last kept.
    So is a whole model (store.native).
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            program("two_processes.py", tmp_path / "c", port, index),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for index, (out, err) in enumerate(said):
        assert processes[index].returncode == 0, err
        (found,) = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        assert found == {
            "steps": [2, 4],
            "best": 2,
            "saved_by": "0",
            "right": [True] * 5,
            "index": index,
            "devices": 4,
        }
    assert sorted(entry.name for entry in (tmp_path / "c").iterdir()) == ["2", "4", "native"]
