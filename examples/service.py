"""Score a folder of photos through a running `milnet serve`, into a table.

    milnet serve &
    python examples/service.py PHOTOS/ -o scores.csv [--url http://127.0.0.1:8500] [--model pocket]

Photos go to the service as it has room for them; a row is kept as each is done, in the order of the photos at the end.
The token, where one is asked for, is taken from the variable MILNET_TOKEN. What cannot be scored is named on standard
error; exit code 1 then, 2 where the service is missing or refuses.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

from milnet.artifacts import atomic_path
from milnet.client import Client, Failed, Scored
from milnet.errors import MilnetError
from milnet.library import find_photos

COLUMNS = ("photo", "score", "low", "high", "percentile", "stars", "unlike", "outside")


def score_folder(folder: Path, output: Path, url: str, token: str | None, model: str | None) -> list[Failed]:
    """Write the table; what could not be scored."""
    photos = find_photos([folder]).photos
    scored: list[Scored] = []
    failed: list[Failed] = []
    with Client(url, token) as client:
        client.wait_until_ready()
        for one in client.stream(photos, model):
            if isinstance(one, Scored):
                scored.append(one)
            else:
                failed.append(one)
            print(f"\r{len(scored) + len(failed):,} of {len(photos):,}", end="", file=sys.stderr)
    print(file=sys.stderr)
    with atomic_path(output) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([getattr(one, name) for name in COLUMNS] for one in sorted(scored, key=lambda one: one.index))
    return sorted(failed, key=lambda one: one.index)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8500")
    parser.add_argument("--model")
    options = parser.parse_args(arguments)
    token = os.environ.get("MILNET_TOKEN") or None
    try:
        failed = score_folder(options.folder, options.output, options.url, token, options.model)
    except MilnetError as error:
        print(error, file=sys.stderr)
        return 2
    for one in failed:
        print(f"{one.photo}: {one.reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
