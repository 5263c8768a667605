"""Predict a picture with `exp-tools export --with-preprocessing`: python predict_onnx.py model.pictures.onnx FILE."""

import json
import sys

import numpy
import onnxruntime
from PIL import Image, ImageOps

model, file = sys.argv[1:]
with open(model + ".json", encoding="utf-8") as text:
    facts = json.load(text)
image = Image.open(file)
if facts["resize"]["rule"] != "pad":  # as this model's training images were decoded; without it: "jpeg_draft" in facts
    image.draft("RGB", [facts["resize"]["image_size"]] * 2)
pixels = numpy.asarray(ImageOps.exif_transpose(image).convert("RGB"))
probabilities, decision = onnxruntime.InferenceSession(model).run(["probabilities", "decision"], {"image": pixels})
for entry, probability in zip(facts["classes"], probabilities, strict=True):
    print(f"{entry['code']} {probability:.4f}")
print(facts["classes"][decision]["name"], facts["disclaimer"], sep="\n")
