"""XMP packets: what they say, and that only our bytes change."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milnet.packets import (
    MILNET,
    RATING,
    RDF,
    STARS,
    XMP,
    PacketError,
    fit,
    new_packet,
    rating_of,
    read_packet,
    set_properties,
    stars_of_percent,
)

RDF_NS = f'xmlns:rdf="{RDF}"'
XMP_NS = f'xmlns:xmp="{XMP}"'
DC = "http://purl.org/dc/elements/1.1/"
SCORE = (MILNET, "Score")
LOW = (MILNET, "Low")
OURS = {RATING: "4", STARS: "4", SCORE: "5.1200"}


def wrap(inside: str, meta: str = "xmpmeta") -> str:
    return f'<x:{meta} xmlns:x="adobe:ns:meta/">\n <rdf:RDF {RDF_NS}>\n{inside}\n </rdf:RDF>\n</x:{meta}>'


KEYWORDS = f'<dc:subject xmlns:dc="{DC}"><rdf:Bag><rdf:li>a &amp; b</rdf:li><rdf:li>ü</rdf:li></rdf:Bag></dc:subject>'
# name -> packet, the rating in it
CASES: dict[str, tuple[str, int | None]] = {
    "attribute": (wrap(f'  <rdf:Description rdf:about="" {XMP_NS} xmp:Rating="3" xmp:Label="Red"/>'), 3),
    "element": (wrap(f'<rdf:Description rdf:about="" {XMP_NS}><xmp:Rating> 2 </xmp:Rating></rdf:Description>'), 2),
    "single quotes": (wrap(f"<rdf:Description rdf:about='' {XMP_NS}  xmp:Rating = '5' />").replace('"', "'"), 5),
    "old prefix": (
        wrap(f'<rdf:Description about="" xmlns:xap="{XMP}" xap:Rating="1"></rdf:Description>', "xapmeta"),
        1,
    ),
    "default namespace": (wrap(f'<rdf:Description rdf:about=""><Rating xmlns="{XMP}">3</Rating></rdf:Description>'), 3),
    "several": (
        wrap(
            f'  <rdf:Description rdf:about="uuid:1">{KEYWORDS}</rdf:Description>\n'
            f'  <rdf:Description rdf:about="uuid:1" {XMP_NS}>\n   <xmp:Rating>3</xmp:Rating>\n  </rdf:Description>\n'
            '  <rdf:Description rdf:about="uuid:1" xmlns:y="urn:y" y:z="&lt;&#10;\'>"/>'
        ),
        3,
    ),
    "reference": (wrap(f'<rdf:Description rdf:about="" {XMP_NS} xmp:Rating="&#52;"/>'), 4),
    "rejected": (wrap(f'<rdf:Description rdf:about="" {XMP_NS} xmp:Rating="-1"/>'), -1),
    "real number": (wrap(f'<rdf:Description rdf:about="" {XMP_NS} xmp:Rating="3.5"/>'), 4),
    "zero": (wrap(f'<rdf:Description rdf:about="" {XMP_NS} xmp:Rating="0"/>'), None),
    "empty rating": (wrap(f'<rdf:Description rdf:about="" {XMP_NS}><xmp:Rating/></rdf:Description>'), None),
    "no text": (wrap(f'<rdf:Description rdf:about="" {XMP_NS}><xmp:Rating></xmp:Rating></rdf:Description>'), None),
    "no rating": (wrap(f'<rdf:Description rdf:about="">{KEYWORDS}</rdf:Description>'), None),
    "no description": (wrap(""), None),
    "empty description": (wrap("<rdf:Description/>"), None),
    "empty RDF": (f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF_NS}/></x:xmpmeta>', None),
    "RDF alone": (f'<rdf:RDF {RDF_NS}><rdf:Description rdf:about="" {XMP_NS} xmp:Rating="2"/></rdf:RDF>', 2),
    "RDF by default": (f'<RDF xmlns="{RDF}"><Description about="" {XMP_NS} xmp:Rating="2"/></RDF>', 2),
    "other prefixes": (
        f'<r:RDF xmlns:r="{RDF}" xmlns:xmp="urn:x" xmlns:milnet="urn:y"><r:Description r:about="" xmp:Rating="9" '
        f'milnet:Stars="2" xmlns:rdf="urn:rdf"/><r:Description r:about="" xmlns:q="{XMP}" q:Rating="2"/></r:RDF>',
        2,
    ),
    "taken prefixes": (
        f'<r:RDF xmlns:r="{RDF}" xmlns:xmp="urn:x" xmlns:milnet="urn:y"><r:Description xmp:Rating="9"/></r:RDF>',
        None,
    ),
    "two RDF": (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF_NS}><rdf:Description/></rdf:RDF> <rdf:RDF {RDF_NS}>'
        f'<rdf:Description {XMP_NS} xmp:Rating="2"/></rdf:RDF></x:xmpmeta>',
        2,
    ),
    "nested": (
        wrap(
            f'<rdf:Description rdf:about="" {XMP_NS} xmlns:s="urn:s"><s:one rdf:parseType="Resource"><xmp:Rating>5'
            "</xmp:Rating></s:one><s:two><rdf:Description xmp:Rating='5'/></s:two></rdf:Description>"
        ),
        None,
    ),
    "declaration": ('<?xml version="1.0" encoding="UTF-8"?>\r\n' + wrap("<rdf:Description rdf:about=''/>\r\n"), None),
    "comments": (
        "<!-- <xmp:Rating>5</xmp:Rating> -->"
        + wrap(f"<rdf:Description rdf:about='' {XMP_NS}><!--'>\"--><?pi >?><xmp:Rating>1</xmp:Rating><![CDATA[ ]]>")
        .replace("</x:xmpmeta>", "</x:xmpmeta>\n<!-- end -->")
        .replace("\n </rdf:RDF>", "</rdf:Description><!-- last --></rdf:RDF>"),
        1,
    ),
    "Microsoft": (
        wrap('<rdf:Description xmlns:MicrosoftPhoto="http://ns.microsoft.com/photo/1.0/" MicrosoftPhoto:Rating="75"/>'),
        4,
    ),
    "older Microsoft": (
        wrap('<rdf:Description xmlns:m="http://ns.microsoft.com/photo/1.0"><m:Rating>1</m:Rating></rdf:Description>'),
        1,
    ),
    "wrapped": (
        "<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>\n"
        + wrap(f"<rdf:Description rdf:about='' {XMP_NS} xmp:Rating='3'/>")
        + "\n"
        + (" " * 99 + "\n") * 3
        + "<?xpacket end='w'?>",
        3,
    ),
}


def tree(data: bytes | str) -> object:
    """A packet as ElementTree sees it, without our properties, ratings, empty descriptions and blanks."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True, insert_pis=True))
    root = ET.fromstring(data, parser)

    def ours(name: object) -> bool:
        return isinstance(name, str) and (name.startswith(f"{{{MILNET}}}") or name == f"{{{XMP}}}Rating")

    def see(node: ET.Element, parent: str) -> object:
        is_description = parent == f"{{{RDF}}}RDF" and node.tag == f"{{{RDF}}}Description"
        inside = is_description
        attributes = {k: v for k, v in node.attrib.items() if not (is_description and ours(k))}
        children = [see(child, str(node.tag)) for child in node if not (inside and ours(child.tag))]
        children = [child for child in children if child is not None]
        text, tail = (node.text or "").strip(), (node.tail or "").strip()
        # What stands behind a property of ours, or before it, is nobody's but its neighbour's.
        if is_description and not children and not text and attributes.keys() <= {f"{{{RDF}}}about", "about"}:
            return None
        return (str(node.tag), tuple(sorted(attributes.items())), text, tuple(children), tail)

    return see(root, "")


