_base_ = ["../remote_sensing/cfg_openearthmap.py", "settings.py"]

model = dict(_base_.segearth.model, vocabulary="{{ fileDirname }}/cls_openearthmap.txt", threshold=0.1)

benchmark = dict(
    names="38854c87e1c0a7ddd61010958e615da5d1b769a2fd53d90df17d4770211c19d0",
    protocol="segearth",
    published={"ViT-B-16": dict(CLIP=12.0, MaskCLIP=25.1, SCLIP=29.3, ClearCLIP=31.0, GEM=33.9)},
    source=_base_.segearth.source,
)
