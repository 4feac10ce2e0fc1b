"""Numeric primitives, each with a plain PyTorch reference of the same signature."""
