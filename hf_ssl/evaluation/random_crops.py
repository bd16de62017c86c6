"""The augmentation with which MoCo and BYOL train their linear probes: random resized crops and flips."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hf_ssl.data.views.draws import CROP, FLIP, NUM_DRAWS, draw_rows, sizes_of
from hf_ssl.data.views.recipes import ViewParameters
from hf_ssl.evaluation.encoders import Encoder, Picture

PARAMETERS = ViewParameters(crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), flip_probability=0.5)
"""Crops and flips of He et al., 2020 (MoCo; the official `main_lincls.py`) and Grill et al., 2020, appendix C.1."""


class RandomCrops:
    """One augmented pass over a data set: a random crop of each image, as the encoder sees a whole image; picklable.

    What is drawn depends on the seed, the pass and the image's row alone. The crop is flipped or not, resized to the
    encoder's input size by the filter of its own preprocessing, and normalised.

    Args:
        encoder: Whose preprocessing to use.
        seed: Of all draws, at least 0.
        pass_number: Which pass over the data set, from 0.
    """

    def __init__(self, encoder: Encoder, seed: int, pass_number: int):
        self._transform = encoder.transform.of_crops()
        self._seed = seed
        self._pass_number = pass_number

    def __call__(self, pictures: Sequence[Picture], rows: Sequence[int]) -> list[Tensor]:
        """Pixels of a crop of each picture, (3, height, width), float32.

        Args:
            pictures: The pictures.
            rows: Their rows in the data set.
        """
        numbers = [np.random.default_rng([self._seed, self._pass_number, row]).random(NUM_DRAWS) for row in rows]
        drawn = draw_rows(*sizes_of(pictures), PARAMETERS, np.stack(numbers))
        crops = []
        for picture, own in zip(pictures, drawn, strict=True):
            top, left, height, width = map(int, own[CROP])
            crop = picture[top : top + height, left : left + width]
            crops.append(self._transform(np.ascontiguousarray(crop[:, ::-1] if own[FLIP] else crop)))
        return crops
