"""Named checkpoints: architecture, source and activation of OpenCLIP's weights, and where weights are looked for."""

import contextlib
import json
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearclip.errors import UserError
from clearclip.state import marked_activation

log = logging.getLogger(__name__)

COPY = "give the path of a copy as --pretrained"
EMBEDDED = "openai-int8"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

# The backbones the published tables use; any other of OpenCLIP's ViTs works as "arch:tag".
COMMON = {
    "ViT-B-32": ("openai", "laion2b_s34b_b79k", "metaclip_fullcc"),
    "ViT-B-16": ("openai", EMBEDDED, "laion2b_s34b_b88k", "metaclip_fullcc"),
    "ViT-L-14": ("openai", "laion2b_s32b_b82k", "metaclip_fullcc"),
    "ViT-L-14-336": ("openai",),
    "ViT-H-14": ("laion2b_s32b_b79k", "metaclip_fullcc"),
}
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
CONFIG = "open_clip_config.json"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # beside it, the best first


@dataclass(frozen=True)
class Checkpoint:
    """A weights file and the network it belongs to."""

    arch: str  # what results call the architecture, without the "-quickgelu" suffix
    tag: str  # what results call the weights
    model: str  # OpenCLIP's name of the model, or the hub's
    path: Path
    config: dict[
        str, Any
    ]  # OpenCLIP's (`quick_gelu` set as the weights were trained) or transformers' model configuration
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    text_stand_in: bool = False  # names are embedded by the text student, not by a text tower


Builds = Callable[[str, dict[str, Any]], bool]  # whether a family builds a model: its name, OpenCLIP's configuration


def find_checkpoint(backbone: str, pretrained: str = "openai", builds: Builds = lambda *_: True) -> Checkpoint | None:
    """Find, and where needed download, the weights `pretrained` of one of OpenCLIP's ViTs.

    Args:
        backbone: an OpenCLIP architecture ("ViT-B-16"; "ViT-B-16-quickgelu" where a file does not say how it was
            trained), "arch:tag", "hf-hub:ORGANISATION/NAME", or "local-dir:FOLDER" with OpenCLIP's
            open_clip_config.json and weights.
        pretrained: a tag, a weights file, "openai-int8" (OpenAI's ViT-B/16 image tower, for machines that reach a
            package index but no model hub) or "auto" ("openai" where its hub answers, else "openai-int8"; of an
            architecture that OpenAI did not train, the first tag). A file that is called as a tag is, such as `openai`,
            needs its folder: `./openai`.
        builds: whether the family that asks builds this model, before anything is downloaded but its configuration.

    Returns:
        The checkpoint; None where OpenCLIP knows no such architecture, where the folder is no OpenCLIP model's, and
        where the family does not build it.

    Raises:
        UserError: where the weights cannot be found, and what `builds` raises.
    """
    from open_clip import get_model_config, get_pretrained_cfg

    if backbone.startswith(("local-dir:", "hf-hub:")) and Path(pretrained).suffix in SUFFIXES:
        raise UserError(f"{backbone} has weights of its own, {pretrained} would not be read: leave one of them out")
    if backbone.startswith("local-dir:"):
        return _from_folder(Path(backbone.removeprefix("local-dir:")).expanduser(), builds)
    if backbone.startswith("hf-hub:"):
        return _from_hub(backbone, builds)
    arch, _, tag = backbone.replace("/", "-").partition(":")
    pretrained = tag or pretrained
    named_quick = arch.endswith("-quickgelu")
    arch = arch.removesuffix("-quickgelu")
    config = get_model_config(arch)
    if config is None or not builds(arch, config):
        return None
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
    tags = [*_tags(arch), *[EMBEDDED] * (arch == "ViT-B-16"), *["auto"] * bool(_tags(arch))]
    raise UserError(f"no weights {pretrained!r} for {arch}; known are {', '.join(tags) or 'none'}, or give a file")


