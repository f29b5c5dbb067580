"""Segment a picture by a file of `clearclip export`, with onnxruntime, NumPy and Pillow alone.

clearclip export pets.onnx --names cat dog "grass, lawn" sky
python examples/onnx_segment.py pets.onnx photo.jpg labels.png
"""

import colorsys
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(model, picture, target):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["names"])
    image = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
    source = session.get_inputs()[0]
    height, width = source.shape[2:]  # numbers where the file is for one size
    seen = image.resize((width, height)) if isinstance(height, int) else image
    pixels = np.asarray(seen).transpose(2, 0, 1)[None]  # [1, 3, H, W]
    if source.type == "tensor(float)":
        pixels = pixels.astype(np.float32) / 255

    (found,) = session.run(None, {source.name: pixels})
    labels = found[0] if found.ndim == 3 else found[0].argmax(axis=0)  # [H, W], or of scores [C, H, W]
    for label, name in enumerate(names):
        print(f"{name}: {(labels == label).mean():.1%}")

    colours = [colorsys.hsv_to_rgb(label / len(names), 0.6, 0.9) for label in range(len(names))]
    shown = Image.fromarray((np.array(colours)[labels] * 255).astype(np.uint8)).resize(image.size, Image.NEAREST)
    Image.blend(image, shown, 0.5).save(target)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
