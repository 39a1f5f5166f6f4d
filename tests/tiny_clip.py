"""A tiny random CLIP with a tokenizer of single letters."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers


def make_clip(folder: Path) -> Path:
  letters = "abcdefghijklmnopqrstuvwxyz0123456789-"
  words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
  bpe = models.BPE({w: i for i, w in enumerate(words)}, [], end_of_word_suffix="</w>")
  tokenizer = Tokenizer(bpe)
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  transformers.CLIPTokenizerFast(
    tokenizer_object=tokenizer, model_max_length=77, pad_token="<|endoftext|>"
  ).save_pretrained(folder)
  small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
  text = small | dict(vocab_size=len(words), eos_token_id=len(words) - 1)
  config = transformers.CLIPConfig(
    text_config=text, vision_config=small | dict(image_size=32, patch_size=8), projection_dim=8
  )
  torch.manual_seed(0)
  transformers.CLIPModel(config).save_pretrained(folder)
  transformers.CLIPImageProcessor(
    size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
  ).save_pretrained(folder)
  return folder
