"""Masks from files: one for each image, called as the image is."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clearclip.errors import UserError, one_line
from clearclip.masks import MaskProvider, Masks
from clearclip.paths import check_regular
from clearclip.view import View

SUFFIXES = (".npz", ".png")


class FolderOfMasks(MaskProvider):
    """Masks of `…/val/street.jpg` are `<folder>/street.npz` or `.png`, or the same below `<folder>/val`.

    A PNG file holds the number of the mask at each pixel, 0 for none, in 8 or 16 bits, with or without a palette. An
    .npz file is one that `Masks.save` wrote: it may hold overlapping proposals too.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        files = sorted(path for path in self.folder.rglob("*") if path.suffix in SUFFIXES)
        listing = "\n".join(f"{path} {path.stat().st_mtime_ns}" for path in files)
        self.identity = f"{self.folder} {hashlib.sha256(listing.encode(errors='surrogateescape')).hexdigest()}"

    def find(self, view: View) -> Masks:
        if view.name is None:
            raise UserError(
                f"masks in {self.folder} are found by a picture's file name, and this picture is no file: give its "
                "path, or let a network make the masks (masks=SAM2)"
            )
        path = self._path(Path(os.path.abspath(view.name)))
        masks = Masks.load(path) if path.suffix == ".npz" else Masks(read_ids(path))
        if masks.ids.shape != view.original.shape[1:]:
            sizes = ("x".join(map(str, shape)) for shape in (masks.ids.shape, view.original.shape[1:]))
            raise UserError("masks {} are {}, their image {}; make them of the image as it is".format(path, *sizes))
        return masks

    def _path(self, image: Path) -> Path:
        """The file of an image: below folders of its own folders' names rather than without them."""
        parts = image.with_suffix("").parts
        for tail in (Path(*parts[start:]) for start in range(1, len(parts))):
            for suffix in SUFFIXES:
                path = self.folder / tail.parent / f"{tail.name}{suffix}"
                if path.is_file() and Path(os.path.abspath(path)) != image:
                    return path
        raise UserError(
            f"no masks of {image}: {self.folder} has neither {parts[-1]}.png nor {parts[-1]}.npz; put a picture of its "
            "masks' numbers there, 0 for none, or let a network make the masks (masks=SAM2)"
        )


def read_ids(path: Path) -> torch.Tensor:
    """Numbers of masks [H, W], int32. Raises UserError for a file that is no picture of them."""
    try:
        check_regular(path)
        with Image.open(path) as image:
            pixels = np.array(image)
    except Exception as error:  # what a damaged file raises has no common base in Pillow
        raise UserError(f"cannot read masks {path} ({one_line(error)}); make the file again") from error
    if pixels.ndim != 2 or pixels.dtype.kind not in "uib":
        raise UserError(f"masks {path} are a picture in colour; write one number a pixel, 0 where there is no mask")
    return torch.from_numpy(pixels.astype(np.int32))
