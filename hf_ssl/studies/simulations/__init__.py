"""Simulations of why pretraining without labels does or does not collapse, each with its figures."""
