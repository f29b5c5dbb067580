"""What pyproject.toml cannot say: configs and the sanity set lie beside the package, and are installed inside it."""

from setuptools import find_namespace_packages, setup


def inside(package: str, folder: str) -> list[str]:
    """`folder` and all folders below it, as the package `package` and its sub-packages."""
    return [package, *(f"{package}.{name}" for name in find_namespace_packages(folder, exclude=["*__pycache__"]))]


setup(
    packages=[
        *inside("clearclip", "clearclip"),
        *inside("clearclip.configs", "configs"),
        *inside("clearclip.datasets.sanity", "datasets/sanity"),
    ],
    package_dir={"clearclip.configs": "configs", "clearclip.datasets.sanity": "datasets/sanity"},
)
