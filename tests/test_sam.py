"""Refinement by SAM: golden arrays with a stand-in for its decoder, and transformers' SAM, tiny, in the whole road."""

import pytest
import torch
import torch.nn.functional as F

from clearclip.refine.sam import Rules, redraw

CASES = {  # coarse threshold, minimal area, IoU threshold, size that SAM was given
    "all_pass": (0.2, 30, 0.8, (96, 144)),
    "none_pass": (0.4, 30, 0.8, (96, 144)),
    "some_fail": (0.4, 30, 0.8, (96, 144)),
    "strict_area": (0.45, 225, 0.9, (90, 130)),
    "zero_thresh": (0, 30, 0.8, (90, 130)),
}


def close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


class Ellipses:
    """The golden file's decoder: an ellipse around each box; it keeps what it was asked."""

    def __init__(self, ious):
        self.ious, self.points, self.boxes, self.masks, self.counts = ious, [], [], [], []

    def __call__(self, points, boxes, mask):
        done = sum(self.counts)
        self.points.append(points)
        self.boxes.append(boxes)
        self.masks.append(mask)
        self.counts.append(len(points))
        centre, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * 1.2 + 8
        place = 4 * torch.arange(256) + 2
        x, y = (((place - centre[:, i : i + 1]) / radius[:, i : i + 1]) ** 2 for i in (0, 1))
        return 3 * (1 - x[:, None, :] - y[:, :, None]), self.ious[done : done + len(points)]


@pytest.mark.parametrize("case", CASES)
def test_golden(case, golden):
    tensors = golden("trident")
    expected = {k.rpartition("/")[2]: v for k, v in tensors.items() if k.startswith(f"refine/{case}/")}
    scores = F.interpolate(tensors["refine/scores_small"][None], size=(90, 130), mode="bilinear")[0]
    probabilities = scores.softmax(dim=0)
    labels = probabilities.argmax(dim=0).to(torch.uint8)
    decode = Ellipses(expected["iou"])
    threshold, area, iou, given = CASES[case]
    redrawn, worth = redraw(labels, probabilities, decode, Rules(threshold, area, iou), given)
    assert decode.counts == expected["count_per_call"].tolist()
    close(torch.cat(decode.points), expected["points"])
    close(torch.cat(decode.boxes), expected["boxes"])
    close(torch.stack(decode.masks)[:, ::8, ::8], expected["mask_prompts"])
    assert torch.equal(redrawn, expected["labels"])
    assert redrawn.dtype == labels.dtype
    close(worth[:, ::2, ::2], expected.get("scores", probabilities[:, ::2, ::2]))
