"""Named checkpoints: architecture, source and activation. Nothing else knows where weights come from."""

import contextlib
import hashlib
import json
import logging
import os
import re
import threading
import urllib.error
import urllib.request
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

from clearclip.errors import UserError
from clearclip.paths import atomic_write, cache_dir

log = logging.getLogger(__name__)

EMBEDDED = "openai-int8"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

# The backbones the published tables use; any other OpenCLIP ViT with a class token works as "arch:tag".
COMMON = {
    "ViT-B-32": ("openai", "laion2b_s34b_b79k", "metaclip_fullcc"),
    "ViT-B-16": ("openai", EMBEDDED, "laion2b_s34b_b88k", "metaclip_fullcc"),
    "ViT-L-14": ("openai", "laion2b_s32b_b82k", "metaclip_fullcc"),
    "ViT-L-14-336": ("openai",),
    "ViT-H-14": ("laion2b_s32b_b79k", "metaclip_fullcc"),
}
# BLIP's retrieval models, by the data they were tuned on; the first is the default.
BLIP = {
    "BLIP-B": {"coco": "Salesforce/blip-itm-base-coco", "flickr": "Salesforce/blip-itm-base-flickr"},
    "BLIP-L": {"coco": "Salesforce/blip-itm-large-coco", "flickr": "Salesforce/blip-itm-large-flickr"},
}
BLIP_FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Checkpoint:
    """A weights file and the network it belongs to."""

    arch: str  # what results call the architecture, without the "-quickgelu" suffix
    tag: str  # what results call the weights
    model: str  # OpenCLIP's name of the model, or the hub's
    path: Path
    config: dict  # OpenCLIP's (`quick_gelu` set as the weights were trained) or transformers' model configuration
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    student: bool = False  # names are embedded by the text student, not by a text tower


def list_backbones() -> list[tuple[str, tuple[str, ...]]]:
    """The common backbones, each with the tags of its weights."""
    return [*COMMON.items(), *((arch, tuple(tags)) for arch, tags in BLIP.items())]


def find_checkpoint(backbone: str, pretrained: str = "openai") -> Checkpoint:
    """Find, and where needed download, the weights `pretrained` of `backbone`.

    `backbone` is an OpenCLIP architecture ("ViT-B-16"), "arch:tag", or "local-dir:FOLDER" with OpenCLIP's
    open_clip_config.json and weights. `pretrained` is a tag, a weights file, "openai-int8" (the image tower
    that a package index carries) or "auto" ("openai" where its hub answers, else "openai-int8"). A file called as
    a tag is written with its folder.
    "BLIP-B" and "BLIP-L" are BLIP's retrieval models: there `pretrained` may be a weights file in transformers'
    form or the original's, or a folder that transformers saved, "openai" and "auto" mean "coco", and
    "local-dir:FOLDER" takes any folder that transformers saved.
    Raises UserError when the architecture, the tag or the file cannot be had.
    """
    from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

    if backbone.startswith("local-dir:"):
        return _from_folder(Path(backbone.removeprefix("local-dir:")).expanduser())
    arch, _, tag = backbone.replace("/", "-").partition(":")
    pretrained = tag or pretrained
    if arch in BLIP:
        return _blip(arch, pretrained)
    named_quick = arch.endswith("-quickgelu")
    arch = arch.removesuffix("-quickgelu")
    config = _model_config(arch)

    if pretrained == "auto":
        pretrained = _choose(arch)
    if pretrained == EMBEDDED:
        return _embedded(arch, config)
    # Architectures that exist only with QuickGELU list their tags under the suffixed name.
    known = get_pretrained_cfg(arch, pretrained) or get_pretrained_cfg(f"{arch}-quickgelu", pretrained)
    if known:
        return _from_tag(arch, pretrained, config, known)
    path = Path(pretrained).expanduser()
    if path.is_file():
        return _from_file(arch, path, config, named_quick)
    if path.suffix in SUFFIXES:
        raise UserError(f"weights file {pretrained} does not exist; give the path of a checkpoint or a tag")
    tags = list_pretrained_tags_by_model(arch)
    tags += [EMBEDDED] * (arch == "ViT-B-16") + ["auto"] * ("openai" in tags)
    raise UserError(f"no weights {pretrained!r} for {arch}; known are {', '.join(tags) or 'none'}, or give a file")


