"""How many windows go through the network at once: by a GPU's memory, and fewer where that is too small."""

import numpy as np
import pytest
import torch
from conftest import picture

from clearclip import Vocabulary
from clearclip.evaluation import passes
from clearclip.look import MOST_WINDOWS, fitting_windows
from clearclip.methods.final_block import FinalBlock
from clearclip.segmenter import see_together

NAMES = tuple("abcdefg")
IMAGES = [picture(80, 112), picture(112, 80, seed=1)]  # of six windows each


class Hungry(FinalBlock):
    """ClearCLIP on a device whose memory holds a few windows."""

    holds = 2

    def features(self, trunk):
        self.seen = [*getattr(self, "seen", ()), len(trunk.images)]
        if len(trunk.images) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().features(trunk)


class HungryForImages(Hungry):
    """The same that works on whole images."""

    def image_features(self, view):
        return super().image_features(view)


@pytest.mark.parametrize("method", [Hungry, HungryForImages])
def test_batches_are_halved_until_they_fit(method, make, tiny_backbone, caplog):
    expected = make(type("Sated", (method,), {"holds": 99})(tiny_backbone), window_batch=2)(IMAGES, NAMES)
    segmenter = make(method(tiny_backbone), window_batch=64)
    results = segmenter(IMAGES, NAMES)
    for result, one in zip(results, expected):
        assert np.array_equal(result.labels, one.labels)
    assert len(caplog.messages) == 1
    assert "memory does not hold 64 windows at once: from here on" in caplog.text
    assert segmenter.window_batch in (1, 2)
    tried = len(segmenter.method.seen)
    segmenter(IMAGES[0], NAMES)
    assert max(segmenter.method.seen[tried:]) <= 2  # it is not tried again
    assert len(caplog.messages) == 1


def test_runs_of_a_pass_all_take_smaller_batches(make, tiny_backbone, caplog):
    segmenters = [make(Hungry(tiny_backbone), window_batch=8), make("CLIP", window_batch=8)]
    seers = [(one, one.queries(Vocabulary.of(list(NAMES)))) for one in segmenters]
    views = [segmenters[0].view(torch.from_numpy(image).permute(2, 0, 1)) for image in IMAGES]
    seen = see_together(seers, views)
    assert [len(images) for images in seen] == [2, 2]
    assert [one.window_batch for one in segmenters] == [2, 2]
    assert [view.window_batch for view in views] == [2, 2]
    assert len(caplog.messages) == 1


def test_one_window_that_does_not_fit_is_an_error(make, tiny_backbone, caplog):
    method = Hungry(tiny_backbone)
    method.holds = 0
    segmenter = make(method, window_batch=64)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        segmenter(IMAGES, NAMES)
    assert min(method.seen) == 1
    assert caplog.messages == []
    assert "out of memory" in str(passes._explained(caught.value))


def test_a_device_without_free_memory_to_ask_for_has_a_number(tiny_backbone):
    assert fitting_windows(tiny_backbone, 448) == 4


@pytest.mark.parametrize(
    ("free", "expected"), [(0, 1), (10 << 20, 1), (1 << 30, 22), (80 << 30, MOST_WINDOWS)], ids=str
)
def test_a_gpu_takes_what_half_of_its_memory_holds(free, expected, tiny_backbone, monkeypatch):
    class OnGPU:
        device = torch.device("cuda:0")

        def __getattr__(self, name):
            return getattr(tiny_backbone, name)

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 << 30))
    assert fitting_windows(OnGPU(), 448) == expected
