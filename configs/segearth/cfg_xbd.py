_base_ = ["../remote_sensing/cfg_xbd.py", "settings.py"]

model = _base_.segearth.model

benchmark = dict(protocol="segearth")
