"""A result as an evaluation leaves it, for tests."""

from datetime import UTC, datetime, timedelta

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


def result(dataset="voc20", mIoU=80.2, minute=0, **changes):
    """A run of ClearCLIP, `minute` minutes after noon."""
    return {
        "date": (NOON + timedelta(minutes=minute)).isoformat(),
        "method": "ClearCLIP",
        "backbone": "ViT-B-16",
        "pretrained": "openai",
        "dataset": dataset,
        "protocol": "clearclip",
        "vocabulary": f"cls_{dataset}.txt",
        "text": "openai80",
        "mIoU": mIoU,
        "aAcc": 90.0,
        "mAcc": 88.5,
        "per_class_IoU": {"cat": 91.25, "potted plant": 60.5},
        "images": 1449,
        "benchmark_images": 1449,
        "published": 80.9,
        "published_source": "ClearCLIP, Table 3",
        "seconds": 100.0,
        "images_per_second": 14.49,
        "device": "cpu",
        "precision": "fp32",
        "versions": {"clearclip": "0.1.0", "torch": "2.6.0"},
        "config": f"configs/cfg_{dataset}.py",
        "settings": {"short_side": 448, "crop": 448, "stride": 224},
        "weights_hash": "0123abcd",
    } | changes
