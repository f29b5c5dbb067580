"""A result, and its `result.json`."""

import json
import logging
import math
import os
import re
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Any, NotRequired, TypedDict, get_args, get_origin, get_type_hints

from clearclip.errors import UserError
from clearclip.paths import atomic_write

log = logging.getLogger(__name__)


class Result(TypedDict):
    """One evaluation run. Scores are percent."""

    date: str  # ISO 8601 with offset
    method: str
    backbone: str
    pretrained: str  # weights tag
    dataset: str
    protocol: str
    vocabulary: str  # class file
    text: str  # template set or embedding file
    mIoU: float
    aAcc: float
    mAcc: float
    per_class_IoU: dict[str, float | None]  # null: in neither the ground truth nor the prediction
    images: int
    benchmark_images: int | None  # images of the whole benchmark; null: this set is part of none
    published: float | None
    published_source: str | None
    seconds: float
    images_per_second: float
    device: str
    precision: str
    versions: dict[str, str]
    config: str
    settings: dict
    weights_hash: str
    names: NotRequired[list[list[str]]]  # of each class, what was looked for
    names_hash: NotRequired[str]  # SHA-256 of them
    templates: NotRequired[list[str]]  # prompts, {} where a name goes; none where embeddings were given
    interval: NotRequired[float | None]  # half the width of mIoU's 95 % interval; null: not known
    differences: NotRequired[dict[str, list[float]]]  # other run: [mIoU - its mIoU, low, high], on the same images
    confused: NotRequired[list[list]]  # most confused pairs: truth, prediction, pixels, percent of the truth
    record: NotRequired[str]  # the key of its records
    text_hash: NotRequired[str]  # of the text embeddings themselves
    calibration: NotRequired[dict]  # of a calibrated run: on what it was fitted, how many of its images are among these
    metrics: NotRequired[dict[str, float]]  # whatever else the evaluator measured: mDice, mFscore


def write_result(record: Result, work_dir: str | os.PathLike[str]) -> Path:
    """Write `result.json` into `work_dir`. NaN, say the IoU of an absent class, becomes null.

    A result on more images that lies there stays: one on fewer goes into a folder of its own beside it.
    """
    text = json.dumps(plain(record), indent=2, ensure_ascii=False, default=str)
    text = re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)  # UTF-8 has no lone surrogates
    path = Path(work_dir) / "result.json"
    fuller = _images(path)
    if fuller and fuller > record["images"]:
        kept, path = path, path.parent / f"{record['images']}-images" / path.name
        log.warning("%s is of %d images and stays; the result on %d is %s", kept, fuller, record["images"], path)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def _images(path: Path) -> int:
    """How many images a result is of; 0 where there is none that can be read."""
    try:
        return read_result(path)["images"] if path.exists() else 0
    except UserError:
        return 0


def read_result(path: str | os.PathLike[str]) -> Result:
    """Read a `result.json`, also of an earlier version. Raises `UserError` where it is missing, damaged or not one."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): run eval.py to make it") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged, it is no JSON: run eval.py again to remake it") from None
    missing = sorted(Result.__required_keys__ - (record.keys() if isinstance(record, dict) else set()))
    if missing:
        raise UserError(f"{path} is no result, it lacks {', '.join(missing)}: run eval.py to make one")
    wrong = [key for key, hint in get_type_hints(Result).items() if key in record and not _fits(record[key], hint)]
    try:
        instant(record["date"])
    except (ValueError, OverflowError):
        wrong.append("date")
    if wrong:
        raise UserError(f"{path} is damaged ({', '.join(wrong)}): run eval.py again to remake it")
    return record


def instant(date: object) -> datetime:
    """`date`, in ISO 8601 with or without offset, as a point in time. Raises ValueError."""
    return datetime.fromisoformat(str(date)).astimezone()


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of a field's type. A number may be null, which is how NaN is written."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is UnionType:
        return any(_fits(value, argument) for argument in arguments)
    if kind in (dict, list):
        items = value.values() if isinstance(value, dict) else value
        return isinstance(value, kind) and all(_fits(item, arguments[-1]) for item in items)
    if hint is float:
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return isinstance(value, hint)


def plain(value: Any) -> Any:
    """Python numbers for numpy's and torch's, None for NaN."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    value = value.tolist() if hasattr(value, "tolist") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