def test_cases_are_what_they_should_be() -> None:
    for name, (text, rating) in CASES.items():
        packet = read_packet(text.encode())
        assert packet.rating == rating, name
        assert packet.human == rating and packet.stars is None, name


@pytest.mark.parametrize("name", CASES)
def test_only_our_bytes_change(name: str) -> None:
    before = CASES[name][0].encode()
    packet = read_packet(before)
    after = set_properties(packet, OURS)
    again = read_packet(after)
    assert again.rating == 4 and again.stars == 4 and again.human is None
    assert [site.value for site in again.sites[SCORE]] == ["5.1200"]
    assert tree(after) == tree(before)
    assert set_properties(again, OURS) == after
    # In bytes: without the description that was added, and with the old rating, it is the packet that was.
    old = re.compile(rb"""(Rating(?:\s*=\s*["']|[^<>]*>\s*))4""")
    without = re.sub(
        rb"[ \n]*<(\w+):Description(?: xmlns:\w+=\S+)?\s+\1:about=\S*\s[^<>]*urn:milnet[^<>]*/>", b"", after
    )
    if name in ("empty RDF", "empty rating"):
        return
    for site in packet.sites.get(RATING, ()):
        value = before[site.start : site.end]
        without = old.sub(lambda match, value=value: match[1] + value, without, count=1)
    assert without == before


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
@pytest.mark.parametrize("name", ["several", "declaration", "wrapped", "empty RDF"])
def test_encodings_stay(name: str, encoding: str) -> None:
    text = CASES[name][0]
    if "16" in encoding or "32" in encoding:
        text = text.replace("UTF-8", encoding[:6].upper())
    data = text.encode(encoding)
    if encoding == "utf-8-sig" or encoding.endswith(("16", "32")):
        assert data[:2] != text[:2].encode()  # it has a mark
    after = set_properties(read_packet(data), OURS)
    expected = set_properties(read_packet(text.encode("utf-8")), OURS).decode()
    assert after == expected.encode(encoding)
    assert read_packet(after).stars == 4
    assert set_properties(read_packet(after), OURS) == after


