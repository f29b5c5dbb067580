import importlib
import os
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
import torch
from mmengine.utils.dl_utils.misc import mmcv_full_available

from clearclip.evaluation import mmcv_ext

ROOT = Path(__file__).parents[1]


def reinstall(monkeypatch, *folders):
    """What `import mmcv._ext` gives after install() where mmcv consists of these folders."""
    monkeypatch.setattr(mmcv, "__path__", [str(folder) for folder in folders])
    monkeypatch.setattr(mmcv, "_ext", None, raising=False)  # the import below sets it; undo that after the test
    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)
    mmcv_ext.install()
    return importlib.import_module("mmcv._ext")


def test_stand_in_fails_only_when_called(monkeypatch, tmp_path):
    extension = reinstall(monkeypatch, tmp_path)
    operator = extension.roi_align_forward
    with pytest.raises(RuntimeError, match=r"'roi_align_forward'.*full `mmcv`"):
        operator(torch.zeros(1), aligned=True)
    assert not mmcv_full_available()  # MMEngine's Runner asks


def test_real_extension_is_left_alone(monkeypatch, tmp_path):
    (tmp_path / "_ext.py").write_text("nms = 'compiled'")
    assert reinstall(monkeypatch, tmp_path).nms == "compiled"


def test_second_install_keeps_the_first(monkeypatch, tmp_path):
    extension = reinstall(monkeypatch, tmp_path)
    mmcv_ext.install()
    assert sys.modules["mmcv._ext"] is extension


@pytest.mark.slow
def test_import_and_configs_are_silent():
    code = (
        "import clearclip.evaluation.mmseg, mmcv.ops, mmseg.models; from mmengine.config import Config;"
        "Config.fromfile('configs/sclip/cfg_voc21.py', import_custom_modules=False)"
    )
    environment = {**os.environ, "CLEARCLIP_DATA": "/nowhere", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONWARNINGS", None)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
