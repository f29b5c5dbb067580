"""The MMSegmentation side. Importing this package registers our data sets, metric, segmentor and hook."""

from mmengine.logging import MMLogger

from clearclip.evaluation import mmcv_ext

mmcv_ext.install()  # before anything imports mmseg
MMLogger.get_instance("mmengine", log_level="WARNING")  # or loading a config prints a line per $CLEARCLIP_DATA

from clearclip.evaluation import datasets, progress, segmentor  # noqa: E402, F401
