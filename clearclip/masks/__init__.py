"""Where masks come from: which pixels of an image belong together, by networks or from files.

A provider is a file in this folder, registered by name; a folder of mask files takes the place of one. Methods and
refinements that read masks have an option `masks`: "SAM2", "(SAM2:points=32)" or the path of a folder.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.errors import UserError
from clearclip.masks.fusion import fuse
from clearclip.paths import atomic_write, cache_dir, check_regular
from clearclip.registry import Registry
from clearclip.view import View

log = logging.getLogger(__name__)

PROPOSALS = ("logits", "level", "iou")


@dataclass(frozen=True)
class Masks:
    """The masks of one image. They lie on the CPU: how many there are decides shapes, and no device is waited for.

    Attributes:
        ids: [H, W], int32, at the image's own size: which mask a pixel belongs to; 0 is none.
        logits: [M, n, n] in 0..3, masks that may overlap, of the image squashed to a square, or None.
        level: [M] of them, 2 for whole things, 1 for parts, 0 for parts of parts.
        iou: [M] of them, how sure the network is.
    """

    ids: Tensor
    logits: Tensor | None = None
    level: Tensor | None = None
    iou: Tensor | None = None

    def at(self, shape: tuple[int, int]) -> Tensor:
        """The ids at another size, [*shape], int32, each pixel's that of the nearest."""
        if shape == tuple(self.ids.shape):
            return self.ids
        return F.interpolate(self.ids[None, None].double(), size=shape, mode="nearest")[0, 0].int()

    def regions(self, shape: tuple[int, int]) -> Tensor:
        """Masks that may overlap, [R, *shape], float32: 0 outside, 1 and more inside.

        Those of `logits`, fused as TextRegion does, or else those of the ids.
        """
        if self.logits is None or self.level is None or self.iou is None:
            ids = self.at(shape)
            return (ids == ids.unique()[:, None, None])[int(ids.min() == 0) :].float()
        return fuse(self.logits.float(), self.level, self.iou.float(), shape)

    def save(self, path: Path) -> None:
        """Write an .npz file of `ids` and, where they are there, `logits`, `level` and `iou`. Raises OSError."""
        arrays = {name: part.numpy() for name in ("ids", *PROPOSALS) if (part := getattr(self, name)) is not None}
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Masks":
        """Read what `save` wrote. Raises UserError for a file that is not of that form."""
        try:
            check_regular(path)
            with np.load(path, allow_pickle=False) as file:
                ids, parts = file["ids"], {name: torch.from_numpy(file[name]) for name in PROPOSALS if name in file}
            with np.errstate(invalid="ignore"):  # NaN is no whole number either
                whole = ids.astype(np.int32)
            if (whole != ids).any() or (whole < 0).any():
                raise ValueError("ids are no whole numbers from 0 on")
            masks = cls(torch.from_numpy(whole), **parts)
            if masks.ids.ndim != 2:
                raise ValueError(f"ids are {list(masks.ids.shape)}")
            if parts and [parts[name].shape[:1] for name in PROPOSALS] != [parts["logits"].shape[:1]] * 3:
                raise ValueError("logits, level and iou are of different numbers of masks")
            return masks
        except Exception as error:  # NumPy raises what zip and its own parser raise
            raise UserError(
                f"{path} does not hold masks ({type(error).__name__}: {error}); it must be an .npz file with an array "
                "`ids` [H, W] of whole numbers, 0 where there is no mask"
            ) from error


class MaskProvider:
    """Gives the masks of images; those of one image once, whoever asks.

    Attributes:
        identity: what decides its masks, in words: providers of one identity give the same.
    """

    identity: str

    def __call__(self, view: View) -> Masks:
        """The masks of an image. Raises UserError where it has none."""
        return view.once(self.identity, lambda: self.find(view))

    def find(self, view: View) -> Masks:
        """The masks of an image, from where they are."""
        raise NotImplementedError


