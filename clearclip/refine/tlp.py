"""TLP, the text-aware Laplacian propagation of PEARL (CVPR 2026, arXiv 2603.21528): maps spread up to edges.

On a coarse grid, scores X are to stay near what they were, F, where that was confident, and to be alike between
neighbours of like brightness and like probabilities:

    (C + 𝓛) X = C F

C holds the confidences, 𝓛 is the Laplacian of the grid's graph. Unless there are few classes the confidences of plain
cosines are so small that nearly all is smoothing, and 25 steps of conjugate gradients are what ends it: the result is
that of these steps, not the solution. All classes of an image share one step size. Of the similarity of texts, the
authors' code uses only how alike each is to itself, which is nearly nothing.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.products import sum_rows, sums_rows
from clearclip.refine import Refinement, register
from clearclip.text import Queries
from clearclip.view import View
from clearclip.windows import Maps

GREY = (0.299, 0.587, 0.114)
SHARPNESS = 5.0  # how fast an edge weight falls with the difference in brightness, in units of the mean difference
LEAST_CONFIDENCE = 0.05
TEMPERATURE, SELF = 0.5, 10.0  # of the similarity of texts, and what is added to that of each with itself


class TLP(Refinement):
    """TLP at about `grid` × `grid` positions, whose result is enlarged; the scores at full size are never stored.

    Args:
        grid: rows and columns, nearly: blocks have whole pixels. PEARL has 224 for Cityscapes.
        steps: of conjugate gradients.
    """

    def __init__(self, backbone: Backbone, grid: int = 80, steps: int = 25):
        super().__init__(backbone)
        if grid < 1 or steps < 0:
            raise ValueError(f"grid {grid} must be 1 or more and steps {steps} 0 or more")
        self.grid, self.steps = grid, steps

    def __call__(self, view: View, maps: Maps, queries: Queries) -> Maps:
        blocks = [max(1, round(side / self.grid)) for side in maps.shape]
        rows, columns = (pooled(*pair) for pair in zip((maps.rows, maps.columns), blocks))
        scores = Maps(maps.scores, rows, columns).full()  # [Q, h, w], the mean of each block
        image = F.avg_pool2d(view.resized_pixels(maps.shape)[None], blocks)[0].to(scores)
        smooth = propagate(image, scores, self_similarity(queries.text.to(scores)), self.steps)
        return view.stitcher.resized(smooth, maps.shape)


def pooled(operator: Tensor, block: int) -> Tensor:
    """The rows [n, a] of an operator averaged in blocks; what does not fill one is left out: [n // block, a]."""
    count = len(operator) // block
    return operator[: count * block].unflatten(0, (count, block)).mean(dim=1)


def self_similarity(text: Tensor) -> Tensor:
    """The share [Q] of each text [Q, dim], unit rows, in its own similarities to all."""
    similarity = (text @ text.T / TEMPERATURE).softmax(dim=-1)
    own = similarity.diagonal() + SELF
    return own / (similarity.sum(dim=-1) + SELF + 1e-6)


def propagate(image: Tensor, scores: Tensor, weights: Tensor, steps: int = 25) -> Tensor:
    """Scores [Q, h, w] spread over an image [3, h, w]; `weights` [Q] say how much a class counts where two agree."""
    probabilities = scores.softmax(dim=0)
    confidence = probabilities.amax(dim=0).clamp(min=LEAST_CONFIDENCE)

    def agreement(one: Tensor, other: Tensor) -> Tensor:
        return torch.einsum("q,qhw,qhw->hw", weights, one, other).clamp(0, 1)

    red, green, blue = GREY
    anchor = confidence**2 * (1 + agreement(probabilities, probabilities))  # C, [h, w]
    grey = red * image[0] + green * image[1] + blue * image[2]
    down = edges(grey[1:] - grey[:-1], agreement(probabilities[:, 1:], probabilities[:, :-1]))  # [h − 1, w]
    right = edges(grey[:, 1:] - grey[:, :-1], agreement(probabilities[..., 1:], probabilities[..., :-1]))  # [h, w − 1]

    if sums_rows(scores):
        # The classes of a position side by side, so that each sum over its neighbours is read and written once.
        rows = scores.flatten(1).T.contiguous()  # [h · w, Q]
        places, weights = neighbourhoods(anchor, down, right)
        smooth = conjugate_gradients(lambda x: sum_rows(x, places, weights), anchor.view(-1, 1) * rows, rows, steps)
        return smooth.T.unflatten(1, anchor.shape)

    def operator(x: Tensor) -> Tensor:
        out = anchor * x
        up, left = down * (x[:, 1:] - x[:, :-1]), right * (x[..., 1:] - x[..., :-1])  # what flows back along an edge
        out[:, 1:] += up
        out[:, :-1] -= up
        out[..., 1:] += left
        out[..., :-1] -= left
        return out

    return conjugate_gradients(operator, anchor * scores, scores, steps)


def neighbourhoods(anchor: Tensor, down: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """C + 𝓛 as `sum_rows` takes it: each position and its four neighbours, and what they count, [h · w, 5] each.

    From C [h, w] and the edges to the next row [h − 1, w] and column [h, w − 1].
    """
    height, width = anchor.shape
    here = torch.arange(height * width, dtype=torch.int32)[:, None]
    places = (here + torch.tensor([0, width, -width, 1, -1], dtype=torch.int32)).clamp_(0, height * width - 1)
    weights = anchor.new_zeros(height, width, 5)
    weights[:-1, :, 1], weights[1:, :, 2] = -down, -down
    weights[:, :-1, 3], weights[:, 1:, 4] = -right, -right
    weights[..., 0] = anchor - weights.sum(dim=2)
    return places, weights.flatten(0, 1)


def edges(difference: Tensor, agreement: Tensor) -> Tensor:
    """Weights of edges, within 0..1, from the differences in brightness along them; a grid of one row has none."""
    difference = difference.abs()
    mean = difference.sum() / max(1, difference.numel())
    return (torch.exp(-SHARPNESS * difference / (mean + 1e-6)) * (1 + agreement)).clamp(0, 1)


def conjugate_gradients(operator: Callable[[Tensor], Tensor], target: Tensor, start: Tensor, steps: int) -> Tensor:
    """x after some steps towards operator(x) = target, all maps of which take steps of one size."""
    x, residual = start.clone(), target - operator(start)
    direction, power = residual.clone(), dot(residual, residual)
    for _ in range(steps):
        applied = operator(direction)
        size = power / (dot(direction, applied) + 1e-12)
        x.addcmul_(size, direction)
        residual.addcmul_(size, applied, value=-1)
        before, power = power, dot(residual, residual)
        direction.mul_(power / (before + 1e-12)).add_(residual)
    return x


def dot(one: Tensor, other: Tensor) -> Tensor:
    """The sum of products of two tensors [...]."""
    return torch.dot(one.flatten(), other.flatten())


register(
    "TLP", TLP, "scores spread over a coarse grid up to the image's edges, confident ones least", "PEARL, CVPR 2026"
)
