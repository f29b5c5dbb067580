"""The folder `datasets` beside this package is not Hugging Face's package of that name.

To Python, a folder on its path is a package, so from the repository's root `transformers` and others would believe
that `datasets` is installed. `None` in `sys.modules` is Python's own way to say that a module is not there.
"""

import importlib.util
import sys
from pathlib import Path


def hide_datasets_folder() -> None:
    """Let `datasets` be found only where it is installed, or where there is another folder of that name."""
    if "datasets" in sys.modules:
        return
    spec = importlib.util.find_spec("datasets")
    ours = Path(__file__).resolve().parents[1] / "datasets"
    if spec is None or spec.origin is not None:
        return
    if {Path(folder).resolve() for folder in spec.submodule_search_locations or ()} == {ours}:
        sys.modules["datasets"] = None  # type: ignore[assignment]  # import then raises ModuleNotFoundError


hide_datasets_folder()
