"""Why a patch gets its class: what every block does to the tokens of one window, and what re-wiring the last changes.

    from clearclip import Segmenter
    from clearclip.analysis import explain_patch, inspect

    segmenter = Segmenter("ClearCLIP", crop=0)  # the whole picture is one window
    found = inspect(segmenter, "horses.jpg", ["horse", "grass", "sky"], point=(300, 250))
    found.residual_norm  # [12, h, w], by layer
    found.save("horses.npz")
    print(explain_patch(segmenter, "horses.jpg", ["horse", "grass", "sky"], (300, 250)))

ClearCLIP (arXiv 2407.12442) argues from such measurements: in the last block the residual stream is much larger than
what attention adds to it, and carries what the whole picture shows rather than what is at a place.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip import windows
from clearclip.attention import find_term
from clearclip.errors import UserError
from clearclip.images import read_image
from clearclip.look import scores_features
from clearclip.methods import similarity
from clearclip.methods.final_block import FinalBlock, rewired
from clearclip.paths import atomic_write
from clearclip.segmenter import Segmenter
from clearclip.text import Queries
from clearclip.trunk import Trunk
from clearclip.view import View
from clearclip.vocabulary import Vocabulary

TERMS = ("qk", "qq", "kk", "vv")  # of which there are maps
ATTENTIONS = (*TERMS, "identity")  # of the cells
RESIDUALS = (0.0, 1.0)
FEED_FORWARDS = (False, True)
WRITTEN = {"qk": "query–key", "qq": "query–query", "kk": "key–key", "vv": "value–value", "identity": "identity"}
KNOWN = {("qk", 1.0, True): "CLIP", ("identity", 0.0, False): "MaskCLIP", ("qq", 0.0, False): "ClearCLIP"}  # cells
Point = tuple[float, float]


@dataclass(frozen=True)
class Place:
    """Where a point of a picture lies among the windows that the network sees.

    Attributes:
        point: (y, x), in pixels of the picture.
        top, left, height, width: of the window, in pixels of the resized picture.
        grid: (h, w), rows and columns of its patches.
        patch: (row, column) of the point's patch.
    """

    point: Point
    top: int
    left: int
    height: int
    width: int
    grid: tuple[int, int]
    patch: tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """What one re-wiring of the last block makes of a patch.

    Attributes:
        attention, residual, feed_forward: as `FinalBlock` takes them. ("qk", 1, True) is CLIP, ("qq", 0, False)
            ClearCLIP.
        name: the best class.
        probabilities: [C], of all classes.
    """

    attention: str
    residual: float
    feed_forward: bool
    name: str
    probabilities: np.ndarray

    @property
    def probability(self) -> float:
        """Of the best class."""
        return float(self.probabilities.max())


@dataclass(frozen=True)
class Explanation:
    """What makes the class of a patch.

    Attributes:
        place: where it is.
        names: [C] of the classes.
        name, scores: what the segmenter's method gives the patch: its best class, and the score [C] of each, a cosine.
        cells: the same patch by all re-wirings of the last block.
        attention: by term ("qk" and so on), how much the patch looks at each other, [h, w]: the mean of the heads. With
            what goes to class and register tokens it sums to 1.
        cosine: by term, the mean cosine over heads of what the patch asks with and what each other answers with.
        alike: [h, w], the cosine of the method's features of the patch and of each other; None where the method works
            on whole images or makes scores without features.
    """

    place: Place
    names: tuple[str, ...]
    name: str
    scores: np.ndarray
    cells: tuple[Cell, ...]
    attention: dict[str, np.ndarray]
    cosine: dict[str, np.ndarray]
    alike: np.ndarray | None

    def __str__(self) -> str:
        head = ", ".join(f"residual {r:g}, feed-forward {'on' if f else 'off'}" for r, f in _columns())
        lines = [f"patch {self.place.patch} of {self.place.grid}: {self.name}", f"attention: {head}"]
        for attention in ATTENTIONS:
            row = [f"{cell.name} {cell.probability:.2f}" for cell in self.cells if cell.attention == attention]
            lines.append(f"{attention:9}: {', '.join(row)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Inspection:
    """What the blocks do to the patches of a window. All arrays are NumPy's, float32, L being the number of layers.

    Attributes:
        place: the window, and the patch whose maps these are.
        layers: [L] the blocks, from 0.
        residual_norm: [L, h, w], of the tokens that enter each block: the residual stream.
        attention_norm: [L, h, w], of what its attention adds to them.
        feed_forward_norm: [L, h, w], of what its feed-forward network then adds.
        entropy: [L, heads, h, w], of each patch's attention over all T tokens, divided by log T: 1 looks everywhere
            alike, 0 at one token.
        stream_entropy: [L], of the softmax of all N · D entries of the patches that enter, divided by log N · D: it
            falls where few channels of few patches outgrow the others.
        attention: by term, how much the chosen patch looks at each other in each layer, [L, h, w].
        cosine: by term, the cosine that is behind that, [L, h, w], see `Explanation`.
        names: [C] of the classes; empty where none were given.
        labels: by cell (attention, residual, feed_forward), [h, w]: the best class of every patch, int64.
    """

    place: Place
    layers: tuple[int, ...]
    residual_norm: np.ndarray
    attention_norm: np.ndarray
    feed_forward_norm: np.ndarray
    entropy: np.ndarray
    stream_entropy: np.ndarray
    attention: dict[str, np.ndarray]
    cosine: dict[str, np.ndarray]
    names: tuple[str, ...]
    labels: dict[tuple[str, float, bool], np.ndarray]

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name: "entropy", "attention.qk", "labels.qq.residual0.ff0"."""
        found: dict[str, np.ndarray] = {"layers": np.array(self.layers)}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                found[field.name] = value
            elif field.name == "labels":
                found |= {f"labels.{a}.residual{r:g}.ff{f:d}": array for (a, r, f), array in value.items()}
            elif isinstance(value, dict):
                found |= {f"{field.name}.{key}": array for key, array in value.items()}
        return found

    def save(self, path: str | Path) -> None:
        """Write `arrays()` as .npz or .safetensors, by the name. Raises UserError for another ending."""
        save_arrays(self.arrays(), path)


