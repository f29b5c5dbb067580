_base_ = ["../remote_sensing/cfg_whu_sat2.py", "settings.py"]

model = dict(_base_.segearth.model, threshold=0.7)

benchmark = dict(protocol="segearth")
