"""Pictures from files, arrays and tensors, and the published resize."""

from pathlib import Path

import numpy as np
from torch import Tensor

from clearclip.errors import UserError

LONG_SIDE = 2048  # the published resize never makes an image longer than this


def read_image(image) -> np.ndarray:
    """A path, PIL image, array or tensor to RGB uint8 [H, W, 3]; EXIF rotation is applied.

    Raises UserError for a file that cannot be read and for an array of another form.
    """
    if isinstance(image, str | Path):
        return _read_file(Path(image))
    if isinstance(image, Tensor):
        array = image.detach().cpu()
        array = array.float() if array.is_floating_point() else array  # NumPy has no bfloat16
        array = (array.permute(1, 2, 0) if array.ndim == 3 else array).numpy()
    elif isinstance(image, np.ndarray):
        array = image
    else:
        from PIL import Image, ImageOps

        if not isinstance(image, Image.Image):
            raise UserError(f"an image must be a path, a PIL image, an array or a tensor, not {type(image).__name__}")
        array = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min(initial=0) >= 0 and array.max(initial=0) <= 1):
            raise UserError("a floating-point image must be finite and within 0..1; divide by 255 or convert to uint8")
        array = np.round(array * 255).astype(np.uint8)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise UserError(
            f"an image must be RGB, [H, W, 3] as an array or [3, H, W] as a tensor, uint8 or float in 0..1; this one "
            f"is {list(array.shape)} {array.dtype}"
        )
    return np.require(array, requirements=["C", "W"])  # torch wants what it shares to be writable


def _read_file(path: Path) -> np.ndarray:
    import cv2

    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
        bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if len(encoded) else None
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror}; give the path of a picture") from None
    except cv2.error:  # a header that promises too much
        bgr = None
    if bgr is None:
        raise UserError(f"{path} is not a picture that OpenCV can decode; convert it to JPEG or PNG")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def resized_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The published resize rule: short side to `short_side`, unless that makes the long side exceed 2048."""
    scale = min(LONG_SIDE / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_short(image: np.ndarray, short_side: int) -> np.ndarray:
    """Resize [H, W, 3] by that rule, bilinear without antialiasing as OpenCV does it; 0 keeps the size."""
    if not short_side:
        return image
    import cv2

    height, width = resized_shape(*image.shape[:2], short_side)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