def save_arrays(arrays: dict[str, np.ndarray], path: str | Path) -> None:
    """Write arrays by name as .npz or .safetensors. Raises UserError for a file of another ending."""
    suffix = Path(path).suffix
    if suffix not in (".npz", ".safetensors"):
        raise UserError(f"{path}: arrays go into a .npz or a .safetensors file; give one of these endings")
    with atomic_write(path) as temporary:
        if suffix == ".npz":
            with open(temporary, "wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        else:
            from safetensors.numpy import save_file

            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)


@torch.inference_mode()
def explain_patch(segmenter: Segmenter, image: Any, names: Any, point: Point) -> Explanation:
    """Why the patch at `point` (y, x), in pixels of the picture, gets its class.

    Only the window whose middle is nearest to the point is looked at, and of the last block only the row of that patch:
    beside the way of one window through the blocks it takes milliseconds. Scores are those of this window, before they
    are averaged with those of overlapping ones and refined; of a method that works on whole images, the image's.

    Args:
        segmenter: whose method and backbone are asked; its windows are looked at.
        image, names: as `Segmenter.__call__` takes them.

    Raises:
        UserError: for a point outside of the picture, and where `Segmenter.__call__` does.
    """
    view, queries = _view(segmenter, image), segmenter.queries(_vocabulary(names))
    place, trunk = _window(view, point)
    token = _token(trunk, place)
    scores, alike = _by_method(segmenter, view, queries, trunk, place)
    best = int(scores.argmax())
    return Explanation(
        place,
        queries.names,
        queries.names[best],
        scores.cpu().numpy(),
        tuple(_cells(trunk, token, queries, segmenter.logit_scale)),
        {term: _map(_attention_row(trunk, -1, term, token), trunk) for term in TERMS},
        {term: _map(_cosine_row(trunk, -1, term, token), trunk) for term in TERMS},
        alike,
    )


@torch.inference_mode()
def inspect(
    segmenter: Segmenter,
    image: Any,
    names: Any = None,
    *,
    layers: Iterable[int] | None = None,
    point: Point | None = None,
) -> Inspection:
    """What the blocks do to one window of a picture: that whose middle is nearest to `point`.

    Args:
        segmenter: whose backbone is asked, and whose windows are looked at; with `crop=0` the picture is one window.
        image: as `Segmenter.__call__` takes it.
        names: classes, as it takes them, for the labels of each cell.
        layers: blocks to look at, by default all; a negative one counts from the last, −1.
        point: (y, x) in pixels of the picture, of the patch whose maps are wanted; by default the middle.

    Raises:
        UserError: for a layer that is not there, a point outside of the picture, and where `Segmenter.__call__` does.
    """
    chosen = _layers(layers, len(segmenter.backbone.blocks))
    view = _view(segmenter, image)
    queries = None if names is None else segmenter.queries(_vocabulary(names))
    height, width = view.shape
    place, trunk = _window(view, ((height - 1) / 2, (width - 1) / 2) if point is None else point)
    token = _token(trunk, place)
    found: dict[str, list[np.ndarray]] = {}
    for layer in chosen:
        for name, array in _layer(trunk, layer, token).items():
            found.setdefault(name, []).append(array)
    stacked = {name: np.stack(arrays) for name, arrays in found.items()}
    return Inspection(
        place,
        chosen,
        stacked["residual"],
        stacked["attention"],
        stacked["feed_forward"],
        stacked["entropy"],
        stacked["stream_entropy"],
        {term: stacked[f"attention.{term}"] for term in TERMS},
        {term: stacked[f"cosine.{term}"] for term in TERMS},
        () if queries is None else queries.names,
        {} if queries is None else _labels(trunk, queries),
    )


