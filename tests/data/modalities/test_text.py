from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmssl.core.errors import RecipeError
from mmssl.core.sample import Origin, Sample
from mmssl.data.draws import draw_views, make_views
from mmssl.data.modalities.clip_vocabulary import ClipVocabulary, clean_text, clip_vocabulary
from mmssl.data.modalities.text import TextConfig, TextModality
from mmssl.data.modality import DecodeError
from mmssl.data.stream.collate import BatchRow, collate

TEXTS = [
    "a photo of a cat",
    "  Two   dogs &amp; a BIRD, naïve café!!  ",
    "word " * 200,
    "",
    "don't they'll 12345 <end_of_text> 東京 🙂",
    "supercalifragilisticexpialidocious",
]


def build(text: str = "{}") -> TextModality:
    return TextConfig.model_validate_json(text).build("text")


@pytest.mark.parametrize("length", [77, 16, 5])
def test_clip_tokens_are_open_clips(length: int) -> None:
    import open_clip

    theirs = open_clip.get_tokenizer("ViT-B-32", context_length=length)(TEXTS)
    ours = build(f'{{"tokenizer": {{"kind": "clip", "context_length": {length}}}}}').tokenize(TEXTS)
    assert torch.equal(ours, theirs)
    assert ours.dtype == torch.int64


def test_clip_tokens_are_open_clips_for_any_text() -> None:
    """Among plain words, with all that its repairs, HTML's rules and the pattern of words look at."""
    import open_clip

    plain = ["a", "The", "CAT's", "don't", "12", "3.5", "--", "<b>", "it`s", "_", "~", "%", "<end_of_text>"]
    other = [
        "&lt;",
        "&amp",
        "&#65;",
        "\t",
        "\n",
        "\x1b[31m",
        "\0",
        "\x7f",
        "\x85",
        "caf\xe9",
        "Ã©",
        "“so”",
        "ﬁ",
        "東京",
        "🙂",
        "’",
    ]
    parts = plain + other
    rng = np.random.default_rng(0)
    texts = [str(rng.choice(["", " "])).join(rng.choice(parts, 12)) for _ in range(200)]
    texts += [chr(code) for code in range(256)] + [f"a{chr(code)}b &" for code in range(256)]
    texts += ["".join(map(chr, rng.integers(32, 127, 40))).replace("&", "") for _ in range(200)]
    assert torch.equal(build().tokenize(texts), open_clip.get_tokenizer("ViT-B-32")(texts))


def test_clip_tokens_follow_the_conventions() -> None:
    modality = build('{"tokenizer": {"kind": "clip", "context_length": 8}}')
    ids = modality.tokenize(["a cat", "word " * 20])
    assert ids[0].tolist() == [49406, 320, 2368, 49407, 0, 0, 0, 0]
    assert ids[1].tolist() == [49406] + [2653] * 6 + [49407]
    tokenizer = modality.tokenizer
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.context_length) == (49408, 0, 8)
    assert modality.tokenize([]).shape == (0, 8)


def test_tokenizers_travel_without_their_vocabulary() -> None:
    modality = build()
    expected = modality.tokenize(TEXTS)
    data = pickle.dumps(modality)
    assert len(data) < 2000
    assert torch.equal(pickle.loads(data).tokenize(TEXTS), expected)


def test_the_cache_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    modality = build()
    expected = modality.tokenize(TEXTS)
    monkeypatch.setattr(ClipVocabulary, "MAX_CACHED_WORDS", 3)
    assert torch.equal(modality.tokenize(TEXTS), expected)
    assert torch.equal(modality.tokenize(TEXTS), expected)
    assert len(clip_vocabulary()._known) < 60


def test_any_text_is_tokenized_as_by_open_clip() -> None:
    """Letters and symbols of all scripts, control characters, HTML entities, text that was decoded wrongly, CLIP's own marks."""
    rng = np.random.default_rng(0)
    parts = [
        "the",
        "cat's",
        "I'LL",
        "&amp;lt;",
        "schÃ¶n",
        "<START_OF_TEXT>",
        "<end_of_text>",
        "猫",
        "🙂",
        "İ",
        "x1",
        "--",
        "\x00",
    ]
    ranges = np.concatenate(
        [np.arange(0, 0x600), np.arange(0x900, 0xA00), np.arange(0x3000, 0x3100), np.arange(0x1F600, 0x1F650)]
    )
    texts = [" ".join(rng.choice(parts, rng.integers(0, 9))) for _ in range(200)]
    texts += ["".join(map(chr, rng.choice(ranges, 15))) for _ in range(200)]
    import open_clip

    ours, theirs = ClipVocabulary(), open_clip.tokenizer.SimpleTokenizer()
    assert [ours.encode(text) for text in texts] == [theirs.encode(text) for text in texts]
    assert (ours.start, ours.end, ours.size) == (theirs.sot_token_id, theirs.eot_token_id, theirs.vocab_size)


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "photo", "of", "cat"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", padding_side="left")
    fast.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def hf(path: Path, length: int = 6) -> TextModality:
    return build(json.dumps({"tokenizer": {"kind": "hf", "path": str(path), "context_length": length}}))


