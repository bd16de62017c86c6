"""Where the tests of this folder run: on the CPU in every test run, and on a CUDA device by `-m gpu`.

A test that takes `device` compares the device with a reference on the CPU. Where the device is the CPU too, it takes
another path than the reference (another memory layout, views in batches, iterations), so that the test means something
there as well.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ON_CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])
everywhere = pytest.mark.parametrize("device", ["cpu", ON_CUDA])
only_cuda = pytest.mark.parametrize("device", [ON_CUDA])


@contextmanager
def exact_float32() -> Iterator[None]:
    """Full float32 in products and convolutions, where TF32 would keep 10 bits of 23."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


@contextmanager
def same_draws(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Random numbers are drawn on the CPU whatever device asks for them: each device's generator has its own.

    Args:
        dtype: What fractions are made to after they are drawn in float32.
    """

    def drawn_there(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def drawn(*args: Any, device: Any = None, generator: Any = None, **options: Any) -> torch.Tensor:
            assert generator is None, "drawn from a generator of its own: let this test know"
            numbers = draw(*args, **options)
            return numbers.to(device, dtype if numbers.is_floating_point() else numbers.dtype)

        return drawn

    names = ("rand", "randint", "randperm")
    with patch.multiple(torch, **{name: drawn_there(getattr(torch, name)) for name in names}):
        yield
