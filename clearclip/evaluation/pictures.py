"""What an evaluation saw, as pictures: image, ground truth and prediction side by side."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clearclip.errors import UserError
from clearclip.visualize import overlay, sheet


class Pictures:
    """PNG files in `folder`, laid out as the images are.

    One that cannot be drawn or written costs no evaluation: that is said once.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.said = False

    def save(self, inside: str, image: np.ndarray, truth: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
        """RGB [H, W, 3] and label maps [H, W] as `folder`/`inside`, the suffix replaced."""
        path = (self.folder / inside).with_suffix(".png")
        try:
            shown: list[tuple[str, np.ndarray | Image.Image]] = [
                ("image", image),
                ("ground truth", overlay(image, truth, names)),
                ("prediction", overlay(image, labels, names)),
            ]
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet([shown]).save(path)
        except (OSError, UserError) as error:
            if not self.said:
                print(f"no picture {path} ({error}); the evaluation goes on", file=sys.stderr)
            self.said = True
