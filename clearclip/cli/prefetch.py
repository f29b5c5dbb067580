"""Fetch all that later runs need, for nodes without network: `clearclip prefetch voc20 --methods ClearCLIP NACLIP`."""

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from clearclip.cli.options import add_modules
from clearclip.config import find_config, read_config
from clearclip.errors import UserError, program
from clearclip.paths import cache_dir

if TYPE_CHECKING:
    from clearclip.backbones import Backbone
    from clearclip.config import Settings
    from clearclip.spec import Spec

T = TypeVar("T")
DATASETS = ("voc21", "context60", "coco_object", "voc20", "city_scapes", "context59", "ade20k", "coco_stuff164k")


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog, description="Fetch weights, tokenizers and text embeddings, so that later runs need no network."
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="whose names to embed (default: all eight)")
    parser.add_argument("--protocol", default="clearclip", help="whose voc20 it is: clearclip, sclip, naclip, …")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", default=["ClearCLIP"], help="with what they need")
    parser.add_argument("--backbones", nargs="+", metavar="BACKBONE", default=["ViT-B-16"], help="or arch:tag")
    parser.add_argument("--pretrained", default="openai", help="weights of backbones that name no tag")
    parser.add_argument("--precision", default="auto", help="of the later runs; fp16 for a GPU")
    add_modules(parser)
    return parser.parse_args(argv)


class Report:
    """Says of each thing whether it was at hand, came in, or is missing."""

    def __init__(self) -> None:
        self.missing = 0

    def get(self, what: str, fetch: Callable[[], T]) -> T | None:
        """What `fetch` gives, or None, with the reason printed, where it raises."""
        before = cached_bytes()
        try:
            found = fetch()
        except Exception as error:  # a hub's library raises whatever its transport raised
            self.missing += 1
            print(f"missing  {what}: {' '.join(str(error).split()) or type(error).__name__}", flush=True)
            return None
        grown = cached_bytes() - before
        print(f"fetched  {what} ({grown / 1e6:,.1f} MB)" if grown > 0 else f"at hand  {what}", flush=True)
        return found


def cached_bytes() -> int:
    """The size of this package's cache and the model hub's."""
    from huggingface_hub import constants

    files = (path for folder in (cache_dir(), Path(constants.HF_HUB_CACHE)) for path in folder.rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink())


def prefetch(arguments: argparse.Namespace, configs: dict[str, "Settings"], specs: list["Spec"]) -> int:
    """Fetch everything. Returns how many things are missing."""
    from clearclip.backbones import load_backbone

    report = Report()
    for name in arguments.backbones:

        def load(name: str = name) -> "Backbone":
            return load_backbone(name, arguments.pretrained, "cpu", arguments.precision)

        backbone = report.get(f"weights of {name}", load)
        if backbone is not None:
            for what, fetch in _needs(backbone, configs, specs):
                report.get(f"{what} ({name})", fetch)
    return report.missing


def _needs(
    backbone: "Backbone", configs: dict[str, "Settings"], specs: list["Spec"]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What runs on a backbone need besides its weights: a name, and a function that fetches it."""
    from clearclip.text import TextEmbeddings, embed_names
    from clearclip.vocabulary import load_vocabulary

    for spec in specs:
        yield f"all of {spec}", functools.partial(spec.create, backbone)
    if not backbone.text_stand_in:
        yield "tokenizer", lambda: backbone.tokenizer
    for name, config in configs.items():
        model = config.model

        def embed(model: "Settings" = model) -> TextEmbeddings:
            if model.get("text_embeddings"):
                return TextEmbeddings.load(model.text_embeddings)
            return embed_names(backbone, load_vocabulary(model.vocabulary).queries, model.templates)

        yield f"text embeddings of {name}", embed


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    configs = {}
    for name in arguments.configs or DATASETS:
        configs[name] = read_config(find_config(name, arguments.protocol))
        if not {"vocabulary", "templates"} <= configs[name].get("model", {}).keys():
            raise UserError(f"{name} is no benchmark config: it has no model.vocabulary and model.templates")

    from clearclip.registry import import_modules
    from clearclip.spec import Spec

    import_modules(arguments.modules)
    specs = [Spec.parse(method) for method in arguments.methods]
    missing = prefetch(arguments, configs, specs)
    if missing:
        print(f"{missing} missing: a node without network will lack them")
        raise SystemExit(2)
    print("all is at hand; set HF_HUB_OFFLINE=1 on nodes without network")
