_base_ = ["../remote_sensing/cfg_udd5.py", "settings.py"]

model = dict(_base_.segearth.model, vocabulary="{{ fileDirname }}/cls_udd5.txt", threshold=0.4)

benchmark = dict(
    names="18ca4d6aa126d66e7dd8c6c905789d3c10bf456173a3a6d77461cc76f505ab32",
    protocol="segearth",
    published={"ViT-B-16": dict(CLIP=9.5, MaskCLIP=32.4, SCLIP=38.7, ClearCLIP=41.8, GEM=41.2)},
    source=_base_.segearth.source,
)
