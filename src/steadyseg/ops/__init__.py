"""Numeric primitives, each with a plain PyTorch reference of the same signature; kernels/ has those for a GPU."""
