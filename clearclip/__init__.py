"""Training-free open-vocabulary semantic segmentation with CLIP."""

from clearclip import _namesake  # noqa: F401

__version__ = "0.1.0"

_PUBLIC = {
    "Segmenter": "segmenter",
    "Segmentation": "segmenter",
    "load_segmenter": "config",
    "TextEmbeddings": "text",
    "UserError": "errors",
    "Vocabulary": "vocabulary",
    "list_backbones": "backbones",
    "list_methods": "methods",
    "Spec": "spec",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    # PyTorch takes seconds to import: a program that only prints its help need not wait for it.
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(f"clearclip.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'clearclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
