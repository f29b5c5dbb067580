"""Products by oneDNN against PyTorch's own, and when they are left to PyTorch."""

import copy
import gc
import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_near, features
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clearclip import products
from clearclip.attention import TERMS, Attention
from clearclip.backbones import choose_precision
from clearclip.products import Linear, attend, linear, quicken

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}


def noise(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    if not products._knows(request.param):
        pytest.skip("oneDNN has no such product on this processor")
    return request.param


@pytest.mark.parametrize("rows", [None, slice(5, 9)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(rows, with_bias, dtype):
    x, weight, bias = noise(2, 7, 12, dtype=dtype), noise(20, 12, dtype=dtype, seed=1), noise(20, dtype=dtype, seed=2)
    chosen = rows or slice(None)
    expected = F.linear(x, weight[chosen], bias[chosen] if with_bias else None)
    for batch in (x, x[:1], x):  # laid out for one number of rows, used for others
        actual = linear(batch, weight, bias if with_bias else None, rows)
        assert actual.dtype == dtype
        assert_near(actual.float(), expected[: len(batch)].float(), TOLERANCE[dtype])


def test_a_changed_weight_is_laid_out_anew():
    x, layer = noise(3, 8), quicken(nn.Sequential(nn.Linear(8, 8))).requires_grad_(False)
    before = layer(x)
    layer[0].weight.mul_(2)
    assert_near(layer(x) - layer[0].bias, 2 * (before - layer[0].bias))
    assert (layer(x) != before).any()


def test_what_was_laid_out_goes_with_its_weight():
    weight = noise(8, 8)
    linear(noise(3, 8), weight)
    count = len(products._packed)
    del weight
    gc.collect()
    assert len(products._packed) < count


def test_gradients_tracers_and_counters_see_pytorch():
    layer, x = quicken(nn.Linear(6, 4)), noise(3, 6)
    assert type(layer) is Linear
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 3 * 6 * 4


def test_quick_layers_are_copied_and_pickled():
    layer, x = quicken(nn.Linear(6, 4)).requires_grad_(False), noise(3, 6)
    expected = layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_near(again(x), expected)


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("bias", [None, (9, 9), (2, 1, 9, 9)], ids=str)
def test_attention(bias, scale, threads, dtype, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(products, "HEAD_ROWS", 4)  # 9 are no multiple of it
    monkeypatch.setattr(products, "SCORE_BYTES", 2 * 3 * 9 * 4)
    q, k, v = (noise(2, 3, 9, width, dtype=dtype, seed=seed) for seed, width in enumerate((8, 8, 5)))
    bias = None if bias is None else noise(*bias, dtype=dtype, seed=3)
    actual = attend(q, k, v, bias, scale)
    expected = F.scaled_dot_product_attention(
        *(x.float() for x in (q, k, v)), attn_mask=None if bias is None else bias.float(), scale=scale
    )
    assert actual.dtype == dtype
    assert_near(actual.float(), expected, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("text", "reads"),
    [("qq", "qv"), ("kk+gaussian5", "kv"), ("qk", "qkv"), ("identity", "v"), ("vv", "v"), ("qq+identity", "qv"),
     ("pearl0.08", "qkv"), ("own", "qkv")],
)  # fmt: skip
def test_what_an_attention_reads(text, reads, monkeypatch):
    monkeypatch.setitem(TERMS, "own", lambda q, k, v, prefix: (q, torch.as_tensor(v.numpy())))
    assert Attention.parse(text).reads == reads


@pytest.mark.parametrize("first", ["ClearCLIP", "MaskCLIP", "NACLIP", "GEM"])
def test_methods_on_one_trunk_compute_what_they_read_once(first, tiny_backbone, golden):
    images = golden("inputs")["image_112x160"][:, :, :64, :64]
    from clearclip.methods import create_method

    methods = [create_method(name, tiny_backbone) for name in (first, "ClearCLIP", "MaskCLIP", "NACLIP", "CLIP")]
    with torch.inference_mode():
        trunk = tiny_backbone.trunk(images)
        shared = [method.features(trunk) for method in methods]
    for method, actual in zip((first, "ClearCLIP", "MaskCLIP", "NACLIP", "CLIP"), shared):
        assert_near(actual, features(method, tiny_backbone, images))


def test_parts_that_nobody_asked_for_are_not_computed(tiny_backbone, golden):
    with torch.inference_mode():
        trunk = tiny_backbone.trunk(golden("inputs")["image_112x160"][:, :, :64, :64])
        q, k, v = trunk.qkv(only="qv")
        assert (q.device.type, k.device.type, v.device.type) == ("cpu", "meta", "cpu")
        assert k.shape == q.shape
        full = trunk.qkv()
        expected = tiny_backbone.blocks[-1].qkv(trunk.tokens())
    assert full[0] is q
    for actual, wanted in zip(full, expected):
        assert_near(actual, wanted)


def test_auto_is_what_a_product_says(monkeypatch):
    for pays, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("clearclip.backbones.bfloat16_pays", lambda pays=pays: pays)
        assert choose_precision("auto", torch.device("cpu")) == expected
        assert choose_precision("fp32", torch.device("cpu")) == torch.float32


def test_the_clock_decides_once_and_threads_stay(monkeypatch):
    seconds = {torch.float32: 9.0, torch.bfloat16: 1.0}
    now = [0.0]

    def slow(x, weight):
        now[0] += seconds[x.dtype]

    monkeypatch.setattr(products, "_knows", lambda dtype: True)
    monkeypatch.setattr(products, "linear", slow)
    monkeypatch.setattr(products.time, "thread_time", lambda: now[0])
    threads = torch.get_num_threads()
    products.bfloat16_pays.cache_clear()
    try:
        assert products.bfloat16_pays()
        seconds[torch.bfloat16] = 3.0
        assert products.bfloat16_pays()  # as before
        products.bfloat16_pays.cache_clear()
        assert not products.bfloat16_pays()
    finally:
        products.bfloat16_pays.cache_clear()
    assert torch.get_num_threads() == threads
