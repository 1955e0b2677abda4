"""One XMP packet as bytes: what it says about ratings, and the same bytes with our properties set.

A packet is never written anew. expat says where each property stands, and only the bytes of our own properties and of
xmp:Rating change; comments, foreign namespaces, prefixes, order, blanks, byte order mark and wrapper stay as they are.

Our properties live in the namespace `urn:milnet:xmp:1/`. Its slash matters: Exiv2, which digiKam and darktable use,
appends one to a namespace that has none, and would hand back properties in a namespace that is not ours.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMP = "http://ns.adobe.com/xap/1.0/"
PHOTOSHOP = "http://ns.adobe.com/photoshop/1.0/"
MICROSOFT = "http://ns.microsoft.com/photo/1.0"  # with and without a slash at its end
MILNET = "urn:milnet:xmp:1/"
PREFIXES = {RDF: "rdf", XMP: "xmp", MILNET: "milnet"}

Name = tuple[str, str]  # namespace, local name
RATING: Name = (XMP, "Rating")
STARS: Name = (MILNET, "Stars")
EXTENSION: Name = (PHOTOSHOP, "SidecarForExtension")
PERCENT: tuple[Name, ...] = ((MICROSOFT, "Rating"), (f"{MICROSOFT}/", "Rating"))  # MicrosoftPhoto:Rating, 1 to 99

HEAD = "<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>\n"
TAIL = "\n<?xpacket end='w'?>"
_PADDING = (" " * 99 + "\n") * 20  # room in a packet inside a photo, for programs that change it in place

_ENCODINGS = (  # a byte order mark, or how "<" begins without one
    (codecs.BOM_UTF8, "utf-8", True),
    (codecs.BOM_UTF32_LE, "utf-32-le", True),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32-be", True),
    (codecs.BOM_UTF16_LE, "utf-16-le", True),
    (codecs.BOM_UTF16_BE, "utf-16-be", True),
    (b"<\0\0\0", "utf-32-le", False),
    (b"\0\0\0<", "utf-32-be", False),
    (b"<\0", "utf-16-le", False),
    (b"\0<", "utf-16-be", False),
)
_DECLARED = re.compile(rb"""\s*<\?xml\s[^>]*?\bencoding\s*=\s*["']([^"']*)["']""")
_ATTRIBUTE = re.compile(rb"""(\s+)([^\s=/>]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_SEPARATOR = "\x01"  # between namespace and name in what expat gives; no XML can hold it
_TAG_NAME = re.compile(rb"<([^\s/>]+)")
_TAG_END = re.compile(rb"\s*(/?)>")


class PacketError(Exception):
    """Why a packet cannot be read or changed; the caller says of which file."""


@dataclass(frozen=True)
class Site:
    """Where the value of a property stands, in bytes of the UTF-8 text."""

    value: str
    start: int  # of the value
    end: int
    whole: tuple[int, int]  # the property with the blanks before it: what goes when it goes
    element: str = ""  # its name as written, of an element `<x/>` that has no room for a value
    plain: bool = True  # False: qualifiers, comments or CDATA stand in it, and it is only read


@dataclass
class _Tag:
    """A start tag: where it stands, its attributes, and the prefixes that hold there."""

    start: int
    end: int
    name: str
    empty: bool  # written as <x/>
    scope: Mapping[str, str]  # prefix -> namespace
    attributes: list[tuple[str, str, int, int, int]]  # prefix, local name; blank before, value start, value end
    insert: int = 0  # where one more attribute goes
    blank: str = " "  # what stands before the last one


@dataclass
class _Open:
    """An element that is not closed yet."""

    # "rdf", "description", "property", "other"; a qualified value is <xmp:Rating> with rdf:value, as attribute or as
    # element ("value"), in the property or in an rdf:Description inside it ("inner")
    role: str
    tag: _Tag
    name: Name
    text: list[str] = field(default_factory=list)
    value: str | None = None  # what an rdf:value says


@dataclass(frozen=True)
class Packet:
    """What a packet says. `sites` has a list for each property that is of interest here."""

    xml: bytes  # UTF-8, without byte order mark and without NULs at the end
    mark: bytes
    encoding: str
    nuls: str
    sites: Mapping[Name, list[Site]]
    descriptions: Sequence[_Tag]  # the rdf:Description elements of the photo
    ours: Sequence[_Tag]  # those of them that hold a property of ours
    rdf: _Tag
    close: int  # where </rdf:RDF> begins

    @property
    def data(self) -> bytes:
        """The packet as it was read."""
        return encode(self, self.xml)

    def number(self, name: Name) -> float | None:
        """The first value of a property that is not 0; None where there is none. PacketError when it is no number."""
        return next((value for site in self.sites.get(name, ()) if (value := _number(site.value, name))), None)

    @property
    def stars(self) -> int | None:
        """milnet:Stars: the rating that was written by milnet."""
        value = self.number(STARS)
        return None if value is None else rating_of(value)

    @property
    def rating(self) -> int | None:
        """The rating, -1 to 5, whoever gave it; None where there is none (0 is none).

        xmp:Rating, and without it MicrosoftPhoto:Rating. Of several in one packet, which should not be, the first that
        is not milnet's counts. PacketError when it is no number or out of range.
        """
        ours, found = self.stars, None
        for site in self.sites.get(RATING, ()):
            value = _number(site.value, RATING)
            if value is not None and (rating := rating_of(value)):
                found = rating
                if rating != ours:
                    break
        if found is not None:
            return found
        for name in PERCENT:
            percent = self.number(name)
            if percent is not None:
                return stars_of_percent(percent)
        return None

    @property
    def human(self) -> int | None:
        """The rating, unless it is the one milnet wrote."""
        rating = self.rating
        return None if rating is not None and rating == self.stars else rating

    @property
    def extension(self) -> str:
        """photoshop:SidecarForExtension, which of several files of one name it is for; "" if absent."""
        return next((site.value.strip().lower() for site in self.sites.get(EXTENSION, ())), "")


def _number(text: str, name: Name) -> float | None:
    """A number; None for an empty text. PacketError for anything else."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise PacketError(f"expected a number in {name[1]}, got {text[:40]!r}") from None


def rating_of(value: float) -> int:
    """A rating as written (some programs write 4.0 or 4.5) as one of -1 to 5, halves up. PacketError out of range."""
    if not -1 <= value <= 5:
        raise PacketError(f"expected a rating from -1 to 5, got {value:g}")
    return -1 if value < 0 else int(value + 0.5)


def stars_of_percent(percent: float) -> int | None:
    """MicrosoftPhoto:Rating and EXIF RatingPercent (1, 25, 50, 75, 99) as stars, the nearest; 0 is none."""
    if not 0 <= percent <= 100:
        raise PacketError(f"expected a rating of 0 to 100 %, got {percent:g}")
    return int(percent / 25 + 0.5) + 1 if 0 < percent < 87.5 else 5 if percent else None


def read_packet(data: bytes) -> Packet:
    """What the packet says. Raises PacketError for what is not XMP: cut or malformed XML, a DTD, no rdf:RDF."""
    if not data.strip(b"\0 \t\r\n"):
        raise PacketError("expected XMP, but it is empty: remove it")
    xml, mark, encoding, nuls = _decoded(data)
    return _Reader(xml).packet(mark, encoding, nuls)


def _decoded(data: bytes) -> tuple[bytes, bytes, str, str]:
    """The text as UTF-8; byte order mark; encoding; NULs at the end (cameras pad with them)."""
    mark, encoding = b"", "utf-8"
    for start, name, is_mark in _ENCODINGS:
        if data.startswith(start):
            mark, encoding = start if is_mark else b"", name
            break
    declared = _DECLARED.match(data)
    if encoding == "utf-8" and declared and declared[1].lower() not in (b"utf-8", b"utf8") and not data.isascii():
        raise PacketError(
            f"expected UTF-8, UTF-16 or UTF-32, got the encoding {declared[1].decode('ascii', 'replace')}: "
            "convert it to UTF-8"
        )
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise PacketError(f"is not {encoding.upper()} (byte {error.start + len(mark)}): is the file damaged?") from None
    body = text.rstrip("\0")
    return body.encode(), mark, encoding, text[len(body) :]


class _Reader:
    """One pass of expat over a packet in UTF-8."""

    def __init__(self, xml: bytes) -> None:
        self.xml = xml
        self.open: list[_Open] = []
        self.scopes: list[Mapping[str, str]] = [{"xml": "http://www.w3.org/XML/1998/namespace"}]
        self.declared: dict[str, str] = {}
        self.sites: dict[Name, list[Site]] = {}
        self.descriptions: list[_Tag] = []
        self.ours: list[_Tag] = []
        self.rdf: _Tag | None = None
        self.close = 0

    def packet(self, mark: bytes, encoding: str, nuls: str) -> Packet:
        # The encoding is said here because the text was recoded; what its declaration says no longer holds.
        self.parser = parser = expat.ParserCreate("UTF-8", _SEPARATOR)
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartNamespaceDeclHandler = self._declare
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        try:
            parser.Parse(self.xml, True)
        except expat.ExpatError as error:
            raise PacketError(
                f"is not well-formed XML (line {error.lineno}, column {error.offset + 1}: "
                f"{expat.ErrorString(error.code)}): mend it, or remove it"
            ) from None
        if self.rdf is None:
            raise PacketError("expected XMP, but it is XML without rdf:RDF: is it another kind of file?")
        return Packet(
            self.xml, mark, encoding, nuls, self.sites, self.descriptions, self.ours, self.rdf, self.close
        )  # fmt: skip

    def _doctype(self, *_: object) -> None:
        raise PacketError(
            f"expected XMP, but it has a DTD (line {self.parser.CurrentLineNumber}), which XMP does not allow: "
            "remove it"
        )

    def _declare(self, prefix: str | None, uri: str | None) -> None:
        self.declared[prefix or ""] = uri or ""

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        if self.declared:
            self.scopes.append({**self.scopes[-1], **self.declared})
            self.declared = {}
        else:
            self.scopes.append(self.scopes[-1])
        tag = self._tag(self.parser.CurrentByteIndex, self.scopes[-1])
        full = _name(name)
        above = self.open[-1] if self.open else None
        role = "other"
        if full == (RDF, "RDF") and not any(one.role == "rdf" for one in self.open):
            role, self.rdf = "rdf", self.rdf or tag  # a second one should not be, and is read all the same
        elif above is not None and above.role == "rdf" and full == (RDF, "Description"):
            role = "description"
            self.descriptions.append(tag)
            self._attributes(tag, attributes)
        elif above is not None and above.role == "description":
            role = "property"
        elif above is not None and above.role == "property" and full == (RDF, "Description"):
            role = "inner"
        elif above is not None and above.role in ("property", "inner") and full == (RDF, "value"):
            role = "value"
        self.open.append(_Open(role, tag, full))
        value = attributes.get(f"{RDF}{_SEPARATOR}value")
        if value is not None and role in ("property", "inner"):
            self._holder().value = value

    def _holder(self) -> _Open:
        """The property that is open."""
        return next(one for one in reversed(self.open) if one.role == "property")

    def _text(self, text: str) -> None:
        self.open[-1].text.append(text)

    def _end(self, _: str) -> None:
        here = self.open.pop()
        self.scopes.pop()
        # For <x/> expat reports the end of the tag, which is what it should be.
        end = here.tag.end if here.tag.empty else self.parser.CurrentByteIndex
        if here.role == "rdf" and here.tag is self.rdf:
            self.close = end
        elif here.role == "value":
            self._holder().value = "".join(here.text)
        elif here.role == "property" and _wanted(here.name):
            self._property(here, end)

    def _tag(self, start: int, scope: Mapping[str, str]) -> _Tag:
        """The start tag at `start`; it is well-formed, because expat has just said so."""
        name = _TAG_NAME.match(self.xml, start)
        assert name is not None
        at, blank = name.end(), " "
        found = []
        while (one := _ATTRIBUTE.match(self.xml, at)) is not None:
            prefix, _, local = one[2].decode().rpartition(":")
            group = 3 if one[3] is not None else 4
            found.append((prefix, local, one.start(), one.start(group), one.end(group)))
            at, blank = one.end(), one[1].decode()
        close = _TAG_END.match(self.xml, at)
        assert close is not None
        return _Tag(start, close.end(), name[1].decode(), bool(close[1]), scope, found, at, blank)

    def _attributes(self, tag: _Tag, values: Mapping[str, str]) -> None:
        """Properties written as attributes of an rdf:Description."""
        for prefix, local, blank, start, end in tag.attributes:
            name = (tag.scope.get(prefix, ""), local) if prefix else ("", local)
            if _wanted(name):
                # The closing quote belongs to the property.
                site = Site(values[f"{name[0]}{_SEPARATOR}{local}"], start, end, (blank, end + 1))
                self._add(name, site, tag)

    def _property(self, here: _Open, end: int) -> None:
        """A property written as an element: `end` is where its end tag begins, or where <x/> ends."""
        tag = here.tag
        last = end if tag.empty else self.xml.index(b">", end) + 1
        inside = b"" if tag.empty else self.xml[tag.end : end]
        value = here.value if here.value is not None else "".join(here.text)
        before = len(self.xml[: tag.start].rstrip())
        blank = before if self.xml[before - 1 : before] == b">" else tag.start
        start = tag.insert if tag.empty else tag.end + len(inside) - len(inside.lstrip())
        stop = tag.end if tag.empty else max(start, tag.end + len(inside.rstrip()))
        # rdf:resource and rdf:parseType say that the value is not the text.
        odd = any(tag.scope.get(prefix) == RDF for prefix, *_ in tag.attributes)
        plain = here.value is None and b"<" not in inside and not odd
        site = Site(value, start, stop, (blank, last), tag.name if tag.empty else "", plain)
        self._add(here.name, site, self.descriptions[-1])

    def _add(self, name: Name, site: Site, tag: _Tag) -> None:
        self.sites.setdefault(name, []).append(site)
        if name[0] == MILNET and tag not in self.ours:
            self.ours.append(tag)


def _name(name: str) -> Name:
    """Namespace and local name as expat joins them; "" for the namespace of a name without one."""
    uri, _, local = name.rpartition(_SEPARATOR)
    return uri, local


def _wanted(name: Name) -> bool:
    return name[0] == MILNET or name in (RATING, EXTENSION) or name in PERCENT


def set_properties(packet: Packet, values: Mapping[Name, str | None]) -> bytes:
    """The packet with each of these properties at its value, or without it where that is None; `data` again if so.

    Values are plain text. A property that stands in the packet changes where it stands, as attribute or element; a new
    one becomes an attribute beside our others, or of an rdf:Description of its own at the end. Raises PacketError when
    a property is written in a form that only can be read (qualifiers, comments inside).
    """
    edits: list[tuple[int, int, str]] = []
    missing: dict[Name, str] = {}
    for name, value in values.items():
        sites = packet.sites.get(name, [])
        for site in sites:
            if value is not None and site.value.strip() == value:
                continue
            if not site.plain:
                raise PacketError(
                    f"{name[1]} is written with qualifiers or comments inside, which milnet does not change: "
                    "set it with the program that wrote it"
                )
            if value is None:
                edits.append((*site.whole, ""))
            elif site.element:
                edits.append((site.start, site.end, f">{escape(value)}</{site.element}>"))
            else:
                edits.append((site.start, site.end, escape(value)))
        if value is not None and not sites:
            missing[name] = value
    if missing:
        edits.append(_insertion(packet, missing))
    xml = packet.xml
    for start, end, text in sorted(edits, reverse=True):
        xml = xml[:start] + text.encode() + xml[end:]
    return encode(packet, xml)


def encode(packet: Packet, xml: bytes) -> bytes:
    """UTF-8 text in the encoding of the packet, with its byte order mark and its NULs."""
    return packet.mark + (xml.decode() + packet.nuls).encode(packet.encoding)


def _insertion(packet: Packet, missing: Mapping[Name, str]) -> tuple[int, int, str]:
    """Where new properties go, and their text."""
    if packet.ours:
        tag = packet.ours[0]
        return tag.insert, tag.insert, _as_attributes(tag.scope, missing, tag.blank)
    rdf = packet.rdf
    about = _about(packet)
    before = packet.xml[: packet.descriptions[0].start] if packet.descriptions else b""
    stripped = before.rstrip()
    indent = before[len(stripped) :].decode() if stripped.endswith(b">") else ("" if before else "\n ")
    prefix, declaration = _prefix(rdf.scope, RDF)
    # From the namespaces that hold in rdf:RDF; what a neighbour declares does not hold here.
    inner = {**rdf.scope, prefix: RDF}
    attributes = _as_attributes(inner, missing, f"{indent}  " if indent else " ")
    block = f"{indent}<{prefix}:Description{declaration} {prefix}:about={about}{attributes}/>"
    if rdf.empty:
        return rdf.insert, rdf.end, f">{block}\n</{rdf.name}>"
    at = len(packet.xml[: packet.close].rstrip())
    at = at if packet.xml[at - 1 : at] == b">" else packet.close
    return at, at, block


def _about(packet: Packet) -> str:
    """rdf:about in its quotes: all descriptions of a packet have the same."""
    for tag in packet.descriptions:
        for prefix, local, _, start, end in tag.attributes:
            if local == "about" and (not prefix or tag.scope.get(prefix) == RDF):
                return packet.xml[start - 1 : end + 1].decode()
    return '""'


def _as_attributes(scope: Mapping[str, str], values: Mapping[Name, str], blank: str) -> str:
    """Properties as attributes; namespaces without a prefix in `scope` are declared first."""
    scope = dict(scope)
    declarations, texts = "", ""
    for (uri, local), value in values.items():
        prefix, declaration = _prefix(scope, uri)
        scope[prefix] = uri
        declarations += f"{blank}{declaration.lstrip()}" if declaration else ""
        texts += f'{blank}{prefix}:{local}="{escape(value)}"'
    return declarations + texts


def _prefix(scope: Mapping[str, str], uri: str) -> tuple[str, str]:
    """A prefix for a namespace, and its declaration with a blank before it where it needs one."""
    usual = PREFIXES[uri]
    if scope.get(usual) == uri:
        return usual, ""
    for prefix, bound in scope.items():
        if bound == uri and prefix:
            return prefix, ""
    number = 0
    while (prefix := f"{usual}{number or ''}") in scope:
        number += 1
    return prefix, f' xmlns:{prefix}="{uri}"'


def escape(text: str) -> str:
    """Text as it stands in an attribute or an element."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&apos;")):
        text = text.replace(character, entity)
    return text


