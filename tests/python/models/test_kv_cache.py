"""A growing cache holds what transformers' own holds, to the last bit, whatever is done with it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig

from orbitsplit._models.kv_cache import (
    ROOM_TOKENS,
    copy_first_tokens,
    growing_cache,
    has_first_tokens,
    restore,
    rewind,
    saved,
    skip_tokens,
)

LLAMA = LlamaConfig(num_hidden_layers=2)
GEMMA = Gemma3TextConfig(num_hidden_layers=2, sliding_window=40, layer_types=["sliding_attention", "full_attention"])
STEPS = (5, 1, 1, 30, 1, 40, 1, 1, 90, *[1] * (2 * ROOM_TOKENS))


def new_tokens(tokens: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, tokens, 8)


@pytest.mark.parametrize("most_tokens", [None, 1, sum(STEPS)])
@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["full", "sliding"])
@pytest.mark.parametrize("inference", [True, False])
def test_every_step_sees_what_transformers_cache_has(config: Any, most_tokens: int | None, inference: bool) -> None:
    grown, expected = growing_cache(config, most_tokens), DynamicCache(config=config)
    with torch.inference_mode(inference):
        for tokens in STEPS:
            assert grown.get_mask_sizes(tokens, 0) == expected.get_mask_sizes(tokens, 0)
            for layer in range(2):
                keys, values = new_tokens(tokens), new_tokens(tokens)
                for got, wanted in zip(
                    grown.update(keys, values, layer), expected.update(keys, values, layer), strict=True
                ):
                    assert torch.equal(got, wanted)
                assert torch.equal(grown.layers[layer].keys, expected.layers[layer].keys)
            assert grown.get_seq_length() == expected.get_seq_length()


@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["full", "sliding"])
def test_layers_of_other_stages_have_the_lengths_and_masks_of_those_that_run(config: Any) -> None:
    skipped, expected = growing_cache(config), DynamicCache(config=config)
    for tokens in STEPS:
        for layer in range(2):
            assert skipped.get_mask_sizes(tokens, layer) == expected.get_mask_sizes(tokens, layer)
            assert skip_tokens(skipped.layers[layer], 2, tokens)
            expected.update(new_tokens(tokens), new_tokens(tokens), layer)
            assert skipped.layers[layer].keys.shape[-2] == expected.layers[layer].keys.shape[-2]
            assert skipped.layers[layer].keys.untyped_storage().nbytes() == 1
        assert skipped.get_seq_length() == expected.get_seq_length()


def test_only_layers_of_a_growing_cache_are_skipped() -> None:
    cache = DynamicCache(config=LLAMA)
    assert not skip_tokens(cache.layers[0], 2, 1)
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("change", ["crop", "select", "repeat", "reorder", "reset"])
def test_changes_between_steps(change: str) -> None:
    grown, expected = growing_cache(LLAMA), DynamicCache(config=LLAMA)
    rows = 2
    for step in range(3 * ROOM_TOKENS):
        keys, values = new_tokens(1, rows), new_tokens(1, rows)
        for got, wanted in zip(grown.update(keys, values, 0), expected.update(keys, values, 0), strict=True):
            assert torch.equal(got, wanted)
        if step % 10 == 9:
            for cache in (grown, expected):
                if change == "crop":
                    cache.layers[0].crop(-3)
                elif change == "select":
                    cache.layers[0].batch_select_indices(torch.tensor([1, 0]))
                elif change == "repeat" and rows == 2:
                    cache.layers[0].batch_repeat_interleave(2)
                elif change == "reorder":
                    cache.layers[0].reorder_cache(torch.tensor([1, 1]))
                elif change == "reset":
                    cache.reset()
            rows = 4 if change == "repeat" else 2


def test_a_sliding_layer_that_records_its_past_can_be_rolled_back() -> None:
    caches = growing_cache(GEMMA), DynamicCache(config=GEMMA)
    for tokens in (60, 1, 4, 1):
        keys, values = new_tokens(tokens), new_tokens(tokens)
        got, wanted = (cache.update(keys, values, 0)[0] for cache in caches)
        assert torch.equal(got, wanted)
        for cache in caches:
            cache.layers[0].activate_past_recording()
            if tokens == 4:
                cache.layers[0].crop(-2)


def test_the_past_stays_where_it_is_while_there_is_room() -> None:
    cache = growing_cache(LLAMA)
    addresses = [cache.update(new_tokens(1), new_tokens(1), 0)[0].data_ptr() for _ in range(4 * ROOM_TOKENS)]
    assert len(set(addresses)) <= 5


@pytest.mark.parametrize("most_tokens", [37, 64])
def test_no_room_is_taken_beyond_the_end_of_the_sequence(most_tokens: int) -> None:
    cache = growing_cache(LLAMA, most_tokens)
    cache.update(new_tokens(30), new_tokens(30), 0)
    for _ in range(most_tokens - 30):
        keys, _values = cache.update(new_tokens(1), new_tokens(1), 0)
    assert keys.untyped_storage().nbytes() == 2 * 3 * most_tokens * 8 * 4


@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["full", "sliding"])
def test_tokens_that_are_taken_back_were_never_there(config: Any) -> None:
    spare = 6
    cache, judge = growing_cache(config, spare_tokens=spare), DynamicCache(config=config)
    source = random.Random(0)
    for number in range(60):
        kept = source.choice((1, 1, 2, 4)) if number else 7
        wrong = source.randint(0, spare) if number else 0
        keys, values = new_tokens(kept + wrong), new_tokens(kept + wrong)
        for layer in range(2):
            seen = cache.update(keys, values, layer)
            expected = judge.update(keys[:, :, :kept], values[:, :, :kept], layer)
            for got, wanted in zip(seen, expected, strict=True):
                assert torch.equal(got[:, :, : got.shape[2] - wrong], wanted)
        rewind(cache, judge.get_seq_length())
        assert cache.get_seq_length() == judge.get_seq_length()
        assert cache.get_mask_sizes(3, 0) == judge.get_mask_sizes(3, 0)
        for got, wanted in zip(cache.layers, judge.layers, strict=True):
            assert torch.equal(got.keys, wanted.keys)
            assert torch.equal(got.values, wanted.values)


def test_layers_of_other_stages_take_tokens_back_too() -> None:
    cache, judge = growing_cache(GEMMA, spare_tokens=5), DynamicCache(config=GEMMA)
    for tokens, wrong in ((30, 0), (9, 4), (6, 5), (12, 0), (8, 3)):
        keys = new_tokens(tokens - wrong)
        for layer in range(2):
            assert skip_tokens(cache.layers[layer], 2, tokens)
            judge.update(keys, keys, layer)
        rewind(cache, judge.get_seq_length())
        for layer in range(2):
            assert cache.get_mask_sizes(3, layer) == judge.get_mask_sizes(3, layer)
            assert cache.layers[layer].keys.shape[-2] == judge.layers[layer].keys.shape[-2]


@pytest.mark.parametrize(("tokens", "kept"), [(20, 20), (39, 25), (70, 70)])
@pytest.mark.parametrize("spare", [0, 3])
@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["full", "sliding"])
def test_a_copy_goes_on_like_a_cache_that_has_seen_the_first_tokens(
    config: Any, tokens: int, kept: int, spare: int
) -> None:
    source, copy, expected = growing_cache(config), growing_cache(config, spare_tokens=spare), growing_cache(config)
    text = [(new_tokens(tokens, 1), new_tokens(tokens, 1)) for _ in range(2)]
    for layer, (keys, values) in enumerate(text):
        source.update(keys, values, layer)
        expected.update(keys[:, :, :kept], values[:, :, :kept], layer)
    assert has_first_tokens(source, kept)
    before = [layer.keys.clone() for layer in source.layers]
    copy_first_tokens(source, kept, copy)
    for size in (1, 5, 1, 40, 1):
        for layer in range(2):
            assert copy.get_mask_sizes(size, layer) == expected.get_mask_sizes(size, layer)
            keys, values = new_tokens(size, 1), new_tokens(size, 1)
            for got, wanted in zip(copy.update(keys, values, layer), expected.update(keys, values, layer), strict=True):
                assert torch.equal(got, wanted)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(source.layers, before, strict=True))


def test_a_window_that_has_moved_on_lacks_the_first_tokens() -> None:
    cache = growing_cache(GEMMA)
    for layer in range(2):
        cache.update(new_tokens(40, 1), new_tokens(40, 1), layer)
    assert has_first_tokens(cache, 40)
    assert not has_first_tokens(cache, 39)
    assert not has_first_tokens(cache, 1)
    rest = growing_cache(LLAMA)
    rest.update(new_tokens(40, 1), new_tokens(40, 1), 0)
    assert has_first_tokens(rest, 1)


def test_layers_of_other_stages_are_copied_by_their_lengths() -> None:
    source, copy = growing_cache(GEMMA), growing_cache(GEMMA)
    for layer in source.layers:
        skip_tokens(layer, 1, 30)
    copy_first_tokens(source, 12, copy)
    assert copy.get_seq_length() == 12
    assert [layer.keys.untyped_storage().nbytes() for layer in copy.layers] == [1, 1]


@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["full", "sliding"])
def test_a_restored_cache_is_as_it_was_saved(config: Any) -> None:
    cache, expected = growing_cache(config, spare_tokens=2), growing_cache(config, spare_tokens=2)
    for tokens in STEPS:
        state = saved(cache)
        for layer in range(2):
            if layer == 0 or tokens > 1:  # a forward that stopped half way
                cache.update(new_tokens(tokens), new_tokens(tokens), layer)
        restore(cache, state)
        for layer in range(2):
            keys, values = new_tokens(tokens), new_tokens(tokens)
            for got, wanted in zip(
                cache.update(keys, values, layer), expected.update(keys, values, layer), strict=True
            ):
                assert torch.equal(got, wanted)
    assert cache.get_seq_length() == expected.get_seq_length()
