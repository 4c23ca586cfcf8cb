"""Element-wise chains of the models as one operation each: plain torch, or fused in Triton on a GPU.

Every operation has one signature and two ways. The plain one is what the models were written as, and the only
one on a CPU and where gradients are recorded; the fused one reads and writes memory once, and differs by
rounding. Which is taken is one setting (`engine.kernels`), resolved by `uses_fused`.
"""
