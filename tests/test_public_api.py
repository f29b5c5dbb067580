"""What `import clearclip` promises. What it does not pull in is in test_layers.py."""

import pytest

import clearclip


def test_every_public_name_is_there():
    for name in clearclip.__all__:
        assert getattr(clearclip, name) is not None
    assert set(clearclip.__all__) == set(dir(clearclip))
    assert {"Segmenter", "Spec", "load_segmenter", "list_methods", "list_backbones"} <= set(clearclip.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        _ = clearclip.Segmentor
