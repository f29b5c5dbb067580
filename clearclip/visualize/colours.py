"""Colours of classes and of scores: soft, unlike in lightness, and apart for colour-blind eyes too."""

import functools

import cv2
import numpy as np

# Linear RGB as eyes without one kind of cone see it (Machado, Oliveira & Fernandes, IEEE TVCG 2009, severity 1).
COLOUR_BLIND = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
FIRST = ((90, 156, 214), (242, 208, 107), (42, 111, 85), (224, 130, 90))  # blue, sand, green, coral
OPACITY = 0.68  # of colours upon the grey photograph
MEAN_GREY = 150  # of photographs, where a legend shows a colour as it looks upon them
COUNT = 512  # different colours; they repeat after these
LIGHTNESS, CHROMA = (0.44, 0.93), (0.085, 0.155)  # in Oklab: neither grey as photographs are made, nor glaring


def palette(num_classes: int) -> np.ndarray:
    """[C, 3] uint8 colours, each as different as possible from those before it. They repeat after 512 classes.

    The colours of a smaller palette begin every larger one. Difference is that in Oklab, to whichever eyes see least
    of it: normal ones or, as `simulate` has them, those without one kind of cone.

        palette(3)[0]  # of class 0
    """
    colours = _distinct_colours()
    return colours[np.arange(num_classes) % len(colours)]


def hexadecimal(colour: np.ndarray) -> str:
    """A colour [3] as it is written in HTML: "#5a9cd6"."""
    return "#{:02x}{:02x}{:02x}".format(*(int(value) for value in colour))


def blended(colours: np.ndarray) -> np.ndarray:
    """Colours [..., 3] as they look upon the grey photograph, which is how a legend has them."""
    return np.round(OPACITY * np.asarray(colours, float) + (1 - OPACITY) * MEAN_GREY).astype(np.uint8)


def simulate(rgb: np.ndarray, kind: str) -> np.ndarray:
    """Colours [..., 3] in 0..255 as they look without red ("protanopia"), green ("deuteranopia") or blue cones
    ("tritanopia"): [..., 3], float."""
    seen = _linear(np.asarray(rgb, float)) @ np.array(COLOUR_BLIND[kind]).T
    seen = seen.clip(0, 1)
    return 255 * np.where(seen > 0.0031308, 1.055 * seen ** (1 / 2.4) - 0.055, 12.92 * seen)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] in 0..255 to Oklab (Björn Ottosson, 2020), where distance is difference to the eye."""
    to_lms = np.array([
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ])  # fmt: skip
    to_lab = np.array([
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ])  # fmt: skip
    return np.cbrt(_linear(np.asarray(rgb, float)) @ to_lms.T) @ to_lab.T


def _linear(rgb: np.ndarray) -> np.ndarray:
    return np.where(rgb > 10.31475, ((rgb / 255 + 0.055) / 1.055) ** 2.4, rgb / 255 / 12.92)


def difference(colours: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """How far colours [N, 3] are from one [3] to whichever eyes see least difference: [N], in Oklab."""
    seen = [(colours, colour), *((simulate(colours, kind), simulate(colour, kind)) for kind in COLOUR_BLIND)]
    return np.min([np.linalg.norm(oklab(many) - oklab(one), axis=-1) for many, one in seen], axis=0)


@functools.lru_cache(maxsize=1)
def _distinct_colours() -> np.ndarray:
    """Four chosen colours, then farthest-point sampling of the soft ones: [512, 3], uint8."""
    levels = np.arange(24, 256, 11, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lightness, a, b = oklab(colours).T
    chroma = np.hypot(a, b)
    soft = (lightness > LIGHTNESS[0]) & (lightness < LIGHTNESS[1]) & (chroma > CHROMA[0]) & (chroma < CHROMA[1])
    colours = np.concatenate([np.array(FIRST, np.uint8), colours[soft]])
    eyes = [colours, *(simulate(colours, kind) for kind in COLOUR_BLIND)]
    seen = np.stack([oklab(one) for one in eyes])  # [4, N, 3]
    nearest = np.full(len(colours), np.inf)
    chosen: list[int] = []
    for place in range(COUNT):
        chosen.append(place if place < len(FIRST) else int(nearest.argmax()))
        apart = np.linalg.norm(seen - seen[:, chosen[-1:]], axis=-1).min(axis=0)
        nearest = np.minimum(nearest, apart)
    return colours[chosen]


def _table(number: int) -> np.ndarray:
    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], number)
    return np.ascontiguousarray(bgr[:, 0, ::-1])


VIRIDIS = _table(cv2.COLORMAP_VIRIDIS)  # [256, 3], perceptually uniform, also to colour-blind eyes
INFERNO = _table(cv2.COLORMAP_INFERNO)
