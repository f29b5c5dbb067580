#!/usr/bin/env python
"""What `--smooth` does to flicker, on a pan over a photograph with the noise of a sensor:

    python tools/flicker.py datasets/sanity/images/horses.jpg --names sky horse "grass, meadow" --pretrained openai-int8

The motion is known, so that each pixel is compared with itself in the frame before. For each share of the frames
before it prints how many pixels change their label from one frame to the next, and how many have another label than
without smoothing, which is the price: what moves leaves a trace.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without clearclip being installed

from clearclip import Segmenter, Vocabulary
from clearclip.images import read_image
from clearclip.video import Smoother

SHARES = (0.0, 0.5, 0.7, 0.8, 0.9)
SETTLED = 8  # frames after which an average has settled


def pan(photo: np.ndarray, frames: int, step: int, noise: float) -> list[np.ndarray]:
    """Frames [H, W, 3] that move to the right over a photograph by `step` pixels each."""
    random = np.random.default_rng(0)
    width = photo.shape[1] - step * (frames - 1)
    cuts = [photo[:, start : start + width].astype(np.float32) for start in range(0, step * frames, step)]
    return [np.clip(cut + random.normal(0, noise, cut.shape), 0, 255).astype(np.uint8) for cut in cuts]


def main() -> None:
    parser = argparse.ArgumentParser(description="Count labels that flicker, with and without --smooth.")
    parser.add_argument("photo")
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--method", default="ClearCLIP")
    parser.add_argument("--pretrained", default="openai")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--step", type=int, default=4, help="pixels a frame")
    parser.add_argument("--noise", type=float, default=12.0, help="standard deviation, of 255 levels")
    arguments = parser.parse_args()

    segmenter = Segmenter(arguments.method, pretrained=arguments.pretrained)
    queries = segmenter.queries(Vocabulary.of(arguments.names))
    decoder, step = segmenter.decoder(queries), arguments.step
    frames = pan(read_image(arguments.photo), arguments.frames, step, arguments.noise)
    views = [segmenter.view(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames]
    seen = [dense for view in views for dense in segmenter.look([view], queries)]

    plain: list[np.ndarray] = []
    for share in SHARES:
        smoother = Smoother(share)
        decoded = (segmenter.decode(view, smoother(dense), queries, decoder) for view, dense in zip(views, seen))
        labels = [one.labels.numpy() for one in decoded]
        labels = labels[SETTLED:]
        plain = plain or labels
        flips = np.mean([(after[:, :-step] != before[:, step:]).mean() for before, after in itertools.pairwise(labels)])
        moved = np.mean([(one != other).mean() for one, other in zip(plain, labels)])
        print(f"smooth {share}: {flips:6.2%} of pixels change a frame, {moved:6.2%} differ from the unsmoothed")


if __name__ == "__main__":
    main()
