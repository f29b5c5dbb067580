"""The cache of tensors that geometry alone decides."""

import copy
import pickle

import pytest
import torch
from torch._subclasses import FakeTensorMode

from clearclip.tensors import TensorCache


def ones(count):
    return torch.ones(count, dtype=torch.uint8)


@pytest.fixture
def cache():
    return TensorCache(max_bytes=10)


def test_a_tensor_is_made_once(cache):
    first = cache.get("a", lambda: ones(3))
    assert cache.get("a", lambda: pytest.fail("it is here")) is first
    assert len(cache) == 1


def test_what_is_unused_for_longest_goes_first(cache):
    for key in "abc":
        cache.get(key, lambda: ones(3))
    a, c = (cache.get(key, lambda: pytest.fail("it is here")) for key in "ac")
    cache.get("d", lambda: ones(3))  # 12 bytes are too many: b goes
    assert len(cache) == 3
    assert cache.get("a", lambda: None) is a
    assert cache.get("c", lambda: None) is c
    assert torch.equal(cache.get("b", lambda: 2 * ones(3)), 2 * ones(3))


def test_bytes_are_bounded(cache):
    for key in range(100):
        cache.get(key, lambda: ones(4))
    assert len(cache) == 2
    large = cache.get("large", lambda: ones(11))
    assert large.shape == (11,)
    assert len(cache) == 0
    cache.get("small", lambda: ones(10))
    assert len(cache) == 1


def test_copies_are_empty(cache):
    cache.get("a", lambda: ones(3))
    for other in (pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache), copy.copy(cache)):
        assert len(other) == 0
        assert other.max_bytes == 10
    assert len(cache) == 1


def test_what_a_tracer_makes_is_not_kept(cache):
    with FakeTensorMode():
        fake = cache.get("a", lambda: ones(3))
    assert len(cache) == 0
    assert type(fake) is not torch.Tensor
    assert type(cache.get("a", lambda: ones(3))) is torch.Tensor


def test_what_inference_mode_makes_serves_training_too(cache):
    with torch.inference_mode():
        tensor = cache.get("a", lambda: torch.ones(2))
    weight = torch.ones(2, requires_grad=True)
    (weight * tensor).sum().backward()
    assert torch.equal(weight.grad, torch.ones(2))