def _from_tag(arch: str, tag: str, config: dict[str, Any], known: dict[str, Any]) -> Checkpoint:
    suffix = f" and {arch}-quickgelu as --backbone" if known.get("quick_gelu") else ""
    path = find_weights(
        f"{arch} {tag}",
        f"{arch}.{tag}",
        *_hub_files(known["hf_hub"]),
        how=f"{COPY}{suffix}",
        instead=f"use --pretrained {EMBEDDED}" if (arch, tag) == ("ViT-B-16", "openai") else "",
    )
    return Checkpoint(
        arch,
        tag,
        arch,
        path,
        config | {"quick_gelu": known.get("quick_gelu", False) or config.get("quick_gelu", False)},
        known.get("mean", OPENAI_MEAN),
        known.get("std", OPENAI_STD),
    )


def _from_file(arch: str, path: Path, config: dict[str, Any], named_quick: bool) -> Checkpoint:
    # OpenAI's own files and ours say how they were trained; of others the user must, by the name's suffix.
    marked = marked_activation(path)
    if marked == "gelu" and named_quick:
        raise UserError(f"{path} was trained with GELU; ask for backbone {arch} without -quickgelu")
    quick = named_quick or marked == "quick_gelu"
    if not (marked or named_quick):
        log.warning("%s is taken to be trained with GELU; if with QuickGELU, ask for %s-quickgelu", path, arch)
    return Checkpoint(arch, path.name, arch, path, config | {"quick_gelu": quick}, *_trained_mean_std(arch))


def _trained_mean_std(arch: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The normalisation of an architecture's weights where all that OpenCLIP knows agree, else OpenAI's."""
    from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

    known = [get_pretrained_cfg(arch, tag) for tag in list_pretrained_tags_by_model(arch)]
    found = {(tuple(one.get("mean", OPENAI_MEAN)), tuple(one.get("std", OPENAI_STD))) for one in known}
    return found.pop() if len(found) == 1 else (OPENAI_MEAN, OPENAI_STD)


def _from_folder(folder: Path, builds: Builds) -> Checkpoint | None:
    if not (folder / CONFIG).is_file():
        return None
    try:
        path = next(folder / name for name in FILES if (folder / name).is_file())
        return _described(folder.name, f"local-dir:{folder}", folder / CONFIG, lambda: path, builds)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
        raise UserError(
            f"{folder} is not an OpenCLIP model folder; it must hold {CONFIG} (with model_cfg) and {FILES[0]}"
        ) from None


def _from_hub(model: str, builds: Builds) -> Checkpoint | None:
    """The checkpoint of "hf-hub:ORGANISATION/NAME": a repository of the hub with OpenCLIP's files."""
    repository = model.removeprefix("hf-hub:")
    folder = repository.replace("/", "-")
    try:
        config = hub_file(repository, CONFIG)
        return _described(folder, model, config, lambda: hub_file(repository, *FILES), builds)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError):
        raise UserError(f"{repository} on the hub has no {CONFIG} of OpenCLIP's, with model_cfg") from None
    except Exception as error:  # the library raises whatever its transport raised
        how = f"put {CONFIG} and {FILES[0]} into a folder and use local-dir:FOLDER as --backbone"
        raise not_downloaded(f"the weights of {model}", how) from error


def _described(
    arch: str, model: str, description: Path, weights: Callable[[], Path], builds: Builds
) -> Checkpoint | None:
    """The checkpoint that an open_clip_config.json describes; None where the family does not build it."""
    config = json.loads(description.read_text())
    if not builds(arch, config["model_cfg"]):
        return None
    preprocess, path = config.get("preprocess_cfg", {}), weights()
    mean, std = (tuple(preprocess.get(key, usual)) for key, usual in (("mean", OPENAI_MEAN), ("std", OPENAI_STD)))
    return Checkpoint(arch, path.name, model, path, config["model_cfg"], mean, std)


def _embedded(arch: str, config: dict[str, Any]) -> Checkpoint:
    from clearclip.offline import embedded

    if arch != "ViT-B-16":
        raise UserError(f"{EMBEDDED} weights exist for ViT-B-16 only, not for {arch}; give another --pretrained")
    return Checkpoint(
        arch, EMBEDDED, arch, embedded.vision_checkpoint(), config | {"quick_gelu": True}, text_stand_in=True
    )


