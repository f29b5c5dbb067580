"""A large picture, from its file to the files of its labels, beside the time of the network alone."""

import functools

import cv2
import torch

from benchmarking.inputs import make_queries, smooth_image
from benchmarking.measure import Laps
from clearclip.images import read_image
from clearclip.look import Dense
from clearclip.segmentation import Segmentation
from clearclip.segmenter import Segmenter

CLASSES = 20


def run(backbone, megapixels, folder):
    """A row for each stage of a 4:3 picture with noise like a camera's, printed."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    picture = smooth_image(height, height * 4 // 3)
    noise = torch.randint(-6, 7, picture.shape, dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    picture = (torch.from_numpy(picture).short() + noise).clamp(0, 255).byte().numpy()
    path = folder / "large.jpg"
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    segmenter = Segmenter("ClearCLIP", backbone)
    queries = make_queries(CLASSES, segmenter)
    stages = functools.partial(_stages, segmenter, queries, path, folder)
    stages(Laps(backbone.device))  # warms up
    best = {}
    for _ in range(3):
        laps = Laps(backbone.device)
        stages(laps)
        best = {name: min(best.get(name, seconds), seconds) for name, seconds in laps.seconds.items()}
        peaks = laps.peaks
    total = sum(best.values())
    print(f"{height * 4 // 3} x {height} pixels, {backbone.dtype}, {torch.get_num_threads()} threads, best of 3")
    for name, seconds in best.items():
        held = "-" if peaks[name] is None else f"{peaks[name] / 2**20:,.0f} MiB"
        print(f"  {name:16} {seconds:8.3f} s  {held:>10}")
    print(f"  all {total:.3f} s: {total / best['network']:.2f} times the network")
    return [dict(case="large picture", stage=name, seconds=s, peak_bytes=peaks[name]) for name, s in best.items()]


def _stages(segmenter, queries, path, folder, lap):
    array = read_image(path)
    lap("decode image")
    view = segmenter.view(torch.from_numpy(array).permute(2, 0, 1))
    trunks = view.trunks
    lap("resize, windows")
    scores = torch.cat([segmenter.method.scores(trunk, queries.for_scores) for trunk in trunks])
    lap("network")
    maps = segmenter.maps(view, Dense(scores, None, whole=False), queries)
    labels = segmenter.decoder(queries).labels(maps).cpu().numpy()
    lap("stitch, labels")
    result = Segmentation(labels, queries.names, source=array)
    result.save(folder, ["overlay", "labels"], "large")
    lap("draw, write")
