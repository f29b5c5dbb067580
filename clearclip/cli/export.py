"""Write a segmenter for one vocabulary into a file: `clearclip export pets.onnx --names cat "grass, lawn" sky`."""

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearclip.cli.inputs import check_names
from clearclip.cli.options import add_modules
from clearclip.cli.segment import SAMPLE
from clearclip.cli.status import Status
from clearclip.config import sanity_folder
from clearclip.errors import UserError, program
from clearclip.paths import check_writable

if TYPE_CHECKING:
    import numpy as np

    from clearclip.export import Exported
    from clearclip.segmenter import Segmenter
    from clearclip.vocabulary import Vocabulary

FORMATS = {".onnx": "onnx", ".pt2": "torch"}


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog,
        description="Write a method and a vocabulary into one file, picture to labels, and compare it with PyTorch.",
    )
    parser.add_argument("model", metavar="FILE", help="where it goes, such as pets.onnx or pets.pt2")
    names = parser.add_argument_group("what to look for")
    names.add_argument("--names", nargs="+", metavar="NAME", help='one class each; synonyms as "grass, lawn"')
    names.add_argument("--classes", metavar="FILE", help="the same from a file, one class a line")
    names.add_argument("--other", action="store_true", help="what none of the names describes becomes `other`")
    names.add_argument("--threshold", type=float, default=0.0, metavar="P", help="below this probability, too")
    model = parser.add_argument_group("how")
    model.add_argument("--method", default="ClearCLIP", help="see clearclip segment --list")
    model.add_argument("--backbone", default="ViT-B-16", help="OpenCLIP architecture, or arch:tag")
    model.add_argument("--pretrained", default="auto", help="weights: a tag, a file, openai-int8, or auto")
    model.add_argument("--text-embeddings", metavar="FILE", help="saved text embeddings in place of a text tower")
    model.add_argument("--short-side", type=int, default=448, help="pixels to which pictures are resized inside")
    out = parser.add_argument_group("what the file takes and gives")
    out.add_argument(
        "--size", nargs="+", default=["dynamic"], metavar="N",
        help="height and width of all pictures, or dynamic (default)",
    )  # fmt: skip
    out.add_argument("--scores", action="store_true", help="give the similarity of each class, not labels")
    out.add_argument("--float", action="store_true", dest="floats", help="take float32 in 0..1, not uint8")
    out.add_argument("--format", choices=list(FORMATS.values()), help="default: by the name of the file")
    out.add_argument("--check", metavar="IMAGE", help="the picture to compare on (default: a sample)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    add_modules(parser)
    return parser.parse_args(argv)


def read_size(words: list[str]) -> tuple[int, int] | None:
    """ "448 672" to (448, 672), "dynamic" to None. Raises UserError for anything else."""
    if words == ["dynamic"]:
        return None
    if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
        return int(words[0]), int(words[1])
    raise UserError(f"--size takes a height and a width in pixels, or dynamic, not {' '.join(words)}")


def export(arguments: argparse.Namespace, status: Status) -> None:
    path = Path(arguments.model)
    size = read_size(arguments.size)
    form = arguments.format or FORMATS.get(path.suffix.lower())
    if form is None:
        raise UserError(f"{path} ends neither in .onnx nor in .pt2; say --format onnx or --format torch")
    check_writable(path)
    status.say("starting PyTorch")
    from clearclip.export import save_onnx, save_program, trace
    from clearclip.images import read_image
    from clearclip.segmenter import Segmenter
    from clearclip.vocabulary import Vocabulary, load_vocabulary

    if note := check_names(arguments.names or []):
        status.note(note)
    vocabulary = load_vocabulary(arguments.classes) if arguments.classes else Vocabulary.of(arguments.names)
    picture = read_image(arguments.check or str(sanity_folder() / SAMPLE))
    if form == "onnx":
        onnxruntime()
    status.say(f"loading {arguments.backbone} ({arguments.pretrained})")
    segmenter = Segmenter(
        arguments.method,
        arguments.backbone,
        arguments.pretrained,
        text_embeddings=arguments.text_embeddings,
        short_side=arguments.short_side,
        threshold=arguments.threshold,
        other=arguments.other or arguments.threshold > 0,
        device="cpu",
        precision="fp32",
    )
    status.say(f"tracing {segmenter.spec}")
    exported = trace(segmenter, vocabulary, size, "scores" if arguments.scores else "labels", arguments.floats)
    status.say(f"writing {path}")
    (save_onnx if form == "onnx" else save_program)(exported, path)
    status.clear()
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB, {exported.about['input']} to {exported.about['output']}")
    status.say("comparing with PyTorch")
    print(compare(path, form, segmenter, vocabulary, exported, picture, size))


def compare(
    path: Path,
    form: str,
    segmenter: "Segmenter",
    vocabulary: "Vocabulary",
    exported: "Exported",
    picture: "np.ndarray",
    size: tuple[int, int] | None,
) -> str:
    """How labels, or scores, of a picture from the file differ from those of the segmenter, in a sentence."""
    import numpy as np

    if size is not None:
        from PIL import Image

        picture = np.asarray(Image.fromarray(picture).resize(size[::-1]))
    scores = exported.about["output"] == "scores"
    expected = segmenter(picture, vocabulary, scores=scores)
    pixels = np.ascontiguousarray(picture.transpose(2, 0, 1)[None])
    if str(exported.about["input"]).startswith("RGB, float32"):
        pixels = pixels.astype(np.float32) / 255
    found = run(path, form, pixels)[0]
    where = f"on a picture of {picture.shape[1]} × {picture.shape[0]} pixels"
    if scores:
        return f"scores differ from PyTorch's by at most {np.abs(found - expected.similarity).max():.2g} {where}"
    different = int((found != expected.labels).sum())
    if not different:
        return f"all labels are PyTorch's {where}"
    return f"{different} of {found.size} labels ({different / found.size:.3%}) differ from PyTorch's {where}"


def run(path: Path, form: str, pixels: "np.ndarray") -> "np.ndarray":
    """What a file makes of images [B, 3, H, W]."""
    if form == "onnx":
        session = onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
        made: np.ndarray = session.run(None, {"images": pixels})[0]
        return made
    import torch

    with torch.no_grad():
        made = torch.export.load(path).module()(torch.from_numpy(pixels)).numpy()
    return made


def onnxruntime() -> Any:
    """The package. Raises UserError where it is missing."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        raise UserError('ONNX files need onnxruntime and onnxscript: pip install "clearclip[export]"') from None


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    if bool(arguments.names) == bool(arguments.classes):
        raise UserError('say what to look for by --names, such as --names cat "grass, lawn", or by --classes FILE')

    from clearclip.registry import import_modules

    import_modules(arguments.modules)
    with Status(arguments.quiet) as status:
        export(arguments, status)