def test_nuls_at_the_end_stay() -> None:
    data = CASES["attribute"][0].encode() + b"\0\0\0"
    after = set_properties(read_packet(data), OURS)
    assert after.endswith(b"</x:xmpmeta>\0\0\0") and read_packet(after).rating == 4


def test_removing_gives_back_what_was() -> None:
    """A description that held our properties loses them, and nothing else."""
    for name in ("attribute", "several", "comments"):
        packet = read_packet(set_properties(read_packet(CASES[name][0].encode()), OURS))
        gone = read_packet(set_properties(packet, dict.fromkeys(OURS, None)))
        assert gone.rating is None and not gone.sites
        assert tree(gone.data) == tree(CASES[name][0])
        assert not re.search(rb"\smilnet:", gone.data)


def test_elements_that_another_program_made_of_ours() -> None:
    """exiftool writes our properties as elements in an order of its own; they change where they stand."""
    text = wrap(
        f'<rdf:Description rdf:about="" xmlns:m="{MILNET}">\n  <m:Low>1.0000</m:Low>\n  <m:Score>2.0000</m:Score>\n'
        f"  <m:Stars>3</m:Stars>\n</rdf:Description>\n"
        f"<rdf:Description {XMP_NS}><xmp:Rating>3</xmp:Rating></rdf:Description>"
    )
    after = set_properties(read_packet(text.encode()), {**OURS, LOW: None, (MILNET, "High"): "6.0000"}).decode()
    expected = text.replace("\n  <m:Low>1.0000</m:Low>", "").replace("2.0000", "5.1200").replace(">3<", ">4<")
    assert after == expected.replace(f'xmlns:m="{MILNET}"', f'xmlns:m="{MILNET}" m:High="6.0000"')


def test_a_rating_is_added_beside_our_properties() -> None:
    packet = read_packet(set_properties(read_packet(wrap("").encode()), {SCORE: "5.0000"}))
    after = set_properties(packet, OURS)
    assert after.count(b"rdf:Description") == 1 and read_packet(after).rating == 4
    assert after == packet.data.replace(
        b'milnet:Score="5.0000"', b'milnet:Score="5.1200"\n   xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        b'\n   xmp:Rating="4"\n   milnet:Stars="4"'
    )  # fmt: skip


@pytest.mark.parametrize(
    "inside",
    [
        '<xmp:Rating rdf:parseType="Resource"><rdf:value>3</rdf:value><q:by xmlns:q="urn:q">me</q:by></xmp:Rating>',
        '<xmp:Rating><rdf:Description xmlns:q="urn:q"><rdf:value>3</rdf:value><q:by>me</q:by></rdf:Description>'
        "</xmp:Rating>",
        '<xmp:Rating rdf:value="3" q:by="me" xmlns:q="urn:q"/>',
        '<xmp:Rating><rdf:Description rdf:value="3" q:by="me" xmlns:q="urn:q"/></xmp:Rating>',
        "<xmp:Rating><!-- three -->3</xmp:Rating>",
        "<xmp:Rating><![CDATA[3]]></xmp:Rating>",
    ],
)
def test_qualified_ratings_are_read_and_not_changed(inside: str) -> None:
    packet = read_packet(wrap(f"<rdf:Description {XMP_NS}>{inside}</rdf:Description>").encode())
    assert packet.human == 3
    with pytest.raises(PacketError, match="Rating is written with qualifiers or comments inside"):
        set_properties(packet, OURS)
    assert read_packet(set_properties(packet, {SCORE: "1"})).human == 3
    assert set_properties(packet, {RATING: "3"}) == packet.data  # it says so already


