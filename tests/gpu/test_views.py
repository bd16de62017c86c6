"""Views made on a device are those that the workers make, with the same draws."""

import numpy as np
import pytest
import torch
from devices import everywhere
from test_device_colour import _numbers, _pictures

from hf_ssl.data.order.cache import Cache, CachedDraws, CachedViews
from hf_ssl.data.views.cpu import Crops, Views
from hf_ssl.data.views.device_colour import DeviceColour
from hf_ssl.data.views.recipes import VIEW_RECIPES

SIZE = 32
ON_DEVICE = [name for name, one in sorted(VIEW_RECIPES.items()) if one.first.policy is None is one.second.policy]


@everywhere
@pytest.mark.parametrize("recipe", ["byol", "moco_cifar", "moco_v3", "simclr_cifar", "simsiam_cifar"])
@pytest.mark.parametrize("place", ["colours", "cache"])
def test_views_are_those_of_the_workers(recipe, place, device):
    assert recipe in ON_DEVICE
    pictures, numbers, here = _pictures(size=SIZE + 12), _numbers(64), torch.device(device)
    chosen = VIEW_RECIPES[recipe]
    (expected,) = Views(chosen, SIZE)(pictures, numbers)
    if place == "colours":
        crops, draws = Crops(chosen, SIZE)(pictures, numbers)
        made = DeviceColour(chosen, SIZE, here)(crops, draws)
    else:
        cache = Cache(None, torch.from_numpy(pictures).to(here), {})  # type: ignore[arg-type]
        places, draws = CachedDraws(chosen, cache)(range(64), numbers)
        made = CachedViews(chosen, SIZE, cache)(places, draws)
    assert made.device.type == device and made.dtype == torch.uint8 and made.shape == expected.shape
    difference = np.abs(made.cpu().numpy().astype(int) - expected.numpy().astype(int))
    # A crop that is half a level off may come out a level beside, and what jitter makes of that is more; a hue between
    # two steps may take the other one.
    assert difference.mean() < 0.3
    assert (difference > 2).mean() < 0.02