def window_pixels(segmenter: Segmenter, image: Any, place: Place) -> np.ndarray:
    """The pixels [height, width, 3], uint8, of a window as the network sees it, without padding."""
    pixels = _view(segmenter, image).image.permute(1, 2, 0).cpu().numpy()
    return pixels[place.top : place.top + place.height, place.left : place.left + place.width]


# Where to look


def _vocabulary(names: Any) -> Vocabulary:
    return names if isinstance(names, Vocabulary) else Vocabulary.of(names)


def _view(segmenter: Segmenter, image: Any) -> View:
    return segmenter.view(torch.from_numpy(read_image(image)).permute(2, 0, 1))


def _layers(layers: Iterable[int] | None, depth: int) -> tuple[int, ...]:
    """Which blocks, from the first to the last of them: a trunk goes one way."""
    wanted = range(depth) if layers is None else list(layers)
    wrong = [layer for layer in wanted if not -depth <= layer < depth]
    if wrong or not wanted:
        given = f"there is no layer {wrong[0]}" if wrong else "no layers are given"
        raise UserError(f"{given}; the backbone has {depth}, 0 to {depth - 1}")
    return tuple(sorted({layer % depth for layer in wanted}))


def _window(view: View, point: Point) -> tuple[Place, Trunk]:
    """The place of a point in the window whose middle is nearest to it, and this window's trunk."""
    for value, length, axis in zip(point, view.shape, "yx"):
        if not 0 <= value < length:
            raise UserError(
                f"point {axis}={value:g} is outside of the picture, whose {axis} goes from 0 to {length - 1}"
            )
    plan, patch = view.plan, view.backbone.patch_size
    axes = (plan.rows, plan.columns)
    scaled = [(value + 0.5) * axis.length / side for value, axis, side in zip(point, axes, view.shape)]
    nearest = [
        min(range(len(axis.starts)), key=lambda i, axis=axis, value=value: abs(axis.starts[i] + axis.size / 2 - value))  # type: ignore[misc]
        for axis, value in zip(axes, scaled)
    ]
    window = windows.cut(view.pixels, plan)[nearest[0] * len(plan.columns.starts) + nearest[1]]
    trunk = view.backbone.trunk(window[None])
    top, left = (axis.starts[index] for axis, index in zip(axes, nearest))
    patches = [
        # Of a whole image the last pixels may be left out, and its grid is stretched over all of them.
        int(value / axis.length * count if axis.whole else (value - start + axis.before) / patch)
        for value, axis, start, count in zip(scaled, axes, (top, left), trunk.grid)
    ]
    row, column = (min(max(index, 0), count - 1) for index, count in zip(patches, trunk.grid))
    return Place(point, top, left, plan.rows.size, plan.columns.size, trunk.grid, (row, column)), trunk


def _token(trunk: Trunk, place: Place) -> int:
    """The place of a patch among a trunk's tokens."""
    return trunk.prefix + place.patch[0] * place.grid[1] + place.patch[1]


# One layer


def _layer(trunk: Trunk, layer: int, token: int) -> dict[str, np.ndarray]:
    """All of `Inspection` that is by layer, for one."""
    block, tokens = trunk.backbone.blocks[layer], trunk.tokens(layer)
    attention, (_, _, v) = trunk.attention(layer), trunk.qkv(layer)
    added = block.attention_output(attention.to(v) @ v)  # [1, T, D]
    entropy = torch.special.entr(attention).sum(dim=-1) / np.log(attention.shape[-1])  # [1, heads, T]
    patches = trunk.patches(layer).float()
    stream = torch.special.entr(patches.flatten().softmax(dim=0)).sum() / np.log(patches.numel())
    found = {
        "residual": _map(tokens.float().norm(dim=-1)[0], trunk),
        "attention": _map(added.float().norm(dim=-1)[0], trunk),
        "feed_forward": _map(block.mlp(tokens + added).float().norm(dim=-1)[0], trunk),
        "entropy": np.stack([_map(head, trunk) for head in entropy[0]]),
        "stream_entropy": stream.cpu().numpy(),
    }
    for term in TERMS:
        found[f"attention.{term}"] = _map(_attention_row(trunk, layer, term, token), trunk)
        found[f"cosine.{term}"] = _map(_cosine_row(trunk, layer, term, token), trunk)
    return found


