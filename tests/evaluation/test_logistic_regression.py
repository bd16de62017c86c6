"""Logistic regression against scikit-learn, which solves the same problem in another way."""

import pytest
import sklearn.linear_model
import torch

from hf_ssl.evaluation.logistic_regression import LogisticRegression


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_logistic_regression_finds_the_optimum_of_scikit_learn(l2):
    labels = torch.arange(200) % 3
    train = 2 * torch.randn(3, 5)[labels] + 2.5 * torch.randn(200, 5)
    train = train @ torch.randn(5, 5)  # correlated
    ours = LogisticRegression(train, labels).fit(l2)
    assert ours.converged
    theirs = sklearn.linear_model.LogisticRegression(C=1 / (l2 * len(train)), tol=1e-8, max_iter=10_000)
    theirs.fit(train.double().numpy(), labels.numpy())
    expected = torch.tensor(theirs.coef_.T).float()
    torch.testing.assert_close(ours.weight, expected, atol=0.01 * float(expected.abs().max()), rtol=0)
    # The bias is free up to a constant.
    bias = torch.tensor(theirs.intercept_).float()
    torch.testing.assert_close(ours.bias - ours.bias.mean(), bias - bias.mean(), atol=0.02, rtol=0)
