"""Protocols on a frozen encoder; they know nothing of methods."""
