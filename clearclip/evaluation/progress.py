"""Progress of `Runner.test`: images done, images a second, time left."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from mmengine.dist import get_world_size, master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from tqdm import tqdm

METER = "{desc}: {n_fmt}/{total_fmt} images, {rate_noinv_fmt}, {remaining} left"


@HOOKS.register_module()
class ProgressHook(Hook):
    """A tqdm bar on stderr or, where that is no terminal, a line every tenth of the images or 30 seconds.

    Takes the place of MMEngine's LoggerHook (`default_hooks=dict(logger=None)`). Rank 0 alone shows it: as the
    sampler deals the images out evenly, it counts each of its own for all processes. `label` goes in front.
    """

    def __init__(self, label: str = "test"):
        self.label = label

    @master_only
    def before_test_epoch(self, runner: Runner) -> None:
        self.total = len(runner.test_dataloader.dataset)
        self.done, self.said = 0, 0
        self.start = self.said_at = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(
                desc=self.label,
                total=self.total,
                unit=" images",
                bar_format="{percentage:3.0f}%|{bar}| " + METER,
                dynamic_ncols=True,
            )

    @master_only
    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] = ()
    ) -> None:
        new = min(len(outputs) * get_world_size(), self.total - self.done)  # the last share may be uneven
        self.done += new
        if self.bar is not None:
            self.bar.update(new)
            return
        now = time.monotonic()
        tenth = self.done * 10 // self.total > self.said * 10 // self.total
        if tenth or now - self.said_at >= 30:
            self.said, self.said_at = self.done, now
            elapsed = now - self.start
            line = tqdm.format_meter(
                self.done, self.total, elapsed, prefix=self.label, unit=" images", bar_format=METER
            )
            tqdm.write(line, file=sys.stderr)

    @master_only
    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if self.bar is not None:
            self.bar.close()
