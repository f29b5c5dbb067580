"""Benchmark configs: Python files in MMEngine's style, read without MMEngine.

A config is a Python file whose names are its keys. `_base_` names the files that it inherits; what it says itself is
merged into theirs. The result is that of `mmengine.Config.fromfile`, but that the value of an environment variable is
data, never source code, and that `_base_` finds the configs of this package by name from any folder.
"""

import ast
import copy
import functools
import operator
import os
import re
import types
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearclip.errors import UserError, one_line
from clearclip.paths import data_root

if TYPE_CHECKING:
    from clearclip.segmenter import Segmenter

PACKAGE = Path(__file__).parent
BASE, DELETE = "_base_", "_delete_"
NO_SETTINGS = ("type", "vocabulary", "features")  # of a config's model: what its data is, not what its `Segmenter` is
EVALUATION = "clearclip.evaluation.mmseg"  # what our configs import for MMEngine; it needs MMSegmentation

_VARIABLE = re.compile(
    r"""\{\{\s*(?:
        (?P<file>fileDirname|fileBasename|fileBasenameNoExtension|fileExtname)
        | _base_\.(?P<base>[\w.]+)
        | ['"]?\s*\$(?P<name>\w+)\s*:\s*(?P<default>\S*?)\s*['"]?
    )\s*\}\}""",
    re.VERBOSE,
)
_PLACEHOLDER = re.compile(r"_variable_\d+_")


class Settings(dict):
    """A dict whose keys are attributes too, at every depth: `config.model.crop`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no key {name!r}; there are {', '.join(map(str, self))}") from None

    __setattr__ = dict.__setitem__


def config_folder() -> Path:
    """The folder of the shipped configs, in an installed package and in a checkout."""
    return _shipped("configs")


def sanity_folder() -> Path:
    """The folder of the ten sample photographs and their labels."""
    return _shipped("datasets") / "sanity"


def _shipped(name: str) -> Path:
    return PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE.parent / name


def protocols() -> list[str]:
    """The protocols that have configs, "clearclip" first."""
    folders = {path.parent for path in config_folder().glob("*/cfg_*.py")}
    return ["clearclip", *sorted(folder.name for folder in folders)]


def benchmarks(protocol: str = "clearclip") -> list[str]:
    """The data sets that a protocol has configs for."""
    return sorted(path.stem.removeprefix("cfg_") for path in _protocol_folder(protocol).glob("cfg_*.py"))


def _protocol_folder(protocol: str) -> Path:
    return config_folder() if protocol == "clearclip" else config_folder() / protocol


def find_config(name: str | Path, protocol: str = "clearclip") -> Path:
    """The file of a config: a path as it is, or a shipped one by its name.

        find_config("voc20")           # of the ClearCLIP protocol
        find_config("sclip/voc20")     # or find_config("voc20", "sclip")
        find_config("mine/cfg_voc.py")

    Raises UserError, which lists what there is, where there is none.
    """
    path = Path(name).expanduser()
    if path.suffix == ".py" and path.is_file():
        return path
    found = _by_name(path, _protocol_folder(protocol))
    if found:
        return found
    if path.suffix == ".py":
        raise UserError(f"config {name} does not exist; give a file, or a name such as voc20 or sclip/voc20")
    if protocol not in protocols():
        raise UserError(f"unknown protocol {protocol!r}; use one of {', '.join(protocols())}")
    others = [f"{other}/" for other in protocols()[1:]] if protocol == "clearclip" else []
    hint = f"; those of other protocols begin with {', '.join(others)}" if others else ""
    raise UserError(f"no config {str(name)!r}: protocol {protocol} has {', '.join(benchmarks(protocol))}{hint}")


def _by_name(path: Path, folder: Path) -> Path | None:
    """The shipped config that `path`, such as sclip/voc20, sclip/cfg_voc20.py or base.py, names below `folder`."""
    if path.is_absolute() or ".." in path.parts:
        return None
    names = [path.name] if path.suffix == ".py" else [f"cfg_{path.name}.py", f"{path.name}.py"]
    candidates = (folder / path.parent / name for name in names)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def read_config(path: str | Path) -> Settings:
    """All settings of a config file, those that it inherits included; `find_config` gives a file for a name.

    `model.temperature`, the older name of `model.logit_scale`, is read as that. Raises UserError for a file that is
    missing or is no config.
    """
    return _read(Path(os.path.abspath(path)), ())


def _read(path: Path, heirs: tuple[Path, ...]) -> Settings:
    """Read one file; `heirs` are the files that inherit it."""
    if path in heirs:
        raise UserError(f"config {path} inherits itself, by {' and '.join(map(str, heirs[heirs.index(path) :]))}")
    try:
        return _evaluate(path, path.read_text(encoding="utf-8"), heirs)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"config {path} does not exist") from None
    except (Exception, SystemExit) as error:  # a config is Python and may raise anything
        raise UserError(
            f"{path} is no benchmark config ({one_line(error)}); see configs/README.md for the keys"
        ) from error


def _evaluate(path: Path, source: str, heirs: tuple[Path, ...]) -> Settings:
    source, variables = _cut_variables(source)
    values: dict[str, Any] = {name: _variable(match, path) for name, match in variables.items() if not match["base"]}
    tree = ast.parse(source, filename=str(path))
    base = Settings()
    for name in _bases(tree, values):
        inherited = _read(_find_base(name, path), (*heirs, path))
        twice = base.keys() & inherited.keys()
        if twice:
            raise UserError(f"{path}: more than one _base_ sets {', '.join(sorted(twice))}; inherit one of them")
        base.update(inherited)
    for name, match in variables.items():
        if match["base"]:
            values[name] = functools.reduce(operator.getitem, match["base"].split("."), base)

    code = ast.fix_missing_locations(_Fill(values).visit(tree))
    names: dict[str, Any] = {BASE: base, **{name: _as_python(value) for name, value in values.items()}}
    given = {*names, "__builtins__"}
    exec(compile(code, str(path), "exec"), names)
    own = {key: value for key, value in names.items() if key not in given and not key.startswith("__")}
    own = {key: value for key, value in own.items() if not isinstance(value, types.FunctionType | types.ModuleType)}
    return merge(base, _renamed(copy.deepcopy(own)))


def _cut_variables(source: str) -> tuple[str, dict[str, re.Match]]:
    """Put an identifier in the place of each `{{ … }}`: it is valid both in a string and as an expression."""
    variables: dict[str, re.Match] = {}

    def cut(match: re.Match) -> str:
        name = f"_variable_{len(variables)}_"
        variables[name] = match
        return name

    return _VARIABLE.sub(cut, source), variables


def _variable(match: re.Match, path: Path) -> str:
    """The value of `{{ fileDirname }}` and the like, or of `{{$NAME:default}}`; a variable set to nothing is unset."""
    if match["file"]:
        parts = dict(
            fileDirname=path.parent.as_posix(),
            fileBasename=path.name,
            fileBasenameNoExtension=path.stem,
            fileExtname=path.suffix,
        )
        return parts[match["file"]]
    name, value = match["name"], os.environ.get(match["name"]) or match["default"]
    if not value:
        raise UserError(f"{path} needs the environment variable {name}; set it")
    return data_root().as_posix() if name == "CLEARCLIP_DATA" and os.environ.get(name) else value


def _as_python(value: Any) -> Any:
    """What a variable stands for outside of a string: `{{$WORKERS:2}}` is a number."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value


