"""tools/roofline.py: what it counts, against what must be, and how launches are joined."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import roofline as program
from benchmarking.fake_gpu import CUDA, on_fake_gpu
from benchmarking.inputs import Case
from benchmarking.measure import vit_operations
from benchmarking.roofline import GPU, Launch, Ledger, compiled, ideal, keeping, predict

from clearclip import windows
from clearclip.images import resized_shape
from clearclip.methods.cliper import ImageLevelDecoder
from clearclip.refine.pamr import pamr
from clearclip.windows import Maps

SMALL = Case("small", 120, 160, 7, 64, stride=32)


def watch(function, *shapes, dtype=torch.float16):
    ledger = Ledger()
    with FakeTensorMode():
        tensors = [torch.zeros(shape, dtype=dtype, device=CUDA) for shape in shapes]
        with torch.inference_mode(), ledger:
            function(*tensors)
    return ledger


def test_a_product_reads_its_factors_and_writes_its_result():
    (launch,) = watch(torch.mm, (3, 5), (5, 7)).launches
    assert (launch.name, launch.flops, launch.bytes, launch.half) == ("mm", 2 * 3 * 5 * 7, 2 * (15 + 35 + 21), True)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.T.unflatten(0, (2, 2))[1:],
        lambda x: x.expand(3, 4, 4),
        lambda x: torch.empty_like(x),
        torch.Tensor.half,
    ],
)
def test_views_and_allocations_are_no_kernels(function):
    assert watch(function, (4, 4)).launches == []


def test_what_is_repeated_is_read_once():
    (launch,) = watch(lambda x, y: x.expand(9, 4) + y, (1, 4), (9, 4)).launches
    assert launch.bytes == 2 * (4 + 36 + 36)


def test_a_change_in_place_reads_and_writes():
    (launch,) = watch(lambda x: x.mul_(2), (4, 4)).launches
    assert launch.bytes == 2 * 2 * 16


def test_attention_never_writes_its_weights():
    def attend(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    (launch,) = watch(attend, *[(2, 3, 10, 16)] * 3).launches
    assert (launch.flops, launch.bytes) == (4 * 2 * 3 * 10 * 10 * 16, 2 * 4 * 2 * 3 * 10 * 16)


def test_uploads_are_counted():
    ledger = Ledger()
    with FakeTensorMode(), ledger:
        torch.zeros(5, 4, dtype=torch.uint8).to(CUDA)
    assert (ledger.uploads, ledger.launches) == (20, [])


def launch(name, flops=0, reads="", writes="", block=1):
    return Launch(name, "network", block, flops, True, dict.fromkeys(reads, 10), dict.fromkeys(writes, 10))


# x ─ mm ─ a ─ gelu ─ a ─ mm ─ b ─ add (x) ─ y ─ norm ─ z ─ mm ─ w, y being read again
CHAIN = [
    launch("mm", 100, "x", "a"), launch("quick_gelu_", 0, "a", "a"), launch("mm", 100, "a", "b"),
    launch("add", 0, "bx", "y"), launch("native_layer_norm", 0, "y", "z"), launch("mm", 100, "z", "w"),
    launch("add", 0, "wy", "v", block=2),
]  # fmt: skip


def test_compiled_blocks_join_what_is_between_products():
    seen = [(one.name, set(one.reads), set(one.writes)) for one in compiled(CHAIN)]
    assert seen[:2] == [("mm", {"x"}, {"a"}), ("quick_gelu_", {"a"}, {"a"})]
    assert seen[3] == ("fused", {"b", "x"}, {"y", "z"})
    assert len(seen) == 6


def test_the_ideal_joins_activations_and_skips_to_products():
    seen = [(one.name, set(one.reads), set(one.writes), one.flops) for one in ideal(CHAIN)]
    assert seen == [
        ("mm and more", {"x"}, {"a"}, 100),
        ("mm and more", {"a", "x"}, {"y"}, 100),
        ("native_layer_norm", {"y"}, {"z"}, 0),
        ("mm and more", {"z", "y"}, {"v"}, 100),
    ]


def test_time_is_bound_by_products_or_by_memory():
    gpu = GPU("slow", matrix=10, single=5, memory=40, gap=0.5, host=2)
    seen = predict([launch("mm", 100, "x", "a"), launch("add", 0, "ab", "c")], gpu, images=2)
    assert (seen.launches, seen.host) == (1, 2)
    assert seen.device == pytest.approx((10 + 0.5 + 30 / 40 + 0.5) / 2)
    assert seen.share == pytest.approx(10 / (10 + 0.5 + 30 / 40 + 0.5))


def test_the_products_of_an_image_are_those_of_its_windows(deep_backbone):
    mode = FakeTensorMode()
    with keeping():
        backbone = on_fake_gpu(copy.deepcopy(deep_backbone), mode)
        ledger = program.count_kernels("ClearCLIP", SMALL, backbone, mode, images=2)
    plan = windows.plan(*resized_shape(120, 160, 448), 64, 32, 16)
    counted = sum(one.flops for one in ledger.launches if one.in_vit)
    text = 2 * len(plan) * 16 * 7 * deep_backbone.dim  # of float32, which is not counted
    expected = vit_operations(deep_backbone, len(plan), *plan.window_shape, 7) - text
    assert counted == pytest.approx(2 * expected, rel=0.03)
    assert ledger.uploads == 2 * 3 * resized_shape(120, 160, 448)[0] * resized_shape(120, 160, 448)[1] + 2 * 120 * 160
    assert {one.stage for one in ledger.launches} == {"network", "decode", "count"}
    assert [one.name for one in ledger.launches].count("best_query") == 2


def test_many_maps_are_launched_together():
    """150 classes at ADE20K's size: not a kernel for each of them and each neighbour, nor a dozen for each."""
    ledger = watch(lambda image, maps: pamr(image, maps), (3, 512, 683), (150, 512, 683), dtype=torch.float32)
    assert 160 <= len(ledger.launches) < 1500
    maps = [(150, 28, 37), (512, 28), (683, 37)]
    decoder = ImageLevelDecoder(tuple(range(150)), 0.3, 0.1, normalise=True)
    ledger = watch(lambda *given: decoder.labels(Maps(*given)), *maps, dtype=torch.float32)
    assert len(ledger.launches) < 150


def test_methods_of_vision_models_and_of_whole_images(deep_backbone):
    mode = FakeTensorMode()
    with keeping():
        backbone = on_fake_gpu(copy.deepcopy(deep_backbone), mode)
        for name in ("Overview+EDGES", "LPOSS:vfm=dinov2_vits14"):
            ledger = program.count_kernels(name, SMALL, backbone, mode, images=1)
            assert {one.stage for one in ledger.launches} == {"network", "decode", "count"}


@pytest.mark.slow
def test_program(tiny_folder, capsys):
    program.main(["--backbone", f"local-dir:{tiny_folder}", "--images", "1", "--methods", "MaskCLIP", "--markdown"])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert names == ["benchmark", "---", *(case.name for case in program.CASES), "method", "---", "MaskCLIP"]
    assert "ADE20K, ClearCLIP, H100, ideal:" in lines
