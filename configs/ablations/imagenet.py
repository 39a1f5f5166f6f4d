"""How much of a picture survives TA-Tok's words, beside LlamaGen's pictures from classes?

  bash launch/ablation.sh configs/ablations/imagenet.py --base runs/tar --data DATA
  bash launch/ablation.sh configs/ablations/imagenet.py --mini

Table 11, ImageNet 256 px, FID, IS, precision, recall: LlamaGen-XL (guidance 1.75) 2.62, 244.08,
.80, .57; XXL 2.34, 253.90, .80, .59; TA-Tok and AR-DTok (guidance 10) 2.60, 208.46, .76, .64;
LlamaGen's VQ-16 alone, of which ours is not measured here, has an rFID of 2.19. BASE holds
llamagen_xl and llamagen_xxl (published, see configs/llamagen.py), DATA what ADM's evaluator
reads: VIRTUAL_imagenet256_labeled.npz, inception.pb (its TensorFlow graph) and imagenet_val, 50,000
pictures. Nothing is trained; hardware: any accelerator, hours.
The twin asks what comes back of held-out digits, through the quickstart's VQVAE alone and through
TA-Tok's words at the three scales: shares of digits that the reader still reads in their places.
"""

import functools

from configs.ablations import base
from tarjax.ablations import Effect, Folder, Metric, Row, Run, Table, same
from tarjax.evals.table_scores import judged, kept

METRICS = {
  "fid": Metric("FID", lambda run: judged("fid.json", "fid", run)),
  "is": Metric("IS", lambda run: judged("fid.json", "inception_score", run)),
  "precision": Metric("precision", lambda run: judged("fid.json", "precision", run)),
  "recall": Metric("recall", lambda run: judged("fid.json", "recall", run)),
}


def columns(*values):
  return dict(zip(METRICS, values, strict=True))


# fmt: off
PAPER = {
  "vq":           ("VQ-16 alone",      {"fid": 2.19}),
  "llamagen_xl":  ("LlamaGen-XL",      columns(2.62, 244.08, .80, .57)),
  "llamagen_xxl": ("LlamaGen-XXL",     columns(2.34, 253.90, .80, .59)),
  "tar":          ("TA-Tok + AR-DTok", columns(2.60, 208.46, .76, .64)),
}
# fmt: on


def get_table(mini):
  return mini_table() if mini else full_table()


def mini_table():
  runs = {
    f"score{seed}": base.scored(True, "--seed", str(9000 + seed), mllm="sft")
    for seed in base.SEEDS[True]
  }
  bundle = base.BUNDLE[True] | {"components": base.BUNDLE[True]["components"] | {"mllm": "sft"}}
  metrics = {name: Metric(title, functools.partial(kept, name)) for name, title in MINI.items()}
  row = Row("digits read in their places", same([f"base/{stage}" for stage in runs], *metrics))
  folders = {"base": Folder(runs)}
  return Table(TITLE, metrics, {"base": row}, folders, (), bundle)


def full_table():
  folders, rows = {}, {}
  for name, (title, paper) in PAPER.items():
    if name not in DRAWN:
      rows[name] = Row(title, {}, paper)
      continue
    stages, how = DRAWN[name]
    words = ("{folder}", *how, "--resume", "--out", "{run}/samples.npz")
    reference = ("{data}/VIRTUAL_imagenet256_labeled.npz", "--inception", "{data}/inception.pb")
    fid = ("{folder}/samples/samples.npz", *reference, "--out", "{run}/fid.json")
    runs = {
      "samples": Run("tarjax.evals.imagenet", words, stages, "samples.npz"),
      "score": Run("tarjax.evals.fid", fid, ("samples",), "fid.json"),
    }
    components = {"ar_dtok": name} if name.startswith("llamagen") else {}
    folders[name] = Folder(runs, {}, components)
    rows[name] = Row(title, same([f"{name}/score"], *METRICS), paper)
  return Table(TITLE, METRICS, rows, folders, EFFECTS, base.BUNDLE[False])


TITLE = "Table 11: ImageNet"
MINI = {"vqvae": "VQVAE alone", "scale1": "144 words", "scale2": "36 words", "scale3": "16 words"}
DRAWN = {  # what is read of BASE, and how pictures are made
  "llamagen_xl": (("vqvae", "llamagen_xl"), ("--cfg", "1.75")),
  "llamagen_xxl": (("vqvae", "llamagen_xxl"), ("--cfg", "1.75")),
  "tar": (
    ("vqvae", "ta_tok", "ar_dtok_256_xl"),
    ("--pictures", "{data}/imagenet_val", "--cfg", "10"),
  ),
}
EFFECTS = (Effect("words keep about what classes give", "fid", "tar", "llamagen_xl", "lower"),)