def test_which_of_two_ratings() -> None:
    """There should be one; with two, the one that is not ours is a human's."""
    for first, second in (("4", "2"), ("2", "4"), ("0", "2")):
        text = wrap(
            f'<rdf:Description {XMP_NS} xmp:Rating="{first}"/><rdf:Description {XMP_NS} xmlns:m="{MILNET}" m:Stars="4">'
            f"<xmp:Rating>{second}</xmp:Rating></rdf:Description>"
        )
        packet = read_packet(text.encode())
        assert packet.human == 2
        both = read_packet(set_properties(packet, OURS))
        assert [site.value for site in both.sites[RATING]] == ["4", "4"] and both.human is None
    # The rating of MicrosoftPhoto counts only where there is no other.
    text = wrap(
        f'<rdf:Description {XMP_NS} xmp:Rating="2" xmlns:m="http://ns.microsoft.com/photo/1.0/" m:Rating="99"/>'
    )
    assert read_packet(text.encode()).human == 2
    assert read_packet(text.replace('"2"', '"0"').encode()).human == 5


def test_numbers() -> None:
    assert [rating_of(value) for value in (-1, -0.5, 0, 0.4, 0.5, 1, 4.49, 4.5, 5)] == [-1, -1, 0, 0, 1, 1, 4, 5, 5]
    assert [stars_of_percent(p) for p in (0, 1, 12, 13, 25, 37, 38, 50, 63, 75, 87, 88, 99, 100)] == [
        None, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5,
    ]  # fmt: skip
    for value in (-2, 5.01, float("nan"), float("inf")):
        with pytest.raises(PacketError, match="expected a rating from -1 to 5"):
            rating_of(value)
    with pytest.raises(PacketError, match="0 to 100 %"):
        stars_of_percent(101)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b" \n\0", "it is empty"),
        (b"\xff\xd8\xff\xe0 a photo", r"is not UTF-8 \(byte 0\)"),
        (CASES["several"][0].encode()[:-20], "is not well-formed XML .line 8, column 2: unclosed token"),
        (wrap("<rdf:Description y:z='1'/>").encode(), "unbound prefix"),
        (wrap("<rdf:Description y='1' y='2'/>").encode(), "duplicate attribute"),
        (wrap("&lol;").encode(), "undefined entity"),
        (b"<html><body/></html>", "XML without rdf:RDF"),
        (b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + wrap("&a;").encode(), r"has a DTD \(line 1\)"),
        (b'<!DOCTYPE x SYSTEM "file:///etc/passwd">' + wrap("").encode(), "has a DTD"),
        (('<?xml version="1.0" encoding="ISO-8859-1"?>' + wrap("ü")).encode("latin-1"), "got the encoding ISO-8859-1"),
        (wrap("").encode("utf-16-le")[:-1], r"is not UTF-16-LE"),
        (wrap("").encode() + b"trailing", "is not well-formed XML"),
    ],
)
def test_what_is_no_xmp_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(PacketError, match=reason):
        read_packet(data)


def test_ratings_that_are_none() -> None:
    for text, reason in (("good", "expected a number in Rating, got 'good'"), ("7", "from -1 to 5, got 7")):
        packet = read_packet(wrap(f'<rdf:Description {XMP_NS} xmp:Rating="{text}"/>').encode())
        with pytest.raises(PacketError, match=reason):
            _ = packet.human
        assert read_packet(set_properties(packet, OURS)).rating == 4  # who is told to may replace it


def test_values_are_escaped() -> None:
    odd = "a<b>&\"'ü"
    for packet in (read_packet(wrap("").encode()), read_packet(CASES["attribute"][0].encode())):
        after = read_packet(set_properties(packet, {(MILNET, "Model"): odd}))
        assert after.sites[MILNET, "Model"][0].value == odd
    element = wrap(f'<rdf:Description xmlns:m="{MILNET}"><m:Model>x</m:Model></rdf:Description>')
    after = read_packet(set_properties(read_packet(element.encode()), {(MILNET, "Model"): odd}))
    assert after.sites[MILNET, "Model"][0].value == odd


def test_new_packets() -> None:
    for padded in (False, True):
        data = new_packet({**OURS, LOW: None}, padded=padded)
        packet = read_packet(data)
        assert packet.rating == 4 and LOW not in packet.sites and set_properties(packet, OURS) == data
        assert (len(data) > 2000) == padded


def test_fit() -> None:
    data = CASES["wrapped"][0].encode()
    for size in (len(data), len(data) - 1, len(data) - 301, len(data) + 500):
        fitted = fit(data, size)
        assert fitted is not None and len(fitted) == size and tree(fitted) == tree(data)
        assert b"".join(fitted.split()) == b"".join(data.split())
    assert fit(data, len(data) - 302) is None and fit(wrap("").encode(), 1000) is None


# ---- any packet ------------------------------------------------------------------------------------------------------

blanks = st.sampled_from([" ", "\n", "\r\n\t", "   "])
texts = st.text(st.sampled_from("ab<&'\" ü>\n]4"), max_size=6)