def _model_config(arch: str) -> dict:
    import open_clip

    config = open_clip.get_model_config(arch)
    if config is None:
        names = ", ".join([*COMMON, *BLIP])
        raise UserError(f"unknown backbone {arch!r}; use one of {names} or another OpenCLIP ViT as arch:tag")
    return _supported(arch, config)


def _supported(arch: str, config: dict) -> dict:
    """The config of a plain ViT with a class token; UserError for any other network."""
    vision = config["vision_cfg"]
    altered = ("attentional_pool", "block_type", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner")
    if (
        vision.get("timm_model_name")
        or not isinstance(vision.get("layers", 12), int)  # a ResNet lists its stages
        or vision.get("pool_type", "tok") != "tok"
        or any(vision.get(key) for key in (*altered, "scale_attn", "scale_fc"))
    ):
        raise UserError(
            f"backbone {arch} is not supported; supported are OpenCLIP ViTs with a class token, such as ViT-B-16 "
            "(no ResNet, no attention or average pooling, no timm tower, no altered attention)"
        )
    return config


def _from_tag(arch: str, tag: str, config: dict, known: dict) -> Checkpoint:
    return Checkpoint(
        arch,
        tag,
        arch,
        local_copy(f"{arch}.{tag}") or _download(arch, tag, known),
        config | {"quick_gelu": known.get("quick_gelu", False) or config.get("quick_gelu", False)},
        known.get("mean", OPENAI_MEAN),
        known.get("std", OPENAI_STD),
    )


def _from_file(arch: str, path: Path, config: dict, named_quick: bool) -> Checkpoint:
    # OpenAI's own files and ours say how they were trained; of others the user must, by the name's suffix.
    marked = _marked_activation(path)
    if marked == "gelu" and named_quick:
        raise UserError(f"{path} was trained with GELU; ask for backbone {arch} without -quickgelu")
    quick = named_quick or marked == "quick_gelu"
    if not (marked or named_quick):
        log.warning("%s is taken to be trained with GELU; if with QuickGELU, ask for %s-quickgelu", path, arch)
    return Checkpoint(arch, path.name, arch, path, config | {"quick_gelu": quick})


def _from_folder(folder: Path) -> Checkpoint:
    if (folder / "config.json").is_file() and not (folder / "open_clip_config.json").is_file():
        return _blip_folder(folder)
    try:
        config = json.loads((folder / "open_clip_config.json").read_text())
        names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
        path = next(folder / name for name in names if (folder / name).is_file())
        preprocess = config.get("preprocess_cfg", {})
        return Checkpoint(
            folder.name,
            path.name,
            f"local-dir:{folder}",
            path,
            _supported(folder.name, config["model_cfg"]),
            tuple(preprocess.get("mean", OPENAI_MEAN)),
            tuple(preprocess.get("std", OPENAI_STD)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        raise UserError(
            f"{folder} is not an OpenCLIP model folder; it must hold open_clip_config.json (with model_cfg) "
            "and open_clip_model.safetensors"
        ) from None


def _blip_config(arch: str) -> dict:
    width, layers, heads = {"BLIP-B": (768, 12, 12), "BLIP-L": (1024, 24, 16)}[arch]
    vision = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    vision |= {"intermediate_size": 4 * width, "image_size": 384, "patch_size": 16}
    # As BLIP was trained: transformers' defaults are an epsilon of 1e-5 and 8 text heads.
    return {
        "model_type": "blip",
        "vision_config": vision | {"layer_norm_eps": 1e-6},
        "text_config": {"num_attention_heads": 12},
        "image_text_hidden_size": 256,
    }


def _blip(arch: str, pretrained: str) -> Checkpoint:
    default = next(iter(BLIP[arch]))
    tag = default if pretrained in ("openai", "auto") else pretrained  # what every other backbone starts from
    if tag not in BLIP[arch]:
        path = Path(tag).expanduser()
        name = path.absolute().name
        if path.is_dir():
            path = _blip_file(path)
        if path.is_file():
            return Checkpoint(arch, name, BLIP[arch][default], path, _blip_config(arch))
        if path.suffix in SUFFIXES:
            raise UserError(f"weights file {tag} does not exist; give the path of a checkpoint or a tag")
        raise UserError(f"no weights {tag!r} for {arch}; known are {', '.join(BLIP[arch])}, or give a file")
    repository = BLIP[arch][tag]
    try:
        path = local_copy(f"{arch}.{tag}") or hub_file(repository, *BLIP_FILES)
    except Exception as error:  # the library raises whatever its transport raised
        raise UserError(
            f"the weights of {arch} {tag} ({repository}) could not be downloaded: give the path of a copy, or of the "
            f"original checkpoint (model_{'base' if arch == 'BLIP-B' else 'large'}_retrieval_{tag}.pth), as "
            f"--pretrained, or put it into a folder named by $CLEARCLIP_WEIGHTS as {arch}.{tag}.safetensors (or .pth), "
            "or fill the hub's cache on a machine that reaches it"
        ) from error
    return Checkpoint(arch, tag, repository, path, _blip_config(arch))


def _blip_folder(folder: Path) -> Checkpoint:
    try:
        config = json.loads((folder / "config.json").read_text())
        preprocess = folder / "preprocessor_config.json"
        preprocess = json.loads(preprocess.read_text()) if preprocess.is_file() else {}
        if config["model_type"] != "blip":
            raise ValueError(config["model_type"])
        mean, std = preprocess.get("image_mean", OPENAI_MEAN), preprocess.get("image_std", OPENAI_STD)
        path = _blip_file(folder)
        return Checkpoint(folder.name, path.name, str(folder), path, config, tuple(mean), tuple(std))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{folder} is not a model folder that can be used; it must hold OpenCLIP's open_clip_config.json and "
            'weights, or the config.json (of model_type "blip") and weights of a BLIP retrieval model'
        ) from None


def _blip_file(folder: Path) -> Path:
    for name in BLIP_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds no weights; transformers saves a BLIP model as {' or '.join(BLIP_FILES)}")


def find_tokenizer(checkpoint: Checkpoint) -> Path:
    """The folder with the tokenizer of a BLIP checkpoint: that of the weights, or the hub's copy.

    Raises UserError where there is none.
    """
    folder = checkpoint.path.parent
    if any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        return folder
    try:
        return hub_file(checkpoint.model, "vocab.txt").parent
    except Exception as error:  # as above
        raise UserError(
            f"the tokenizer of {checkpoint.arch} is missing: put the vocab.txt of bert-base-uncased beside "
            f"{checkpoint.path}"
        ) from error


def _embedded(arch: str, config: dict) -> Checkpoint:
    from clearclip import embedded

    if arch != "ViT-B-16":
        raise UserError(f"{EMBEDDED} weights exist for ViT-B-16 only, not for {arch}; give another --pretrained")
    return Checkpoint(arch, EMBEDDED, arch, embedded.vision_checkpoint(), config | {"quick_gelu": True}, student=True)


def _choose(arch: str) -> str:
    """ "openai" where its weights are at hand or their hub answers within seconds, else the embedded ones."""
    if arch != "ViT-B-16" or local_copy(f"{arch}.openai") or _in_hub_cache(arch) or hub_answers():
        chosen, why = "openai", "as asked" if arch != "ViT-B-16" else "found"
    else:
        chosen, why = EMBEDDED, "no model hub answers here"
    log.warning("weights: %s (%s)", chosen, why)
    return chosen


def _in_hub_cache(arch: str) -> bool:
    from open_clip import get_pretrained_cfg

    return _cached(*_hub_files(get_pretrained_cfg(arch, "openai")["hf_hub"])) is not None


def _hub_files(place: str) -> tuple[str, ...]:
    """The repository that OpenCLIP's `hf_hub` names, and the files of it that hold the weights, the best first."""
    repository, _, name = place.rpartition("/")
    if not name:
        return repository, "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
    return repository, str(Path(name).with_suffix(".safetensors")), name


def local_copy(name: str) -> Path | None:
    """The file `name`, with one of `SUFFIXES`, in the folders of `$CLEARCLIP_WEIGHTS`."""
    for folder in filter(None, os.environ.get("CLEARCLIP_WEIGHTS", "").split(os.pathsep)):
        for suffix in SUFFIXES:
            path = Path(folder).expanduser() / f"{name}{suffix}"
            if path.is_file():
                return path
    return None


def hub_file(repository: str, *names: str) -> Path:
    """The first of these files that the hub's cache of a repository holds, or else the hub.

    Raises what the hub's library raises, and ConnectionError, after seconds and not that library's minutes of
    retries, where the hub does not answer.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if cached := _cached(repository, *names):
        return cached
    if not hub_answers():
        raise ConnectionError("the model hub does not answer")
    for name in names[:-1]:
        with contextlib.suppress(EntryNotFoundError):
            return Path(hf_hub_download(repository, name))
    return Path(hf_hub_download(repository, names[-1]))


def _cached(repository: str, *names: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)  # of a file known to be missing, another


def hub_answers(seconds: float = 3.0) -> bool:
    """Whether the model hub can be reached: one look, none where `$HF_HUB_OFFLINE` is set."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    from huggingface_hub import constants

    answers = []

    def ask():  # urllib knows the user's proxies
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=seconds).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError):
            return
        answers.append(True)

    thread = threading.Thread(target=ask, daemon=True)  # looking up a name knows no timeout
    thread.start()
    thread.join(seconds)
    return bool(answers)


