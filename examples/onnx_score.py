"""Score photos by an exported model, without milnet and without PyTorch.

milnet export pocket -o exported
python examples/onnx_score.py exported photo.jpg ...

Scores are those of `milnet score` but for decoding: large JPEGs are decoded in full here, and a colour profile that
is all but sRGB is followed, which milnet leaves alone. For models that take the whole photo (`fit` of model.json).
"""

import json
import sys
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageCms, ImageOps


def open_photo(path: str) -> Image.Image:
    image: Image.Image = ImageOps.exif_transpose(Image.open(path))
    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    with suppress(ImageCms.PyCMSError):  # a broken profile: as browsers, do without
        if profile:
            ImageCms.profileToProfile(image, BytesIO(profile), ImageCms.createProfile("sRGB"), inPlace=True)
    return image


def resized(image: Image.Image, size: int, preprocess: str) -> np.ndarray:
    multiple = model["preprocess"][preprocess]["multiple"]
    unit = max(image.size) * multiple  # each side is rounded to the nearest multiple, half up
    width, height = (max(1, (2 * side * size + unit) // (2 * unit)) * multiple for side in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))[None]


model = json.loads(Path(sys.argv[1], "model.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(Path(sys.argv[1], "model.onnx"))
for path in sys.argv[2:]:
    photo = open_photo(path)
    feed = {one["name"]: resized(photo, one["size"], one["preprocess"]) for one in model["inputs"]}
    (score,), (p,) = session.run(["score", "distribution"], feed)
    print(json.dumps({"photo": path, "score": float(score), "p": p.tolist()}))
