"""Pictures of a report, for documents: the list light and dark, a photo's page, two photos side by side.

    python tools/report_pictures.py report.html -o docs/pictures

Chromium draws them without a screen. Above 300 kB they are reduced to 256 colours.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image

PICTURES = {  # name -> (colours, address, width, height)
    "report-grid": ("light", "", 1240, 860),
    "report-dark": ("dark", "", 1240, 860),
    "report-photo": ("light", "#photo-{photo}", 1240, 1080),
    "report-compare": ("light", "#compare-{photo}-{other}", 1240, 900),
}

LARGEST = 300_000  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--photo", type=int, default=8, help="place of the photo that is opened")
    parser.add_argument("--other", type=int, default=40, help="place of the photo that it is compared with")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        parser.error("needs the program chromium")
    options.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, (scheme, address, width, height) in PICTURES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(options.report.resolve().as_uri() + address.format(photo=options.photo, other=options.other))
            page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
            page.evaluate("document.activeElement.blur()")
            picture = Image.open(io.BytesIO(page.screenshot()))
            page.close()
            place = options.output / f"{name}.png"
            picture.convert("RGB").save(place, optimize=True)
            if place.stat().st_size > LARGEST:
                picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE).save(place, optimize=True)
            print(f"{place}: {place.stat().st_size / 1e3:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