def _download(arch: str, tag: str, known: dict) -> Path:
    try:
        return hub_file(*_hub_files(known["hf_hub"]))
    except Exception as error:  # the library raises whatever its transport raised
        suffix = f" and {arch}-quickgelu as --backbone" if known.get("quick_gelu") else ""
        remedy = f", or use --pretrained {EMBEDDED}" if (arch, tag) == ("ViT-B-16", "openai") else ""
        raise UserError(
            f"the weights of {arch} {tag} ({known['hf_hub'].strip('/')}) could not be downloaded: give the path of a "
            f"copy as --pretrained{suffix}, or put it into a folder named by $CLEARCLIP_WEIGHTS as "
            f"{arch}.{tag}.safetensors (or .pt), or fill the hub's cache on a machine that reaches it{remedy}"
        ) from error


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"{path} cannot be read as weights: it is damaged, or no file of tensors alone; fetch it again, or convert it "
        "to .safetensors"
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _marked_activation(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        try:
            with safe_open(path, framework="pt") as file:
                return (file.metadata() or {}).get("activation")
        except Exception as error:
            raise _unreadable(path) from error
    if zipfile.is_zipfile(path):
        return "quick_gelu" if _is_torchscript(path) else None  # only OpenAI ships TorchScript archives
    with path.open("rb") as file:
        if file.read(1) != b"\x80":  # a pickle's, which PyTorch's older files are
            raise _unreadable(path)
    return None


def load_state_dict(path: Path, prefix: str = "") -> dict:
    """Tensors of a checkpoint whose names start with `prefix`, the prefix removed; never unpickles code.

    Reads .safetensors, PyTorch files (weights_only, with or without the wrappers `state_dict`, `model` and
    `module.`) and OpenAI's TorchScript archives. Raises UserError naming a damaged file.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
                return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        if _is_torchscript(path):
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # TorchScript is deprecated
                state = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        for wrapper in ("state_dict", "model"):
            if isinstance(state.get(wrapper), dict):
                state = state[wrapper]
    except Exception as error:
        raise _unreadable(path) from error
    state = {str(key).removeprefix("module."): value for key, value in state.items() if torch.is_tensor(value)}
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def content_hash(path: Path) -> str:
    """SHA-256 of a file, remembered under its size and time so that a warm start need not read it again."""
    status = path.stat()
    identity = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    memo = cache_dir() / "hashes" / hashlib.sha256(identity.encode()).hexdigest()
    known = memo.read_text(errors="replace") if memo.is_file() else ""
    if re.fullmatch("[0-9a-f]{64}", known):
        return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError), atomic_write(memo) as temporary:  # a cache that cannot be written is no harm
        temporary.write_text(digest)
    return digest
