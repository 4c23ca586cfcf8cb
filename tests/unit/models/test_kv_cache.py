from __future__ import annotations

import torch

from ttsvar_ray.models.state import KVCache, LayerCache


def cache(rows: int, tokens: int, seed: int) -> KVCache:
    generator = torch.Generator().manual_seed(seed)
    make = lambda: torch.randn(2, rows, 3, tokens, 4, generator=generator)  # noqa: E731
    return KVCache(tuple(LayerCache(make(), make()) for _ in range(2)))


def test_append_adds_tokens_and_leaves_the_argument_alone() -> None:
    old, new = cache(3, 5, 0).layers[0], cache(3, 2, 1).layers[0]
    before = old.keys.clone()
    joined = old.append(new.keys, new.values)
    assert joined.keys.shape == (2, 3, 3, 7, 4)
    assert torch.equal(joined.keys[..., :5, :], before)
    assert torch.equal(joined.values[..., 5:, :], new.values)
    assert torch.equal(old.keys, before)


def test_gather_repeats_and_reorders_rows_of_both_streams() -> None:
    old = cache(3, 5, 0)
    picked = old.gather(torch.tensor([2, 0, 2, 2]))
    for ours, theirs in zip(picked.layers, old.layers, strict=True):
        for stream in (0, 1):
            assert torch.equal(ours.keys[stream], theirs.keys[stream][[2, 0, 2, 2]])
            assert torch.equal(ours.values[stream], theirs.values[stream][[2, 0, 2, 2]])


def test_concatenate_then_gather_gives_the_parts_back() -> None:
    a, b = cache(2, 5, 0), cache(3, 5, 1)
    whole = KVCache.concatenate([a, b])
    assert whole.num_tokens == 5
    assert whole.nbytes == a.nbytes + b.nbytes == 5 * (2 * 2 * 2 * 3 * 5 * 4 * 4)
    back = whole.gather(torch.tensor([2, 3, 4]))
    assert all(torch.equal(x.keys, y.keys) for x, y in zip(back.layers, b.layers, strict=True))


def test_the_empty_cache() -> None:
    empty = KVCache()
    assert (empty.num_tokens, empty.nbytes) == (0, 0)
    assert KVCache.concatenate([empty, KVCache()]).layers == ()
    assert empty.gather(torch.tensor([0, 0])).layers == ()
