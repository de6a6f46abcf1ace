"""Cardiac segmentation from few labelled patients.

Slices of cardiac MRI with two phases, and masks for some patients. Meta labels cost nothing: the patient, the phase,
the place in the volume. GCL learns from all of them, at the level of images and of pixels. The question: how good is
a segmentation from the masks of one, two or six patients, beside the same network from random weights? The images are
synthetic: an organ with bright spots, in two sizes for the two phases.
"""

# %%
# ## The cohort

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import bolus

table = bolus.make_phantom("phantom", num_patients=50, size=48, missing=0)
frame = pd.read_csv(table).query("modality == 'MR'")
frame = frame[["image", "mask", "patient", "days", "side", "phase", "slice_position"]]
roles = {"time": "days", "laterality": "side"}
cohort = bolus.Cohort.open(frame, roles=roles, root="phantom", split={"val": 0.1, "test": 0.4})
print(cohort)

# %%
# Three slices, and below each its mask: the organ, and the spots in it.

sheet = Image.new("L", (3 * 128, 2 * 128))
for place, row in enumerate(frame.head(3).itertuples()):
    image = np.asarray(Image.open(Path("phantom") / row.image)) / 4095
    mask = np.asarray(Image.open(Path("phantom") / row.mask))
    for line, pixels in enumerate((image * 255, mask * 127)):
        picture = Image.fromarray(pixels.astype(np.uint8)).resize((128, 128), Image.Resampling.NEAREST)
        sheet.paste(picture, (128 * place, 128 * line))
sheet.save("cardiac.png")

# %%
# ## Training
#
# The recipe as shipped has 48 filters at 352 pixels; this has 8 at 32.

keys = {
    "encoder": {"backbone": "unet8"},
    "images": {"size": 32},
    "optimizer": {"kind": "adamw", "lr": 1e-3},
    "training": {"epochs": 6, "health_epochs": None},
}
recipe = bolus.Recipe.load("gcl").override(keys)
run = bolus.pretrain(cohort, recipe=recipe, out="runs/gcl", quiet=True)
for line in run.metrics():
    if line["kind"] == "conflicts":
        last = line
print("share of pairs of gradients that pull apart, at the end:", round(last["share"], 2))

# %%
# ## Masks from few patients
#
# A decoder is put on the encoder and both are trained on the slices of 1, 2 and 6 patients, for the same number of
# steps. The metric is Dice on test patients, averaged over the classes. Two draws of labelled patients leave wide
# intervals; take more draws and steps on your own data.

found = bolus.evaluate_segment(
    run.folder, cohort, labelled=(1, 2, 6), repeats=2, spec=bolus.SegmentSpec(steps=40), quiet=True
)
print(found.text())
