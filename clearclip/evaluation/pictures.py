"""Pictures of what an evaluation saw: image, ground truth and prediction side by side."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clearclip.errors import UserError
from clearclip.paths import atomic_write
from clearclip.visualize import overlay, sheet

NOTE = "clearclip"  # the PNG's text that says of which run it is


class Pictures:
    """PNG files in `folder`, laid out as the images are in theirs; each says which run it shows, by its `key`.

    One that cannot be drawn or written costs no evaluation: that is said once.
    """

    def __init__(self, folder: Path, images: str | Path, names: Sequence[str], key: str = ""):
        self.folder, self.images, self.names, self.key = folder, images, names, key
        self.said = False

    def path(self, image: str | Path) -> Path:
        """Where the picture of an image file goes; the file's own suffix stays, unless it is .jpg as everywhere."""
        inside = Path(os.path.relpath(image, self.images))
        return self.folder / (inside.with_suffix(".png") if inside.suffix == ".jpg" else f"{inside}.png")

    def has(self, image: str | Path) -> bool:
        """Whether the picture is there and shows this run."""
        try:
            with Image.open(self.path(image)) as picture:
                return picture.info.get(NOTE) == self.key
        except (OSError, SyntaxError, ValueError):  # as Pillow calls a damaged file
            return False

    def save(self, image: str | Path, rgb: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> None:
        """Draw and write the picture of an image file: `rgb` [H, W, 3], `truth` and `labels` [H, W]."""
        path = self.path(image)
        try:
            self._save(path, rgb, truth, labels)
        except (OSError, UserError, MemoryError) as error:
            if not self.said:
                print(f"no picture {path} ({error}); the evaluation goes on", file=sys.stderr)
            self.said = True

    def _save(self, path: Path, rgb: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> None:
        shown: list[tuple[str, np.ndarray | Image.Image]] = [
            ("image", rgb),
            ("ground truth", overlay(rgb, truth, self.names)),
            ("prediction", overlay(rgb, labels, self.names)),
        ]
        note = PngInfo()
        note.add_text(NOTE, self.key)
        with atomic_write(path) as temporary:
            sheet([shown]).save(temporary, format="PNG", pnginfo=note)
