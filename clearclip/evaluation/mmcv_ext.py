"""MMSegmentation on `mmcv-lite`: a stand-in for mmcv's compiled operators, which evaluation never calls.

MMSeg imports `mmcv.ops` for a few decode heads, and `mmcv.ops` needs the compiled module `mmcv._ext` at
import time. Wheels of it exist for few torch versions; the lite package has none. Importing this module installs it.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import NoReturn

from clearclip.errors import UserError


class _MissingExtension(types.ModuleType):
    """Has every operator's name; each raises only when it is called."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):  # the import system asks for __path__, __file__ and the like
            raise AttributeError(name)

        def missing(*args: object, **kwargs: object) -> NoReturn:
            raise RuntimeError(
                f"mmcv.ops needs the compiled operator {name!r}, which mmcv-lite does not have: "
                "install the full `mmcv` built for this version of torch"
            )

        return missing


def install() -> None:
    """Let `import mmseg` succeed where mmcv has no compiled operators. Call it before that import.

    Raises UserError where MMSegmentation is not installed.
    """
    if not all(map(importlib.util.find_spec, ("mmengine", "mmcv", "mmseg"))):
        raise UserError("evaluating needs MMSegmentation; run pip install 'clearclip[eval]'")
    if importlib.util.find_spec("mmcv._ext") is None:
        extension = _MissingExtension("mmcv._ext")
        extension.__spec__ = ModuleSpec("mmcv._ext", loader=None)  # MMEngine takes no loader for "mmcv is lite"
        sys.modules["mmcv._ext"] = extension


install()
