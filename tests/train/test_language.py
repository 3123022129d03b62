"""The job of adapting a decoder: what is loaded and where, documents, identity, costs, and what is exported."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import arguments, batch_of, write_notes

from medjax.config import load
from medjax.data.text.tokenizer import load_tokenizer
from medjax.store.adapters import files_digest, open_adapter
from medjax.store.loading import load_decoder
from medjax.store.sources import open_source
from medjax.train.flops import TrainingFlops, attended_pairs
from medjax.train.language import language_job
from medjax.train.settings import TrainSettings
from medjax.train.state import path_name, split


@pytest.fixture
def job_of(cached, tmp_path):
    """The job for options added to the usual ones, and the lines it said."""

    def make(*more: str):
        lines: list[str] = []
        return language_job(
            load(TrainSettings, overrides=arguments(cached, tmp_path / "run", *more)), lines.append
        ), lines

    return make


def leaves(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nothing(done: int, every: int) -> None:
    """Progress that nobody watches."""


@pytest.mark.parametrize(
    "more",
    [
        ["--mesh", "fsdp=4,tensor=2"],
        ["--quantisation", "nf4", "--dtype", "bfloat16", "--trainable", "lora,params/*norm*"],
        ["--trainable", "full", "--dtype", "bfloat16", "--mesh", "data=4,sequence=2", "--window", "256"],
    ],
    ids=" ".join,
)
def test_what_is_loaded_is_what_the_program_takes(job_of, cached, more):
    """Shape, dtype and sharding of every leaf; trained parameters in float32 with the bits of the checkpoint."""
    job, _ = job_of(*more)
    trainable, frozen = split(job.load(nothing), job.program.chosen)
    for tree, abstract in ((trainable, job.program.state.trainable), (frozen, job.program.frozen)):
        found, wanted = leaves(tree), leaves(abstract)
        assert found.keys() == wanted.keys()
        for name, leaf in found.items():
            assert (leaf.shape, leaf.dtype) == (wanted[name].shape, wanted[name].dtype), name
            assert leaf.sharding.is_equivalent_to(wanted[name].sharding, leaf.ndim), name
    whole = leaves({"params": load_decoder(cached / "model").params})
    for name, leaf in leaves(trainable).items():
        if name.startswith("params/"):
            assert leaf.dtype == jnp.float32
            np.testing.assert_array_equal(leaf, whole[name])


@pytest.mark.slow
def test_adapters_come_from_the_seed_whatever_the_mesh(job_of):
    def drawn(*more):
        return leaves(job_of(*more)[0].load(nothing)["lora"])

    one, other, third = drawn(), drawn("--mesh", "data=2,tensor=4"), drawn("--seed", "1")
    name = "layers/mlp/up/a"
    assert np.abs(np.asarray(one[name])).max() <= 64**-0.5
    for leaf in one:
        np.testing.assert_array_equal(one[leaf], other[leaf])
    assert not np.allclose(one[name], third[name])


def test_identity_names_base_tokenizer_and_adapter(job_of, cached):
    job, _ = job_of()
    source = open_source(cached / "model")
    assert job.identity["base"] == files_digest(source.files)
    assert job.identity["tokenizer"] == load_tokenizer(cached / "model").digest
    assert job.identity["lora"]["rank"] == 4
    assert job.identity["trainable"] == ["lora"]
    assert json.loads(json.dumps(job.identity)) | {"lora": None} == dict(job.identity) | {"lora": None}
    assert job_of("--trainable", "head")[0].identity["lora"] is None


def test_documents_held_out_and_steps(job_of, tmp_path):
    job, lines = job_of("--data.held_out_count", "10")
    assert lines[0] == "data: not compared with any exam (data.exams)"
    assert lines[1].startswith("train: 50 documents, ")
    assert lines[2].startswith("held-out: 10 documents, ")
    assert job.records["steps"] == 12
    own = write_notes(tmp_path / "own.jsonl", 70)
    own.write_text("".join(own.read_text().splitlines(keepends=True)[60:]))
    apart, lines = job_of("--data.held_out", str(own))
    assert lines[1].startswith("train: 60 documents, ")
    assert lines[2].startswith("held-out: 10 documents, ")
    assert apart.records["data"]["digest"] != job.records["data"]["digest"]
    assert {name for i in range(len(apart.held_out)) for name in apart.held_out.record_ids(i)} == {
        f"note{i}" for i in range(60, 70)
    }
    none, lines = job_of("--data.held_out_count", "0")
    assert none.held_out is None
    assert lines[1].startswith("train: 60 documents, ")


def test_steps_come_from_epochs(cached, tmp_path):
    given = arguments(cached, tmp_path / "run", "--epochs", "2.5")
    place = given.index("--steps")
    job = language_job(load(TrainSettings, overrides=given[:place] + given[place + 2 :]), lambda line: None)
    rows = job.train.rows_per_epoch
    assert job.records["steps"] == int(np.ceil(2.5 * rows / 8))


def test_a_chat_template_is_used_where_there_is_one(job_of, cached, tmp_path):
    """Conversations end with the template's mark, and only answers count."""
    talks = tmp_path / "talks.jsonl"
    rows = [{"prompt": f"Question {i}?", "response": f"Answer {i}."} for i in range(30)]
    talks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job, _ = job_of("--data", str(talks), "--data.held_out_count", "4")
    batch, tokenizer = job.train.batch_at(0), load_tokenizer(cached / "model")
    text = tokenizer.decode(batch.tokens[0][: batch.ends[0, 0]].tolist(), skip_special=False)
    assert text.startswith("<|im_start|>user\nQuestion ")
    counted = batch.targets[0][: batch.ends[0, 0]][batch.weights[0][: batch.ends[0, 0]] > 0]
    assert tokenizer.decode(counted.tolist(), skip_special=False).startswith("Answer ")


