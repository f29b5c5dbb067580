_base_ = ["../remote_sensing/cfg_loveda.py", "settings.py"]

model = dict(_base_.segearth.model, vocabulary="{{ fileDirname }}/cls_loveda.txt", threshold=0.3)

benchmark = dict(
    names="07690aa82316d721b7657adbb38dd56847e2392a35531c6086cf5a541428f409",
    protocol="segearth",
    published={"ViT-B-16": dict(MaskCLIP=27.8, SCLIP=30.4, ClearCLIP=32.4, GEM=31.6)},
    source=_base_.segearth.source,
)
