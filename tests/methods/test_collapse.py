"""What each method does against collapse is needed: without it, the projections of real images fall together.

Every threshold held for each of six seeds; the ranges that were seen stand beside it.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_ssl.data.decode.pictures import decode
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.views.cpu import Views
from hf_ssl.data.views.device import Normalize
from hf_ssl.data.views.draws import NUM_DRAWS
from hf_ssl.diagnostics.rank import effective_rank
from hf_ssl.diagnostics.spread import feature_std
from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.optimizers import build_optimizer, set_learning_rate


@pytest.fixture(scope="module")
def digits() -> list[np.ndarray]:
    source = open_source("digits")
    return [decode(record[source.image_column]) for record in source.records]


def projections_after_training(
    pictures: list[np.ndarray],
    name: str,
    *,
    num_steps: int,
    view_recipe: str = "moco_cifar",
    lr: float = 0.1,
    predictor_lr_multiplier: float = 1.0,
    **settings,
) -> Tensor:
    """Projections of the first view in the last step, (64, dim); every call starts from the same random numbers."""
    torch.manual_seed(torch.initial_seed())
    method = METHODS[name]
    model = method(method.config_class(architecture="test_resnet", image_size=16, **settings))
    training = TrainingSettings(
        output_dir="not_used", weight_decay=5e-4, predictor_lr_multiplier=predictor_lr_multiplier
    )
    optimizer = build_optimizer(model, training, lr)
    set_learning_rate(optimizer, lr, factor=1.0)
    views = Views(view_recipe, 16)
    normalize = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), torch.device("cpu"))
    generator = np.random.default_rng(torch.initial_seed())
    for step in range(1, num_steps + 1):
        chosen = [pictures[i] for i in generator.integers(0, len(pictures), 64)]
        (batch,) = views(chosen, generator.random((64, 2, NUM_DRAWS)))
        output = model(normalize(batch))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        model.after_optimizer_step(step, num_steps)
    return output.projections[:, 0]


def spread(z: Tensor) -> float:
    """Standard deviation of the normalised projections in units of 1 / sqrt(dim): 1 if they fill the sphere."""
    return feature_std(z).item() * math.sqrt(z.shape[1])


@pytest.mark.slow
def test_simsiam_collapses_without_stop_gradient(digits):
    """BatchNorm at the projector's output keeps the mean of z at zero, so z cannot become one point.

    What is left of it is one line: most images at one end and, to make up for them, a few far off at the other. With
    a fraction f of these the spread is 2 sqrt(f (1 - f)), which is how it falls to zero in large batches.
    """
    sizes = {"projector_layers": 2, "projector_hidden_dim": 64, "projection_dim": 64, "predictor_hidden_dim": 16}
    healthy = projections_after_training(digits, "simsiam", num_steps=80, **sizes)
    collapsed = projections_after_training(digits, "simsiam", num_steps=80, **sizes, stop_gradient=False)
    assert spread(healthy) > 0.85 and effective_rank(healthy) > 3  # 0.91 to 0.99, 4.1 to 9.5
    assert spread(collapsed) < 0.65 and effective_rank(collapsed) < 1.3  # 0.27 to 0.48, at most 1.03


@pytest.mark.slow
def test_byol_collapses_without_predictor(digits):
    sizes = {"projector_hidden_dim": 64, "projection_dim": 32, "predictor_hidden_dim": 64, "ema_momentum": 0.9}
    healthy = projections_after_training(digits, "byol", num_steps=60, **sizes)
    collapsed = projections_after_training(digits, "byol", num_steps=60, **sizes, predictor="none")
    assert spread(healthy) > 0.7  # 0.82 to 0.88
    assert spread(collapsed) < 0.1  # 0.026 to 0.034


@pytest.mark.slow
def test_a_symmetric_linear_predictor_needs_the_moving_average(digits):
    """Tian et al., 2021, table 3 (STL-10): 75.1 with it and 36.6 without; 72.9 without both it and the symmetry.

    Here it shows in the number of dimensions that the projections use.
    """
    settings = {"predictor": "linear", "projector_hidden_dim": 64, "projection_dim": 32, "ema_schedule": "constant"}
    settings |= {"ema_momentum": 0.99, "predictor_lr_multiplier": 10.0, "lr": 0.03, "view_recipe": "shapes"}
    ranks = []
    for symmetrize, use_ema in ((True, False), (False, False), (True, True)):
        z = projections_after_training(
            digits, "byol", num_steps=100, **settings, symmetrize=symmetrize, use_ema=use_ema
        )
        ranks.append(effective_rank(z).item())
    neither_average_nor_freedom, freedom, average = ranks  # 1.2 to 2.7, 4.1 to 8.8 and 7.6 to 11.2
    assert freedom > 2 * neither_average_nor_freedom and average > 3 * neither_average_nor_freedom
