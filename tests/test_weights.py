"""Where weights come from: tags, files of every form, and what a user reads when they cannot be had."""

import json
import logging
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import huggingface_hub.file_download
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clearclip import weights
from clearclip.backbones import list_backbones, load_backbone
from clearclip.backbones.blip import BlipBackbone
from clearclip.errors import UserError
from clearclip.methods import create_method
from clearclip.segmenter import Segmenter
from clearclip.state import content_hash, load_state_dict
from clearclip.text import TextEmbeddings, encode_prompts
from clearclip.weights import COMMON, EMBEDDED, find_checkpoint

ROOT = Path(__file__).parents[1]
IMAGE = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def no_download(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("this must not reach for the hub")

    monkeypatch.setattr(weights, "hub_file", refuse)


@pytest.fixture
def tiny_arch(monkeypatch, tiny_folder):
    """OpenCLIP's ViT-B-16 and ViT-B-32 are the tiny architecture; the -quickgelu suffix is stripped before."""
    config = json.loads((tiny_folder / "open_clip_config.json").read_text())["model_cfg"]
    del config["quick_gelu"]
    original = open_clip.get_model_config
    monkeypatch.setattr(
        open_clip, "get_model_config", lambda name: config if name in ("ViT-B-16", "ViT-B-32") else original(name)
    )


def load(backbone="ViT-B-16", pretrained="openai"):
    return load_backbone(backbone, str(pretrained), device="cpu", precision="fp32")


def activations(*towers):
    return {
        type(module).__name__ for tower in towers for name, module in tower.named_modules() if name.endswith("gelu")
    }


# Tags


def family_uses_quick_gelu(tag):
    return tag.startswith(("openai", "metaclip"))


def test_every_common_backbone_is_known_to_the_library(monkeypatch):
    monkeypatch.setattr(weights, "hub_file", lambda repository, *names: Path("weights"))
    assert set(COMMON.items()) <= set(list_backbones())
    for arch, tags in COMMON.items():
        for tag in tags:
            if tag != EMBEDDED:
                for written in (
                    f"{arch}:{tag}",
                    f"{arch}-quickgelu:{tag}",
                    arch.replace("ViT-B-", "ViT-B/") + f":{tag}",
                ):
                    checkpoint = find_checkpoint(written)
                    assert (checkpoint.arch, checkpoint.tag) == (arch, tag)
                    assert checkpoint.config["quick_gelu"] == family_uses_quick_gelu(tag), written


def test_other_architectures_and_their_normalisation(monkeypatch):
    monkeypatch.setattr(weights, "hub_file", lambda repository, *names: Path("weights"))
    assert find_checkpoint("ViT-L-14:laion2b_s32b_b82k").mean == (0.5, 0.5, 0.5)
    assert find_checkpoint("ViT-L-14:openai").mean == weights.OPENAI_MEAN
    assert find_checkpoint("ViT-H-14-378-quickgelu:dfn5b").config["quick_gelu"]
    assert find_checkpoint("ViT-bigG-14", "laion2b_s39b_b160k").tag == "laion2b_s39b_b160k"


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("ViT-B-16:openai", "QuickGELU"),
        ("ViT-B-16:metaclip_fullcc", "QuickGELU"),
        ("ViT-B-32:laion400m_e32", "QuickGELU"),
        ("ViT-B-16:laion2b_s34b_b88k", "GELU"),
    ],
)
def test_both_towers_compute_the_activation_of_their_family(backbone, expected, tiny_arch, tiny_folder, monkeypatch):
    path = tiny_folder / "open_clip_model.safetensors"
    monkeypatch.setattr(weights, "hub_file", lambda repository, *names: path)
    loaded = load(backbone)
    assert activations(loaded.visual, loaded.text_tower) == {expected}
    assert loaded.tag == backbone.partition(":")[2]


def test_the_activation_is_asserted(tiny_arch, tiny_folder, monkeypatch):
    path = tiny_folder / "open_clip_model.safetensors"
    monkeypatch.setattr(weights, "hub_file", lambda repository, *names: path)
    model = open_clip.CustomTextCLIP
    monkeypatch.setattr(open_clip, "CustomTextCLIP", lambda **options: model(**options | {"quick_gelu": False}))
    with pytest.raises(AssertionError, match="quick_gelu=True"):
        load("ViT-B-16:openai")


