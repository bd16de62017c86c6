"""What is done to a batch of views on the device that trains."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalize:
    """Turn uint8 views into the pixel values that an encoder was made for.

    Args:
        mean: Mean of each channel, subtracted from pixels in [0, 1].
        std: Standard deviation of each channel, positive; pixels are divided by it.
        device: Where the views will be.
        channels_last: Memory layout of each view, as the encoder's.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device, channels_last: bool = True):
        std_ = torch.tensor(std, dtype=torch.float64)
        self._scale = (1 / (255 * std_)).to(device, torch.float32)
        self._offset = (-torch.tensor(mean, dtype=torch.float64) / std_).to(device, torch.float32)
        self._channels_last = channels_last

    def __call__(self, views: Tensor) -> Tensor:
        """Normalise a batch.

        Args:
            views: (batch, 2, height, width, 3), uint8.

        Returns:
            (batch, 2, 3, height, width), float32. Each view by itself (`unbind(dim=1)`) is contiguous, so that no
            convolution has to copy it.
        """
        width = views.shape[3]
        rows = views.transpose(0, 1).flatten(3)  # in memory, all first views and then all second ones
        pixel_values = rows.to(torch.float32, memory_format=torch.contiguous_format)
        # Over whole rows, since a loop over three channels is ten times slower on the CPU.
        pixel_values.mul_(self._scale.repeat(width)).add_(self._offset.repeat(width))
        pixel_values = pixel_values.unflatten(3, (width, 3)).permute(1, 0, 4, 2, 3)
        if self._channels_last:
            return pixel_values
        return pixel_values.transpose(0, 1).contiguous().transpose(0, 1)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, without waiting for what the device still has to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # other memory is copied when the queue has come to it
    return tensor.to(device, non_blocking=True)
