# The ClearCLIP protocol: everything the benchmark files share.

default_scope = "mmseg"
custom_imports = dict(imports=["clearclip.evaluation.mmseg"], allow_failed_imports=False)

model = dict(
    type="OpenVocabSegmentor",
    method="ClearCLIP",
    backbone="ViT-B-16",
    pretrained="openai",
    vocabulary=None,
    templates="imagenet80",
    text_embeddings=None,
    short_side=448,
    crop=448,
    stride=224,
    logit_scale=50.0,
    threshold=0.0,
    area_threshold=0.0,
    precision="auto",
)

test_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        pipeline=[
            dict(type="LoadImage"),
            dict(type="LoadLabels"),
            dict(type="PackSegInputs"),
        ],
    ),
)
test_evaluator = dict(type="ClassIoUMetric", iou_metrics=["mIoU"])
test_cfg = dict(type="TestLoop")

benchmark = dict(protocol="clearclip")

env_cfg = dict(dist_cfg=dict(backend="nccl"))
log_level = "WARNING"
visualizer = dict(type="Visualizer", vis_backends=[])
default_hooks = dict(
    progress=dict(type="ProgressHook"),
    runtime_info=None,
    timer=None,
    logger=None,
    param_scheduler=None,
    checkpoint=None,
)
