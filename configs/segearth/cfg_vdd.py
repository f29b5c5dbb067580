_base_ = ["../remote_sensing/cfg_vdd.py", "settings.py"]

model = dict(_base_.segearth.model, vocabulary="{{ fileDirname }}/cls_vdd.txt", threshold=0.3)

benchmark = dict(
    names="b5f67d47c28a4286708afe89d0a8c66d7e7f6b44b9f084c170fc84724de893c4",
    protocol="segearth",
    published={"ViT-B-16": dict(CLIP=14.2, MaskCLIP=32.9, SCLIP=37.9, ClearCLIP=39.3, GEM=39.5)},
    source=_base_.segearth.source,
)
