"""Both eyes.

Fundus photographs of both eyes of a patient, with age and sex. Two eyes of one person share vessels, age and disease,
so each can teach the encoder about the other. The question: does contrast between eyes (COMPRER) know more of the
patient than contrast between two views of one image (SimCLR)? The images are synthetic organs of a left and a right
side, which stand for eyes.
"""

# %%
# ## The cohort

from pathlib import Path

import pandas as pd
from PIL import Image, ImageOps

import bolus

table = bolus.make_phantom("phantom", num_patients=100, size=64)
frame = pd.read_csv(table).query("modality == 'XR'").dropna(subset="side")
frame = frame[["image", "patient", "visit", "side", "sex", "age", "disease"]]
roles = {"laterality": "side", "score:age": "age", "attribute:sex": "sex", "label:disease": "disease"}
cohort = bolus.Cohort.open(frame, roles=roles, root="phantom", split={"val": 0.1, "test": 0.4})
print(cohort)

# %%
# A pair of eyes. The third picture is the second, mirrored: `images.mirror` shows all left sides so.

pair = (
    frame.groupby(["patient", "visit"])
    .filter(lambda rows: len(rows) == 2)
    .sort_values(["patient", "visit", "side"])["image"]
    .head(2)
)
left, right = (Image.open(Path("phantom") / name).resize((128, 128)) for name in pair)
sheet = Image.new("L", (3 * 128, 128))
for place, picture in enumerate((left, right, ImageOps.mirror(right))):
    sheet.paste(picture, (128 * place, 0))
sheet.save("fundus.png")

# %%
# ## Two trainings of one length
#
# The same small encoder, the same number of epochs and images a step; only the objective differs.

common = {
    "encoder": {"backbone": "r18w32", "stem_pool": False, "in_channels": 1},
    "images": {"size": 32, "augment": {"preset": "mri"}},
    "optimizer": {"kind": "adamw", "lr": 1e-3},
    "schedule": {"kind": "cosine"},
    "training": {"epochs": 8, "health_epochs": None},
}
eyes = bolus.Recipe.load("comprer_bilateral").override(common)
eyes = eyes.override({"sampling": {"participants": 32, "batch_size": 64}, "objectives.reconstruction": None})
views = bolus.Recipe.load("simclr").override(common).override({"sampling.batch_size": 64})
runs = {
    name: bolus.pretrain(cohort, recipe=recipe, out=f"runs/{name}", quiet=True)
    for name, recipe in {"comprer": eyes, "simclr": views}.items()
}

# %%
# ## Does an eye find its fellow?
#
# Of all test patients' eyes, how often is the fellow the nearest, or among the five or ten nearest?

pairs = bolus.evaluate_retrieve(runs["comprer"].folder, cohort, across="laterality", baselines=[runs["simclr"].folder])
print(pairs.text())

# %%
# ## Does it know the disease?
#
# Finding a person is not diagnosing them. The label says whether the embedding is of use for the disease. So few
# patients and so short a training decide little; the last line gives the smallest difference that could have been seen.

found = bolus.evaluate(
    runs["comprer"].folder,
    cohort,
    target="disease",
    probes=("linear",),
    baselines=[runs["simclr"].folder],
)
print(found.text())
