"""Limbot: asking a model from the terminal. Knows the cluster door and no other interface."""
