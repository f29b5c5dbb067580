"""The published procedure, as plainly as its papers' pipelines have it.

Windows one by one, the last block run twice, scores of all classes at full size, 77-token prompts class by class,
nothing kept.
"""

import functools
from unittest import mock

import cv2
import torch
import torch.nn.functional as F

from clearclip import products
from clearclip.evaluation.segmentor import IoUMetric


def by_pytorch(function):
    """The same with PyTorch's own linear layers, of which `load_backbone` makes faster ones."""

    @functools.wraps(function)
    def plain(*args, **options):
        with mock.patch.object(products, "_takes", return_value=False):
            return function(*args, **options)

    return plain


@by_pytorch
def published_text(backbone, names, templates):
    """[Q, dim]: class by class, each prompt at its full 77 tokens."""
    rows = []
    for name in names:
        tokens = backbone.tokenizer([template.format(name) for template in templates]).to(backbone.device)
        embeddings = F.normalize(backbone.text_tower(tokens), dim=-1)
        rows.append(F.normalize(embeddings.mean(dim=0), dim=-1))
    return torch.stack(rows)


def published_preprocess(bgr, backbone):
    """Resize rule (2048, 448), then RGB, normalised: [1, 3, h, w]."""
    height, width = bgr.shape[:2]
    factor = min(2048 / max(height, width), 448 / min(height, width))
    resized = cv2.resize(bgr, (int(width * factor + 0.5), int(height * factor + 0.5)), interpolation=cv2.INTER_LINEAR)
    image = torch.from_numpy(resized).permute(2, 0, 1).to(backbone.device).float().flip(0)
    mean, std = (torch.tensor(s, device=image.device)[:, None, None] * 255 for s in (backbone.mean, backbone.std))
    return ((image - mean) / std).to(backbone.dtype)[None]


def published_windows(height, width, crop, stride):
    """(y1, y2, x1, x2) of each window, the last of a row or column shifted back inside."""
    for row in range(max(height - crop + stride - 1, 0) // stride + 1):
        for column in range(max(width - crop + stride - 1, 0) // stride + 1):
            y2, x2 = min(row * stride + crop, height), min(column * stride + crop, width)
            yield max(y2 - crop, 0), y2, max(x2 - crop, 0), x2


def published_scores(visual, window, text):
    """Cosine scores [1, Q, h, w] of ClearCLIP for one window [1, 3, H, W]."""
    x = visual.conv1(window)
    grid = x.shape[2:]
    x = torch.cat([visual.class_embedding.expand(1, 1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    position = visual.positional_embedding
    if x.shape[1] != len(position):
        side = int((len(position) - 1) ** 0.5)
        patches = position[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
        position = torch.cat([position[:1], patches.permute(0, 2, 3, 1).flatten(0, 2)])
    x = visual.ln_pre(x + position)
    for block in visual.transformer.resblocks:  # what the last one gives is thrown away
        entering, x = x, block(x)
    attention = block.attn
    qkv = F.linear(block.ln_1(entering), attention.in_proj_weight, attention.in_proj_bias)
    q, _, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [1, heads, 1+N, d]
    weights = (q @ q.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    x = attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
    features = visual.ln_post(x)[:, 1:] @ visual.proj
    features = features / features.norm(dim=-1, keepdim=True)
    return (features @ text.T).transpose(1, 2).unflatten(2, grid)


@by_pytorch
def published_vit(visual, image, text, crop, stride):
    """The windows of an image [1, 3, h, w], one by one: where each lies, its padding to patches, its scores."""
    patch = visual.patch_size[0]
    results = []
    for y1, y2, x1, x2 in published_windows(*image.shape[2:], crop, stride):
        down, right = -(y2 - y1) % patch, -(x2 - x1) % patch
        padding = (right // 2, right - right // 2, down // 2, down - down // 2)
        scores = published_scores(visual, F.pad(image[:, :, y1:y2, x1:x2], padding), text)
        results.append(((y1, y2, x1, x2), padding, scores))
    return results


def published_stitch(results, image):
    """Mean scores [1, Q, h, w] at the pixels of the resized image, summed as MMSegmentation's slide inference does."""
    total = image.new_zeros(1, results[0][2].shape[1], *image.shape[2:])
    count = image.new_zeros(1, 1, *image.shape[2:])
    for (y1, y2, x1, x2), (left, right, top, bottom), scores in results:
        padded = (y2 - y1 + top + bottom, x2 - x1 + left + right)
        scores = F.interpolate(scores, size=padded, mode="bilinear")
        scores = scores[:, :, top : padded[0] - bottom, left : padded[1] - right]
        total += F.pad(scores, (x1, image.shape[3] - x2, y1, image.shape[2] - y2))
        count[:, :, y1:y2, x1:x2] += 1
    return total / count


def published_decode(logits, query_class, logit_scale=50.0, threshold=0.0):
    """Scores [Q, H, W] at full size to labels [H, W]."""
    logits = logits * logit_scale
    probabilities = logits.softmax(dim=0)
    classes = max(query_class) + 1
    if classes != len(query_class):
        owner = F.one_hot(torch.tensor(query_class, device=logits.device)).T[:, :, None, None]  # [C, Q, 1, 1]
        probabilities = (owner * probabilities).max(dim=1).values
    labels = probabilities.argmax(dim=0)
    labels[probabilities.max(dim=0).values < threshold] = 0
    return labels


def published_pass(backbone, segmenter, queries, path, truth, lap, in_strips=False):
    """Labels [H, W] of an image file, and the scores they come from at the resized image's pixels [1, Q, h, w]."""
    bgr = cv2.imread(str(path))
    lap("decode image")
    image = published_preprocess(bgr, backbone)
    lap("preprocess")
    results = published_vit(backbone.visual, image, queries.text.to(backbone.dtype), segmenter.crop, segmenter.stride)
    lap("ViT")
    merged = published_stitch(results, image)
    shape = bgr.shape[:2]
    if in_strips:
        labels = decode_in_strips(merged, shape, queries.query_class)
    else:
        logits = F.interpolate(merged, size=shape, mode="bilinear")[0]
        labels = published_decode(logits, queries.query_class, segmenter.logit_scale, segmenter.threshold)
    labels = labels.cpu()
    lap("stitch+decode")
    IoUMetric.intersect_and_union(labels, truth, len(queries.names), 255)
    lap("metric")
    return labels, merged


def decode_in_strips(merged, shape, query_class, rows=256, queries=32):
    """What `published_decode` gives, where the scores at full size do not fit into memory."""
    strips = []
    for y in range(0, shape[0], rows):
        resized = (F.interpolate(part, size=shape, mode="bilinear") for part in merged.split(queries, dim=1))
        strip = torch.cat([part[0, :, y : y + rows].clone() for part in resized])
        strips.append(published_decode(strip, query_class))
    return torch.cat(strips)
