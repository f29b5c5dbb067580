"""The MMSeg side of a `Segmenter`: segmentor, metric and the hook that saves pictures."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mmengine.structures import PixelData
from PIL import Image

from clearclip.errors import UserError
from clearclip.evaluation.results import write_result
from clearclip.evaluation.segmentor import ClassIoUMetric, OpenVocabSegmentor, SaveOverlayHook
from clearclip.segmenter import Segmenter
from clearclip.text import TextEmbeddings

# isort: split
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample

CLASSES = ("cat", "dog ", "tree", "sky")


def metric(**options):
    metric = ClassIoUMetric(iou_metrics=["mIoU"], **options)
    metric.dataset_meta = {"classes": CLASSES}
    return metric


def sample(truth, labels):
    return {"gt_sem_seg": {"data": torch.from_numpy(truth)[None]}, "pred_sem_seg": {"data": torch.from_numpy(labels)}}


def class_ious(truth, labels):
    """IoU of each class in percent, NaN where it does not occur; pixels of truth 255 do not count."""
    truth, labels = truth[truth != 255], labels[truth != 255]
    both = [np.sum((truth == c) & (labels == c)) for c in range(len(CLASSES))]
    either = [np.sum((truth == c) | (labels == c)) for c in range(len(CLASSES))]
    return [100 * b / e if e else np.nan for b, e in zip(both, either)]


truths = arrays(np.uint8, (3, 5, 7), elements=st.sampled_from([0, 1, 2, 3, 255]))
predictions = arrays(np.uint8, (3, 5, 7), elements=st.sampled_from([0, 1, 2, 3]))


@given(truths, predictions)
def test_metric_equals_a_plain_count(truth, labels):
    if (truth == 255).all():
        truth[0, 0, 0] = 0
    whole = metric()
    whole.process({}, [sample(t, p) for t, p in zip(truth, labels)])
    result = whole.evaluate(len(truth))
    expected = class_ious(truth, labels)
    assert list(result["IoU"]) == ["cat", "dog", "tree", "sky"]
    np.testing.assert_allclose(list(result["IoU"].values()), expected, rtol=1e-12)
    assert result["mIoU"] == pytest.approx(np.nanmean(expected), rel=1e-12)
    counted = truth != 255
    assert result["aAcc"] == pytest.approx(100 * (truth == labels)[counted].mean(), rel=1e-12)
    accuracies = [100 * (labels[truth == c] == c).mean() for c in range(4) if (truth == c).any()]
    assert result["mAcc"] == pytest.approx(np.mean(accuracies), rel=1e-12)


def test_pixels_are_counted_as_integers():
    """In float32, 2²⁴ + 1 is 2²⁴."""
    areas = np.zeros((2, 4, len(CLASSES)), np.int64)
    areas[:, :, 0] = (2**24,) * 4, (0, 1, 1, 1)
    counts = [np.append(area, [0, 0]) for area in areas]
    assert metric().compute_metrics(counts)["IoU"]["cat"] == 100 * 2**24 / (2**24 + 1) < 100


@st.composite
def label_maps(draw):
    """Number of classes, ignored label, prediction and ground truth as `process` makes them of any type: int32."""
    classes = draw(st.integers(2, 12) | st.sampled_from([255, 256, 847]))
    inside = st.integers(0, min(classes - 1, 5)) | st.just(classes - 1)
    outside = st.sampled_from([-1, classes, 255, 65535])
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    maps = (torch.from_numpy(draw(arrays(np.int32, shape, elements=inside | outside))) for _ in range(2))
    return classes, draw(st.sampled_from([255, 65535])), *maps


@given(label_maps())
def test_areas_are_mmsegs(drawn):
    """A label that is no class, such as CLIPer's 255, misses where the truth is a class and adds to no prediction."""
    classes, ignored, labels, truth = drawn
    counts = ClassIoUMetric.intersect_and_union(labels, truth, classes, ignored)
    expected = IoUMetric.intersect_and_union(labels, truth, classes, ignored)
    assert counts.dtype == torch.int64
    assert torch.equal(counts[:-2].view(4, classes), torch.stack(expected).long())
    no_class = ((truth < 0) | (truth >= classes)) & (truth != ignored)
    assert counts[-2:].tolist() == [no_class.sum(), (truth == ignored).sum()]


