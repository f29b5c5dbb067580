"""Progress of an evaluation: images done, images a second, time left."""

import sys
import time
from typing import Any

from mmengine.dist import get_world_size, master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tqdm import tqdm

METER = "{desc}: {n_fmt}/{total_fmt} images, {rate_noinv_fmt}, {remaining} left"


class Progress:
    """A tqdm bar on stderr or, where that is no terminal, a line every tenth of the images or 30 seconds."""

    def __init__(self, total: int, label: str = "test"):
        self.total, self.label = total, label
        self.done, self.said = 0, 0
        self.start = self.said_at = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            self.bar = tqdm(
                desc=label,
                total=total,
                unit=" images",
                bar_format="{percentage:3.0f}%|{bar}| " + METER,
                dynamic_ncols=True,
            )

    def update(self, images: int) -> None:
        """So many more are done."""
        new = min(images, self.total - self.done)
        self.done += new
        if self.bar is not None:
            self.bar.update(new)
            return
        now = time.monotonic()
        tenth = self.done * 10 // max(1, self.total) > self.said * 10 // max(1, self.total)
        if tenth or now - self.said_at >= 30:
            self.said, self.said_at = self.done, now
            elapsed = now - self.start
            line = tqdm.format_meter(
                self.done, self.total, elapsed, prefix=self.label, unit=" images", bar_format=METER
            )
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leave the terminal as it is."""
        if self.bar is not None:
            self.bar.close()


@HOOKS.register_module()
class ProgressHook(Hook):
    """`Progress` of MMEngine's `Runner.test`, in place of its LoggerHook (`default_hooks=dict(logger=None)`).

    Rank 0 alone shows it: as the sampler deals the images out evenly, it counts each of its own for all processes.
    `label` goes in front.
    """

    def __init__(self, label: str = "test"):
        self.label = label

    @master_only
    def before_test_epoch(self, runner: Any) -> None:
        self.progress = Progress(len(runner.test_dataloader.dataset), self.label)

    @master_only
    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = ()) -> None:
        self.progress.update(len(outputs) * get_world_size())  # the last share may be uneven

    @master_only
    def after_test_epoch(self, runner: Any, metrics: Any = None) -> None:
        self.progress.close()