class _Fill(ast.NodeTransformer):
    """Puts the values of variables into the strings of a config, and leaves out its `_base_`."""

    def __init__(self, values: dict[str, Any]):
        self.values = values

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str):
            node.value = _PLACEHOLDER.sub(lambda match: str(self.values.get(match[0], match[0])), node.value)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        return None if _is_base(node) else self.generic_visit(node)


def _is_base(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == BASE


def _bases(tree: ast.Module, values: dict[str, Any]) -> list[str]:
    """The files that `_base_ = "…"` or `_base_ = ["…", "…"]` names."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and _is_base(node):
            names = ast.literal_eval(_Fill(values).visit(copy.deepcopy(node.value)))
            return [names] if isinstance(names, str) else list(names)
    return []


def _find_base(name: str, path: Path) -> Path:
    """The file that a config at `path` means: one beside it, or else a shipped one of that name."""
    beside = path.parent / Path(name).expanduser()
    found = beside if beside.is_file() else _by_name(Path(name), config_folder())
    if found is None:
        raise UserError(f"{path}: no _base_ {name} beside it, nor among the configs in {config_folder()}")
    return Path(os.path.abspath(found))


def _renamed(config: dict) -> dict:
    """A config whose `model.temperature`, if it has one, is called `logit_scale`."""
    model = config.get("model")
    if not isinstance(model, dict) or "temperature" not in model:
        return config
    scale = model["temperature"]
    model = {key: value for key, value in model.items() if key != "temperature"}
    return {**config, "model": model if scale is None else {**model, "logit_scale": scale}}


def merge(base: dict, new: dict) -> Settings:
    """`new` in `base`, neither of them changed: dicts are merged, `_delete_=True` in one drops what it would inherit.

    Raises UserError for a dict in the place of something else.
    """
    merged = Settings(base)
    for key, value in new.items():
        if not isinstance(value, dict):
            merged[key] = _settings(value)
            continue
        inherited = merged.get(key)
        if inherited is None or value.get(DELETE):
            inherited = {}
        if not isinstance(inherited, dict):
            raise UserError(
                f"{key} is a dict here and {inherited!r} in the config that is inherited; add {DELETE}=True"
            )
        merged[key] = merge(inherited, {name: value[name] for name in value if name != DELETE})
    return merged


def _settings(value: Any) -> Any:
    """A list or tuple with `Settings` for the dicts in it, anything else as it is."""
    if isinstance(value, dict):
        return merge({}, value)
    return type(value)(map(_settings, value)) if type(value) in (list, tuple) else value


def override(config: Settings, options: dict[str, Any]) -> Settings:
    """A config with options by dotted key, such as `{"model.crop": 224, "….pipeline.0.type": "LoadImage"}`.

    Raises UserError, naming the key, where one goes through what is neither a dict nor a list that long.
    """
    config = copy.deepcopy(config)
    for key, value in options.items():
        key = "model.logit_scale" if key == "model.temperature" else key
        *parents, last = key.split(".")
        node: Any = config
        try:
            for parent in parents:
                node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, Settings())
            if isinstance(node, list):
                node[int(last)] = value
            else:
                node.update(merge(node, {last: value}))
        except (AttributeError, ValueError, IndexError) as error:
            raise UserError(f"--cfg-options {key}={value} fits nothing in the config; see configs/README.md") from error
    return config


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """`["model.crop=224"]` as `{"model.crop": 224}`; values are read as Python, or else are text.

    Raises UserError for what is no KEY=VALUE.
    """
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(f"--cfg-options {pair!r} must be KEY=VALUE, such as model.crop=224")
        options[key] = parse_value(value)
    return options


def parse_value(text: str) -> Any:
    """`224`, `0.5`, `true`, `None`, `(1,2)`, `[a,b]`, `a,b` or a quoted string as Python; anything else is text."""
    text = text.strip()
    try:
        value = ast.literal_eval(text)
        return list(value) if isinstance(value, tuple) and not text.startswith("(") else value
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"\[.*\]|\(.*\)", text):
        values = [parse_value(part) for part in re.split(r",(?![^\[(]*[\])])", text[1:-1]) if part.strip()]
        return values if text[0] == "[" else tuple(values)
    if re.fullmatch(r"[\w.+-]+(,[\w.+-]+)+", text):  # words; a path or a method's options may hold a comma
        return [parse_value(part) for part in text.split(",")]
    return text


def import_custom_modules(config: Settings) -> None:
    """Import what a config's `custom_imports` names: methods, refinements and backbones of one's own.

    `clearclip.evaluation` is left to those who evaluate. Raises UserError for a module that cannot be imported,
    unless the config allows that.
    """
    from clearclip.registry import import_modules

    wanted = config.get("custom_imports") or {}
    names = wanted.get("imports", [])
    for name in [names] if isinstance(names, str) else names:
        try:
            import_modules([name] if name != EVALUATION else [])
        except UserError:
            if not wanted.get("allow_failed_imports"):
                raise


def check_pipeline(config: Settings, path: str | Path) -> None:
    """Raise UserError for a pipeline that resizes images: the model's `short_side` does."""
    for step in config.test_dataloader.dataset.get("pipeline", ()):
        if step["type"] == "Resize" or "scale" in step:
            scale = step.get("scale")
            side = min(scale) if isinstance(scale, list | tuple) and scale else "448"
            raise UserError(
                f"{path}: the pipeline resizes images, which the model does now; leave out Resize and its scale, and "
                f"set model.short_side={side}"
            )


def load_segmenter(config: str | Path, **overrides: Any) -> "Segmenter":
    """A `Segmenter` with the settings of a benchmark config, as an evaluation uses it; `overrides` win.

        segmenter = clearclip.load_segmenter("voc20", device="cpu")
        labels = segmenter("cat.jpg", ["cat", "grass, lawn"]).labels

    `config` is a file or a name such as "sclip/voc20". Class names and data set are no part of a segmenter: give
    names when you call it. Raises UserError for a file that is missing or is no benchmark config, and where
    `Segmenter` does.
    """
    from clearclip.segmenter import Segmenter

    path = find_config(config)
    loaded = read_config(path)
    try:
        check_pipeline(loaded, path)
        settings = {key: value for key, value in loaded.model.items() if key not in NO_SETTINGS}
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no benchmark config ({error}); see configs/README.md for the keys") from error
    import_custom_modules(loaded)
    return Segmenter(**settings | _renamed(dict(model=overrides))["model"])