def quoted(text: str, quote: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", "&#10;")
    return quote + text.replace(quote, "&apos;" if quote == "'" else "&quot;") + quote


@st.composite
def packets(draw: st.DrawFn) -> str:
    """A valid packet: any prefixes, quotes, order, blanks; ratings and properties of ours in any form."""
    xmp, mil, rdf = draw(st.permutations(["xmp", "milnet", "rdf", "a", "b-c", "xap"]))[:3]
    foreign = "q"
    spaces = {xmp: XMP, mil: MILNET, foreign: "urn:q"}
    pool = [(xmp, "Rating"), (mil, "Stars"), (mil, "Score"), (mil, "Low")]
    given_ = draw(st.lists(st.sampled_from(pool), unique=True))
    others = [(foreign, f"p{number}") for number in range(draw(st.integers(0, 3)))]
    properties = draw(st.permutations([*given_, *others]))
    cuts = sorted(draw(st.lists(st.integers(0, len(properties)), max_size=3)))
    top = draw(st.booleans())  # namespaces declared at the top, or where they are used
    about = draw(st.sampled_from(["", f' {rdf}:about=""', f" {rdf}:about='uuid:ü'"]))
    blocks = []
    for start, end in zip([0, *cuts], [*cuts, len(properties)], strict=True):
        attributes, elements = "", ""
        for prefix, name in properties[start:end]:
            value = draw(st.sampled_from(["0", "3", "4", "-1"])) if prefix != foreign else draw(texts)
            blank, quote = draw(blanks), draw(st.sampled_from("'\""))
            kind = draw(
                st.sampled_from(["attribute", "element", "list"] if prefix == foreign else ["attribute", "element"])
            )
            if kind == "attribute":
                attributes += f"{blank}{prefix}:{name}{draw(st.sampled_from(['=', ' = ']))}{quoted(value, quote)}"
                continue
            inside = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            if kind == "list":
                inside = f"<{rdf}:Bag><{rdf}:li {xmp}:Rating='2'>{inside}</{rdf}:li></{rdf}:Bag>"
            elements += f"{blank}<{prefix}:{name}>{inside}</{prefix}:{name}>{draw(st.sampled_from(['', '<!-- > -->']))}"
        declared = "" if top else "".join(f' xmlns:{prefix}="{uri}"' for prefix, uri in spaces.items())
        tag = f"<{rdf}:Description{about}{declared}{attributes}{draw(st.sampled_from(['', ' ', chr(10)]))}"
        close = f"{elements}{draw(blanks)}</{rdf}:Description>"
        blocks.append(tag + ("/>" if not elements and draw(st.booleans()) else f">{close}"))
    declared = "".join(f" xmlns:{prefix}='{uri}'" for prefix, uri in spaces.items()) if top else ""
    body = draw(blanks).join(blocks) + draw(st.sampled_from(["", "\n ", "<!-- -->", "<?p?>"]))
    text = f'<{rdf}:RDF xmlns:{rdf}="{RDF}"{declared}>{draw(st.sampled_from(["", chr(10)]))}{body}</{rdf}:RDF>'
    if draw(st.booleans()):
        text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{text}</x:xmpmeta>'
    return draw(st.sampled_from(["", '<?xml version="1.0"?>', "<!-- a -->\n", "<?xpacket begin=''?>"])) + text


wanted = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(st.none(), st.sampled_from(["1", "4", "<&'\">"] if name == SCORE else ["1", "4", "-1"]))
        for name in (RATING, STARS, SCORE, LOW)
    },
)


@settings(max_examples=600, deadline=None)
@given(packets(), wanted)
def test_any_packet(text: str, values: dict[tuple[str, str], str | None]) -> None:
    """Whatever the packet: ElementTree sees our values, and all else as it was; the same again changes no byte."""
    before = read_packet(text.encode())
    after = set_properties(before, values)
    assert tree(after) == tree(text)
    found: dict[tuple[str, str], list[str]] = {}
    root = ET.fromstring(after)
    for node in root.findall(f".//{{{RDF}}}Description"):
        named = [*node.attrib.items(), *((child.tag, child.text or "") for child in node)]
        for name, value in named:
            uri, _, local = name[1:].partition("}")
            found.setdefault((uri, local), []).append(value)
    for name, value in values.items():
        assert found.get(name, []) == ([] if value is None else [value] * max(1, len(before.sites.get(name, []))))
    for name in (RATING, STARS, SCORE, LOW):
        if name not in values:
            assert found.get(name, []) == [site.value for site in before.sites.get(name, [])]
    assert set_properties(read_packet(after), values) == after
    assert before.data == text.encode()