def new_packet(values: Mapping[Name, str | None], *, padded: bool = False) -> bytes:
    """A packet that says this and nothing else, in UTF-8; `padded` with 2,000 blanks, for the inside of a photo."""
    given = {name: value for name, value in values.items() if value is not None}
    attributes = _as_attributes({"rdf": RDF}, given, "\n   ")
    text = (
        f'{HEAD}<x:xmpmeta xmlns:x="adobe:ns:meta/">\n <rdf:RDF xmlns:rdf="{RDF}">\n'
        f'  <rdf:Description rdf:about=""{attributes}/>\n </rdf:RDF>\n</x:xmpmeta>'
    )
    return (text + (f"\n{_PADDING}".rstrip("\n") if padded else "") + TAIL).encode()


def fit(data: bytes, size: int) -> bytes | None:
    """The packet with more or fewer blanks before its `<?xpacket end`, `size` bytes long; None where that cannot be.

    Only for UTF-8: a packet in a JPEG is never anything else.
    """
    at = data.rfind(b"<?xpacket end")
    if at < 0:
        return None
    blanks = at - len(data[:at].rstrip(b" \t\r\n"))
    surplus = len(data) - size
    if surplus > 0:
        return data[: at - surplus] + data[at:] if blanks >= surplus else None
    return data[:at] + b" " * -surplus + data[at:]
