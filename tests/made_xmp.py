"""XMP the tests make themselves, and what they ask of it."""

from __future__ import annotations

from pathlib import Path

from milnet.packets import MILNET, RATING, read_packet
from milnet.xmp import Entry

ENTRY = Entry(4, 5.12341, 4.5, 5.75, 88.0, 50.0, 0.25, "d" * 64)
XMP_NS = "http://ns.adobe.com/xap/1.0/"


def packet(*attributes: str) -> str:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:xmp="{XMP_NS}" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" '
        f'xmlns:MicrosoftPhoto="http://ns.microsoft.com/photo/1.0/" {" ".join(attributes)}/></rdf:RDF></x:xmpmeta>'
    )


def rated(stars: int) -> str:
    return packet(f'xmp:Rating="{stars}"')


def values(path: Path) -> dict[str, str]:
    """Our properties and the rating of a sidecar."""
    sites = read_packet(path.read_bytes()).sites
    found = {name: [site.value for site in places] for (uri, name), places in sites.items() if uri == MILNET}
    assert all(len(places) == 1 for places in found.values())
    rating = {"Rating": sites[RATING][0].value} if RATING in sites else {}
    return {name: places[0] for name, places in found.items()} | rating


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Everything in a folder: content and time."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()}
