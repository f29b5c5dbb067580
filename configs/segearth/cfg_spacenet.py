_base_ = ["../remote_sensing/cfg_spacenet.py", "settings.py"]

model = dict(_base_.segearth.model, threshold=0.7)

benchmark = dict(protocol="segearth")