def test_documents_beyond_the_window_are_reported(job_of, tmp_path):
    """Counted and named before anything else."""
    long = {"prompt": "Describe case 7.", "response": "fever and cough, " * 60}
    rows = [{"id": f"talk{i}", "prompt": f"Describe case {i}.", "response": "fever."} for i in range(40)]
    rows[7] |= long
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, lines = job_of("--data", str(tmp_path / "talks.jsonl"), "--data.held_out_count", "0")
    (line,) = [line for line in lines if "truncated" in line]
    assert "1 truncated" in line
    assert "talk7" in line
    _, lines = job_of("--data", str(tmp_path / "talks.jsonl"), "--data.held_out_count", "0", "--data.too_long", "drop")
    assert lines[1].startswith("train: 39 documents, ")


def test_what_a_batch_costs(job_of):
    """Real tokens of documents, the row's tokens, and the model operations of adapters beside frozen weights."""
    job, _ = job_of()
    batch = batch_of(3)
    work = job.work(batch)
    real = (batch.positions > 0) | (batch.ends > np.arange(batch.ends.shape[1]) + 1)
    config = open_source(job.records["model"]["name"]).config
    flops = TrainingFlops(config, "lora", job.program.lora)
    pairs = attended_pairs(config, batch.positions[real])
    assert (work.real, work.computed) == (real.sum(), batch.tokens.size)
    assert work.flops == flops.of_step(int(real.sum()), pairs, float((batch.weights > 0).sum()))
    head = job_of("--trainable", "head")[0].work(batch)
    assert head.flops == TrainingFlops(config, "head").of_step(work.real, pairs, float((batch.weights > 0).sum()))


def test_a_document_beyond_the_models_context_is_refused(job_of, cached, tmp_path):
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "fever, cough and chills; " * 900}) + "\n")
    with pytest.raises(ValueError, match=r"^data.window: got 2048 and a document of 2048 tokens, expected 1024 at mos"):
        job_of("--data", str(tmp_path / "long.jsonl"), "--window", "2048", "--data.held_out_count", "0")


def test_adapter_and_model_are_exported(job_of, cached, tmp_path):
    """Of a run that trains adapters and the head: both folders, with the weights given, and the command to go on."""
    job, _ = job_of("--trainable", "lora,head")
    variables = job.load(nothing)
    variables["params"]["unembedding"] = variables["params"]["unembedding"] + 1
    folder = tmp_path / "done"
    folder.mkdir()
    assert job.export(folder, variables) == f"python -m medjax.eval --model {folder / 'model'} --adapter {folder}"
    model = load_decoder(folder / "model")
    for name, leaf in leaves(variables["params"]).items():
        np.testing.assert_array_equal(leaves(model.params)[name], leaf)
    assert load_tokenizer(folder / "model").digest == job.identity["tokenizer"]
    adapter = open_adapter(folder / "adapter", model.config)
    assert (adapter.lora, adapter.tokenizer_digest) == (job.program.lora, job.identity["tokenizer"])
    assert adapter.base == str(folder / "model")  # not the base it came from, which would answer otherwise
    assert adapter.base_digest == files_digest(model.source.files)
    for name, leaf in leaves(variables["lora"]).items():
        np.testing.assert_array_equal(leaves(adapter.leaves)[name], leaf)


def test_the_adapter_of_a_usual_run_names_its_base(job_of, cached, tmp_path):
    job, _ = job_of()
    folder = tmp_path / "done"
    folder.mkdir()
    assert (
        job.export(folder, job.load(nothing)) == f"python -m medjax.eval --model {cached / 'model'} --adapter {folder}"
    )
    record = json.loads((folder / "adapter" / "adapter.json").read_text())
    assert record["base"] == {"name": str(cached / "model"), "digest": job.identity["base"]}
    assert not (folder / "model").exists()
