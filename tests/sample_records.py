"""Records as evaluations leave them, with the results that refer to them, for tests."""

import numpy as np
from sample_results import result

from clearclip.evaluation.confusion import Confusion
from clearclip.evaluation.records import Records
from clearclip.evaluation.results import write_result
from clearclip.evaluation.statistics import bootstrap


def confusion(truth, labels, classes):
    return Confusion.count(np.array(truth), np.array(labels), classes)


def record(folder, method, right, classes, images=12, seed=0, seconds=None, samples=None, **changes):
    """Evaluate: of each image about the share `right` of its pixels is right. Returns the path of its result.json.

    Records go to `folder`/records, the result to `folder`/runs/<data set>/<method>. All methods see one ground truth.
    """
    world, mistakes = np.random.default_rng(0), np.random.default_rng(seed + 1)
    identity = {"method": [[method, {}]], "benchmark": changes.get("dataset", "voc20"), "names": [[c] for c in classes]}
    with Records.open(folder / "records" / "1-of-1.sqlite") as records:
        run = records.run(identity, classes, {"config": None})
        for index in range(images):
            name = samples[index] if samples else f"images/{index:03d}.jpg#0"
            truth = world.choice(len(classes), 400, p=None)
            truth[: 100 * (index % 3)] = index % len(classes)
            wrong = mistakes.random(400) > right
            labels = np.where(wrong, mistakes.integers(0, len(classes), 400), truth)
            time = None if seconds is None else seconds + index / 7919
            run.add(name, confusion(truth, labels, len(classes)), (20, 20), time)
        estimate = bootstrap(run.areas())
        made = result(
            method=method,
            mIoU=estimate.mIoU.value,
            interval=estimate.mIoU.half_width,
            per_class_IoU={name: iou.value for name, iou in zip(classes, estimate.IoU)},
            images=images,
            record=run.key,
            names_hash="0",
        )
    made |= changes
    return write_result(made, folder / "runs" / made["dataset"] / method)
