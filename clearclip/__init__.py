"""Training-free open-vocabulary semantic segmentation with CLIP."""

from typing import TYPE_CHECKING

from clearclip import _namesake  # noqa: F401

if TYPE_CHECKING:
    from clearclip.backbones import list_backbones
    from clearclip.config import load_segmenter
    from clearclip.errors import UserError
    from clearclip.features import KeptFeatures, KeptFolder
    from clearclip.keeping import keep_features
    from clearclip.methods import list_methods
    from clearclip.segmentation import Segmentation
    from clearclip.segmenter import Segmenter
    from clearclip.spec import Spec
    from clearclip.text import TextEmbeddings
    from clearclip.vocabulary import Vocabulary

__version__ = "0.1.0"
__all__ = [
    "KeptFeatures",
    "KeptFolder",
    "Segmentation",
    "Segmenter",
    "Spec",
    "TextEmbeddings",
    "UserError",
    "Vocabulary",
    "__version__",
    "keep_features",
    "list_backbones",
    "list_methods",
    "load_segmenter",
]
_MODULES = {
    "KeptFeatures": "features",
    "KeptFolder": "features",
    "Segmentation": "segmentation",
    "Segmenter": "segmenter",
    "Spec": "spec",
    "TextEmbeddings": "text",
    "UserError": "errors",
    "Vocabulary": "vocabulary",
    "keep_features": "keeping",
    "list_backbones": "backbones",
    "list_methods": "methods",
    "load_segmenter": "config",
}


def __getattr__(name: str) -> object:
    # PyTorch takes seconds to import: a program that only prints its help need not wait for it.
    if name in _MODULES:
        import importlib

        return getattr(importlib.import_module(f"clearclip.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'clearclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
