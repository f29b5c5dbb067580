"""Importing this registers our data sets, loaders, segmentor, metric and hooks with MMSegmentation."""

import clearclip.evaluation.mmcv_ext  # noqa: F401, what mmseg needs

from mmengine.logging import MMLogger

from clearclip.evaluation import datasets, folders, loading, progress, segmentor  # noqa: F401

MMLogger.get_instance("mmengine", log_level="WARNING")  # or a runner prints its settings
