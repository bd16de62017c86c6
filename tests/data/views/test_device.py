import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from hf_ssl.data.views.device import Normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("channels_last", [True, False])
def test_normalising_equals_torchvision_and_leaves_each_view_contiguous(channels_last):
    views = torch.randint(0, 256, (5, 2, 7, 9, 3), dtype=torch.uint8)
    pixel_values = Normalize(MEAN, STD, torch.device("cpu"), channels_last)(views)
    expected = reference.normalize(views.permute(0, 1, 4, 2, 3).float() / 255, list(MEAN), list(STD))
    torch.testing.assert_close(pixel_values, expected, atol=1e-5, rtol=0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert all(view.is_contiguous(memory_format=memory_format) for view in pixel_values.unbind(dim=1))
