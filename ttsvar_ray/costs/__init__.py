"""Counted costs: FLOPs, bytes and, with a device's rates, seconds.

Only `count`, which runs a model's modules on the meta device, needs torch, and measuring a CPU.
"""
