"""Numeric primitives, each with a plain PyTorch reference of the same signature.

kernels/ has some of them for a GPU, cpu_kernels/ some for the CPU.
"""
