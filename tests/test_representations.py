"""Pictures as the VQVAE's words, Janus's embeddings and sub-codes: rows, losses, refusals."""

import itertools
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tarjax.data import layouts, pipeline, sources, tokenizer, tokens
from tarjax.data.packing import fill_row
from tarjax.representations import make_representation
from tarjax.tasks import make_task
from tests import golden
from tests.golden import random_params
from tests.tiny_representations import CODES, TEXT, WORDS, config_of

DOCUMENTS = ["You are a helpful assistant. system user a red three left of a blue seven"] * 3
START, END = "<|im_start|>", "<|im_end|>"
SYSTEM = f"{START}system\nYou are a helpful assistant.{END}\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """Tokenizers, and records with codes, with pixels and with both."""
  home = tmp_path_factory.mktemp("home")
  tokenizer.build_tokenizer(home / "text", 290, DOCUMENTS)
  tokenizer.add_image_tokens(home / "text", home / "tokenizer", CODES)
  tokenizer.add_image_tokens(home / "text", home / "other", 2 * CODES)
  for name, make in (("drawn", drawn), ("shown", shown), ("both", both), ("said", said)):
    sources.write_records(home / name, [make(i) for i in range(40)], meta={})
  return home


def talk(i, *turns, **more):
  spoken = [{"from": "human" if k % 2 == 0 else "gpt", "value": t} for k, t in enumerate(turns)]
  return {"id": f"x/{i}", "source": "x", "conversations": spoken, **more}


def codes(i):
  return (np.arange(4, dtype=np.uint16) * 3 + i) % CODES


def colour(i):
  return np.full((6, 8, 3), i % 251, np.uint8)


def drawn(i):
  return talk(i, f"a red three {i}", "<image>", vq=[codes(i)])


def shown(i):
  return talk(i, "<image> and <image>\nred?", "a red", images=[colour(i), colour(i + 100)])


def both(i):
  pictures = [colour(i), colour(i + 100)]
  return talk(i, "blue <image>", "<image>", images=pictures, vq=[codes(i), codes(i + 1)])


def subcodes(i):
  return (np.arange(12, dtype=np.uint16).reshape(4, 3) + i) % 8


def placed(i):
  return talk(i, "blue <image>", "<image>", unitok=[subcodes(i), subcodes(i + 1)])


def said(i):
  return talk(i, f"seven {i}", "three " * (i % 5 + 1))


def vocab_of(home):
  tok = tokens.load_tokenizer(home / "tokenizer")
  return tok, tokens.make_vocab(tok)


def words(i):
  return "".join(f"<I{c}>" for c in codes(i))


# fmt: off
LAID_OUT = [
  ("vqvae", drawn(5), "a red three 5", f"<im_start>{words(5)}<im_end>"),
  ("vqvae", both(5),  f"blue {words(5)}", f"<im_start>{words(6)}<im_end>"),
  ("janus", drawn(5), "a red three 5", f"<im_start>{words(5)}<im_end>"),
  ("janus", both(5),  f"blue {'<|image_pad|>' * 9}", f"<im_start>{words(6)}<im_end>"),
  ("hybrid", placed(5), f"blue {'<I0>' * 4}", f"<im_start>{'<I0>' * 4}<im_end>"),
  ("janus", shown(5), f"{'<|image_pad|>' * 9} and {'<|image_pad|>' * 9}\nred?", "a red"),
]
# fmt: on


@pytest.mark.parametrize("name, record, user, answer", LAID_OUT)
def test_layouts(home, name, record, user, answer):
  tok, vocab = vocab_of(home)
  layout = layouts.layout_of(config_of(name))
  ids, labels = tokens.chat_tokens(tok, vocab, record, 2, "clean", layout)
  text = f"{SYSTEM}{START}user\n{user}{END}\n{START}assistant\n{answer}{END}\n"
  assert tok.decode(ids.tolist(), skip_special_tokens=False) == text
  kept = labels[labels >= 0]
  assert tok.decode(kept.tolist(), skip_special_tokens=False) == answer + END
  reference = tokens.chat_tokens(tok, vocab, record, 2, "reference", layout)[1]
  assert not (reference == vocab.place).any()  # what is shown is never a label


def test_a_place_cannot_be_spelt(home):
  tok, vocab = vocab_of(home)
  ids, _ = tokens.chat_tokens(tok, vocab, talk(0, "a <|image_pad|>", "b"))
  assert not (ids == vocab.place).any() and not tokens.is_image(vocab, ids).any()


def batches(home, name, paths, **data):
  spec = [{"name": "records", "path": f"../{path}"} for path in paths]
  made = {"sources": spec, "format": "packed", "tokenizer": "../tokenizer", "length": 128}
  made |= {"window": 32, "label_style": "clean", "threads": 0} | data
  config = config_of(name, batch=4, workdir=str(home / "run"), data=made)
  return pipeline.make_batches(config)


def test_batches_carry_the_pictures_in_their_places(home):
  """Every segment has the pictures of its own record, in order, and nothing else does."""
  _, vocab = vocab_of(home)
  seen = 0
  for batch in itertools.islice(batches(home, "janus", ("shown", "both", "drawn", "said")), 8):
    assert batch["pictures"].shape == (4, 128 // 9, 12, 12, 3)
    assert batch["pictures"].dtype == np.uint8 and batch["places"].dtype == np.int32
    for row in range(4):
      places, marks = batch["places"][row], batch["tokens"][row] == vocab.place
      count = int(marks.sum()) // 9
      np.testing.assert_array_equal(places[marks], np.arange(9 * count) + 1)
      assert (places[~marks] == 0).all() and (batch["labels"][row][marks] == -100).all()
      first = batch["pictures"][row, :, 0, 0, 0].tolist()
      assert not any(first[count:])
      for segment in range(1, batch["segments"][row].max() + 1):
        here = marks & (batch["segments"][row] == segment)
        own = [first[(k - 1) // 9] for k in places[here][::9]]
        assert len(own) <= 2 and (len(own) < 2 or own[1] == own[0] + 100)
        seen += len(own)
  assert seen > 30
  again = itertools.islice(batches(home, "janus", ("shown", "both", "drawn", "said")), 8)
  for key, value in list(again)[-1].items():
    np.testing.assert_array_equal(value, batch[key])


def test_a_truncated_example_has_the_pictures_that_are_left(home):
  pictures = [colour(1), colour(101)]
  first = talk(0, "<image> a", "b", "a red three " * 20 + "<image>", "c", images=pictures)
  sources.write_records(home / "long", [first], meta={})
  batch = next(batches(home, "janus", ("long",), length=96))
  assert batch["places"].max() == 9
  assert batch["pictures"][0, :, 0, 0, 0].tolist() == [1] + [0] * 9


def test_sub_codes_travel_with_their_places(home):
  """Records keep them, rows carry those of shown and drawn pictures, and no other place has any."""
  tokenizer.add_image_tokens(home / "text", home / "one", 1)
  sources.write_records(home / "placed", [placed(i) for i in range(20)], meta={})
  mixture = ("placed", "said")
  batch = next(batches(home, "hybrid", mixture, tokenizer="../one"))
  assert batch["subcodes"].shape == (4, 128, 3)
  here = batch["tokens"] == TEXT + 5
  assert here.any() and ((batch["subcodes"] >= 0) == here[..., None]).all()
  for row in range(4):
    found = batch["subcodes"][row][here[row]].reshape(-1, 2, 4, 3)
    for first, second in found:
      np.testing.assert_array_equal(second, (first + 1) % 8)


def test_the_loss_of_places_is_the_depth_heads():
  """By hand: text by the table, each drawn place by the mean of its sub-codes, packed or alone."""
  task = make_task(config_of("hybrid"))
  rng, layout = np.random.default_rng(0), task.representation.layout
  shapes = nn.meta.unbox(jax.eval_shape(task.init, jax.random.key(0)))
  params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
  place, vocab = TEXT + 5, SimpleNamespace(image0=TEXT + 5)
  examples = []
  for length in (14, 20):
    ids = rng.integers(0, TEXT, length).astype(np.int32)
    ids[2:6] = ids[8:12] = place  # shown, then drawn
    labels = np.where(np.arange(length) > 6, ids, -100).astype(np.int32)
    examples.append((ids, labels, rng.integers(0, 8, (8, 3))))

  def row_of(parts):
    row = fill_row([part[:2] for part in parts], 48, 0)
    row |= layout.carried(row["tokens"], vocab, [part[2] for part in parts])
    return {k: v[None] for k, v in row.items()}

  loss = jax.jit(lambda p, row: task.loss(p, {}, row, None, train=True))
  alone = [loss(params, row_of([part])) for part in examples]
  counts = [float(m["counts"]["loss"]) for _, m in alone]
  assert counts == [7, 13]
  both, _ = loss(params, row_of(examples))
  weighted = sum(float(v) * n for (v, _), n in zip(alone, counts, strict=True))
  np.testing.assert_allclose(float(both) * 20, weighted, rtol=1e-5)

  row = row_of(examples[:1])
  inputs = task.representation.inputs(task.model, {"mllm": params}, row)
  hidden, _ = task.model.apply({"params": params}, **inputs, segments=row["segments"])
  logits = task.model.apply({"params": params}, hidden, method="logits")[0, :, : task.used]
  words = jax.nn.log_softmax(logits)
  own, codes = {"params": params["depth_head"]}, row["subcodes"]
  parts = jax.nn.log_softmax(task.representation.head.apply(own, hidden[:, :-1], codes[:, 1:]))
  total = 0.0
  for i in range(7, 14):
    if 8 <= i < 12:
      total -= np.mean([parts[0, i - 1, k, codes[0, i, k]] for k in range(3)])
    else:
      total -= words[i - 1, row["tokens"][0, i]]
  np.testing.assert_allclose(float(alone[0][0]) * 7, total, rtol=1e-5)


def test_ids_of_the_vqvae_go_both_ways():
  from tarjax.models.vqvae import VqVae, VqVaeConfig

  vqvae = VqVae(VqVaeConfig(4, (1, 2), 1, 8, CODES, 4, groups=2))
  words = make_representation(config_of("vqvae"), {"vqvae": vqvae})
  assert (words.side, words.num_ids, words.scales, words.understanding) == (4, CODES, (), "ids")
  assert words.tokens_per_image(None) == 4 and words.embed_init({}) is None
  images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
  params = random_params(vqvae, np.zeros((1, 4, 4, 3), np.float32))
  read = jax.jit(lambda p, x: vqvae.apply({"params": p}, x.astype(np.float32) / 127.5 - 1))
  want, trees = read(params, images), {"vqvae": params}
  ids = jax.jit(lambda t, x: words.encode(t, x, None))(trees, images)
  np.testing.assert_array_equal(ids, want["indices"])
  golden.close(words.decode(trees, ids, np.zeros(3, np.uint32)), want["rec"], 1e-5)
  with pytest.raises(ValueError, match="no settings, so no temperature"):
    words.decode(trees, ids, np.zeros(3, np.uint32), temperature=1.0)


def without(record, *keys):
  return {k: v for k, v in record.items() if k not in keys}


# fmt: off
WRONG = [
  ("vqvae", shown(0), "its pictures have no 'vq', the codes of vqvae"),
  ("vqvae", talk(0, "a", "<image>", codes=[{1: codes(0)}]), "have no 'vq'"),
  ("vqvae", talk(0, "a", "<image>", vq=[codes(0)[:3]]), "3 codes of a picture, but config.words."),
  ("vqvae", talk(0, "a", "<image>", vq=[codes(0) + 16]), "outside 0..15"),
  ("janus", without(both(0), "vq"), "an image is drawn, but the record has no codes of it"),
  ("janus", without(both(0), "images"), "an image is shown, but the record has no pixels of it"),
]
# fmt: on


@pytest.mark.parametrize("name, record, message", WRONG)
def test_records_that_do_not_fit(home, name, record, message):
  layout = layouts.layout_of(config_of(name))
  with pytest.raises(ValueError, match=f"record x/0: .*{message}"):
    tokens.chat_tokens(*vocab_of(home), record, layout=layout)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"representation": "pixels"}, "'pixels' is none of ta_tok, vqvae, janus, hybrid"),
    ({"words": {"text_rows": TEXT, "codes": CODES}}, "config.words.tokens is needed"),
    ({"siglip2": None}, "config.siglip2 is needed"),
    ({"words": WORDS | {"codes": 8}}, "has 16 visual words, config.words.codes is 8"),
    ({"data.scales": {"1": 1.0}}, "pictures of janus have no scales"),
    ({"data.length": 8}, "config.data.length=8 holds no picture, which takes 9"),
    ({"data.tokenizer": "../other"}, "has 32 visual words"),
  ],
)
def test_configs_that_do_not_fit(home, change, message):
  data = {"sources": [{"name": "records", "path": "../both"}], "format": "packed", "length": 128}
  data |= {"tokenizer": "../tokenizer", "window": 32}
  config = config_of("janus", batch=4, workdir=str(home / "run"), data=data).to_dict()
  for key, value in change.items():
    inner = config["data"] if key.startswith("data.") else config
    inner[key.removeprefix("data.")] = value
  config = {k: v for k, v in config.items() if v is not None}
  with pytest.raises(ValueError, match=message):
    next(pipeline.make_batches(ConfigDict(config)))


def test_the_codebook_starts_only_rows_of_ta_tok():
  from tarjax.config import UserError

  widen = dict(llm="../llm", ta_tok="../ta_tok", embed_init="codebook", scale=1.0)
  task = make_task(config_of("vqvae", widen=widen))
  with pytest.raises(UserError, match="vqvae has no rows for .*'codebook': choose random"):
    task.start({}, {}, None, None, None)