@pytest.mark.parametrize(
    ("labels", "truth"), [("uint8", "uint8"), ("uint8", "uint16"), ("int16", "int32"), ("int32", "int64")]
)
def test_label_maps_may_differ_in_type(labels, truth):
    """Those of the decoders, and those of both loaders of annotations."""
    large = metric(ignore_index=65535 if truth != "uint8" else 255)
    unknown = large.ignore_index
    pair = np.array([[0, 1, 2, 3]]), np.array([[0, 2, 2, unknown]])
    large.process({}, [sample(pair[1].astype(truth), pair[0].astype(labels))])
    assert large.evaluate(1)["aAcc"] == pytest.approx(100 * 2 / 3)


def test_images_stay_apart_until_they_are_collected():
    """A distributed sampler takes images twice; MMEngine cuts the list of results to the number of images."""
    random = np.random.default_rng(0)
    truth, labels = random.integers(0, 4, (2, 3, 5, 7), np.uint8)
    results = []
    for count in (2, 3):
        counted = metric()
        counted.process({}, [sample(t, p) for t, p in zip(truth[:count], labels[:count])])
        results.append(counted.evaluate(2))
    assert results[0] == results[1]


def test_class_that_does_not_occur_is_null_and_out_of_the_mean(tmp_path):
    truth = np.array([[0, 1], [1, 255]], np.uint8)
    labels = np.array([[0, 0], [1, 3]], np.uint8)  # sky only where the truth is unknown
    counted = metric()
    counted.process({}, [sample(truth, labels)])
    result = counted.evaluate(1)
    assert result["mIoU"] == pytest.approx(50)
    path = write_result({"per_class_IoU": result["IoU"]}, tmp_path)
    assert json.loads(path.read_text()) == {"per_class_IoU": {"cat": 50, "dog": 50, "tree": None, "sky": None}}


def data_sample(image, path="/nowhere/a.jpg"):
    sample = SegDataSample(metainfo={"ori_shape": image.shape[:2], "img_path": str(path)})
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, *image.shape[:2], dtype=torch.uint8))
    return sample


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(1)
    return [random.integers(0, 256, shape, np.uint8) for shape in ((70, 96, 3), (64, 48, 3))]


@pytest.mark.parametrize("resize", [{"short_side": 0}, {"short_side": 80}, {"resize": "device", "short_side": 80}])
def test_segmentor_gives_the_labels_of_a_segmenter(resize, tiny_backbone, images, tmp_path):
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\ndog, puppy\nsky\n")
    rows = torch.randn(4, tiny_backbone.dim, generator=torch.Generator().manual_seed(0))
    text = TextEmbeddings(("sky", "puppy", "cat", "dog"), torch.nn.functional.normalize(rows, dim=1))
    settings = dict(backbone=tiny_backbone, text_embeddings=text, crop=64, stride=32, threshold=0.4)
    bgr = [torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) for image in images]

    segmentor = OpenVocabSegmentor(str(classes), **settings, **resize)
    samples = segmentor.test_step({"inputs": bgr, "data_samples": [data_sample(image) for image in images]})
    segmenter = Segmenter(**settings, **resize)
    for sample, image in zip(samples, images):
        expected = segmenter(image, ["cat", "dog, puppy", "sky"]).labels
        np.testing.assert_array_equal(sample.pred_sem_seg.data[0].numpy(), expected)
        assert len(np.unique(expected)) > 1
        assert sample.finite


def strange(truth, **extra):
    """A sample whose ground truth is `truth` [H, W], with a prediction of zeros."""
    return sample(truth, np.zeros_like(truth)) | {"img_path": "a.jpg", "seg_map_path": "a.png"} | extra


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, r"label map a\.png holds 261, which is none of the 4 classes \(0 to 3\) nor the ignored 255; convert"),
        ({"reduce_zero_label": True}, r"a\.png holds 262, which is none of the 4 classes \(1 to 4\)"),
        ({"finite": torch.tensor(False)}, r"scores are not finite from a\.jpg on: use precision fp32"),
    ],
)
def test_what_spoils_a_run_is_found_a_batch_later_or_at_the_end(extra, message):
    truth = np.array([[0, 1], [261, 255]], np.uint16)
    counted = metric()
    counted.process({}, [strange(np.zeros((2, 2), np.uint8)), strange(truth, **extra)])
    with pytest.raises(UserError, match=message):
        counted.process({}, [strange(np.zeros((2, 2), np.uint8))])
    counted = metric()
    counted.process({}, [strange(truth, **extra)])
    with pytest.raises(UserError, match=message):
        counted.evaluate(1)