def _choose(arch: str) -> str:
    """Of ViT-B-16 "openai" where that is at hand or its hub answers within seconds, else the embedded weights.

    Of another architecture "openai", or where there is none the first tag that OpenCLIP lists.
    """
    tags = _tags(arch)
    if "openai" not in tags:
        chosen, why = next(iter(tags), "openai"), "OpenAI has none"
    elif arch != "ViT-B-16":
        chosen, why = "openai", f"of {arch} there are no others to fall back to"
    elif local_copy(f"{arch}.openai") or _in_hub_cache(arch) or hub_answers():
        chosen, why = "openai", "found"
    else:
        chosen, why = EMBEDDED, "no model hub answers here"
    log.warning("weights: %s (%s)", chosen, why)
    return chosen


def _tags(arch: str) -> list[str]:
    """The tags of an architecture's weights; of one that exists with QuickGELU alone, those of its suffixed name."""
    from open_clip import list_pretrained_tags_by_model

    return list_pretrained_tags_by_model(arch) or list_pretrained_tags_by_model(f"{arch}-quickgelu")


def _in_hub_cache(arch: str) -> bool:
    from open_clip import get_pretrained_cfg

    return _cached(*_hub_files(get_pretrained_cfg(arch, "openai")["hf_hub"])) is not None


def _hub_files(place: str) -> tuple[str, ...]:
    """The repository that OpenCLIP's `hf_hub` names, and the files of it that hold the weights, the best first."""
    repository, _, name = place.rpartition("/")
    if not name:
        return repository, *FILES
    return repository, str(Path(name).with_suffix(".safetensors")), name


def local_copy(name: str) -> Path | None:
    """The file `name`, with one of `SUFFIXES`, in the folders of `$CLEARCLIP_WEIGHTS`."""
    for folder in filter(None, os.environ.get("CLEARCLIP_WEIGHTS", "").split(os.pathsep)):
        for suffix in SUFFIXES:
            path = Path(folder).expanduser() / f"{name}{suffix}"
            if path.is_file():
                return path
    return None


def named_weights(
    arch: str,
    asked: str,
    repositories: Mapping[str, str],
    *files: str,
    how: str = COPY,
) -> tuple[str, Path]:
    """Weights of an architecture whose tags are the keys of `repositories`: what results call them, and their file.

    `asked` is a tag, a file, or a folder that holds one of `files`. "openai" and "auto", which every other backbone
    starts from, mean the first tag. Raises UserError where there are none.
    """
    tag = next(iter(repositories)) if asked in ("openai", "auto") else asked
    if tag in repositories:
        return tag, find_weights(f"{arch} {tag}", f"{arch}.{tag}", repositories[tag], *files, how=how)
    path = Path(tag).expanduser()
    name = path.absolute().name
    if path.is_dir():
        return name, weights_in(path, files)
    if path.is_file():
        return name, path
    if path.suffix in (*SUFFIXES, ".tar"):
        raise UserError(f"weights file {tag} does not exist; give the path of a checkpoint or a tag")
    raise UserError(f"no weights {tag!r} for {arch}; known are {', '.join(repositories)}, or give a file")


def weights_in(folder: Path, files: Sequence[str]) -> Path:
    """The first of these files in a folder. Raises UserError where there is none."""
    for name in files:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds no weights; they must be called {' or '.join(files)}")


def find_weights(
    name: str,
    stem: str,
    repository: str,
    *files: str,
    how: str = COPY,
    instead: str = "",
) -> Path:
    """The weights that messages call `name`: `stem` in `$CLEARCLIP_WEIGHTS`, or else the first file of a repository.

    Raises UserError where neither can be had; it says `how` else they are given, and what can be done `instead`.
    """
    try:
        return local_copy(stem) or hub_file(repository, *files)
    except Exception as error:  # the library raises whatever its transport raised
        folder = f"put it into a folder named by $CLEARCLIP_WEIGHTS as {stem}.safetensors (or .pt, .pth)"
        raise not_downloaded(f"the weights of {name} ({repository})", how, folder, instead) from error


def not_downloaded(what: str, *ways: str) -> UserError:
    """That something of the hub cannot be had, and by which other `ways` it can; one left empty is none."""
    others = ", or ".join(filter(None, (*ways, "fill the hub's cache on a machine that reaches it")))
    return UserError(f"{what} could not be downloaded: {others}")


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

    def ask() -> None:  # urllib knows the user's proxies
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
