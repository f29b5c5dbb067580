"""Measure what docs/pictures.md says of specks and seams, and draw its picture: `python tools/picture_faults.py`."""

import sys
from pathlib import Path

# `python tools/picture_faults.py` puts only tools/ on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from PIL import Image

from clearclip import Segmenter
from clearclip.errors import program
from clearclip.images import read_image
from clearclip.visualize import heat_map, save_picture, sheet
from clearclip.vocabulary import Vocabulary, load_vocabulary

SANITY = Path(__file__).resolve().parents[1] / "datasets/sanity"
METHODS = ("CLIP", "ClearCLIP", "SC-CLIP", "SC-CLIP+PAMR", "SC-CLIP+PAMR:dilations=(1,2,4,8,16)", "SC-CLIP+TLP")
NAMES = ["sky", "horse", "grass, meadow", "tree, forest"]
DOCS = Path(__file__).resolve().parents[1] / "docs"
SPECK = 30  # pixels; a smaller region of a label is a speck


@torch.inference_mode()
def outliers(segmenter: Segmenter, image: np.ndarray, sky: np.ndarray) -> None:
    """Of sky patches, whether those that are taken for something else are outliers of the last block's input."""
    queries = segmenter.queries(Vocabulary.of(NAMES))
    view = segmenter.view(torch.from_numpy(image).permute(2, 0, 1))
    norms = torch.cat([trunk.tokens()[:, trunk.prefix :].norm(dim=-1) for trunk in view.trunks])  # [n, h·w]
    (dense,) = segmenter.look([view], queries)
    best = dense.scores.argmax(dim=1)  # [n, h, w]
    labels = torch.tensor(queries.query_class)[best].numpy()
    norms = norms.reshape(best.shape).numpy()

    height, width = view.image.shape[1:]
    sky = cv2.resize(sky.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    size = segmenter.backbone.patch_size
    sky = cv2.erode(sky, np.ones((6 * size + 1,) * 2, np.uint8))  # patches that see nothing else
    centres = [np.arange(size // 2, segmenter.crop, size) + start for start in view.plan.columns.starts]
    rows = np.arange(size // 2, segmenter.crop, size)
    inside = np.stack([sky[np.ix_(rows.clip(max=height - 1), columns)] for columns in centres]).astype(bool)
    wrong, right = norms[inside & (labels != 0)], norms[inside & (labels == 0)]
    above = (wrong[:, None] > right).mean()
    print(f"sky patches taken for sky: {len(right)}, median token norm {np.median(right):.1f}")
    print(f"for something else: {len(wrong)}, median token norm {np.median(wrong):.1f}")
    print(f"the latter's norm is the larger in {above:.1%} of pairs")


def specks(labels: np.ndarray) -> int:
    """Connected regions of one label with fewer than SPECK pixels, in [H, W]."""
    stats = [cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=4)[2]
             for label in np.unique(labels)]  # fmt: skip
    return sum(int((one[1:, cv2.CC_STAT_AREA] < SPECK).sum()) for one in stats)


@torch.inference_mode()
def seams(segmenter: Segmenter, image: np.ndarray) -> np.ndarray:
    """How much more scores [Q, H, W], which it gives, change from pixel to pixel across a window's border."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    queries, shape = segmenter.queries(Vocabulary.of(NAMES)), segmenter.resize(pixels).shape[1:]
    view = segmenter.view(pixels, shape)
    (dense,) = segmenter.look([view], queries)
    scores = segmenter.maps(view, dense, queries).full().numpy()  # [Q, H, W]
    for name, axis, plan in (("rows", 1, view.plan.rows), ("columns", 2, view.plan.columns)):
        steps = np.abs(np.diff(scores, axis=axis)).mean(axis=(0, 3 - axis))
        ends = {end for start in plan.starts for end in (start, start + plan.size) if 0 < end < plan.length}
        borders = steps[[end - 1 for end in sorted(ends)]] / np.median(steps)
        print(f"{name}: at borders {borders.min():.0f} to {borders.max():.0f} times the median step, "
              f"of all steps 95 % are within {np.percentile(steps, 95) / np.median(steps):.1f}")  # fmt: skip
    return scores


def draw(image: np.ndarray, scores: np.ndarray) -> None:
    """The scores of horse and grass as heat maps, beside the image."""
    shown = {"horse": scores[1], "grass": scores[2]}
    limits = float(scores[1:3].min()), float(scores[1:3].max())
    maps = [(name, heat_map(image, one, limits=limits, columns=3)) for name, one in shown.items()]
    save_picture(sheet([[("photograph", image), *maps]]), DOCS / "specks-and-seams.jpg")


@program
def main():
    path = SANITY / "images/horses.jpg"
    image, truth = read_image(path), np.array(Image.open(SANITY / "labels/horses.png"))
    clearclip = Segmenter("ClearCLIP", "ViT-B-16", "openai-int8")
    sky = load_vocabulary(SANITY / "classes.txt").classes.index("sky")
    print("outliers, ClearCLIP, horses.jpg")
    outliers(clearclip, image, truth == sky)
    print(f"regions under {SPECK} pixels")
    for method in METHODS:
        segmenter = Segmenter(method, clearclip.backbone)
        print(f"{method}: {specks(segmenter(image, NAMES).labels)}", flush=True)
    print("seams, ClearCLIP, short side 672")
    draw(image, seams(Segmenter("ClearCLIP", clearclip.backbone, short_side=672), image))
    print("the same, stride 112")
    seams(Segmenter("ClearCLIP", clearclip.backbone, short_side=672, stride=112), image)


if __name__ == "__main__":
    main()
