"""Every kernel compiles for a GPU, down to machine code, also where there is none: Triton brings its compiler along.

Kernels are compiled in a process of its own, as this one runs them in the interpreter.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FLOAT, INDEX = "*fp32", "*i64"
ATTEND = {"P": 4, "C": 256, "BLOCK_N": 4, "BLOCK_C": 256}
GATHER = {"J": 36, "C": 32, "BLOCK_M": 32, "BLOCK_C": 32}
READ = {"M": 8, "P": 4, "C": 32, "BLOCK_R": 32, "BLOCK_C": 32}
POINTERS = {  # of bfloat16 unless named here
    **dict.fromkeys(("points", "totals", "grad_source", "grad_points", "weight", "bias"), FLOAT),
    **dict.fromkeys(("grad_tokens", "grad_weight"), FLOAT),
    **dict.fromkeys(("xs", "ys", "weights", "grad_value", "grad_xs", "grad_ys", "grad_weights"), FLOAT),
    **dict.fromkeys(("index", "image"), INDEX),
    **dict.fromkeys(("query", "source", "grad", "grad_query", "tokens", "value", "logits", "out"), "*bf16"),
    "x": "*bf16",
    "labels": "*u8",
    **dict.fromkeys(("scale", "eps"), "fp32"),
}
KERNELS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("selective_attention", "_attend", ATTEND),
    ("selective_attention", "_attend", {**ATTEND, "width": 1, "height": 1, "queries": 1}),  # as Triton treats ones
    ("selective_attention", "_attend_backward", {**ATTEND, "SOURCE": True, "POINTS": True}),
    ("gather_rows", "_gather", GATHER),
    ("gather_rows", "_gather_backward", {**GATHER, "TOKENS": True, "WEIGHT": True}),
    ("upsample_argmax", "_label", {"ROWS": 8, "COLUMNS": 32}),
    ("upsample_argmax", "_label", {"ROWS": 8, "COLUMNS": 32, "h": 1, "w": 1, "width": 1, "stride_x": 1, "classes": 1}),
    ("layer_norm", "_normalise", {"C": 160, "BLOCK_N": 8, "BLOCK_C": 256, "WEIGHT": True, "BIAS": True}),
    ("depthwise_gelu", "_convolve", {"BLOCK_X": 8, "BLOCK_C": 64}),
    ("deformable_attention", "_read", {**READ, "width": 1, "height": 1}),
    ("deformable_attention", "_read_backward", {**READ, "VALUES": True}),
)


def compile_all() -> None:
    """Compile for compute capability 9.0; raises where a kernel is wrong."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for file, name, constants in KERNELS:
        kernel = getattr(importlib.import_module(f"steadyseg.ops.kernels.{file}"), name)
        pointers = POINTERS | ({"out": FLOAT} if name == "_read" else {})
        types = {arg: "constexpr" if arg in constants else pointers.get(arg, "i32") for arg in kernel.arg_names}
        places = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
        made = triton.compile(
            ASTSource(kernel, types, places, {}), target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True}
        )
        assert made.asm["cubin"], name


def test_kernels_compile(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not importable: pip install -c constraints.txt -e '.[kernels]'")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    compile_all()
