"""The service's own OpenAPI document against the service: what it promises is what comes, whatever is asked."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

import made_files
from made_scenes import scene_jpeg
from served import Served, form_of, service

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.checks import CHECKS, load_all_checks  # noqa: E402

load_all_checks()
NAMES = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]
EXAMPLES = 60  # an operation and way of generating
OPERATIONS = [
    ("post", "/v1/score"),
    ("post", "/v1/explain"),
    ("post", "/v1/bursts"),
    ("post", "/v1/tastes"),
    ("get", "/v1/tastes/{name}/download"),
    ("delete", "/v1/tastes/{name}"),
    ("post", "/v1/preview"),
    ("get", "/v1/models/{name}/pool/{number}"),
    ("get", "/v1/models"),
    ("get", "/v1/health"),
    ("get", "/v1/ready"),
    ("get", "/v1/metrics"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with small limits."""
    with service(tmp_path_factory.mktemp("schema"), "--max-bytes", 1, "--max-photos", 30) as one:
        yield one


@pytest.fixture(scope="module")
def schema(served: Served) -> Any:
    """What it says of itself."""
    return schemathesis.openapi.from_dict(served.get("/v1/openapi.json").json())


def checked(case: Any, served: Served) -> Any:
    """Send a request; the answer must be what is promised."""
    checks = [CHECKS.get_one(name) for name in NAMES]
    return case.call_and_validate(base_url=served.url, checks=checks, timeout=30)


def test_all_operations(schema: Any, served: Served) -> None:
    """Those in the document are those that are tested here, and each is known by a text."""
    document = served.get("/v1/openapi.json").json()
    found = [(method, path) for path, of in document["paths"].items() for method in of]
    assert sorted(found) == sorted(OPERATIONS)
    assert all(document["paths"][path][method]["description"] for method, path in OPERATIONS)
    assert document["openapi"].startswith("3.1") and "security" not in document


def test_it_is_openapi(served: Served) -> None:
    """Every reference leads somewhere, and examples fit their schemas."""
    import jsonschema_rs

    document = served.get("/v1/openapi.json").json()
    schemas = document["components"]["schemas"]

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].removeprefix("#/components/schemas/") in schemas, node
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    shown = 0
    for name, one in schemas.items():
        whole = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
        for example in one.get("examples", []):
            jsonschema_rs.validator_for(whole).validate(example)
            shown += 1
    assert shown >= 3


# Where a request can be wrong in a way that the document tells: not where any text and any bytes fit.
STRICT = [
    ("post", "/v1/score"),
    ("post", "/v1/explain"),
    ("post", "/v1/bursts"),
    ("post", "/v1/tastes"),
    ("get", "/v1/models/{name}/pool/{number}"),
]
WAYS = [(*one, "positive") for one in OPERATIONS] + [(*one, "negative") for one in STRICT]


@pytest.mark.parametrize(("method", "path", "how"), WAYS)
def test_anything(schema: Any, served: Served, method: str, path: str, how: str) -> None:
    """Requests that fit the document, and such that do not."""
    mode = schemathesis.GenerationMode.POSITIVE if how == "positive" else schemathesis.GenerationMode.NEGATIVE
    strategy = schema[path][method].as_strategy(generation_mode=mode)
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def run(case: Any) -> None:
        statuses[checked(case, served).status_code] += 1

    run()
    assert statuses.total() > 0 and max(statuses) < 500
    assert served.get("/v1/ready").status == 200


