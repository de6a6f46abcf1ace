"""Chest radiographs with repeat visits.

Radiographs, a table with visits, age, sex and site, and one label that is known for all. The question: does
pretraining on what the table holds help to read the label from few labelled patients, and for whom? The images are
synthetic. bolus draws them so that the truth is known: a hidden disease brings bright spots, and it is commoner at
one of two sites, which is a trap.
"""

# %%
# ## The cohort
#
# `make_phantom` writes images and a table. This example takes its radiographs.

from pathlib import Path

import pandas as pd
from PIL import Image

import bolus

table = bolus.make_phantom("phantom", num_patients=150, size=64)
columns = ["image", "patient", "visit", "days", "side", "site", "sex", "age", "disease"]
frame = pd.read_csv(table).query("modality == 'XR'")[columns]
roles = {"time": "days", "attribute:sex": "sex", "score:age": "age", "label:disease": "disease", "laterality": "side"}
cohort = bolus.Cohort.open(frame, roles=roles, root="phantom", split={"val": 0.1, "test": 0.4})
print(cohort)

# %%
# Four images of one visit and the next:

names = frame.groupby("patient").filter(lambda rows: rows["visit"].max() > 1)["image"].head(4)
sheet = Image.new("L", (4 * 128, 128))
for place, name in enumerate(names):
    sheet.paste(Image.open(Path("phantom") / name).resize((128, 128)), (128 * place, 0))
sheet.save("xray.png")

# %%
# ## What the columns allow
#
# A small encoder and small images, so that this runs in two minutes; leave these keys out on your own data. `plan` says
# which objectives it chose, and which columns it would not learn from.

keys = {
    "encoder": {"backbone": "r18w32", "stem_pool": False},
    "images": {"size": 32},
    "training": {"epochs": 12, "health_epochs": None},
}
plan = bolus.plan(cohort, overrides=keys)
for offer in plan.offers:
    if offer.verdict == "recommended":
        print(offer.name, "-", offer.reasons[0])
for hazard in plan.hazards:
    print("not from:", hazard.role, "-", hazard.sentence)

# %%
# ## Training

run = bolus.pretrain(cohort, recipe=plan.recipe, out="runs/xray", quiet=True)
print(run.status)

# %%
# ## Does it help?
#
# A linear probe on frozen embeddings of test patients, from a tenth of the labelled patients and from all, beside the
# same network with random weights. Read the verdict first: so short a training of so small a network decides little,
# and the verdict gives the smallest difference that this test set could have shown.

found = bolus.evaluate(run.folder, cohort, target="disease", probes=("linear",), fractions=(0.1, 1.0))
print(found.text())

# %%
# ## For whom?
#
# The site is a trap: it shifts the brightness, and the disease is commoner at one of the two. The audit asks whether
# the probe does worse for one group, and how well the embedding knows the group.

gaps = bolus.evaluate_audit(run.folder, cohort, target="disease", by=("site", "attribute:sex"))
print(gaps.text())