@pytest.mark.parametrize(
    "backbone", ["RN50:openai", "coca_ViT-B-32:laion2b_s13b_b90k", "convnext_base:laion400m_s13b_b51k"]
)
def test_other_networks_are_refused_by_name_before_any_download(backbone, no_download):
    with pytest.raises(UserError, match=f"{backbone.partition(':')[0]} is not supported: "):
        load(backbone)


@pytest.mark.parametrize(
    ("backbone", "pretrained", "match"),
    [
        ("ViT-Z-99", "openai", "unknown backbone 'ViT-Z-99'; use one of ViT-B-32, ViT-B-16"),
        ("ViT-B-16", "nobody", "no weights 'nobody' for ViT-B-16; known are openai, .*, openai-int8, auto, or give a"),
        ("ViT-L-14", "nobody", "known are openai, (?!.*int8).*, auto, or give a file"),
        ("ViT-B-16:nobody", "openai", "no weights 'nobody'"),
        ("ViT-B-16", "gone/weights.pt", "weights file gone/weights.pt does not exist"),
        ("local-dir:gone", "mine.pt", "local-dir:gone has weights of its own, mine.pt would not be read"),
        ("ViT-L-14", EMBEDDED, "exist for ViT-B-16 only, not for ViT-L-14"),
        (
            "local-dir:gone",
            "openai",
            "gone is not a model folder that can be used; it must hold OpenCLIP's open_clip_config.json",
        ),
    ],
)
def test_what_cannot_be_had_is_named(backbone, pretrained, match, no_download):
    with pytest.raises(UserError, match=match):
        load(backbone, pretrained)


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"model_cfg": {}}', "[" * 100_000], ids=len)
def test_a_folder_with_another_config_is_refused(config, tmp_path):
    (tmp_path / "open_clip_model.safetensors").touch()
    (tmp_path / "open_clip_config.json").write_text(config)
    with pytest.raises(UserError, match=f"{tmp_path} is not an OpenCLIP model folder"):
        load(f"local-dir:{tmp_path}")


# Files


class Box(torch.nn.Module):
    """A module that only holds others, for a TorchScript archive in OpenAI's layout."""

    def forward(self, x):
        return x


def save_torchscript(state, path):
    root = Box()
    for key, value in state.items():
        box, *names, leaf = root, *key.split(".")
        for name in names:
            if not hasattr(box, name):
                box.add_module(name, Box())
            box = getattr(box, name)
        box.register_parameter(leaf, torch.nn.Parameter(value))
    for name, value in (("input_resolution", 64), ("context_length", 77), ("vocab_size", 49408)):
        root.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(root), path)


def wrapped(state, *wrappers):
    for wrapper in wrappers:
        state = {wrapper: state, "epoch": 32, "name": "a run", "optimizer": {"state": {0: torch.zeros(1)}}}
    return state


def custom_layout(state):
    """The text tower below `text.`, as OpenCLIP saves newer models."""
    return {key if key.startswith(("visual.", "logit")) else f"text.{key}": value for key, value in state.items()}


