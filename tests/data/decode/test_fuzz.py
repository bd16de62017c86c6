"""Damaged picture files give a picture or a reason: nothing else, whatever the damage."""

import numpy as np
import pytest
from hypothesis import given, settings
from mutations import edits, mutated, pictures

from hf_ssl.data.decode.pictures import SkippedImageError, decode

PICTURES = pictures()


@pytest.mark.parametrize("kind", PICTURES)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(changes=edits)
def test_a_damaged_picture_is_read_or_refused(kind, changes):
    try:
        image = decode(mutated(PICTURES[kind], changes))
    except SkippedImageError as error:
        assert 0 < len(error.reason) < 60
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0


@pytest.mark.parametrize("kind", PICTURES)
def test_the_undamaged_ones_are_pictures(kind):
    if kind == "tiff-bands":
        with pytest.raises(SkippedImageError, match="five bands"):
            decode(PICTURES[kind])
    else:
        assert decode(PICTURES[kind]).shape in ((20, 24, 3), (24, 20, 3))
