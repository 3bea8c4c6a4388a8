"""Incremental detokenisation and stop strings, judged by decoding or searching the whole at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from orbitsplit.serve._detokeniser import Detokeniser, TokenDecoder
from orbitsplit.serve._stop_strings import StopStrings
from tests.support.fake_engine import byte_tokenizer

BYTES = byte_tokenizer()
TEXTS = st.text(st.sampled_from("ab ü€🛰\u0301\ufffd\n"), max_size=12)


def pieces_of(tokenizer: Any, prompt: list[int], tokens: list[int]) -> list[str]:
    """Return what a detokeniser gives for each token, and at the end."""
    detokeniser = Detokeniser(TokenDecoder(tokenizer), prompt)
    return [*(detokeniser.feed(token) for token in tokens), detokeniser.flush()]


def llama_like() -> Any:
    """Return a tokenizer of words with their leading space, dropped at the very beginning, and of bytes."""
    words = ["<unk>", "</s>", "▁over", "▁", "out", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


LLAMA = llama_like()


@given(TEXTS, TEXTS)
def test_pieces_of_text_are_the_whole_and_no_character_is_broken(before: str, after: str) -> None:
    prompt, tokens = ((BYTES(text)["input_ids"] if text else []) for text in (before, after))
    pieces = pieces_of(BYTES, prompt, tokens)
    assert "".join(pieces) == after if not before.endswith("\ufffd") else "\ufffd" + after
    # A character comes with its last byte, unless the next one must tell that it is a replacement character.
    if "\ufffd" not in before + after:
        done = 0
        for character, size in ((character, len(character.encode())) for character in after):
            assert pieces[done : done + size] == [""] * (size - 1) + [character]
            done += size


@given(st.lists(st.integers(0, 256), max_size=6), st.lists(st.integers(0, 256), max_size=24))
def test_any_bytes_come_as_the_whole_decoded_after_the_prompt(prompt: list[int], tokens: list[int]) -> None:
    # 256 is the end token, which is no text wherever it is. The judge decodes everything at once; of a prompt that ends
    # in more bytes than six which are no character, the last six are begun with.
    whole = BYTES.decode(prompt + tokens, skip_special_tokens=True)
    window = BYTES.decode(prompt, skip_special_tokens=True).rstrip("\ufffd")
    assert window + "".join(pieces_of(BYTES, prompt, tokens)) == whole


@given(st.lists(st.sampled_from(["▁over", "▁", "out", "€", "🛰"]), max_size=10), st.booleans())
def test_spaces_at_the_beginning_are_those_of_the_whole(words: list[str], has_prompt: bool) -> None:
    ids = LLAMA.get_vocab()
    tokens = [
        token
        for word in words
        for token in ([ids[word]] if word in ids else [ids[f"<0x{byte:02X}>"] for byte in word.encode()])
    ]
    prompt = [ids["▁over"]] if has_prompt else []
    expected = "".join(words).replace("▁", " ")
    if not has_prompt:
        expected = expected.removeprefix(" ")
    assert "".join(pieces_of(LLAMA, prompt, tokens)) == expected


def byte_tokens() -> list[int]:
    """Return the token of each byte: byte-level vocabularies write a byte as the character of its number, if that is
    printable, and the others as the characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    symbols = {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    return [BYTES.convert_tokens_to_ids(symbols[byte]) for byte in range(256)]


BYTE_TOKENS = byte_tokens()
INVALID = st.lists(st.sampled_from([0xFF, 0x80, 0xBF, 0xC3, 0xE2, 0x82, 0xF0, 0x9F, 0x9B]), min_size=17, max_size=80)


@given(INVALID, st.text(st.sampled_from("ab €🛰\ufffd"), max_size=4))
def test_long_runs_of_invalid_bytes_come_as_the_whole(invalid: list[int], after: str) -> None:
    prompt = BYTES("over")["input_ids"]
    for separated in (False, True):  # by special tokens, which have no text
        tokens = [BYTE_TOKENS[byte] for byte in (*invalid, *after.encode())]
        if separated:
            tokens = [token for byte in tokens for token in (byte, BYTES.eos_token_id)]
        expected = BYTES.decode(prompt + tokens, skip_special_tokens=True)
        assert "over" + "".join(pieces_of(BYTES, prompt, tokens)) == expected


@given(INVALID, st.text(st.sampled_from("€🛰"), max_size=30))
def test_a_decoder_of_whole_runs_replaces_a_run_with_one_invalid_byte(invalid: list[int], valid: str) -> None:
    ids = LLAMA.get_vocab()
    tokens = [ids[f"<0x{byte:02X}>"] for byte in (0xFF, *invalid, *valid.encode())]
    prompt, after = [ids["▁over"]], [ids["out"], ids["▁over"]]
    expected = LLAMA.decode(prompt + tokens + after)
    assert "over" + "".join(pieces_of(LLAMA, prompt, tokens + after)) == expected
    assert expected == "over" + "\ufffd" * len(tokens) + "out over"


class Counted:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.decoded = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, tokens: list[int], **options: Any) -> str:
        self.decoded += len(tokens)
        return str(self._tokenizer.decode(tokens, **options))


@pytest.mark.parametrize(
    ("tokenizer", "token", "text"),
    [
        (BYTES, BYTE_TOKENS[0xFF], "\ufffd"),
        (BYTES, BYTE_TOKENS[0x80], "\ufffd"),
        (BYTES, BYTES.eos_token_id, ""),
        (BYTES, 10_000, ""),  # of an embedding that is padded beyond the vocabulary
        (LLAMA, LLAMA.get_vocab()["<0xFF>"], "\ufffd"),
        (BYTES, BYTE_TOKENS[ord("a")], "a"),
    ],
)
def test_endless_tokens_of_a_kind_take_work_in_proportion(tokenizer: Any, token: int, text: str) -> None:
    # Everything since the last character was decoded again for each token: 2 million tokens for 2000.
    work = []
    for count in (1000, 2000):
        counted = Counted(tokenizer)
        assert "".join(pieces_of(counted, [], [token] * count)) == text * count
        work.append(counted.decoded)
    assert work[0] < 1000 * 60
    assert work[1] < 2.1 * work[0] + 60


def stopped_by_hand(text: str, stops: list[str]) -> tuple[str, bool]:
    """Return a text as it is after reading it letter by letter until it ends with a stop string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
)
def test_stop_strings_are_found_however_the_text_comes(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops)
    passed, is_stopped = "", False
    for piece in pieces:
        certain, is_stopped = matcher.feed(piece)
        passed += certain
        if is_stopped:
            break
    if not is_stopped:
        passed += matcher.flush()
    assert (passed, is_stopped) == stopped_by_hand("".join(pieces), stops)


@pytest.mark.parametrize(("text", "certain"), [("xab", "x"), ("xaba", "x"), ("xb", "xb"), ("xabab", "xab")])
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, certain: str) -> None:
    assert StopStrings(["abac"]).feed(text) == (certain, False)
