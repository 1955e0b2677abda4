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
    profile, plain = image.info.get("icc_profile"), image.mode in ("RGB", "RGBA")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    with suppress(ImageCms.PyCMSError):  # a broken profile: as browsers, do without
        if profile and plain:
            ImageCms.profileToProfile(image, BytesIO(profile), ImageCms.createProfile("sRGB"), inPlace=True)
    return image


def resized(image: Image.Image, size: int, multiple: int) -> np.ndarray:
    unit = max(image.size) * multiple  # each side is rounded to the nearest multiple, half up
    width, height = (max(1, (2 * side * size + unit) // (2 * unit)) * multiple for side in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))[None]


folder = Path(sys.argv[1])
model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(folder / "model.onnx")
for path in sys.argv[2:]:
    photo = open_photo(path)
    multiple = {role: how["multiple"] for role, how in model["preprocess"].items()}
    feed = {one["name"]: resized(photo, one["size"], multiple[one["preprocess"]]) for one in model["inputs"]}
    found = dict(zip(model["outputs"], session.run(list(model["outputs"]), feed), strict=True))
    score = float(found["score"][0])
    percentile = 100 * np.mean(np.array(model["doubt"]["percentiles"]) < score)
    print(json.dumps({"photo": path, "score": score, "percentile": percentile, "p": found["distribution"][0].tolist()}))
