_base_ = ["../remote_sensing/cfg_wbs_si.py", "settings.py"]

model = dict(_base_.segearth.model, threshold=0.6)

benchmark = dict(protocol="segearth")
