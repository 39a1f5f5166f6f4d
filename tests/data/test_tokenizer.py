"""The small tokenizer: its form, its chat frame, image words, and agreement of the loaders."""

import unicodedata

import pytest
import tokenizers

from tarjax.data import tokenizer as lib
from tarjax.data.digits import text_documents

FRAME = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TEXTS = (
  "a red three left of a blue seven",
  "What does str.split do?\nIt splits.",
  "naïve Ωmega 数字 🙂 \u200b\tдва  spaces\r\n\n end ",
  "<|im_start|>user\n<I0><I31> twelve 1234 can't<|im_end|>",
  "",
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizers") / "plain"
  return lib.build_tokenizer(folder, 600, text_documents(count=3000)[::4])


@pytest.fixture(scope="module")
def full(plain):
  return lib.add_image_tokens(plain, plain.parent / "full", 32)


def test_ids_follow_qwen(plain, full):
  tok = tokenizers.Tokenizer.from_file(str(full / "tokenizer.json"))
  assert tokenizers.Tokenizer.from_file(str(plain / "tokenizer.json")).get_vocab_size() == 622
  order = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"]
  assert [tok.token_to_id(t) for t in order] == [600, 601, 602, 603]
  assert tok.token_to_id("<tool_call>") == 614 and tok.token_to_id("<|file_sep|>") == 621
  names = ["<im_start>", "<im_end>", "<S0>", "<S1>", "<S2>", "<I0>", "<I31>"]
  assert [tok.token_to_id(t) for t in names] == [622, 623, 624, 625, 626, 627, 658]
  assert tok.get_vocab_size() == 659


def test_text_survives_a_round_trip(full):
  tok = tokenizers.Tokenizer.from_file(str(full / "tokenizer.json"))
  for text in TEXTS:
    assert tok.decode(tok.encode(text).ids, skip_special_tokens=False) == text
  every = " ".join(map(chr, range(0x21, 0x3000, 7)))  # apart: the order of marks is another matter
  assert tok.decode(tok.encode(every).ids) == unicodedata.normalize("NFC", every)


def test_loaders_agree(full):
  transformers = pytest.importorskip("transformers")
  tok = tokenizers.Tokenizer.from_file(str(full / "tokenizer.json"))
  auto = transformers.AutoTokenizer.from_pretrained(str(full))
  assert len(auto) == 659
  assert (auto.eos_token_id, auto.pad_token_id) == (602, 600)
  for text in TEXTS:
    assert auto(text)["input_ids"] == tok.encode(text).ids


def test_chat_frame_is_that_of_qwen(full):
  transformers = pytest.importorskip("transformers")
  auto = transformers.AutoTokenizer.from_pretrained(str(full))
  turns = [{"role": "user", "content": "a three\n"}, {"role": "assistant", "content": "<I3>"}]
  asked = "<|im_start|>user\na three\n<|im_end|>\n"
  answered = "<|im_start|>assistant\n<I3><|im_end|>\n"
  assert auto.apply_chat_template(turns, tokenize=False) == FRAME + asked + answered
  prompt = auto.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
  assert prompt == FRAME + asked + "<|im_start|>assistant\n"
  own = [{"role": "system", "content": "Be brief."}, turns[0]]
  framed = "<|im_start|>system\nBe brief.<|im_end|>\n" + asked
  assert auto.apply_chat_template(own, tokenize=False) == framed


def test_words_of_the_scenes_are_single_tokens(tmp_path):
  folder = lib.build_tokenizer(tmp_path / "tok")
  tok = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  assert tok.get_vocab_size() == lib.VOCAB + 22
  for word in "three seven eight red purple yellow left right above below digit image".split():
    assert len(tok.encode(f" {word}").ids) == 1, word


def test_building_is_repeatable_and_skipped_when_done(plain, tmp_path):
  texts = text_documents(count=3000)[::4]
  again = lib.build_tokenizer(tmp_path / "again", 600, texts)
  for file in lib.FILES:
    assert (again / file).read_bytes() == (plain / file).read_bytes()
  stamp = (again / lib.FILES[0]).stat().st_mtime_ns
  lib.build_tokenizer(again, 600, texts)
  assert (again / lib.FILES[0]).stat().st_mtime_ns == stamp
  assert [p.name for p in tmp_path.iterdir()] == ["again"]


def test_mistakes_are_refused(plain, full, tmp_path):
  with pytest.raises(ValueError, match="no room"):
    lib.build_tokenizer(tmp_path / "small", 100)
  with pytest.raises(ValueError, match="fewer than 5000"):
    lib.build_tokenizer(tmp_path / "poor", 5000, ["one two"])
  assert not (tmp_path / "poor").exists()
  with pytest.raises(ValueError, match="no tokenizer.json"):
    lib.add_image_tokens(tmp_path / "none", tmp_path / "out", 4)
  with pytest.raises(ValueError, match="has image words already"):
    lib.add_image_tokens(full, tmp_path / "out", 4)
  with pytest.raises(ValueError, match="holds another tokenizer"):
    lib.add_image_tokens(plain, full, 4)


def test_the_words_of_the_chat_frame_are_whole(plain):
  tok = tokenizers.Tokenizer.from_file(str(plain / "tokenizer.json"))
  for text in ("system", "user", "assistant", "You", " are", " helpful"):
    assert len(tok.encode(text, add_special_tokens=False).ids) == 1, text