def test_hf_tokens_are_padded_on_the_right(hf_folder: Path) -> None:
    modality = hf(hf_folder)
    expected = [[2, 3, 4, 2, 5, 0], [1, 0, 0, 0, 0, 0], [2, 2, 2, 2, 2, 2]]
    texts = ["a photo of a cat", "dog", "a " * 9]
    assert modality.tokenize(texts).tolist() == expected
    assert (modality.tokenizer.vocab_size, modality.tokenizer.pad_id) == (6, 0)
    assert pickle.loads(pickle.dumps(modality)).tokenize(texts).tolist() == expected
    assert modality.tokenize([]).shape == (0, 6)


def test_hf_folders_that_cannot_be_used(hf_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="absent, which does not exist"):
        hf(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="holds no tokenizer"):
        hf(tmp_path / "empty")
    settings = json.loads((hf_folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (hf_folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (hf_folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(RecipeError, match="no padding token"):
        hf(hf_folder)


@pytest.mark.parametrize(
    ("captions", "data", "expected"),
    [
        ('"whole"', "  one\ntwo \n", ["one\ntwo"]),
        ('"whole"', "\ufeffmarked", ["marked"]),
        ('"lines"', "one\n\n  two  \r\nthree", ["one", "two", "three"]),
        ('"list"', '["one", " ", null, "two"]', ["one", "two"]),
        ('{"short": 1, "long": 3}', '{"long": "the long one", "short": "it", "other": "x"}', ["it", "the long one"]),
        ('{"short": 1, "alt": 2.5}', '{"short": null, "alt": ["one", "two"]}', ["one", "two"]),
    ],
)
def test_captions(captions: str, data: str, expected: list[str]) -> None:
    assert list(build(f'{{"captions": {captions}}}').decode(data.encode(), "txt")) == expected


@pytest.mark.parametrize(
    ("captions", "data", "reason"),
    [
        ('"whole"', b" \n\t", "missing"),
        ('"whole"', b"", "missing"),
        ('"whole"', b"caf\xe9", "undecodable"),
        ('"lines"', b"\n \n", "missing"),
        ('"list"', b"[]", "missing"),
        ('"list"', b'{"a": "b"}', "undecodable"),
        ('"list"', b"[1, 2]", "undecodable"),
        ('"list"', b"not json", "undecodable"),
        ('"list"', b"[" * 100000, "undecodable"),
        ('{"a": 1}', b'["b"]', "undecodable"),
        ('{"a": 1}', b'{"b": "text"}', "missing"),
        ('{"a": 1}', b'{"a": {"b": "text"}}', "undecodable"),
    ],
)
def test_files_without_captions(captions: str, data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as caught:
        build(f'{{"captions": {captions}}}').decode(data, "txt")
    assert caught.value.reason == reason


def test_extensions_follow_the_format() -> None:
    assert build().extensions == build('{"captions": "lines"}').extensions == ("txt",)
    assert build('{"captions": "list"}').extensions == build('{"captions": {"a": 1}}').extensions == ("json",)
    assert build('{"extensions": ["caption", "txt"]}').extensions == ("caption", "txt")
    with pytest.raises(ValidationError, match="at least one"):
        build('{"captions": {}}')
    with pytest.raises(ValidationError, match="greater than 0"):
        build('{"captions": {"a": 0}}')


def test_captions_are_drawn_by_weight() -> None:
    modality = build('{"captions": {"a": 1, "b": 3}}')
    value = pickle.loads(pickle.dumps(modality.decode(b'{"a": ["one", "two"], "b": "three"}', "json")))
    assert value.weights == (0.5, 0.5, 3.0)
    rng = np.random.default_rng(0)
    drawn = [modality.views["tokens"].draw(value, rng)["caption"] for _ in range(4000)]
    assert np.bincount(drawn) / 4000 == pytest.approx([0.125, 0.125, 0.75], abs=0.03)


def test_views() -> None:
    modality = build('{"captions": "lines", "tokenizer": {"kind": "clip", "context_length": 8}}')
    value = modality.decode(b"a cat\na dog\n", "txt")
    tokens, everything = modality.views["tokens"], modality.views["eval"]
    assert torch.equal(everything(value, {}), modality.tokenize(["a cat", "a dog"]))
    assert torch.equal(tokens(value, {"caption": 1}), modality.tokenize(["a dog"])[0])
    assert everything.ragged
    assert everything.blank().shape == (0, 8)
    assert tokens.blank().tolist() == [49406, 49407, 0, 0, 0, 0, 0, 0]


TWO_KINDS = """{"captions": "lines", "tokenizer": {"kind": "clip", "context_length": 9}, "views": {
    "shuffled": {"kind": "tokens", "augment": [{"kind": "swap"}]}, "words": {"kind": "words"}}}"""


def test_kinds_of_token_views_have_augmentations_of_their_own() -> None:
    modality = build(TWO_KINDS)
    config = TextConfig.model_validate_json(TWO_KINDS)
    assert TextConfig.model_validate_json(config.model_dump_json()) == config
    value = modality.decode(b"red cat\nblue dog", "txt")
    plain = {tuple(row) for row in modality.tokenize(["red cat", "blue dog"]).tolist()}
    swapped = {tuple(row) for row in modality.tokenize(["cat red", "dog blue"]).tolist()}
    for kind, texts in (("tokens", plain), ("shuffled", swapped)):
        view = modality.views[kind]
        draws = [view.draw(value, np.random.default_rng(seed)) for seed in range(20)]
        assert {tuple(view(value, drawn).tolist()) for drawn in draws} == texts
        assert view.trimmable
    assert not modality.views["eval"].trimmable


PARTS = """{"tokenizer": {"kind": "clip", "context_length": 8}, "views": {"spans": {"kind": "parts", "parts": 3, "words": 4}}}"""


@pytest.mark.parametrize(("count", "each", "starts"), [(20, 4, 9), (12, 4, 1), (7, 2, 2), (3, 1, 1)])
def test_parts_of_a_text_follow_each_other(count: int, each: int, starts: int) -> None:
    modality = build(PARTS)
    view, words = modality.views["spans"], [f"w{chr(97 + i)}" for i in range(count)]
    value, rng = modality.from_input(" ".join(words)), np.random.default_rng(0)
    drawn = [view.draw(value, rng) for _ in range(200)]
    assert {one["start"] for one in drawn} == set(range(starts))
    made = view(value, drawn[0])
    assert made.shape == (3, 8)
    first = drawn[0]["start"]
    expected = [" ".join(words[first + each * part :][:each]) for part in range(3)]
    assert torch.equal(made, modality.tokenize(expected))


def test_texts_of_fewer_words_than_parts_end_in_empty_texts() -> None:
    modality = build(PARTS)
    view = modality.views["spans"]
    value = modality.from_input("one two")
    assert torch.equal(view(value, view.draw(value, np.random.default_rng(0))), modality.tokenize(["one", "two", ""]))
    assert torch.equal(view.blank(), modality.tokenize(["", "", ""]))


def test_the_order_of_words_is_a_permutation_of_the_whole_context() -> None:
    """Whatever the caption: it is drawn without knowing which, and no trimming may take places out of it."""
    view = build(TWO_KINDS).views["words"]
    orders = [view(None, view.draw(None, np.random.default_rng(seed))) for seed in range(3)]
    assert all(sorted(order.tolist()) == list(range(9)) for order in [*orders, view.blank()])
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert not view.trimmable


def test_two_views_of_one_caption_are_equal() -> None:
    """As SimCSE needs them, whose two passes differ by dropout alone."""
    text = build(TWO_KINDS)
    needs = {"text": {"tokens": 2, "shuffled": 1, "words": 1}}
    sample = Sample("a", Origin("", "", 0, 0), 0, {"text": text.decode(b"a very small red cat", "txt")})
    views = make_views(sample, {"text": text}, needs, draw_views(sample, {"text": text}, needs, (0,)))
    batch = collate([BatchRow(0, "a", views), BatchRow(1, "b", {})], {"text": text}, needs)
    assert torch.equal(batch["text"]["tokens0"], batch["text"]["tokens1"])
    assert not torch.equal(batch["text"]["tokens0"], batch["text"]["shuffled0"])
    assert batch.trimmable == {"text": ("tokens0", "tokens1", "shuffled0")}
    assert batch.rows(0, 1).trimmable == batch.trimmable


@pytest.mark.parametrize("name", ["tokens", "eval"])
def test_names_of_views_that_always_exist_are_reserved(name: str) -> None:
    with pytest.raises(ValidationError, match=f"got a view '{name}', which is reserved"):
        build(f'{{"views": {{"{name}": {{"kind": "tokens"}}}}}}')


@pytest.mark.parametrize("kind", ["whitespace", "lower", "canonicalize"])
def test_texts_are_cleaned_as_open_clip_does(kind: Any) -> None:
    from open_clip.tokenizer import get_clean_fn

    theirs = get_clean_fn(kind)
    for text in (
        "A Cat_and  a DOG!",
        " Tom &amp;amp; Jerry\n",
        "l\u2019\u00e9t\u00e9 \u00c3\u00a9",
        "don't -- stop: {x}",
        "",
    ):
        assert clean_text(text, kind) == theirs(text)
