"""Write a segmenter for one vocabulary into a file: `clearclip export pets.onnx --names cat "grass, lawn" sky`."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clearclip.cli.inputs import check_names
from clearclip.cli.options import add_modules
from clearclip.cli.segment import SAMPLE
from clearclip.cli.status import Status
from clearclip.config import sanity_folder
from clearclip.errors import UserError, one_line, program
from clearclip.paths import check_writable

if TYPE_CHECKING:
    import numpy as np

    from clearclip.export import Exported

    Run = Callable[["np.ndarray"], "np.ndarray"]

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
    out.add_argument("--check", nargs="+", metavar="IMAGE", help="pictures to compare on (default: a sample)")
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
    from clearclip.export import PACKAGES, need, save_onnx, save_program, trace
    from clearclip.images import read_image
    from clearclip.segmenter import Segmenter
    from clearclip.vocabulary import Vocabulary, load_vocabulary

    if form == "onnx":
        for package in (*PACKAGES, "onnxruntime"):
            need(package)
    if note := check_names(arguments.names or []):
        status.note(note)
    vocabulary = load_vocabulary(arguments.classes) if arguments.classes else Vocabulary.of(arguments.names)
    pictures = {name: read_image(name) for name in arguments.check or [str(sanity_folder() / SAMPLE)]}
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
    run = runner(path, form)

    def in_pytorch(picture: "np.ndarray") -> "np.ndarray":
        result = segmenter(picture, vocabulary, scores=arguments.scores)
        return result.similarity if arguments.scores else result.labels

    for name, picture in pictures.items():
        seen = picture if size is None else resized(picture, size)
        wanted, seconds = timed(in_pytorch, seen)
        found, own_seconds = timed(run, pixels(seen, arguments.floats))
        status.clear()
        print(
            f"{name}, {seen.shape[1]} × {seen.shape[0]} pixels: {difference(found[0], wanted, exported)}; "
            f"{own_seconds:.2f} s, in PyTorch {seconds:.2f} s"
        )


def difference(found: "np.ndarray", wanted: "np.ndarray", exported: "Exported") -> str:
    """How labels, or scores, of a picture from a file differ from those of the segmenter, in a few words."""
    import numpy as np

    if exported.about["output"] == "scores":
        return f"scores differ from PyTorch's by at most {np.abs(found - wanted).max():.2g}"
    different = int((found != wanted).sum())
    if not different:
        return "all labels are PyTorch's"
    return f"{different} of {found.size} labels ({different / found.size:.3%}) differ from PyTorch's"


def timed(work: "Run", images: "np.ndarray") -> tuple["np.ndarray", float]:
    """What some work makes of images, and the seconds that it takes the second time: the first prepares much."""
    work(images)
    start = time.perf_counter()
    return work(images), time.perf_counter() - start


def resized(picture: "np.ndarray", size: tuple[int, int]) -> "np.ndarray":
    """A picture [H, W, 3] at another size (H, W), as examples/onnx_segment.py has it."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize(size[::-1]))


def pixels(picture: "np.ndarray", floats: bool) -> "np.ndarray":
    """A picture [H, W, 3] as a file takes it, [1, 3, H, W]."""
    import numpy as np

    images = np.ascontiguousarray(picture.transpose(2, 0, 1)[None])
    return images.astype(np.float32) / 255 if floats else images


def runner(path: Path, form: str) -> "Run":
    """A function that runs a file, in as many threads as PyTorch has: images [B, 3, H, W] to labels or scores."""
    import torch

    if form == "onnx":
        from clearclip.export import need

        onnxruntime = need("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own have no common base
            raise UserError(f"{path} is written, but onnxruntime does not load it: {one_line(error)[:200]}") from error
        return lambda images: session.run(None, {"images": images})[0]
    module = torch.export.load(path).module()

    def run(images: "np.ndarray") -> "np.ndarray":
        with torch.no_grad():
            made: np.ndarray = module(torch.from_numpy(images)).numpy()
        return made

    return run


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    if bool(arguments.names) == bool(arguments.classes):
        raise UserError('say what to look for by --names, such as --names cat "grass, lawn", or by --classes FILE')

    from clearclip.registry import import_modules

    import_modules(arguments.modules)
    with Status(arguments.quiet) as status:
        export(arguments, status)
