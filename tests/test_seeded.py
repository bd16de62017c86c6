"""Draws from a seed that leave every generator as it was."""

import pytest
import torch

from hf_ssl.seeded import seeded


def test_draws_are_those_of_the_seed_and_no_generator_moves(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    # `torch.manual_seed` would also seed the GPUs, of which `fork_rng` puts nothing back here.
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU was seeded"))
    with seeded(7):
        assert torch.equal(torch.randn(3), expected)
    assert torch.equal(torch.get_rng_state(), before)
