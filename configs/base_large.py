# Hundreds of classes: label maps of 16 bits, where 255 is a class and 65535 is ignored.

_base_ = "./base.py"

test_dataloader = dict(
    dataset=dict(
        type="LargeVocabularyDataset",
        pipeline=[
            dict(type="LoadImage"),
            dict(type="LoadLabels", ignore_index=65535),
            dict(type="PackSegInputs"),
        ],
    ),
)
test_evaluator = dict(ignore_index=65535)
