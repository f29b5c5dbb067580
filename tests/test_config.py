"""Configs read without MMEngine: the shipped ones as MMEngine reads them, and what it does not do."""

import contextlib
import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config, DictAction

from clearclip import config as configs
from clearclip.config import (
    Settings,
    check_pipeline,
    config_folder,
    find_config,
    merge,
    override,
    parse_options,
    parse_value,
    protocols,
    read_config,
    sanity_folder,
)
from clearclip.errors import UserError

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "configs").rglob("*.py"))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("variable", [None, "/benchmarks"])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_shipped_configs_are_read_as_mmengine_reads_them(path, variable, monkeypatch):
    if variable:
        monkeypatch.setenv("CLEARCLIP_DATA", variable)
    before = dict(os.environ)
    assert read_config(path) == Config.fromfile(path, import_custom_modules=False).to_dict()
    assert dict(os.environ) == before


EXOTIC = """
_base_ = ["./one.py", "two.py"]
_base_.steps[1].scale = 7
scale = _base_.model.scale * 2
model = dict(scale=scale, name="{{ fileBasenameNoExtension }}{{fileExtname}}", inner=dict(_delete_=True, b=2))
whole = {{_base_.model.inner}}
item = dict(number={{ _base_.steps }}, again=[{{_base_.model.scale}}, ({{_base_.two}},)])
workers = {{'$EXOTIC_WORKERS:3'}}
folder = "{{$EXOTIC_FOLDER:here}}/{{ fileBasename }}"
def helper():
    return scale
area = helper()
_private = 1
__hidden = 2
"""


@pytest.mark.parametrize("variables", [{}, {"EXOTIC_WORKERS": "8", "EXOTIC_FOLDER": "/there"}])
def test_the_language_is_mmengines(variables, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    write(tmp_path / "one.py", "model = dict(scale=1.5, inner=dict(a=1))\nsteps = [dict(type='A'), dict(type='B')]\n")
    write(tmp_path / "two.py", "two = (dict(x=1), 'y')\n")
    path = write(tmp_path / "cfg.py", EXOTIC)
    config = read_config(path)
    assert config == Config.fromfile(path).to_dict()
    assert (config.model.inner, config.model.name, config.steps[1].scale) == ({"b": 2}, "cfg.py", 7)
    assert config.workers == int(variables.get("EXOTIC_WORKERS", 3))


@pytest.mark.parametrize("root", ["~/sets", '/a "quoted" b', "/back\\slash\\new", "/it's", "/{braces}", "/ümlaut/\\1"])
def test_a_data_root_is_data(root, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", root)
    monkeypatch.setenv("HOME", "/home/me")
    expected = root.replace("~", "/home/me") + "/VOCdevkit/VOC2012"
    assert read_config(find_config("voc20")).test_dataloader.dataset.data_root == expected


def test_an_empty_variable_is_unset(monkeypatch, tmp_path):
    monkeypatch.setenv("CLEARCLIP_DATA", "")
    assert read_config(find_config("voc20")).test_dataloader.dataset.data_root == "data/VOCdevkit/VOC2012"
    path = write(tmp_path / "a.py", "x = '{{$CLEARCLIP_DATA:/mnt/sets}}/x'\ny = '{{$NOWHERE_SET:}}'")
    with pytest.raises(UserError, match=r"a\.py needs the environment variable NOWHERE_SET; set it"):
        read_config(path)
    monkeypatch.setenv("NOWHERE_SET", "here")
    assert read_config(path) == {"x": "/mnt/sets/x", "y": "here"}


def test_a_base_is_found_by_name_from_anywhere(tmp_path):
    for number, (name, place) in enumerate({
        "base.py": "base.py", "./base.py": "base.py", "sclip/cfg_voc20.py": "sclip/cfg_voc20.py",
        "voc20": "cfg_voc20.py", "naclip/voc21": "naclip/cfg_voc21.py", str(PATHS[0]): PATHS[0],
    }.items()):  # fmt: skip
        path = write(tmp_path / "deep" / f"cfg_{number}.py", f"_base_ = {name!r}\nmodel = dict(crop=96)")
        expected = override(read_config(ROOT / "configs" / place), {"model.crop": 96})
        assert read_config(path) == expected


def test_a_base_beside_the_config_goes_first(tmp_path):
    write(tmp_path / "base.py", "mine = 1")
    assert read_config(write(tmp_path / "a.py", "_base_ = 'base.py'")) == {"mine": 1}


def test_find_config(tmp_path, monkeypatch):
    folder = ROOT / "configs"
    assert config_folder() == folder
    assert find_config("voc20") == find_config("cfg_voc20.py") == find_config(folder / "cfg_voc20.py")
    assert find_config("sclip/voc20") == find_config("voc20", "sclip") == folder / "sclip/cfg_voc20.py"
    assert find_config("sanity") == folder / "cfg_sanity.py"
    assert sanity_folder() == ROOT / "datasets/sanity"
    assert {"clearclip", "cliper", "naclip", "proxyclip", "sclip"} <= set(protocols())
    monkeypatch.chdir(tmp_path)
    assert find_config(write(Path("cfg_voc20.py"), "")) == Path("cfg_voc20.py")  # one's own goes first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["voc22"], "no config 'voc22': protocol clearclip has ade20k, .*, voc21; those of other protocols begin with"),
        (["sclip/voc22"], "no config 'sclip/voc22': protocol clearclip has"),
        (["context459", "sclip"], "no config 'context459': protocol sclip has ade20k, .*, voc21$"),
        (["voc20", "slip"], "unknown protocol 'slip'; use one of clearclip, cliper, naclip, proxyclip, sclip"),
        (["nowhere/cfg.py"], r"config nowhere/cfg\.py does not exist"),
        (["/nowhere/cfg.py"], r"config /nowhere/cfg\.py does not exist"),
        (["../configs/voc20"], "no config"),
    ],
)
def test_configs_that_are_not_there(arguments, message):
    with pytest.raises(UserError, match=message):
        find_config(*arguments)


