"""Data from which nothing can be learnt: methods stay finite or a run ends, and the figures say what is wrong."""

import pytest
import torch
from test_distributed import CASES, make_model

from hf_ssl.errors import UserError
from hf_ssl.training.watch.collapse import collapse_figures
from hf_ssl.training.watch.loss import check_weights


def losses_of(model, views, indices, labels, steps=3):
    """Loss of each step, and the last output."""
    optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.002)
    losses = []
    for step in range(1, steps + 1):
        output = model(views, indices, labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        model.after_optimizer_step(step, steps)
        losses.append(output.loss.item())
    return torch.tensor(losses), output


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fill", ["black", "equal"])
def test_identical_images_give_finite_losses_and_figures_of_zero(case, fill):
    views = torch.zeros(8, 2, 3, 32, 32) if fill == "black" else torch.randn(3, 32, 32).expand(8, 2, 3, 32, 32)
    model = make_model(case)
    losses, output = losses_of(model, views.contiguous(), torch.arange(8), torch.zeros(8, dtype=torch.int64))
    assert losses[:2].isfinite().all()
    if (case, fill) == ("moco_v3-cold", "equal"):
        # BatchNorm at its outputs divides rounding by rounding: a run ends with a sentence, and saves nothing of it.
        with pytest.raises(UserError, match="Weights were not finite after step 3"):
            check_weights(model, 3, None)
        return
    check_weights(model, 3, None)
    assert losses.isfinite().all()
    figures = {name: value.item() for name, value in collapse_figures(output).items()}
    assert figures == {"feature_std": pytest.approx(0, abs=1e-3), "effective_rank": pytest.approx(0, abs=1e-3)}


@pytest.mark.parametrize("case", ["moco", "moco-symmetric", "mochi"])
def test_a_queue_may_be_larger_than_the_data(case):
    """It then holds former keys of the same images, which count as negatives; only `--recipe auto` avoids that."""
    model = make_model(case)
    assert model.config.queue_size > 8
    losses, _ = losses_of(model, torch.randn(8, 2, 3, 32, 32), torch.arange(8), None, steps=12)
    assert losses.isfinite().all()


@pytest.mark.parametrize("label", [0, -1])
def test_one_class_leaves_the_class_oracle_of_mochi_finite(label):
    losses, _ = losses_of(make_model("mochi-oracle"), torch.randn(8, 2, 3, 32, 32), None, torch.full((8,), label), 8)
    assert losses.isfinite().all()


@pytest.mark.parametrize("case", ["memory_bank", "memory_bank-sampled", "memory_bank-full"])
def test_images_with_one_number_share_an_entry_which_takes_the_last(case):
    model = make_model(case)
    before = model.bank.clone()
    losses, _ = losses_of(model, torch.randn(8, 2, 3, 32, 32), torch.tensor([5] * 7 + [2]), None, steps=1)
    assert losses.isfinite().all()
    changed = (model.bank != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == [2, 5]
