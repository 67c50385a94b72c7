"""The kernels of generation compile for an H100 in bfloat16, which the interpreter cannot prove; needs no
GPU.
"""
import os
import subprocess
import sys

import pytest

SCRIPT = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from redlite.kernels.triton import cached_attention as d, packed as m

BF16, F32 = "*bf16", "*fp32"
TYPES = {**dict.fromkeys(("q", "k", "v", "keys", "values", "x", "bias"), BF16), "partial": F32, "lse": F32,
         "out": F32, "places": "*i64", "ids": "*i64", "scale": "fp32"}

def build(function, launch, types={}, **constants):
    names = function.arg_names
    constants = {k: v for k, v in constants.items() if k in names}
    signature = {n: "constexpr" if n in constants else {**TYPES, **types}.get(n, "i32") for n in names}
    multiples = ("K", "N", "D", "x_row", "q_row", "k_row", "v_row", "q_head", "k_head", "v_head")
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names)
               if signature[n][0] == "*" or n in multiples}
    places = {(names.index(n),): v for n, v in constants.items()}
    source = ASTSource(function, signature, places, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch)
    assert compiled.metadata.shared <= 227 * 1024, compiled.metadata.shared
    print(function.__name__, "mma" in compiled.asm["ptx"], "cp.async" in compiled.asm["ptx"])

sizes = dict(X=128, BN=64, DOT=d.tl.bfloat16)
build(d._own, dict(num_warps=4), R=4, RP=16, **sizes)
build(d._shared, dict(num_warps=4), R=4, BM=64, **sizes)
build(d._merge, {}, {"out": BF16}, CP=8, X=128)
for int4 in (True, False):
    packed = {"weight": "*u8" if int4 else "*i8", "scale": "*fp16", "minimum": "*fp16"}
    for BM in (16, 64, 128):
        build(m._product, m._launch(BM), packed, INT4=int4, BIAS=False, DOT=d.tl.bfloat16, BM=BM, BN=64)
    build(m._unpack, {}, {**packed, "out": BF16}, INT4=int4, BN=32)
"""


@pytest.mark.slow
def test_for_an_h100():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    product = ["_product True True"] * 3 + ["_unpack False False"
                                            ]  # matrix units; reads on their way while others are multiplied
    assert done.stdout.splitlines() == [
        "_own True True", "_shared True True", "_merge False False", *product, *product]
