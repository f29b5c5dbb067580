"""Refinement by SAM: golden arrays with a stand-in for its decoder, and transformers' SAM, tiny, in the whole road."""

import pytest
import torch
import torch.nn.functional as F
from tiny_sam import tiny_sam

from clearclip.errors import UserError
from clearclip.refine.sam import Rules, SAMNetwork, find_regions, load_sam, redraw

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny SAM as transformers saves it, random."""
    folder = tmp_path_factory.mktemp("sam")
    torch.manual_seed(0)
    tiny_sam().save_pretrained(folder)
    return folder


@pytest.fixture
def image():
    torch.manual_seed(1)
    return torch.randint(256, (3, 70, 90), dtype=torch.uint8)


def refined(make, folder, image, minimal_area, iou_threshold=-99):
    options = f"coarse_threshold=0,minimal_area={minimal_area},iou_threshold={iou_threshold}"
    segmenter = make(f"ClearCLIP+SAM:model={folder},{options}")
    return segmenter(image, list("abcdefg"), scores=True)


def test_the_whole_road(make, folder, image):
    plain = make()(image, list("abcdefg"), scores=True)
    result = refined(make, folder, image, 4)
    assert result.labels.shape == plain.labels.shape
    assert result.labels.dtype == plain.labels.dtype
    assert (result.labels != plain.labels).any()
    assert (result.scores <= plain.scores + 1e-6).all()  # a share of them, inside masks
    assert (refined(make, folder, image, 9999).labels == plain.labels).all()
    assert (refined(make, folder, image, 4, iou_threshold=99).labels == plain.labels).all()


def test_prompts_reach_the_network(tiny_backbone, folder, image):
    """Point, box and mask all change what comes back, and a call for two regions gives what two calls give."""
    network = SAMNetwork(load_sam(str(folder)), torch.device("cpu"), torch.float32)
    embedding = network.encode(image)
    points, boxes = torch.tensor([[20.0, 30], [9, 8]]), torch.tensor([[8.0, 8, 40, 50], [3, 2, 20, 15]])
    mask = torch.zeros(network.mask_side, network.mask_side)
    logits, ious = network.decode(embedding, points, boxes, mask)
    assert logits.shape == (2, 16, 16)
    assert ious.shape == (2,)
    for index in (0, 1):
        alone, iou = network.decode(embedding, points[index : index + 1], boxes[index : index + 1], mask)
        close(alone[0], logits[index])
        close(iou, ious[index : index + 1])
    for other in ((points + 9, boxes, mask), (points, boxes + 5, mask), (points, boxes, mask + 1)):
        assert (network.decode(embedding, *other)[0] - logits).abs().max() > 1e-3 * logits.abs().max()


def test_networks_own_preprocessing(folder, image):
    """The square that SAM sees is that of transformers' own processor."""
    from transformers import SamImageProcessor

    size, pad = {"longest_edge": 64}, {"height": 64, "width": 64}
    processor = SamImageProcessor(size=size, pad_size=pad)
    expected = processor(image.permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"][0]
    network = SAMNetwork(load_sam(str(folder)), torch.device("cpu"), torch.float32)
    ours = network.square(image, expected)
    assert (ours - expected).abs().max() < 1.5 / 255 / 0.224  # one level: another implementation of the same resize


def test_regions():
    """Eight neighbours, the smallest area, the order of first pixels, and what has no class."""
    labels = torch.tensor([[1, 0, 2, 2], [0, 1, 255, 2], [2, 0, 0, 0]])
    probabilities = torch.zeros(3, 3, 4)
    probabilities.scatter_(0, labels.clamp(max=2)[None], 0.6)
    probabilities[1, 1, 1] = 0.9
    found = find_regions(labels, probabilities, Rules(0.5, 2, 0.8))
    assert found.classes.tolist() == [0, 1, 2]
    assert found.points.tolist() == [[1, 0], [1, 1], [2, 0]]
    assert found.boxes.tolist() == [[0, 0, 3, 2], [0, 0, 1, 1], [2, 0, 3, 1]]
    assert found.index.tolist() == [[1, 0, 2, 2], [0, 1, -1, 2], [-1, 0, 0, 0]]
    assert find_regions(labels, probabilities, Rules(0.7, 1, 0.8)).index.tolist() == [
        [-1] * 4,
        [-1, 0, -1, -1],
        [-1] * 4,
    ]


def test_no_device_is_waited_for_but_once(folder, monkeypatch):
    """Values leave tensors in `find_regions` alone."""
    calls = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: calls.append(tensor.shape) or original(tensor))
    for name in ("item", "tolist", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the device is waited for"))
    scores = torch.rand(4, 6, 8, generator=torch.Generator().manual_seed(0))
    probabilities = F.interpolate(9 * scores[None], size=(60, 80), mode="bilinear")[0].softmax(dim=0)
    redraw(
        probabilities.argmax(dim=0), probabilities, Ellipses(torch.linspace(0, 2, 500)), Rules(0.1, 30, 0.8), (60, 80)
    )
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (",encoder=clip", "encoder must be sam or own, not 'clip'"),
        (",encoder=own", "needs a RADIO backbone"),
        (",minimal_area=0", "minimal_area 1 or more"),
    ],
)
def test_wrong_options(make, folder, more, said):
    with pytest.raises(UserError, match=said):
        make(f"ClearCLIP+SAM:model={folder}{more}")


def test_no_weights(make, tmp_path):
    with pytest.raises(UserError, match=r"SAM vit_b cannot be had .* fill its cache"):
        make("ClearCLIP+SAM")
    with pytest.raises(UserError, match=r"model.safetensors"):
        make(f"ClearCLIP+SAM:model={tmp_path}")


def test_files(make, folder):
    """What records are kept apart by: a folder's files, and when they were written."""
    (refinement,) = make(f"ClearCLIP+SAM:model={folder}").refinements
    assert f"model.safetensors {(folder / 'model.safetensors').stat().st_mtime_ns}" in refinement.files()["sam"]
