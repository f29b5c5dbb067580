"""The fused kernel, in Triton's interpreter, which runs it on the CPU, against the PyTorch path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clearclip import decode

pytest.importorskip("triton")

COMPARE = """
import itertools, torch
from clearclip import windows
from clearclip.decode import Decoder
from clearclip.kernels import best_query
from clearclip.windows import Stitcher

torch.manual_seed(0)
for shape, crop, queries in itertools.product([(13, 37), (20, 16)], [0, 64], [1, 23, 64, 130]):
    plan = windows.plan(80, 112, crop, 48, 16)
    grid = tuple(side // 16 for side in plan.window_shape)
    scores = torch.randn(len(plan), queries, *grid)
    scores[:, queries // 2] = scores[:, 0]  # equals, of which the first wins
    maps = Stitcher(torch.device("cpu")).maps(scores, plan, shape)
    expected = Decoder(tuple(range(queries))).labels(maps)
    best = best_query(maps.scores.permute(1, 2, 0), maps)
    assert maps.taps >= (maps.rows != 0).sum(dim=1).max()
    assert torch.equal(best, expected.int()), (shape, crop, queries)
print("equal")
"""


@pytest.mark.slow
def test_kernel_gives_the_labels_of_the_decoder():
    root = Path(__file__).parents[1]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", COMPARE], env=environment, capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr


def test_only_a_gpu_gets_the_kernel():
    assert decode._fused_kernel(torch.device("cpu")) is None


def test_a_kernel_that_does_not_run_is_not_used(caplog):
    """Made to believe that this is a GPU, the check of the kernel finds none."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert decode._fused_kernel.__wrapped__(torch.device("cuda")) is None
    assert "using the slower path" in caplog.text
