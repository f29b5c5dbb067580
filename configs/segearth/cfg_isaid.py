_base_ = ["../remote_sensing/cfg_isaid.py", "settings.py"]

model = dict(_base_.segearth.model, vocabulary="{{ fileDirname }}/cls_isaid.txt", threshold=0.4)

benchmark = dict(
    names="a19c3743a93efd10e775cde64cab4c02f3f6e3e8fda9f3966e3552ba43f3083b",
    protocol="segearth",
    published={"ViT-B-16": dict(CLIP=7.5, MaskCLIP=14.5, SCLIP=16.1, ClearCLIP=18.2, GEM=17.7)},
    source=_base_.segearth.source,
)