def test_good_answers(schema: Any, served: Served) -> None:
    """Answers that say something: with all their members, as promised."""

    def ask(method: str, path: str, status: int, **how: Any) -> Any:
        answer = checked(schema[path][method].Case(**how), served)
        assert answer.status_code == status, answer.content[:500]
        return answer

    photos = [(f"{i}.jpg", scene_jpeg(i, exif=made_files.exif_block())) for i in range(14)]
    body, kind = form_of(photos)
    form = ask("post", "/v1/score", 200, body=body, media_type="multipart/form-data", headers={"Content-Type": kind})
    ids = [one["id"] for one in form.json()["scores"]]
    assert len(ids) == 14
    one = ask("post", "/v1/explain", 200, body=photos[0][1], media_type="image/jpeg", query={"name": "a/b.jpg"})
    assert one.json()["scores"][0]["references"]
    for path in ("/v1/score", "/v1/explain"):
        known = {"ids": [*ids, "0" * 64]}
        mixed = ask("post", path, 200, body=known, media_type="application/json")
        assert [f["unknown"] for f in mixed.json()["failures"]] == [True]
        lines = ask(
            "post", path, 200, body=known, media_type="application/json", headers={"Accept": "application/x-ndjson"}
        )
        assert json.loads(lines.text.splitlines()[-1]) == {"done": {"scored": 14, "failed": 1}}
        ask("post", path, 422, body={"ids": ["0" * 64]}, media_type="application/json")
        ask("post", path, 404, body={"ids": ids}, media_type="application/json", query={"model": "none"})
    ask("post", "/v1/bursts", 200, body={"ids": ids}, media_type="application/json")
    webp = ask("post", "/v1/preview", 200, body=photos[0][1], media_type="image/jpeg")
    assert webp.content[8:12] == b"WEBP"
    ask("post", "/v1/preview", 422, body=b"none", media_type="application/octet-stream")
    ratings = [{"id": digest, "rating": 1 + i % 5} for i, digest in enumerate(ids)]
    lesson = {"name": "mine", "model": "pocket", "ratings": ratings}
    taste = ask("post", "/v1/tastes", 201, body=lesson, media_type="application/json")
    assert taste.json()["checked"]["photos"] == 14
    ask("post", "/v1/tastes", 409, body=lesson, media_type="application/json")
    missing = {"ratings": [*ratings, {"id": "0" * 64, "rating": 1}]}
    assert ask("post", "/v1/tastes", 409, body=missing, media_type="application/json").json()["missing"] == ["0" * 64]
    ask("post", "/v1/tastes", 422, body={"ratings": ratings[:3]}, media_type="application/json")
    ask("post", "/v1/explain", 200, body={"ids": ids}, media_type="application/json", query={"model": "mine"})
    assert [one["kind"] for one in ask("get", "/v1/models", 200).json()["models"]] == ["model", "taste"]
    archive = ask("get", "/v1/tastes/{name}/download", 200, path_parameters={"name": "mine"})
    assert archive.content[:2] == b"PK" and io.BytesIO(archive.content).getbuffer().nbytes > 1000
    ask("delete", "/v1/tastes/{name}", 204, path_parameters={"name": "mine"})
    ask("delete", "/v1/tastes/{name}", 404, path_parameters={"name": "mine"})
    ask("delete", "/v1/tastes/{name}", 404, path_parameters={"name": "pocket"})
    for path in ("/v1/health", "/v1/ready", "/v1/metrics"):
        ask("get", path, 200)


def test_with_a_token(tmp_path: Path) -> None:
    """The document says that one is needed; what is refused for want of it is documented, too."""
    with service(tmp_path, environment={"MILNET_TOKEN": "a token of 24 letters".replace(" ", "-")}) as one:
        one.token = "a-token-of-24-letters"
        document = one.get("/v1/openapi.json").json()
        assert document["security"] == [{"token": []}]
        assert document["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
        found = schemathesis.openapi.from_dict(document)
        for method, path in OPERATIONS:
            parts = {"name": "pocket", "number": 1} if "{" in path else {}
            case = found[path][method].Case(path_parameters={k: v for k, v in parts.items() if f"{{{k}}}" in path})
            answer = checked(case, one)
            assert answer.status_code == (200 if path in ("/v1/health", "/v1/ready") else 401), path
