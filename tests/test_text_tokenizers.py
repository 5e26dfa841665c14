"""Text tokenizers: everything encodes, comes back, and never turns into a special token."""

import json
import re

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from omnidiff_jax.errors import UserError
from omnidiff_jax.tokenizers import text as texts
from omnidiff_jax.vocabulary import RELEASED_SPECIALS, Vocabulary

CORPUS = [
    "small red circle top left, big blue square bottom right, on white",
    "what color is the circle\nred",
    "Convert the speech to text.\n",
    "Generate an image based on the provided text description.\nbig green cross top right, on gray",
] * 4


@pytest.fixture(scope="module")
def pieces():
    return texts.SentencePieceTokenizer.train(CORPUS, texts.SentencePieceConfig(size=400))


@pytest.fixture(scope="module")
def phrases():
    config = texts.SentencePieceConfig(size=400, phrases=("top left", "top right"))
    return texts.SentencePieceTokenizer.train(CORPUS, config)


@pytest.fixture(scope="module")
def bpe_json(tmp_path_factory):
    """A small Qwen-like tokenizer.json, with the released special tokens behind its pieces."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(texts.QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(RELEASED_SPECIALS))
    folder = tmp_path_factory.mktemp("bpe_json")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def bpe_merges(bpe_json, tmp_path_factory):
    """The same tokenizer as vocab.json, merges.txt and added_tokens.json."""
    content = json.loads((bpe_json / "tokenizer.json").read_text())
    folder = tmp_path_factory.mktemp("bpe_merges")
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    added = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_sentencepiece_gives_any_text_back(pieces, text):
    ids = pieces.encode(text)
    assert all(0 <= i < pieces.size for i in ids)
    assert pieces.decode(ids) == text


def test_sentencepiece_words_keep_their_piece_at_line_starts(pieces):
    assert pieces.encode("red circle\nred circle")[: len(pieces.encode("red circle"))] == pieces.encode("red circle")
    newline = pieces.encode("\n")
    assert pieces.encode("a\nred circle") == pieces.encode("a") + newline + pieces.encode("red circle")


@given(text=st.text(st.sampled_from("toplef \n,rgh")))
def test_sentencepiece_phrases_are_one_piece_and_come_back(phrases, text):
    assert len(phrases.encode("top left")) == 1
    assert phrases.encode("red top left")[-1:] == phrases.encode("top left")
    assert phrases.encode("red\ntop left")[-1:] == phrases.encode("top left")
    around = f"{text} top left{text}"
    assert phrases.decode(phrases.encode(around)) == around


@pytest.mark.parametrize("text", ["<unk>", "<0x41>", "<|im_end|>", "<|image|>", "\ud800"])
def test_sentencepiece_has_no_special_strings(pieces, text):
    ids = pieces.encode(text)
    assert len(ids) > 1 or text == "\ud800"
    assert pieces.decode(ids) == text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_training_is_deterministic_and_survives_disk(tmp_path, kind):
    config = texts.SentencePieceConfig(kind=kind, size=320)
    first, second = (texts.SentencePieceTokenizer.train(CORPUS, config) for _ in range(2))
    first.save(tmp_path / "a.model")
    second.save(tmp_path / "b.model")
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    loaded = texts.load(tmp_path / "a.model")
    assert loaded.encode(CORPUS[0]) == first.encode(CORPUS[0])
    assert loaded.size == first.size <= 320
    first.save(tmp_path)
    assert texts.load(tmp_path).encode("red") == first.encode("red")


def test_sentencepiece_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(UserError, match="empty"):
        texts.SentencePieceTokenizer.train(["", "\n"])
    with pytest.raises(UserError, match="size"):
        texts.SentencePieceTokenizer.train(CORPUS, texts.SentencePieceConfig(size=10))
    with pytest.raises(UserError, match="unigram"):
        texts.SentencePieceConfig(kind="unigrams")
    (tmp_path / "broken.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"broken\.model"):
        texts.load(tmp_path / "broken.model")
    with pytest.raises(UserError, match=r"gone\.model"):
        texts.load(tmp_path / "gone.model")


def test_bpe_forms_agree_and_hold_the_released_specials(bpe_json, bpe_merges):
    first, second = texts.load(bpe_json), texts.load(bpe_merges)
    vocabulary = Vocabulary(first.size, RELEASED_SPECIALS, 16, 8)
    for tokenizer in (first, second):
        tokenizer.check(vocabulary)
        assert tokenizer.added["<|mask|>"] == vocabulary.mask
        assert tokenizer.size == vocabulary.text_size
    for text in [*CORPUS[:4], "It's  12 o'clock\n\n  é日本", "<|im_start|>"]:
        assert first.encode(text) == second.encode(text)
    with pytest.raises(UserError, match="pieces"):
        first.check(Vocabulary.released())


def test_bpe_specials_of_another_order_are_noticed(bpe_json):
    tokenizer = texts.load(bpe_json)
    swapped = (RELEASED_SPECIALS[1], RELEASED_SPECIALS[0], *RELEASED_SPECIALS[2:])
    with pytest.raises(UserError, match=r"<\|endoftext\|>"):
        tokenizer.check(Vocabulary(tokenizer.size, swapped, 16, 8))


def test_released_special_ids_are_the_recorded_table(golden):
    table = json.loads((golden / "manifests" / "special_tokens.json").read_text())
    vocabulary = Vocabulary.released()
    assert vocabulary.special_ids == table["single_tokens"]
    for codes, recorded in ((vocabulary.speech, "audio_tokens"), (vocabulary.image, "image_tokens")):
        assert [codes.start, codes.stop - 1, len(codes)] == [table[recorded][k] for k in ("first", "last", "count")]
    assert vocabulary.size == table["len_final"]


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bpe_gives_composed_text_back(bpe_json, text):
    import unicodedata

    tokenizer = texts.load(bpe_json)
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.size for i in ids)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_bpe_text_never_becomes_special(bpe_json):
    tokenizer = texts.load(bpe_json)
    for name in RELEASED_SPECIALS:
        ids = tokenizer.encode(f"say {name} please")
        assert max(ids) < tokenizer.size
        assert tokenizer.decode(ids) == f"say {name} please"
    assert tokenizer.decode([*tokenizer.encode("red"), tokenizer.added["<|im_end|>"]]) == "red"


def test_bpe_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.json"):
        texts.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="byte-level BPE"):
        texts.load(tmp_path)


def test_the_shipped_tokenizer_is_what_its_config_trains(tmp_path):
    from data_pipelines.scenes.language import heard_words
    from data_pipelines.scenes.scene import PLACES
    from data_pipelines.scenes.tokenizers.text import TextTokenizerRun, scenes_sentences
    from data_pipelines.scenes.wording import SYNONYMS
    from experiments.configs.tokenizers.text import get_config
    from omnidiff_jax.config import build
    from omnidiff_jax.tokenizers.assets import nano_dir

    shipped = texts.load(nano_dir("text"))
    trained = build(TextTokenizerRun, get_config()).train(tmp_path)
    assert trained.size == shipped.size
    sentences = list(scenes_sentences(20))
    assert all(trained.encode(text) == shipped.encode(text) for text in sentences)
    places = re.compile("|".join(PLACES))
    words = {word for text in heard_words() for word in places.sub("", text).split()} | set(SYNONYMS)
    assert [word for word in [*words, *PLACES] if len(shipped.encode(word)) > 1] == []


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_untaught_is_what_becomes_bytes(pieces, text):
    """What training never showed is spelled in bytes, all else in pieces; line breaks part lines."""
    taught = set("".join(CORPUS))
    assert pieces.untaught(text) == [c for c in dict.fromkeys(text) if c not in taught]


def test_a_byte_level_tokenizer_was_taught_everything(bpe_json):
    assert texts.ByteLevelBPETokenizer.load(bpe_json).untaught("red 円 …") == []