FORMS = {
    "model.safetensors": save_file,
    "custom.safetensors": lambda state, path: save_file(custom_layout(state), path),
    "plain.pt": torch.save,
    "legacy.pt": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "training.pt": lambda state, path: torch.save(
        wrapped({f"module.{key}": value for key, value in state.items()}, "state_dict"), path
    ),
    "model.pth": lambda state, path: torch.save(wrapped(state, "model"), path),
    "extras.bin": lambda state, path: torch.save(state | {"epoch": 3, 7: "seven"}, path),
    "openai.pt": save_torchscript,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_file_holds_both_towers(name, tiny_arch, tiny_state, tiny_backbone, tmp_path):
    FORMS[name](tiny_state, tmp_path / name)
    loaded = load("ViT-B-16-quickgelu", tmp_path / name)
    with torch.inference_mode():
        assert torch.equal(loaded.trunk(IMAGE).tokens(), tiny_backbone.trunk(IMAGE).tokens())
    prompts = ["a cat", "a photo of the moon."]
    assert torch.equal(encode_prompts(loaded, prompts), encode_prompts(tiny_backbone, prompts))
    assert (loaded.name, loaded.tag) == ("ViT-B-16", name)


def test_half_precision_files_are_computed_in_float32(tiny_arch, tiny_state, tmp_path):
    save_file({key: value.half() for key, value in tiny_state.items()}, tmp_path / "half.safetensors")
    loaded = load("ViT-B-16-quickgelu", tmp_path / "half.safetensors")
    for key in ("visual.proj", "visual.transformer.resblocks.5.mlp.c_fc.weight"):
        parameter = loaded.get_parameter(key)
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, tiny_state[key].half().float())


@pytest.mark.parametrize(
    ("name", "metadata", "backbone", "expected"),
    [
        ("openai.pt", None, "ViT-B-16", "QuickGELU"),
        ("plain.pt", None, "ViT-B-16", "GELU"),
        ("plain.pt", None, "ViT-B-16-quickgelu", "QuickGELU"),
        ("model.safetensors", None, "ViT-B-16", "GELU"),
        ("model.safetensors", {"activation": "quick_gelu"}, "ViT-B-16", "QuickGELU"),
        ("model.safetensors", {"activation": "gelu"}, "ViT-B-16", "GELU"),
    ],
)
def test_activation_of_a_file(name, metadata, backbone, expected, tiny_arch, tiny_state, tmp_path, caplog):
    FORMS[name](tiny_state, tmp_path / name, *([metadata] if metadata else []))
    assert activations(load(backbone, tmp_path / name).visual) == {expected}
    # Where neither the file nor the user says it, the user is told.
    guessed = metadata is None and (name, backbone) in (("plain.pt", "ViT-B-16"), ("model.safetensors", "ViT-B-16"))
    assert ("taken to be trained with GELU" in caplog.text) == guessed


def test_a_file_that_contradicts_the_name_is_refused(tiny_arch, tiny_state, tmp_path):
    save_file(tiny_state, tmp_path / "model.safetensors", {"activation": "gelu"})
    with pytest.raises(UserError, match=r"model.safetensors was trained with GELU; .*without -quickgelu"):
        load("ViT-B-16-quickgelu", tmp_path / "model.safetensors")


def test_image_tower_alone_with_text_from_a_file(tiny_arch, tiny_state, tmp_path, golden):
    path = tmp_path / "vision.safetensors"
    save_file({key: value for key, value in tiny_state.items() if key.startswith("visual.")}, path)
    backbone = load("ViT-B-16-quickgelu", path)
    TextEmbeddings(tuple("abcdefg"), golden("inputs")["text"]).save(tmp_path / "text.safetensors")
    segmenter = Segmenter("CLIP", backbone, text_embeddings=tmp_path / "text.safetensors", short_side=64)
    image = torch.zeros(3, 70, 90, dtype=torch.uint8)
    assert segmenter(image, ["a", "b"]).labels.shape == (70, 90)
    with pytest.raises(UserError, match=r"vision.safetensors holds no text tower; give text embeddings from a file"):
        Segmenter("CLIP", backbone)(image, ["cat", "dog"])


