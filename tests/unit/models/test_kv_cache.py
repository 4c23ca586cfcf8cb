from __future__ import annotations

import torch

from ttsvar_ray.models.state import FreshTokens, KVCache, LayerCache


def cache(rows: int, tokens: int, seed: int) -> KVCache:
    generator = torch.Generator().manual_seed(seed)
    make = lambda: torch.randn(2, rows, 3, tokens, 4, generator=generator)  # noqa: E731
    return KVCache.of_layers([LayerCache(make(), make()) for _ in range(2)])


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


def fresh(tokens: int, *, rows: int = 3, streams: int = 2) -> FreshTokens:
    return FreshTokens(
        tokens=tokens,
        layers=2,
        streams=streams,
        rows=rows,
        heads=3,
        width=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def fill(grown: KVCache, tokens: int, value: float, *, streams: int = 2) -> KVCache:
    shape = (streams, 3, 3, tokens, 4)
    for layer in range(2):
        grown.put(layer, torch.full(shape, value), torch.full(shape, -value))
    return grown


def test_scales_are_written_one_behind_the_other_in_the_same_memory() -> None:
    first = fill(KVCache().grown(fresh(2), capacity=9), 2, 1.0)
    second = fill(first.grown(fresh(3), capacity=9), 3, 2.0)
    third = fill(second.grown(fresh(4), capacity=9), 4, 3.0)
    address = first.layers[0].keys.data_ptr()
    assert second.layers[0].keys.data_ptr() == third.layers[0].keys.data_ptr() == address
    assert [cache.num_tokens for cache in (first, second, third)] == [2, 5, 9]
    assert third.layers[1].values[0, 0, 0, :, 0].tolist() == [-1.0] * 2 + [-2.0] * 3 + [-3.0] * 4
    assert first.nbytes * 9 == third.nbytes * 2, "bytes of tokens, not of room"


def test_going_on_twice_from_one_cache_leaves_both_futures_and_the_past_alone() -> None:
    past = fill(KVCache().grown(fresh(2), capacity=9), 2, 1.0)
    one = fill(past.grown(fresh(3), capacity=9), 3, 2.0)
    other = fill(past.grown(fresh(3), capacity=9), 3, 7.0)
    assert one.layers[0].keys.data_ptr() == past.layers[0].keys.data_ptr()
    assert other.layers[0].keys.data_ptr() != past.layers[0].keys.data_ptr(), "a copy: the room was taken"
    for cache, own in ((past, []), (one, [2.0] * 3), (other, [7.0] * 3)):
        assert cache.layers[1].keys[1, 2, 0, :, 0].tolist() == [1.0, 1.0, *own]


def test_what_a_failed_scale_left_behind_is_never_seen() -> None:
    past = fill(KVCache().grown(fresh(2), capacity=9), 2, 1.0)
    past.grown(fresh(3), capacity=9).put(0, torch.full((2, 3, 3, 3, 4), 9.0), torch.zeros(2, 3, 3, 3, 4))
    again = fill(past.grown(fresh(3), capacity=9), 3, 2.0)
    assert again.layers[0].keys[0, 0, 0, :, 0].tolist() == [1.0, 1.0, 2.0, 2.0, 2.0]


def test_without_room_the_tokens_are_copied_and_streams_may_be_left() -> None:
    past = fill(KVCache().grown(fresh(2), capacity=2), 2, 1.0)
    grown = fill(past.grown(fresh(3), capacity=0), 3, 2.0)
    assert grown.tensor.shape == (2, 2, 2, 3, 3, 5, 4)
    alone = fill(past.grown(fresh(3, streams=1), capacity=7), 3, 2.0, streams=1)
    assert alone.tensor.shape == (2, 2, 1, 3, 3, 5, 4)
    assert torch.equal(alone.layers[0].keys[0], grown.layers[0].keys[0])
    joined = past.joined(1, torch.zeros(1, 3, 3, 2, 4), torch.ones(1, 3, 3, 2, 4))
    assert joined.values[0, 0, 0, :, 0].tolist() == [-1.0, -1.0, 1.0, 1.0]
    assert past.num_tokens == 2, "nothing is kept"


def test_a_gathered_cache_has_memory_of_its_own() -> None:
    past = fill(KVCache().grown(fresh(2), capacity=9), 2, 1.0)
    gathered = past.gather(torch.tensor([0, 1, 2]))
    fill(past.grown(fresh(3), capacity=9), 3, 2.0)
    assert gathered.tensor.shape == past.tensor.shape
    assert gathered.layers[0].keys.data_ptr() != past.layers[0].keys.data_ptr()
