_base_ = ["../remote_sensing/cfg_chn6_cug.py", "settings.py"]

model = dict(_base_.segearth.model, threshold=0.8)

benchmark = dict(protocol="segearth")