def test_more_metrics_and_the_interval():
    random = np.random.default_rng(0)
    truth, labels = random.integers(0, 4, (2, 9, 5, 7), np.uint8)
    plain, more = metric(), ClassIoUMetric(iou_metrics=["mDice", "mFscore"])
    more.dataset_meta = plain.dataset_meta
    for counted in (plain, more):
        counted.process({}, [sample(t, p) for t, p in zip(truth, labels)])
    first, second = plain.evaluate(9), more.evaluate(9)
    assert second.keys() - first.keys() == {"mDice", "mFscore", "mPrecision", "mRecall"}
    assert {key: second[key] for key in first} == first
    iou = np.array(list(first["IoU"].values())) / 100
    assert second["mDice"] == pytest.approx(100 * np.mean(2 * iou / (1 + iou)), rel=1e-9)
    assert 0 < first["interval"] < 20
    with pytest.raises(ValueError, match="no metric 'mIOU' in iou_metrics; there are mDice, mFscore, mIoU"):
        ClassIoUMetric(iou_metrics="mIOU")


@pytest.mark.parametrize("reduce", [False, True])
def test_an_ignored_label_is_not_strange(reduce):
    counted = metric()
    counted.process({}, [strange(np.array([[0, 255]], np.uint8), reduce_zero_label=reduce, finite=torch.tensor(True))])
    assert counted.evaluate(1)["IoU"]["cat"] == 100


def test_sizes_must_agree():
    one = sample(np.zeros((4, 6), np.uint8), np.zeros((6, 4), np.uint8)) | {"seg_map_path": "a.png"}
    with pytest.raises(UserError, match=r"label map a\.png is 4x6, its image 6x4; convert it again"):
        metric().process({}, [one])


@pytest.mark.parametrize(
    ("classes", "truth", "message"),
    [
        (4, [[255, 255]], "no pixel has a label: the label maps hold nothing but the ignored 255"),
        (2, [[0, 255]], "nothing but class 0 and the ignored 255; in masks of 0 and 255, write 1 for 255"),
    ],
)
def test_label_maps_that_say_nothing(classes, truth, message):
    counted = metric()
    counted.dataset_meta = {"classes": CLASSES[:classes]}
    counted.process({}, [strange(np.array(truth, np.uint8))])
    with pytest.raises(UserError, match=message):
        counted.evaluate(1)


def test_every_image_must_be_counted():
    counted = metric()
    counted.process({}, [strange(np.zeros((2, 2), np.uint8))])
    with pytest.raises(UserError, match="1 of 3 images were counted; let the sampler and loader give all"):
        counted.evaluate(3)


@pytest.fixture
def runner(tmp_path):
    dataset = SimpleNamespace(metainfo={"classes": ("cat", "dog")}, data_prefix={"img_path": str(tmp_path / "images")})
    return SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset))


def predicted(image, path, label=1):
    """The batch and the data sample of an image, all of it labelled `label`."""
    sample = data_sample(image, path)
    sample.pred_sem_seg = PixelData(data=torch.full((1, *image.shape[:2]), label, dtype=torch.uint8))
    return {"inputs": [torch.from_numpy(image).flip(2).permute(2, 0, 1)]}, [sample]


def test_pictures_show_image_truth_prediction_and_errors(images, runner, tmp_path):
    batch, (sample,) = predicted(images[0], tmp_path / "images/town/photo.jpg")
    sample.gt_sem_seg.data[:, :30] = 255
    SaveOverlayHook(str(tmp_path / "show")).after_test_iter(runner, 0, batch, [sample])
    with Image.open(tmp_path / "show/town/photo.png") as picture:
        assert picture.width > 2 * 96
        assert picture.height > 2 * 70
        pixels = np.asarray(picture.convert("RGB"))
    top, left = np.argwhere((pixels == images[0][0, 0]).all(axis=-1))[0]
    np.testing.assert_array_equal(pixels[top : top + 70, left : left + 96], images[0])


def test_a_picture_that_cannot_be_saved_is_said_once(images, runner, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for hook, label in ((SaveOverlayHook(str(tmp_path / "show")), 7), (SaveOverlayHook(str(tmp_path / "file")), 1)):
        for _ in range(2):
            hook.after_test_iter(runner, 0, *predicted(images[0], tmp_path / "images/a.jpg", label))
        assert capsys.readouterr().err.count("the evaluation goes on") == 1
