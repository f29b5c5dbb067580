_base_ = ["../remote_sensing/cfg_uavid.py", "settings.py"]

model = dict(_base_.segearth.model, vocabulary="{{ fileDirname }}/cls_uavid.txt", threshold=0.3)

benchmark = dict(
    names="3d385c3e542d2945447b825444183f925911a444ef0b0664d6373dc8597a5d13",
    protocol="segearth",
    published={"ViT-B-16": dict(CLIP=10.9, SCLIP=31.4, ClearCLIP=36.2, GEM=33.4)},
    source=_base_.segearth.source,
)