class NetworkMasks(MaskProvider):
    """Masks that a network makes, kept on disk by the pixels they were made of. A subclass writes `load` and `make`.

    The network is loaded for the first image whose masks are not there yet. Kept are `masks/*.npz` in the cache
    folder (see `clearclip.paths.cache_dir`), a few hundred kilobytes an image.
    """

    def __init__(self, device: torch.device | str, model: str, options: Mapping[str, Any]):
        self.device, self.model = torch.device(device), model
        self.identity = json.dumps([type(self).__name__, model, self.version(), dict(options)])

    def version(self) -> str:
        """Which weights they are. Raises UserError where the model cannot be had, before anything slow starts."""
        return hub_model(self.model)

    @functools.cached_property
    def network(self) -> Any:
        """What `load` gave, once."""
        return self.load()

    def load(self) -> Any:
        """The network and what else `make` takes, on the device."""
        raise NotImplementedError

    def make(self, image: Tensor) -> Masks:
        """The masks of an RGB image [3, H, W], uint8."""
        raise NotImplementedError

    def find(self, view: View) -> Masks:
        image = view.original.cpu().contiguous()
        key = hashlib.sha256(json.dumps([self.identity, list(image.shape)]).encode())
        key.update(image.numpy().tobytes())
        path = cache_dir() / "masks" / f"{key.hexdigest()}.npz"
        if path.is_file():
            try:
                return Masks.load(path)
            except UserError as error:
                log.warning("making masks anew: %s", error)
        with torch.inference_mode():
            masks = self.make(image)
        try:
            masks.save(path)
        except OSError as error:
            _warn_not_kept(path.parent, error.strerror or type(error).__name__)
        return masks


@functools.cache  # to say it once is enough
def _warn_not_kept(folder: Path, reason: str) -> None:
    log.warning("masks are not kept in %s: %s; set CLEARCLIP_CACHE to a folder to write to", folder, reason)


def hub_model(source: str) -> str:
    """Which version of a model of the hub, or of a folder in transformers' format, is at hand.

    Raises UserError where there is none.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **where(source))  # by default it asks
    except (OSError, ValueError) as error:
        raise _cannot_be_had(source, error) from error
    if Path(source).is_dir():
        return "; ".join(f"{file.name} {file.stat().st_mtime_ns}" for file in sorted(Path(source).iterdir()))
    return str(getattr(config, "_commit_hash", None))


def load_pretrained(kinds: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Each of transformers' classes with the weights or settings of `source`; "model" is that which has weights.

    No code of the source is run, and the weights of a folder must be .safetensors. Raises UserError where there are
    none.
    """
    from safetensors import SafetensorError

    options = where(source) | {"trust_remote_code": False}
    tensors_alone = {"use_safetensors": True} if Path(source).is_dir() else {}  # some of the hub's have nothing else
    try:
        return {
            name: kind.from_pretrained(source, **options, **(tensors_alone if name == "model" else {}))
            for name, kind in kinds.items()
        }
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_be_had(source, error) from error


def where(source: str) -> dict[str, bool]:
    """How transformers is to look for a model: on the hub only where that answers, or it would try for minutes."""
    from clearclip.weights import hub_answers

    return {"local_files_only": Path(source).is_dir() or not hub_answers()}


def _cannot_be_had(source: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    return UserError(
        f"the model {source}, which is to make masks, cannot be had ({reason}); give a folder of it in transformers' "
        "format as model=PATH, fill the hub's cache, or give a folder of masks as masks=PATH"
    )


MASKS: Registry[MaskProvider] = Registry("mask provider", __name__)
register = MASKS.register


def load_masks(masks: str | MaskProvider, device: torch.device | str = "cpu") -> MaskProvider:
    """The provider that `masks` names: one of the registry, with options in brackets if any, or a folder of masks.

    Raises UserError for what is neither.
    """
    from clearclip.masks.folder import FolderOfMasks

    if isinstance(masks, MaskProvider):
        return masks
    text = masks[1:-1] if masks[:1] == "(" and masks[-1:] == ")" else masks
    if text.partition(":")[0].strip() in MASKS:
        return MASKS.create(text, device)
    if Path(text).expanduser().is_dir():
        return FolderOfMasks(text)
    names = ", ".join(sorted(entry.name for entry in MASKS.entries()))
    raise UserError(f"masks {text!r} are no folder and none of {names}; give the path of a folder of masks, or a name")


__all__ = ["MASKS", "MaskProvider", "Masks", "NetworkMasks", "load_masks", "register"]