def test_configs_lie_in_the_package_when_installed(tmp_path, monkeypatch):
    write(tmp_path / "clearclip/configs/cfg_voc20.py", "")
    write(tmp_path / "clearclip/datasets/sanity/classes.txt", "")
    monkeypatch.setattr(configs, "PACKAGE", tmp_path / "clearclip")
    assert find_config("voc20") == tmp_path / "clearclip/configs/cfg_voc20.py"
    assert sanity_folder() == tmp_path / "clearclip/datasets/sanity"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(", r"a\.py is no benchmark config"),
        ("model = dictionary()", r"a\.py is no benchmark config \(name 'dictionary' is not defined\)"),
        ("x = '\0'", r"a\.py is no benchmark config"),
        ("raise KeyError", r"a\.py is no benchmark config \(KeyError\)"),
        ("_base_ = 'nowhere.py'", r"a\.py: no _base_ nowhere\.py beside it, nor among the configs in"),
        ("_base_ = open('x')", r"a\.py is no benchmark config"),
        ("_base_ = 'a.py'", r"a\.py inherits itself"),
        ("_base_ = ['base.py', 'voc20']", "more than one _base_ sets .*model"),
        ("_base_ = 'base.py'\nbenchmark = 3\nlog_level = dict(x=1)", "log_level is a dict here and 'WARNING' in"),
        ("_base_ = 'base.py'\nx = {{_base_.modle}}", r"a\.py is no benchmark config \('modle'\)"),
        ("_base_ = 'base.py'\nx = _base_.model.corp", "no key 'corp'; there are type, method"),
    ],
)
def test_files_that_are_no_config(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_config(write(tmp_path / "a.py", text))


@given(st.text(max_size=60))
def test_any_text_is_a_config_or_an_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "a.py"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(UserError):
        assert isinstance(read_config(path), Settings)


def test_temperature_is_the_old_name_of_logit_scale(tmp_path):
    assert "temperature" not in read_config(find_config("voc20")).model
    old = write(tmp_path / "old.py", "_base_ = 'sclip/voc21'\nmodel = dict(temperature=40)")
    assert read_config(old).model.logit_scale == 40
    new = write(tmp_path / "new.py", "_base_ = 'old.py'\nmodel = dict(logit_scale=30)")
    assert read_config(new).model.logit_scale == 30
    config = override(read_config(new), {"model.temperature": 20})
    assert (config.model.logit_scale, "temperature" in config.model) == (20, False)


def test_nothing_is_changed_in_place():
    config = read_config(find_config("voc20"))
    before = copy.deepcopy(config)
    changed = override(config, {"model.crop": 224, "test_dataloader.dataset.pipeline.0.type": "Mine", "a.b.c": 1})
    assert config == before
    assert changed.test_dataloader.dataset.pipeline[0] == {"type": "Mine"}
    assert (changed.model.crop, changed.a.b.c) == (224, 1)
    base, new = {"a": {"b": [1]}, "n": None}, {"a": {"_delete_": True, "c": 2}, "n": {"d": {"_delete_": True, "e": 1}}}
    kept = copy.deepcopy((base, new))
    assert merge(base, new) == {"a": {"c": 2}, "n": {"d": {"e": 1}}}
    assert (base, new) == kept


def test_settings_are_dicts():
    config = read_config(find_config("sanity"))
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert (twin, twin.model.crop) == (config, 448)
    config.model.crop = 7
    assert config["model"]["crop"] == 7


@pytest.mark.parametrize(
    "key", ["log_level.x", "test_dataloader.dataset.pipeline.9", "test_dataloader.dataset.pipeline.x.y"]
)
def test_options_that_fit_nothing(key):
    with pytest.raises(UserError, match=f"--cfg-options {key}=1 fits nothing in the config"):
        override(read_config(find_config("voc20")), {key: 1})


@pytest.mark.parametrize(
    "text", ["1", "-1.5", "1e-3", "true", "False", "None", "cat", "a/b.txt", "1,2", "(2048,448)", "[a,b]", "a,b", "[]",
             "[(1,2,3),[a,b],c]", "'quoted'", "[1]", "(a,)"]
)  # fmt: skip
def test_values_are_those_of_mmengine(text):
    assert parse_value(text) == DictAction._parse_iterable(text)


def test_values_that_mmengine_spoils():
    options = parse_options(["a=/my folder/x,y.txt", "b.c=CLIPer:select=-2,window=224", "d='1'", "e=x=y"])
    assert options == {"a": "/my folder/x,y.txt", "b.c": "CLIPer:select=-2,window=224", "d": "1", "e": "x=y"}
    for pair in ("model.crop", "=3"):
        with pytest.raises(UserError, match=f"--cfg-options '{pair}' must be KEY=VALUE"):
            parse_options([pair])


@given(st.text(max_size=20))
def test_any_value_is_read(text):
    parse_value(text)


def test_a_pipeline_that_resizes_is_refused():
    config = read_config(find_config("voc20"))
    check_pipeline(config, "a.py")
    for step, side in ((dict(type="Resize", scale=(2048, 336), keep_ratio=True), 336), (dict(type="Resize"), 448)):
        config.test_dataloader.dataset.pipeline[1] = step
        with pytest.raises(UserError, match=rf"a\.py: the pipeline resizes .*; .* set model\.short_side={side}$"):
            check_pipeline(config, "a.py")
    old = override(read_config(find_config("voc20")), {"test_dataloader.dataset.pipeline.1.scale": (2048, 336)})
    with pytest.raises(UserError, match=r"set model\.short_side=336$"):
        check_pipeline(old, "a.py")


def test_reading_needs_neither_mmengine_nor_torch():
    code = (
        "import sys\n"
        "for name in ('mmengine', 'mmseg', 'mmcv', 'torch', 'numpy'): sys.modules[name] = None\n"
        "from clearclip.config import find_config, read_config\n"
        "print(read_config(find_config('sclip/voc20')).model.crop)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("224\n", "")


def test_the_example_in_the_readme(tmp_path):
    text = (ROOT / "configs/README.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[1].split("```")[0]
    config = read_config(write(tmp_path / "cfg_mine.py", example))
    assert config.model.vocabulary == f"{tmp_path}/cls_mine.txt"
    assert config.test_dataloader.dataset.metainfo["classes"] == ("field", "forest", "road")
    assert config.test_evaluator.type == "ClassIoUMetric"
