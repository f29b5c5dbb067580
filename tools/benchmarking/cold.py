"""What comes before the first pixels of `clearclip segment`: imports, weights, text, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarking.inputs import smooth_image

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("cat", "grass", "sky")
PROGRAM = """
import json, sys, time
marks = [("", time.perf_counter())]
mark = lambda name: marks.append((name, time.perf_counter()))
import torch
mark("import torch")
from clearclip.segmenter import Segmenter
mark("import clearclip")
segmenter = Segmenter("ClearCLIP", "ViT-B-16", sys.argv[1], precision=sys.argv[2])
mark("weights")
from clearclip.vocabulary import Vocabulary
segmenter.queries(Vocabulary.of(sys.argv[4:]))
mark("text, kept from an earlier run")
segmenter(sys.argv[3], sys.argv[4:])
mark("first picture")
segmenter(sys.argv[3], sys.argv[4:])
mark("second picture")
print(json.dumps([(name, after - before) for (_, before), (name, after) in zip(marks, marks[1:])]))
"""


def run(pretrained, precision, folder):
    """A row for each stage, the best of three starts, printed; the first of four fills the caches."""
    import cv2

    path = folder / "picture.jpg"
    cv2.imwrite(str(path), smooth_image(480, 640))
    best = {}
    for turn in range(4):
        command = [sys.executable, "-c", PROGRAM, pretrained, precision, str(path), *NAMES]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        for name, seconds in json.loads(done.stdout.splitlines()[-1]):
            if turn:
                best[name] = min(best.get(name, seconds), seconds)
    network = best.pop("second picture")
    print(f"ViT-B-16 {pretrained}, precision {precision}, best of 3 starts")
    for name, seconds in best.items():
        print(f"  {name:32} {seconds:6.2f} s")
    total = sum(best.values())
    print(f"  to the first pixels {total:.2f} s, {total - network:.2f} s beyond a second picture's {network:.2f} s")
    return [dict(case="cold start", stage=name, seconds=seconds) for name, seconds in best.items()]
