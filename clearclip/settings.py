"""Which settings a segmenter can have, said before slow work begins."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from clearclip.backbones import Backbone, choose_device, choose_precision
from clearclip.errors import UserError

RESIZERS = ("cv2", "device", "pil")
TRAINED = "model"  # the logit scale that a model was trained to


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise UserError naming a setting that no `Segmenter` can have.

    Looks at those of `short_side`, `long_side`, `crop`, `stride`, `window_batch` (None: by the device), `logit_scale`
    or `temperature`, `threshold`, `area_threshold`, `resize` and `two_steps` that are there.
    """
    settings = {key: value for key, value in settings.items() if (key, value) != ("window_batch", None)}
    for key, least in (("short_side", 0), ("long_side", 1), ("crop", 0), ("stride", 0), ("window_batch", 1)):
        value = settings.get(key, least)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise UserError(f"{key} must be a whole number from {least} on, not {value!r}")
    for key in ("logit_scale", "temperature", "threshold", "area_threshold"):
        value = settings.get(key, 1)
        number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if key in ("logit_scale", "temperature") and value != TRAINED and not (number and value > 0):
            raise UserError(f"{key} must be a number above 0, or {TRAINED}, not {value!r}")
        if key.endswith("threshold") and not (number and 0 <= value <= 1):
            raise UserError(f"{key} must be a number within 0..1, not {value!r}")
    if settings.get("crop") and "stride" in settings and not 0 < settings["stride"] <= settings["crop"]:
        raise UserError(
            f"stride {settings['stride']} must be between 1 and the crop, {settings['crop']}: else pixels are left out"
        )
    if settings.get("resize", "cv2") not in RESIZERS:
        raise UserError(f"unknown resize {settings['resize']!r}; use one of {', '.join(RESIZERS)}")
    if not isinstance(settings.get("two_steps", False), bool):
        raise UserError(f"two_steps must be True or False, not {settings['two_steps']!r}")


def check_loaded(backbone: Backbone, device: str, precision: str, compile: bool) -> None:
    """Raise UserError where a setting contradicts a loaded backbone. The defaults contradict nothing."""
    for key, wanted, loaded in (
        ("device", device != "auto" and choose_device(device), backbone.device),
        ("precision", precision != "auto" and choose_precision(precision, backbone.device), backbone.dtype),
        ("compile", compile, backbone.compiled),
    ):
        if wanted and wanted != loaded:
            raise UserError(f"{key} {wanted} is not that of the loaded backbone, {loaded}; load it so, or leave it out")
