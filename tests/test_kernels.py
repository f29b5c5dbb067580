"""The Triton kernels: in Triton's interpreter, which runs them on the CPU, and as NVIDIA's compiler leaves them."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from clearclip import fused
from clearclip.backbones.openclip import OpenCLIPBlock

triton = pytest.importorskip("triton")

BEST_QUERY = """
import itertools, torch
from clearclip import windows
from clearclip.decode import Decoder
from clearclip.kernels import best_query
from clearclip.windows import Stitcher, Taps, taps

torch.manual_seed(0)
for shape, crop, queries in itertools.product([(13, 37), (20, 16)], [0, 64], [1, 23, 64, 130]):
    plan = windows.plan(80, 112, crop, 48, 16)
    grid = tuple(side // 16 for side in plan.window_shape)
    scores = torch.randn(len(plan), queries, *grid)
    scores[:, queries // 2] = scores[:, 0]  # equals, of which the first wins
    maps = Stitcher(torch.device("cpu")).maps(scores, plan, shape)
    expected = Decoder(tuple(range(queries))).labels(maps)
    some = Taps.of(maps.rows, taps(plan.rows, grid[0]))
    best = best_query(maps.columns @ maps.scores.permute(1, 2, 0), some.sources, some.weights)
    assert torch.equal(best, expected.int()), (shape, crop, queries)
print("equal")
"""
QUICK_GELU = """
import torch
from clearclip.kernels import quick_gelu_

torch.manual_seed(0)
for dtype, shape in (torch.float32, (3, 1000)), (torch.float16, (2, 2048)), (torch.float32, (1,)):
    x = (4 * torch.randn(shape)).to(dtype)
    expected = x.float() * torch.sigmoid(1.702 * x.float())
    result = quick_gelu_(x)
    assert result is x
    torch.testing.assert_close(x, expected.to(dtype))
print("equal")
"""
POINTERS = ("across", "sources", "weights", "best_query", "numbers")


@pytest.mark.slow
@pytest.mark.parametrize("program", [BEST_QUERY, QUICK_GELU], ids=["best_query", "quick_gelu"])
def test_kernel_gives_what_pytorch_gives(program):
    root = Path(__file__).parents[1]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr


def kernels():
    """Each kernel of `clearclip.kernels` as it is called: its types, as Triton writes them, and its constants."""
    from clearclip import kernels as own

    sizes = dict(ROWS=own.ROWS, PIXELS=own.PIXELS, QUERIES=own.QUERIES)
    scores = dict(sources="*i64", weights="*fp32", best_query="*i32")
    shape = dict(height="i32", width="i32", queries="i32", taps="i32")
    for precision in ("fp16", "fp32"):
        across = dict(across=f"*{precision}")
        yield "_best_query", across | scores | shape, sizes
        yield "_best_query", across | scores | shape | dict(taps="constexpr"), sizes | dict(taps=1)
        yield "_best_query", across | scores | shape | dict(queries="constexpr"), sizes | dict(queries=1)
        yield "_quick_gelu", dict(numbers=f"*{precision}", count="i32"), dict(BLOCK=own.BLOCK)


def resources(kernel, types, constants, capability, folder):
    """Registers of a thread and bytes of its stack, where spilled registers go, of a kernel for a GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from clearclip import kernels as own

    names = getattr(own, kernel).arg_names
    types = {name: types.get(name, "constexpr") for name in names}
    aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if name in POINTERS}
    with warnings.catch_warnings(action="ignore"):  # of Triton's own defaults
        compiled = triton.compile(
            ASTSource(getattr(own, kernel), types, constants, aligned), target=GPUTarget("cuda", capability, 32)
        )
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.is_file():
        pytest.skip("this Triton comes without cuobjdump")
    said = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said).groups())
    return registers, stack + local


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", list(kernels()), ids=str)
def test_kernel_compiles_for_gpus_and_spills_nothing(kernel, capability, tmp_path, monkeypatch):
    """Up to 128 registers let four programs of four warps share a multiprocessor, whose waits hide one another."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    registers, spilled = resources(*kernel, capability, tmp_path)
    assert spilled == 0
    assert 16 <= registers <= 128


def test_every_kernel_is_compiled():
    from clearclip import kernels as own

    jitted = {name for name, value in vars(own).items() if isinstance(value, triton.runtime.JITFunction)}
    assert jitted == {name for name, *_ in kernels()}
    assert {name for name in fused.CHECKS if hasattr(own, name)} == fused.CHECKS.keys()


def test_only_a_gpu_gets_a_kernel():
    assert fused.fused("best_query", torch.device("cpu")) is None


@pytest.mark.parametrize("name", fused.CHECKS)
def test_a_kernel_that_does_not_run_is_not_used(name, caplog):
    """Made to believe that this is a GPU, the check of the kernel finds none."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert fused.fused.__wrapped__(name, torch.device("cuda")) is None
    assert "using the slower path" in caplog.text


@pytest.mark.parametrize("name", fused.CHECKS)
def test_a_check_tells_a_right_kernel_from_a_wrong_one(name):
    def best_query(across, sources, weights):
        return torch.einsum("yt,ytwq->ywq", weights, across[sources]).argmax(dim=-1)

    right = dict(best_query=best_query, quick_gelu_=lambda x: x.mul_((1.702 * x.float()).sigmoid()))[name]
    wrong = dict(best_query=lambda *given: 69 - best_query(*given), quick_gelu_=torch.nn.functional.gelu)[name]
    device = torch.device("cpu")
    assert fused.CHECKS[name](right, device)
    assert not fused.CHECKS[name](wrong, device)


def test_a_block_uses_its_kernel(tiny_backbone, monkeypatch):
    block = tiny_backbone.blocks[0]
    assert isinstance(block, OpenCLIPBlock)
    tokens = torch.randn(1, 5, 64)
    expected = block.mlp(tokens)
    seen = []

    def kernel(hidden):
        seen.append(hidden.shape)
        return hidden * (1.702 * hidden).sigmoid()

    monkeypatch.setattr("clearclip.backbones.openclip.fused", lambda name, device: kernel)
    torch.testing.assert_close(block.mlp(tokens), expected)
    assert seen == [(1, 5, 256)]
