"""Runs of several processes: the files of one, whichever part is lost, late, killed or wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from small_runs import arguments, results_of, samples_of
from tiny_checkpoint import write_checkpoint

from medjax.eval.__main__ import main
from medjax.eval.run import evaluate
from medjax.eval.settings import EvalSettings
from medjax.eval.shards import Shard, gather
from medjax.store.runs import Journal

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = ("MEDJAX_PROCESS", "OMPI_COMM", "SLURM_")

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)


@pytest.fixture
def scored(monkeypatch):
    """How often a batch of rows is scored."""
    from medjax.infer.programs import Programs

    count, score = Counter(), Programs.score

    def counted(*args):
        count["score"] += 1
        return score(*args)

    monkeypatch.setattr(Programs, "score", counted)
    return count


@pytest.fixture
def whole(tiny_folder, exam, tmp_path, scored):
    """A run in one process: its folder, and how many batches of rows it scored."""
    out = tmp_path / "whole"
    assert main(arguments(tiny_folder, exam, out)) == 0
    count = scored["score"]
    scored.clear()
    return out, count


def _comparable(folder):
    """results.json without times, paths and how it was made."""
    results = results_of(folder)
    for key in ("date", "total_evaluation_time_seconds"):
        del results[key]
    record = results["medjax"]
    record["command"] = record["command"].partition(" --out ")[0]
    for key in ("folder", "resumed", "compiled_seconds", "wall_seconds"):
        del record[key]
    record.pop("shards", None)
    for evaluation in record["evaluations"]:
        del evaluation["work"]["wall_seconds"], evaluation["work"]["items_per_second"]
    return results


def _assert_same(merged, whole):
    assert (merged / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert _comparable(merged) == _comparable(whole)
    written = (merged / "config.toml").read_text("utf-8")
    assert written.replace(f'"{merged}"', f'"{whole}"') == (whole / "config.toml").read_text("utf-8")
    assert (merged / "figure.svg").read_bytes() == (whole / "figure.svg").read_bytes()


def _lines(folder, name):
    """What a journal holds, without its first line."""
    path = folder / "journal" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[1:-1]] if path.is_file() else []


# the same files


def test_three_shards_give_the_files_of_one_process(whole, tiny_folder, exam, tmp_path, scored, capsys):
    out, counts = tmp_path / "sharded", []
    for shard in ("2/3", "3/3", "1/3"):  # in any order
        assert not (out / "results.json").exists()
        assert main(arguments(tiny_folder, exam, out, "--shard", shard)) == 0
        counts.append(scored["score"])
        scored.clear()
    _assert_same(out, whole[0])
    assert sum(counts) == whole[1]
    assert max(counts) - min(counts) <= 1
    folders = [out / "shards" / f"{number}-of-3" for number in (1, 2, 3)]
    requests = [entry["i"] for folder in folders for entry in _lines(folder, "ward_en_choice-logprob-0shot")]
    expected = [entry["i"] for entry in _lines(whole[0], "ward_en_choice-logprob-0shot")]
    assert sorted(requests) == sorted(expected)
    for number, folder in enumerate(folders):
        generated = {entry["i"] for entry in _lines(folder, "ward_en_strict-8tokens-0shot")}
        assert generated == set(range(number, 24, 3))
    shards = results_of(out)["medjax"]["shards"]
    assert {name: shard["resumed"] for name, shard in shards.items()} == {"1/3": False, "2/3": False, "3/3": False}
    assert results_of(out)["medjax"]["wall_seconds"] == max(s["wall_seconds"] for s in shards.values())
    printed = capsys.readouterr().out
    assert "shard 2/3 is complete; still running, or to be started:\n  python -m medjax.eval --model " in printed
    assert f"--out {out} --shard 1/3\n" in printed
    assert f"results  {out}/results.json" in printed


@pytest.mark.parametrize("more", [
    ("--protocol", "cot", "--protocol.think_tokens", "6", "--limit", "7"),
    pytest.param(("--protocol", "strict", "--protocol.rotate", "--protocol.samples", "2",
                  "--protocol.temperature", "0.7", "--limit", "3"), marks=pytest.mark.slow),
])  # fmt: skip
def test_every_ask_of_an_item_is_made_in_one_shard(tiny_folder, exam, tmp_path, more):
    out, one = tmp_path / "sharded", tmp_path / "one"
    assert main(arguments(tiny_folder, exam, one, *more)) == 0
    for shard in ("1/2", "2/2"):
        assert main(arguments(tiny_folder, exam, out, "--shard", shard, *more)) == 0
    _assert_same(out, one)
    items = [number for number, sample in enumerate(samples_of(out)) for _ in sample["asks"]]
    name = samples_of(out)[0]["task"]
    for number in (1, 2):
        entries = _lines(out / "shards" / f"{number}-of-2", name)
        assert {items[entry["i"]] for entry in entries} == set(range(number - 1, max(items) + 1, 2))


def test_more_shards_than_items(tiny_folder, exam, tmp_path):
    out, one = tmp_path / "sharded", tmp_path / "one"
    options = {"model": tiny_folder, "tasks": f"{exam}:en", "protocol": "strict", "limit": 2, "max_new_tokens": 8}
    options |= {"chat_template": "none", "batch_size": 8, "engine.row_tokens": 256}
    found = [evaluate(**options, out=out, shard=f"{number}/3") for number in (1, 2, 3)]
    assert found[:2] == [{}, {}]
    assert found[2]["results"] == evaluate(**options, out=one)["results"]
    _assert_same(out, one)


def test_two_processes_of_which_one_is_killed_and_started_again_alone(whole, tiny_folder, exam, tmp_path):
    out = tmp_path / "sharded"
    command = [sys.executable, "-m", "medjax.eval", *arguments(tiny_folder, exam, out, "--shard", "auto")]
    running, waiting = [], set()
    for number in (0, 1):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "MEDJAX_PROCESSES": "2", "MEDJAX_PROCESS_ID": str(number)}
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True))  # fmt: skip
    journal = out / "shards" / "2-of-2" / "journal" / "ward_en_choice-logprob-0shot.jsonl"
    limit = time.time() + 240
    while not (journal.is_file() and journal.stat().st_size):
        assert time.time() < limit
        waiting |= {process.poll() for process in running}
        assert waiting <= {None, 0}
        time.sleep(0.001)
    os.kill(running[1].pid, signal.SIGKILL)
    printed, _ = running[0].communicate(timeout=240)
    assert running[1].wait(60) == -signal.SIGKILL
    running[1].stdout.close()
    assert running[0].returncode == 0, printed
    assert f"--out {out} --shard 2/2\n" in printed
    assert "1/2 ward_en_strict-8tokens-0shot: 100%" in printed
    assert not (out / "results.json").exists()
    begun = len(_lines(journal.parents[1], "ward_en_choice-logprob-0shot"))
    assert begun > 0
    assert main(arguments(tiny_folder, exam, out, "--shard", "2/2")) == 0  # the last: it merges
    _assert_same(out, whole[0])
    assert [shard["resumed"] for shard in results_of(out)["medjax"]["shards"].values()] == [False, True]


# stopped, repeated, merged by hand


def test_a_stopped_shard_goes_on_without_repeating_work(whole, tiny_folder, exam, tmp_path, scored, monkeypatch):
    out, written, append = tmp_path / "sharded", [], Journal.append

    def interrupted(journal, entries):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(len(entries))
        append(journal, entries)

    monkeypatch.setattr(Journal, "append", interrupted)
    assert main(arguments(tiny_folder, exam, out, "--shard", "1/2")) == 75
    monkeypatch.setattr(Journal, "append", append)
    assert not (out / "shards" / "1-of-2" / "done.json").exists()
    scored.clear()
    for shard in ("1/2", "2/2"):
        assert main(arguments(tiny_folder, exam, out, "--shard", shard)) == 0
    assert scored["score"] == whole[1] - 4
    _assert_same(out, whole[0])


def test_merge_names_what_is_missing_and_then_computes_nothing(whole, tiny_folder, exam, tmp_path, scored, capsys):
    out = tmp_path / "sharded"
    assert main(arguments(tiny_folder, exam, out, "--shard", "1/3")) == 0
    capsys.readouterr()
    assert main(["merge", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"medjax.eval: {out}: 2 of 3 shards are missing or not complete; run:\n  python -m medjax.eva"
    )
    assert [line.rpartition(" ")[2] for line in error.splitlines()[1:]] == ["2/3", "3/3"]
    for shard in ("2/3", "3/3"):
        assert main(arguments(tiny_folder, exam, out, "--shard", shard)) == 0
    for name in ("results.json", "samples.jsonl", "report.html"):
        (out / name).unlink()
    shutil.rmtree(out / "journal")
    scored.clear()
    assert main(["merge", str(out)]) == 0
    assert not scored
    _assert_same(out, whole[0])
    # the last shard again does the same
    (out / "results.json").unlink()
    assert main(arguments(tiny_folder, exam, out, "--shard", "3/3")) == 0
    assert not scored
    _assert_same(out, whole[0])


def test_a_journal_is_put_together_whole_or_not_at_all(tmp_path, monkeypatch):
    for number in (1, 2):
        path = tmp_path / "shards" / f"{number}-of-2" / "journal" / "x.jsonl"
        path.parent.mkdir(parents=True)
        Journal(path, "me").append([{"i": i} for i in range(number - 1, 6, 2)])
    whole = Journal(tmp_path / "journal" / "x.jsonl", "me")
    whole.path.parent.mkdir()
    whole.append([{"i": 9}])
    append = Journal.append

    def interrupted(journal, entries):
        append(journal, entries[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gather(tmp_path, 2, whole)
    assert list(whole.read()) == [{"i": 9}]
    monkeypatch.setattr(Journal, "append", append)
    gather(tmp_path, 2, whole)
    assert list(whole.read()) == [{"i": i} for i in (0, 2, 4, 1, 3, 5)]
    assert [path.name for path in whole.path.parent.iterdir()] == ["x.jsonl"]


# what is refused


@pytest.mark.parametrize(("text", "error"), [
    ("5/4", "shard: got 5/4, expected one of 1/4 to 4/4: they count from 1."),
    ("0/4", "shard: got 0/4, expected one of 1/4 to 4/4: they count from 1."),
    ("1/0", "shard: got 1/0, expected one of 1 or more processes; write 1/4."),
    ("-1/4", "shard: got '-1/4', expected this process's number, from 1, and how many there are; write 1/4."),
    ("２/4", "shard: got '２/4', expected this process's number, from 1, and how many there are; write 1/4."),
    ("auto", "shard: got auto, but no launcher says which process this is"),
])  # fmt: skip
def test_a_shard_that_there_is_not(text, error, capsys):
    with pytest.raises(SystemExit) as status:
        main(["--shard", text] if text != "-1/4" else [f"--shard={text}"])
    assert status.value.code == 2
    assert error in capsys.readouterr().err


def array(number, first, last, count):
    """What SLURM tells a task of a job array."""
    told = {"ID": number, "MIN": first, "MAX": last, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


@pytest.mark.parametrize(("environment", "shard"), [
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "1/4"),
    ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, "3/3"),
    ({"MEDJAX_PROCESS_ID": "1", "MEDJAX_PROCESSES": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "2/2"),
    ({**array(1, 1, 8, 8), "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, "1/8"),
    (array(7, 0, 7, 8), "8/8"),
])  # fmt: skip
def test_launchers_say_which_shard_it_is(environment, shard):
    assert str(Shard.read("auto", environment)) == shard


@pytest.mark.parametrize("task", [1, 3, 5])
def test_an_array_with_gaps_is_refused_by_each_of_its_tasks(task):
    with pytest.raises(
        ValueError, match="got an array of 3 tasks from 1 to 5, expected numbers without gaps; submit it"
    ):
        Shard.read("auto", array(task, 1, 5, 3))


def test_one_of_several_processes_without_a_shard(monkeypatch):
    monkeypatch.setenv("MEDJAX_PROCESSES", "4")
    with pytest.raises(
        ValueError, match=r"got none in one of 4 processes .* add --shard auto, with --mesh within each"
    ):
        evaluate(EvalSettings())


def test_devices_of_several_processes(tiny_folder, exam, tmp_path, monkeypatch):
    monkeypatch.setattr("medjax.eval.run.jax.process_count", lambda: 2)
    with pytest.raises(
        ValueError, match="mesh: got devices of 2 processes joined by JAX, expected those of one; start"
    ):
        evaluate(model=tiny_folder, tasks=f"{exam}:en", out=tmp_path / "run", shard="1/2")


def test_shards_of_other_settings_models_and_counts(tiny_folder, exam, tmp_path, capsys):
    out, few = tmp_path / "run", ("--protocol", "strict", "--limit", "4")

    def refused(*more, model=tiny_folder):
        assert main(arguments(model, exam, out, *few, *more)) == 2
        return capsys.readouterr().err

    assert main(arguments(tiny_folder, exam, out, *few, "--shard", "1/2")) == 0
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    assert f"{out}: got another run (--seed 0 -> 1), expected the one that" in refused("--shard", "2/2", "--seed", "1")
    other = write_checkpoint(tmp_path / "other", seed=5)
    assert f"{out}: got another run (--model {tiny_folder} -> {other}), " in refused("--shard", "2/2", model=other)
    assert f"{out}: got a run in shards that is not finished, and no shard to make; add --shard" in refused()
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    assert [path.name for path in tmp_path.glob("run*")] == ["run"]
    # an interrupted copy of another run
    shutil.copytree(out / "shards" / "1-of-2", out / "shards" / "1-of-3")
    assert main(["merge", str(out)]) == 2
    assert (
        f"{out}/shards: got parts of runs of 2 and of 3 processes, expected one count; delete those that are not "
        "wanted (*-of-2 or *-of-3).\n"
    ) in capsys.readouterr().err
    shutil.rmtree(out / "shards" / "1-of-3")
    # another machine's folder is copied in
    copied = out / "shards" / "2-of-2"
    shutil.copytree(out / "shards" / "1-of-2", copied)
    identity = json.loads((copied / "run.json").read_text("utf-8"))
    (copied / "run.json").write_text(json.dumps(identity | {"dtype": "bfloat16"}))
    assert main(["merge", str(out)]) == 2
    assert f"{copied}: got a shard of another run (dtype: float32 -> bfloat16), expe" in capsys.readouterr().err
    (copied / "run.json").write_text('{"dtype"')
    assert main(["merge", str(out)]) == 2
    assert f"{copied}/run.json: cannot be read (" in capsys.readouterr().err


def test_a_shard_of_another_count_is_refused_before_the_model_is_loaded(
    tiny_folder, exam, tmp_path, monkeypatch, capsys
):
    out, few = tmp_path / "run", ("--protocol", "strict", "--limit", "4")
    assert main(arguments(tiny_folder, exam, out, *few, "--shard", "1/2")) == 0
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("medjax.eval.run.load_base", lambda *_, **__: pytest.fail("the model was loaded"))
        assert main(arguments(tiny_folder, exam, out, *few, "--shard", "1/3")) == 2
    said = (
        f"{out}: got shard 1/3, one of 3 processes, expected one of 2, since shards/ holds 1-of-2; go on with --shard "
        f"1/2 to 2/2, delete {out}/shards to begin anew with 3, or choose another --out.\n"
    )
    assert said in capsys.readouterr().err
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    # two that begin at one time see nothing of each other before the model is loaded
    monkeypatch.setattr("medjax.eval.run.check_free", lambda *_: None)
    assert main(arguments(tiny_folder, exam, out, *few, "--shard", "1/3")) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    monkeypatch.undo()
    assert main(arguments(tiny_folder, exam, out, *few, "--shard", "2/2")) == 0
    results = (out / "results.json").read_bytes()
    capsys.readouterr()
    # the same run, finished, is no other one to be moved aside
    assert main(arguments(tiny_folder, exam, out, *few, "--shard", "1/3")) == 2
    assert "expected one of 2, since shards/ holds 1-of-2, 2-of-2; go on" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == results
    assert main(arguments(tiny_folder, exam, out, *few, "--seed", "1", "--shard", "1/3")) == 0
    assert [path.name for path in (out / "shards").iterdir()] == ["1-of-3"]


def test_merging_what_is_no_run_in_shards(tiny_folder, exam, tmp_path, capsys):
    assert main(["merge", str(tmp_path / "none")]) == 2
    assert f"{tmp_path}/none/config.toml: no such file, expected the folder of a run mad" in capsys.readouterr().err
    out = tmp_path / "one"
    assert main(arguments(tiny_folder, exam, out, "--protocol", "strict", "--limit", "2")) == 0
    capsys.readouterr()
    assert main(["merge", str(out)]) == 2
    assert f"{out}: found no shards/1-of-N, expected a run made with --shard" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["merge"])
    assert "run: got 0 folders, expected one; write merge RUN." in capsys.readouterr().err


def test_a_finished_run_makes_room_for_another(tiny_folder, exam, tmp_path, capsys):
    out, few = tmp_path / "run", ("--protocol", "strict", "--limit", "2")
    for seed in ("0", "1"):
        for shard in ("1/2", "2/2"):
            assert main(arguments(tiny_folder, exam, out, *few, "--seed", seed, "--shard", shard)) == 0
    assert results_of(out)["medjax"]["seed"] == 1
    assert results_of(tmp_path / "run.old1")["medjax"]["seed"] == 0
    assert f"it was moved to {out}.old1, this one starts anew" in capsys.readouterr().out
