"""The training loop and what it needs: settings, optimizers, checkpoints, log."""
