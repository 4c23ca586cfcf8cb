"""Named, counter-based random streams.

A stream is named by (run seed, prompt key, scale index, slot, purpose, round): never by worker, batch or
time. Two places that ask for the same name draw the same numbers, on any machine, in any order.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ttsvar_ray.types import Float32Array

POPULATION_SLOT = -1
"""The slot of streams that belong to a whole population, not to one trajectory."""


def stream(
    run_seed: int, prompt_key: str, scale_index: int, slot: int, purpose: str, round_index: int = 0
) -> np.random.Generator:
    """Return the generator of one named stream.

    Args:
        run_seed: any integer.
        prompt_key: `Prompt.key`.
        scale_index: 0-based scale, or -1 for streams that belong to no scale.
        slot: place in the population, or `POPULATION_SLOT`.
        purpose: what the numbers are for: "bits", or the name of a selection operator.
        round_index: of an adaptive search; the first round's streams are those of a search without rounds.

    Returns:
        A fresh Philox generator: equal names give equal sequences.
    """
    name = f"{run_seed}\x1f{prompt_key}\x1f{scale_index}\x1f{slot}\x1f{purpose}"
    if round_index:
        name += f"\x1f{round_index}"
    digest = hashlib.blake2b(name.encode(), digest_size=16, person=b"ttsvar-stream").digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def bit_uniforms(
    run_seed: int, prompt_key: str, scale_index: int, slot: int, count: int, round_index: int = 0
) -> Float32Array:
    """Return float32 [count] uniforms in [0, 1) that decide the bits of one trajectory at one scale."""
    generator = stream(run_seed, prompt_key, scale_index, slot, "bits", round_index)
    return generator.random(count, dtype=np.float32)
