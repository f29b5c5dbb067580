_base_ = ["../remote_sensing/cfg_inria.py", "settings.py"]

model = dict(_base_.segearth.model, threshold=0.6)

benchmark = dict(protocol="segearth")