def _map(values: Tensor, trunk: Trunk) -> np.ndarray:
    """Values of all tokens [T] or [1, heads, 1, T], of which the mean is taken, to those of the patches [h, w]."""
    values = values.float().reshape(-1, values.shape[-1]).mean(dim=0)[trunk.prefix :]
    return values.unflatten(0, trunk.grid).cpu().numpy()


def _pair(trunk: Trunk, layer: int, term: str) -> tuple[Tensor, Tensor]:
    """What plays query and key in a term, [1, heads, T, d] each."""
    function = find_term(term)
    pair = function(*trunk.qkv(layer), trunk.prefix) if function else None
    assert pair is not None, term
    return pair


def _attention_row(trunk: Trunk, layer: int, term: str, token: int) -> Tensor:
    """Whom one token looks at, softmax(x yᵀ / √d), [1, heads, 1, T], float32."""
    x, y = _pair(trunk, layer, term)
    return (x[:, :, token : token + 1] @ y.mT * x.shape[-1] ** -0.5).float().softmax(dim=-1)


def _cosine_row(trunk: Trunk, layer: int, term: str, token: int) -> Tensor:
    """The cosine of one token's x and all tokens' y, [1, heads, 1, T], float32."""
    x, y = (F.normalize(part.float(), dim=-1) for part in _pair(trunk, layer, term))
    return x[:, :, token : token + 1] @ y.mT


# The cells


def _columns() -> Iterable[tuple[float, bool]]:
    return itertools.product(RESIDUALS, FEED_FORWARDS)


def _cells(trunk: Trunk, token: int, queries: Queries, logit_scale: float) -> Iterable[Cell]:
    """A patch by all re-wirings of the last block, for which one row of its attention is enough."""
    block, v = trunk.backbone.blocks[-1], trunk.qkv()[2]
    tokens = trunk.tokens()[:, token : token + 1]
    for attention in ATTENTIONS:
        if attention == "identity":
            mixed = v[:, :, token : token + 1]
        else:
            mixed = _attention_row(trunk, -1, attention, token).to(v) @ v  # [1, heads, 1, d]
        for residual, feed_forward in _columns():
            out = rewired(block, mixed, tokens, residual, feed_forward)
            features = trunk.backbone.project(out)[:, None]  # [1, 1, 1, dim]
            probabilities = (logit_scale * similarity(features, queries.text)[0, :, 0, 0]).softmax(dim=0)
            best = _of_classes(probabilities, queries).cpu().numpy()
            yield Cell(attention, residual, feed_forward, queries.names[int(best.argmax())], best)


def _of_classes(values: Tensor, queries: Queries) -> Tensor:
    """Values of the queries [Q, …] to the largest of each class's, [C, …]."""
    index = torch.tensor(queries.query_class, device=values.device)
    index = index.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
    empty = values.new_full((len(queries.names), *values.shape[1:]), -torch.inf)
    return empty.scatter_reduce(0, index, values, "amax")


def _labels(trunk: Trunk, queries: Queries) -> dict[tuple[str, float, bool], np.ndarray]:
    """The best class of every patch by all re-wirings of the last block, [h, w] each."""
    found = {}
    for attention in ATTENTIONS:
        for residual, feed_forward in _columns():
            method = FinalBlock(trunk.backbone, attention, residual, feed_forward)
            scores = _of_classes(similarity(method.features(trunk), queries.text)[0], queries)
            found[attention, residual, feed_forward] = scores.argmax(dim=0).cpu().numpy()
    return found


def _by_method(
    segmenter: Segmenter, view: View, queries: Queries, trunk: Trunk, place: Place
) -> tuple[Tensor, np.ndarray | None]:
    """The class scores [C] of a patch by the segmenter's method, and how alike its features are to all others'."""
    row, column = place.patch
    if segmenter.sees_images:
        scores = segmenter.look([view], queries)[0].scores  # [Q, h', w'] of the whole image
        row, column = (
            min(int(value * count / side), count - 1)
            for value, count, side in zip(place.point, scores.shape[1:], view.shape)
        )
        return _of_classes(scores[:, row, column], queries), None
    scores = segmenter.method.scores(trunk, queries.for_scores)[0]  # [Q, h', w'], the method's own grid
    rows, columns = scores.shape[1:]
    at = scores[:, row * rows // place.grid[0], column * columns // place.grid[1]].float()
    alike = None
    if scores_features(segmenter.method):
        features = F.normalize(trunk.once(segmenter.method, lambda: segmenter.method.features(trunk)).float(), dim=-1)[
            0
        ]
        h, w = features.shape[:2]
        alike = (features @ features[row * h // place.grid[0], column * w // place.grid[1]]).cpu().numpy()
    return _of_classes(at, queries), alike


__all__: Sequence[str] = ["Cell", "Explanation", "Inspection", "Place", "explain_patch", "inspect", "save_arrays"]