@pytest.mark.parametrize("name", ["model.safetensors", "plain.pt", "legacy.pt", "openai.pt"])
@pytest.mark.parametrize("damage", ["cut", "overwritten", "empty"])
def test_a_damaged_file_is_named(name, damage, tiny_arch, tmp_path, caplog):
    path = tmp_path / name
    FORMS[name]({"visual.proj": torch.ones(64, 48)}, path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "overwritten": b"x" * 500, "empty": b""}[damage])
    with pytest.raises(UserError, match=f"{path} cannot be read as weights: it is damaged, or"):
        load("ViT-B-16", path)
    # How a file was trained does not matter where it is none; but that this one is cut, only unpickling it finds.
    assert (name, damage) == ("legacy.pt", "cut") or not caplog.records


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {"state_dict": 3}, {}])
def test_a_file_of_something_else_is_named(content, tiny_arch, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt"):
        load("ViT-B-16-quickgelu", tmp_path / "other.pt")


def test_weights_of_another_architecture_are_named(tiny_arch, tiny_state, tmp_path):
    for change in ({"visual.proj": torch.ones(64, 32)}, {"visual.transformer.resblocks.6.ln_1.weight": torch.ones(64)}):
        save_file(tiny_state | change, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"model.safetensors does not hold a ViT-B-16: .*(proj|resblocks.6)"):
            load("ViT-B-16-quickgelu", tmp_path / "model.safetensors")


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["TRAP"],)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_is_refused_and_not_run(write, tiny_arch, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    write({"state_dict": {"visual.proj": Trap()}}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match=r"trap\.pt cannot be read as weights"):
        load("ViT-B-16-quickgelu", tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_state_dict_by_prefix(tmp_path):
    save_file(
        {"visual.a": torch.ones(1), "visual.visual.b": torch.ones(2), "c": torch.ones(3)}, tmp_path / "a.safetensors"
    )
    assert set(load_state_dict(tmp_path / "a.safetensors", "visual.")) == {"a", "visual.b"}
    assert set(load_state_dict(tmp_path / "a.safetensors")) == {"visual.a", "visual.visual.b", "c"}


# Folders, the hub, and the choice between them


def test_weights_folders(tiny_arch, tiny_state, tmp_path, monkeypatch, no_download):
    empty, one, other = (tmp_path / name for name in ("empty", "one", "other"))
    for folder in (empty, one, other):
        folder.mkdir()
    monkeypatch.setenv("CLEARCLIP_WEIGHTS", os.pathsep.join(map(str, (empty, tmp_path / "gone", one, other))))
    save_file(tiny_state, one / "ViT-B-16.openai.safetensors")
    torch.save(tiny_state, other / "ViT-B-16.openai.pt")
    torch.save(tiny_state, other / "ViT-B-32.metaclip_fullcc.pt")
    assert find_checkpoint("ViT-B-16").path == one / "ViT-B-16.openai.safetensors"
    loaded = load("ViT-B-32:metaclip_fullcc")
    assert loaded.checkpoint.path == other / "ViT-B-32.metaclip_fullcc.pt"
    assert activations(loaded.visual) == {"QuickGELU"}  # the tag says it, no suffix is needed


def test_a_tag_wins_over_a_file_of_its_name(tiny_arch, tiny_state, tmp_path, monkeypatch):
    """A file called as a tag is written with its folder; one called as none needs neither folder nor suffix."""
    monkeypatch.setattr(weights, "hub_file", lambda repository, *names: Path("downloaded"))
    monkeypatch.chdir(tmp_path)
    for name in ("openai", "mine", "coco"):
        torch.save(tiny_state, name)
    assert find_checkpoint("ViT-B-16", "openai").path == Path("downloaded")
    assert find_checkpoint("ViT-B-16", "./openai").path == Path("openai")
    assert find_checkpoint("ViT-B-16", str(tmp_path / "openai")).path == tmp_path / "openai"
    assert find_checkpoint("ViT-B-16", "mine").path == Path("mine")
    assert BlipBackbone.find("BLIP-B", "coco").path == Path("downloaded")
    assert BlipBackbone.find("BLIP-B", "openai").path == Path("downloaded")
    assert BlipBackbone.find("BLIP-B", "./coco").path == Path("coco")
    assert BlipBackbone.find("BLIP-B", "mine").path == Path("mine")


@pytest.fixture
def empty_hub_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_failed_download_names_the_three_ways(empty_hub_cache):
    with pytest.raises(UserError) as raised:
        load("ViT-B-16", "openai")
    message = str(raised.value)
    for part in (
        "--pretrained and ViT-B-16-quickgelu as --backbone",
        "$CLEARCLIP_WEIGHTS as ViT-B-16.openai.safetensors",
        "hub's cache",
        "--pretrained openai-int8",
    ):
        assert part in message
    with pytest.raises(UserError) as raised:
        load("ViT-L-14", "laion2b_s32b_b82k")
    assert "ViT-L-14.laion2b_s32b_b82k.safetensors" in str(raised.value)
    assert "quickgelu" not in str(raised.value)
    assert EMBEDDED not in str(raised.value)


def test_a_hub_that_did_not_answer_may_answer_later(empty_hub_cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(weights, "hub_answers", lambda: False)
    asked = []

    def download(repository, name):
        asked.append(name)
        if name.endswith(".safetensors"):
            raise huggingface_hub.errors.EntryNotFoundError(f"no {name}")
        return f"{repository}/{name}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match="could not be downloaded"):
        find_checkpoint("ViT-B-16", "openai")
    assert not asked
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE" not in os.environ

    monkeypatch.setattr(weights, "hub_answers", lambda: True)
    checkpoint = find_checkpoint("ViT-B-16", "openai")
    assert checkpoint.path == Path("timm/vit_base_patch16_clip_224.openai/open_clip_pytorch_model.bin")
    assert asked == ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]


@pytest.mark.slow
def test_a_failed_download_ends_a_program_without_a_traceback(tmp_path):
    command = [sys.executable, str(ROOT / "demo.py"), "--pretrained", "openai", "--device", "cpu"]
    environment = os.environ | {"HF_HOME": str(tmp_path), "CLEARCLIP_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: the weights of ViT-B-16 openai")
    assert "Traceback" not in done.stderr


def test_auto_takes_openai_where_it_is_at_hand(monkeypatch, tmp_path, caplog, empty_hub_cache):
    monkeypatch.setattr(weights, "_embedded", lambda arch, config: EMBEDDED)
    monkeypatch.setattr(weights, "hub_file", lambda repository, *names: Path("downloaded"))
    monkeypatch.setattr(weights, "hub_answers", lambda: True)
    assert find_checkpoint("ViT-B-16", "auto").tag == "openai"
    assert find_checkpoint("ViT-B-16:auto").tag == "openai"

    monkeypatch.setattr(weights, "hub_answers", lambda: False)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint("ViT-B-16", "auto") == EMBEDDED
    assert len(caplog.records) == 1
    caplog.set_level(logging.WARNING)
    assert "openai-int8 (no model hub answers here)" in caplog.text
    assert find_checkpoint("ViT-L-14", "auto").tag == "openai"  # there is no other to fall back to
    assert find_checkpoint("ViT-B-16-SigLIP2", "auto").tag == "webli"
    assert find_checkpoint("ViT-H-14-worldwide", "auto").tag == "metaclip2_worldwide"
    assert "weights: webli (OpenAI has none)" in caplog.text

    snapshot = empty_hub_cache / "models--timm--vit_base_patch16_clip_224.openai" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").touch()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("1")
    assert find_checkpoint("ViT-B-16", "auto").tag == "openai"
    (snapshot / "open_clip_model.safetensors").unlink()
    assert find_checkpoint("ViT-B-16", "auto") == EMBEDDED

    monkeypatch.setenv("CLEARCLIP_WEIGHTS", str(tmp_path))
    (tmp_path / "ViT-B-16.openai.pt").touch()
    assert find_checkpoint("ViT-B-16", "auto").path == tmp_path / "ViT-B-16.openai.pt"


def test_a_named_tag_never_falls_back(monkeypatch, empty_hub_cache):
    monkeypatch.setattr(weights, "_embedded", lambda arch, config: EMBEDDED)
    with pytest.raises(UserError, match="could not be downloaded"):
        find_checkpoint("ViT-B-16", "openai")


def test_offline_the_hub_is_not_asked(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("offline means offline")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert not weights.hub_answers()


# Hashes


def test_backbones_of_equal_weights_have_equal_hashes(tiny_backbone, tiny_folder):
    assert tiny_backbone.content_hash == content_hash(tiny_folder / "open_clip_model.safetensors")
    assert create_method("CLIP", tiny_backbone).backbone.content_hash == tiny_backbone.content_hash
