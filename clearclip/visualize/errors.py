"""Where a prediction is right and where it is wrong."""

import numpy as np
from PIL import Image

from clearclip.visualize.canvas import Picture
from clearclip.visualize.labels import check_labels, ignored
from clearclip.visualize.overlay import overlay

RIGHT, WRONG = (150, 205, 235), (196, 78, 40)  # a light blue and a dark red: apart to all eyes


def error_map(
    image: Picture,
    truth: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    legend: bool = True,
    columns: int = 1,
    max_side: int | None = None,
) -> Image.Image:
    """The image in grey, right pixels light blue, wrong ones dark red; those that the truth ignores stay grey.

    truth, labels [H, W], integers; a pixel that the prediction gives no class is wrong where the truth has one.
    """
    truth, labels = check_labels(truth, num_classes), check_labels(labels, num_classes)
    kinds = np.where(truth == ignored(num_classes), 255, truth != labels)
    colours = np.array([RIGHT, WRONG], np.uint8)
    return overlay(
        image, kinds, ["right", "wrong"], legend, colours=colours, write=False, columns=columns, max_side=max_side,
        nothing="not counted",
    )  # fmt: skip
