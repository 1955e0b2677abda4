"""A client of `milnet serve`, for programs on other machines: needs httpx (`pip install 'milnet[client]'`), no torch.

    with Client("http://127.0.0.1:8500") as client:
        for result in client.score(["a.jpg", "b.jpg"]):
            print(result.photo, result.score if isinstance(result, Scored) else result.reason)

A photo is a path, the bytes of a file, or (name, bytes). Photos go in chunks, several at once. Where the service is
busy (429) a chunk waits as long as it is told to and goes again; where a connection is lost, what was not answered goes
once more. A photo that cannot be read or scored is a Failed, in its place; all else that goes wrong is an exception:

    ServiceError
    +-- RefusedError            the service says why not: status, detail, expected, got
    |   +-- BusyError           it was busy for longer than `patience`
    |   +-- NotRememberedError  ids of photos that have to be sent again
    +-- LostError               no service, no answer in time, or a connection that was lost twice
    +-- AnswerError             an answer that is not milnet's
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload
from urllib.parse import quote, urlsplit

from milnet.errors import MilnetError, MissingExtraError, UsageError

if TYPE_CHECKING:
    import ssl

    import httpx

Photo: TypeAlias = str | os.PathLike[str] | bytes | tuple[str, bytes]

_NDJSON = "application/x-ndjson"
_CHUNK, _BYTES = 16, 32 << 20  # photos and bytes of one request; a larger photo goes alone
_AGAIN = 0.5  # seconds before a lost request goes once more
_SHORTEST, _LONGEST = 0.05, 60.0  # seconds that are waited at once, whatever the service says
_IDS = 20_000  # ids of one call, as the service takes them


# ---- what can go wrong -----------------------------------------------------------------------------------------------


class ServiceError(MilnetError):
    """Base of what can go wrong between a client and its service."""


class RefusedError(ServiceError):
    """The service refused a request.

    `status`: of HTTP; `detail`: one sentence; `expected`, `got`: None where they do not apply; `members`: all of the
    problem that the service described.
    """

    def __init__(self, status: int, members: Mapping[str, Any]) -> None:
        self.status, self.members = status, dict(members)
        self.detail = str(members.get("detail") or members.get("title") or "no reason was given")
        self.expected, self.got = _text_or_none(members.get("expected")), _text_or_none(members.get("got"))
        parts = [f"{name} {value}" for name, value in (("expected", self.expected), ("got", self.got)) if value]
        super().__init__(f"{status}: {self.detail}" + (f" ({', '.join(parts)})" if parts else ""))


class BusyError(RefusedError):
    """The service had too much to do for as long as the client was ready to wait."""


class NotRememberedError(RefusedError):
    """The service does not remember some photos: send those with the ids in `missing` again."""

    def __init__(self, status: int, members: Mapping[str, Any]) -> None:
        super().__init__(status, members)
        self.missing = tuple(str(one) for one in members["missing"])


class LostError(ServiceError):
    """The service cannot be reached, did not answer in time, or the connection was lost twice."""


class AnswerError(ServiceError):
    """An answer that milnet's service does not give."""


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


# ---- what is answered ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signals:
    """Measured from the pixels; no part of the score."""

    width: int
    height: int
    sharpness: float  # 0 to 100, of the sharpest part
    highlights: float  # share of pixels that are clipped to white
    shadows: float  # share of pixels that are clipped to black
    noise: float  # standard deviation, of 255


@dataclass(frozen=True)
class Scored:
    """What is said about one photo, in units of the model's values."""

    index: int  # place among the photos of the call, from 0
    photo: str  # its name, as it was given
    id: str  # sha256 of the file: names it in later calls
    score: float  # mean of the predicted distribution
    low: float | None  # 90 % interval for the mean vote of a large panel
    high: float | None
    spread: float | None  # standard deviation that the votes are expected to have
    percentile: float | None  # 100 x share of the pool's photos that score lower
    stars: int | None
    unlike: float | None  # how far it is from all photos of the pool, 0 to 1
    outside: bool  # too far: trust neither score nor interval
    distribution: tuple[float, ...]  # share of votes at each value
    signals: Signals | None
    group: int | None  # number of its burst among the photos of the call
    rank: int | None  # place in its burst, 1 is the best
    keep: bool | None  # advice: whether it is worth keeping of its burst
    folder_percentile: float | None  # 100 x share of the other photos of the call that score lower


@dataclass(frozen=True)
class Reference:
    """A rated photo that was consulted."""

    id: str
    number: int  # its row in the pool
    photo: str | None  # of a taste that was taught here: the id of the file that was sent
    similarity: float
    votes: tuple[float, ...]  # how many people chose each value
    influence: float  # what it added to the score


@dataclass(frozen=True)
class Explained(Scored):
    """A score and what moved it: score = base + own + the influences of all references + rest."""

    base: float  # mean vote of the photos the model learned from
    own: float  # what the photo itself adds
    rest: float  # what all other references add
    references: tuple[Reference, ...]  # nearest first; at most 8, those that moved it most


@dataclass(frozen=True)
class Failed:
    """A photo that could not be scored."""

    index: int
    photo: str
    reason: str
    id: str | None = None
    unknown: bool = False  # an id that the service does not remember: send the photo itself


@dataclass(frozen=True)
class InBurst:
    """A photo in its burst."""

    id: str
    group: int
    rank: int | None  # 1 is the best
    keep: bool | None


@dataclass(frozen=True)
class Checked:
    """How well a taste predicts ratings it has not seen: rank correlations by cross-validation."""

    photos: int
    bursts: int
    folds: int
    seen: int
    general: float | None  # of the general model
    alone: float | None  # of the ratings alone
    both: float | None  # of the taste
    low: float | None  # 95 % interval of the difference
    high: float | None
    difference: float | None
    beats: bool
    worse: bool
    verdict: str


@dataclass(frozen=True)
class ServedModel:
    """A model that can be asked for."""

    name: str
    kind: str  # "model", or "taste" of one person
    digest: str
    introduction: str
    values: tuple[float, ...]
    stars: tuple[float, ...]  # limits from which a photo has 2, 3, ... stars
    stars_of: str  # of what: "percentile", "folder_percentile" or "score"
    pool: int  # rated photos it consults
    table: str
    whole: bool  # each photo consults the whole pool
    exact: bool  # the parts explain all of the score
    coverage: float  # share of panels whose mean lies in [low, high]
    unlike_limit: float  # above it a photo is `outside`
    srcc: float | None  # rank correlation on photos it has not seen
    removable: bool  # a taste that was taught through the service
    checked: Checked | None  # of a taste


@dataclass(frozen=True)
class Limits:
    """What one call may send."""

    bytes: int  # a photo
    pixels: int  # a photo
    photos: int  # a call


@dataclass(frozen=True)
class Models:
    """All models of a service."""

    models: tuple[ServedModel, ...]
    default: str
    limits: Limits


class _Reader:
    """The members of a JSON object, each of the type it must have; AnswerError where it has another."""

    def __init__(self, data: object, what: str) -> None:
        if not isinstance(data, dict):
            raise AnswerError(f"{what}: expected a JSON object, got {_short(data)}")
        self.data, self.what = data, what

    def _take(self, name: str, kinds: tuple[type, ...], expected: str) -> Any:
        value = self.data.get(name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            got = _short(value) if name in self.data else "nothing"
            raise AnswerError(f"{self.what}: {name}: expected {expected}, got {got}")
        return value

    def text(self, name: str) -> str:
        return str(self._take(name, (str,), "a text"))

    def whole(self, name: str) -> int:
        return int(self._take(name, (int,), "a whole number"))

    def number(self, name: str) -> float:
        return float(self._take(name, (int, float), "a number"))

    def yes(self, name: str) -> bool:
        return bool(self._take(name, (bool,), "true or false"))

    def list(self, name: str) -> list[Any]:
        return list(self._take(name, (list,), "a list"))

    def numbers(self, name: str) -> tuple[float, ...]:
        found = self.list(name)
        if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in found):
            raise AnswerError(f"{self.what}: {name}: expected numbers, got {_short(found)}")
        return tuple(float(one) for one in found)

    def has(self, name: str) -> bool:
        """Whether it is there, and not null."""
        return self.data.get(name) is not None

    def maybe_text(self, name: str) -> str | None:
        return self.text(name) if self.has(name) else None

    def maybe_whole(self, name: str) -> int | None:
        return self.whole(name) if self.has(name) else None

    def maybe_number(self, name: str) -> float | None:
        return self.number(name) if self.has(name) else None

    def maybe_yes(self, name: str) -> bool | None:
        return self.yes(name) if self.has(name) else None

    def part(self, name: str) -> _Reader:
        return _Reader(self.data.get(name), f"{self.what}: {name}")


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _scored(data: object) -> dict[str, Any]:
    one = _Reader(data, "a score")
    signals = one.part("signals") if one.has("signals") else None
    return {
        "index": one.whole("index"),
        "photo": one.text("photo"),
        "id": one.text("id"),
        "score": one.number("score"),
        "low": one.maybe_number("low"),
        "high": one.maybe_number("high"),
        "spread": one.maybe_number("spread"),
        "percentile": one.maybe_number("percentile"),
        "stars": one.maybe_whole("stars"),
        "unlike": one.maybe_number("unlike"),
        "outside": one.yes("outside"),
        "distribution": one.numbers("distribution"),
        "signals": None if signals is None else _signals(signals),
        "group": one.maybe_whole("group"),
        "rank": one.maybe_whole("rank"),
        "keep": one.maybe_yes("keep"),
        "folder_percentile": one.maybe_number("folder_percentile"),
    }


def _signals(one: _Reader) -> Signals:
    numbers = [one.number(name) for name in ("sharpness", "highlights", "shadows", "noise")]
    return Signals(one.whole("width"), one.whole("height"), *numbers)


def _as_scored(data: object) -> Scored:
    return Scored(**_scored(data))


def _as_explained(data: object) -> Explained:
    one = _Reader(data, "an explanation")
    return Explained(
        **_scored(data),
        base=one.number("base"),
        own=one.number("own"),
        rest=one.number("rest"),
        references=tuple(_reference(_Reader(part, "a reference")) for part in one.list("references")),
    )


def _reference(one: _Reader) -> Reference:
    return Reference(
        one.text("id"), one.whole("number"), one.maybe_text("photo"), one.number("similarity"), one.numbers("votes"),
        one.number("influence"),
    )  # fmt: skip


def _as_failed(data: object) -> Failed:
    one = _Reader(data, "a failure")
    return Failed(
        one.whole("index"), one.text("photo"), one.text("reason"), one.maybe_text("id"), bool(one.maybe_yes("unknown"))
    )


def _as_model(data: object) -> ServedModel:
    one = _Reader(data, "a model")
    return ServedModel(
        name=one.text("name"),
        kind=one.text("kind"),
        digest=one.text("digest"),
        introduction=one.text("introduction"),
        values=one.numbers("values"),
        stars=one.numbers("stars"),
        stars_of=one.text("stars_of"),
        pool=one.whole("pool"),
        table=one.text("table"),
        whole=one.yes("whole"),
        exact=one.yes("exact"),
        coverage=one.number("coverage"),
        unlike_limit=one.number("unlike_limit"),
        srcc=one.part("quality").number("srcc") if one.has("quality") else None,
        removable=one.yes("removable"),
        checked=_checked(one.part("checked")) if one.has("checked") else None,
    )


def _checked(one: _Reader) -> Checked:
    return Checked(
        photos=one.whole("photos"),
        bursts=one.whole("bursts"),
        folds=one.whole("folds"),
        seen=one.whole("seen"),
        general=one.maybe_number("general"),
        alone=one.maybe_number("alone"),
        both=one.maybe_number("both"),
        low=one.maybe_number("low"),
        high=one.maybe_number("high"),
        difference=one.maybe_number("difference"),
        beats=one.yes("beats"),
        worse=one.yes("worse"),
        verdict=one.text("verdict"),
    )


# ---- the client ------------------------------------------------------------------------------------------------------

_S = TypeVar("_S", bound=Scored)
_Read: TypeAlias = Callable[[object], _S]
_What: TypeAlias = Literal["score", "explain"]


@dataclass(frozen=True)
class _Item:
    """A photo on its way; `index`: its place among all photos."""

    index: int
    name: str
    data: bytes


_Chunk: TypeAlias = tuple[list[_Item], list[Failed]]  # what goes together, and what cannot go


@dataclass
class _Patience:
    """What is left to one request: seconds of waiting, and whether it was lost before. `stop` ends any waiting."""

    seconds: float
    lost: bool = False
    stop: threading.Event = field(default_factory=threading.Event)


class _StoppedError(Exception):
    """Nobody waits for it any more."""


class Client:
    """A service at `url`; threads may share it. Close it, or use it in a `with`.

    `token`: where the service asks for one; it travels in a header. `timeout`: seconds without a byte after which an
    answer is given up. `patience`: seconds that one request may wait because the service is busy. `requests`: how many
    with photos go at once. `verify`: for https, False or a context with certificates of one's own.

    Raises MissingExtraError without httpx, UsageError for an address that is none or holds a password.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8500",
        token: str | None = None,
        *,
        timeout: float = 150.0,
        patience: float = 300.0,
        requests: int = 4,
        verify: bool | ssl.SSLContext = True,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtraError("httpx", "client", "milnet.client") from error
        if not (requests >= 1 and timeout > 0 and patience >= 0):
            raise UsageError(
                f"requests {requests}, timeout {timeout:g}, patience {patience:g}: expected 1 or more, more than 0, "
                f"and 0 or more"
            )
        self.url, self.patience, self.requests = _address(url), patience, requests
        self._limits: Limits | None = None
        self._http = httpx.Client(
            base_url=self.url,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=5.0),  # the service closes idle ones after 10 s
            verify=verify,
            trust_env=not _is_loopback(self.url),  # a proxy of the environment does not lead to this machine
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    # ---- scores ----

    def score(self, photos: Photo | Iterable[Photo], model: str | None = None) -> list[Scored | Failed]:
        """Score one or many photos with `model`, else the default one: a result each, in their order.

        Bursts, folder percentiles and stars are among all these photos. Of more than go in one request they come from
        a second look at what the service remembers; where it has forgotten some, or for more than 20,000 photos,
        bursts and percentiles are None.
        """
        return self._all("score", _as_scored, photos, model)

    def explain(self, photos: Photo | Iterable[Photo], model: str | None = None) -> list[Explained | Failed]:
        """Like `score`, and which rated photos moved each score, and by how much."""
        return self._all("explain", _as_explained, photos, model)

    def again(self, ids: Sequence[str], model: str | None = None) -> list[Scored | Failed]:
        """Score photos that were sent before, for example by a new taste; Failed with `unknown` where forgotten."""
        return _ordered(self._together("score", _as_scored, model, json={"ids": list(ids)})) if ids else []

    @overload
    def stream(
        self, photos: Photo | Iterable[Photo], model: str | None = None, *, explain: Literal[False] = False
    ) -> Generator[Scored | Failed, None, None]: ...

    @overload
    def stream(
        self, photos: Photo | Iterable[Photo], model: str | None = None, *, explain: Literal[True]
    ) -> Generator[Explained | Failed, None, None]: ...

    def stream(
        self, photos: Photo | Iterable[Photo], model: str | None = None, *, explain: bool = False
    ) -> Generator[Scored | Failed, None, None] | Generator[Explained | Failed, None, None]:
        """Yield a result for each photo as it is done, not in their order; `index` is the place among the photos.

        Photos are read when it is their turn, so that there may be any number. Bursts and folder percentiles are None.
        Whoever stops early should close the iterator.
        """
        chunks = _chunks(_several(photos), self._known_limits)
        if explain:
            return self._streamed("explain", _as_explained, chunks, model)
        return self._streamed("score", _as_scored, chunks, model)

    def _all(
        self, what: _What, read: _Read[_S], photos: Photo | Iterable[Photo], model: str | None
    ) -> list[_S | Failed]:
        chunks = _chunks(_several(photos), self._known_limits)
        first = list(islice(chunks, 2))
        if len(first) == 1:
            items, failures = first[0]
            found = self._together(what, read, model, files=_parts(items)) if items else []
            return _ordered([*failures, *(_at_home(one, items) for one in found)])
        results = _ordered(list(self._streamed(what, read, chain(first, chunks), model)))
        return self._compared(results, model)

    def _compared(self, results: list[_S | Failed], model: str | None) -> list[_S | Failed]:
        """With bursts, folder percentiles and stars among all, where all are remembered."""
        ids = [one.id for one in results if isinstance(one, Scored)]
        if not 1 < len(ids) <= _IDS:
            return results
        try:
            looked = iter(self.again(ids, model))
        except ServiceError:  # the scores are there: better without bursts than not at all
            return results
        found: list[_S | Failed] = []
        for one in results:
            if isinstance(one, Scored):
                other = next(looked)
                if isinstance(other, Failed):
                    return results
                among = {name: getattr(other, name) for name in ("group", "rank", "keep", "folder_percentile", "stars")}
                one = replace(one, **among)
            found.append(one)
        return found

    def _together(self, what: _What, read: _Read[_S], model: str | None, **body: Any) -> list[_S | Failed]:
        """The results of one request, with bursts."""
        try:
            answer = _object(self._send("POST", f"/v1/{what}", params=_query(model), **body), "scores")
        except RefusedError as error:
            if error.status != 422 or "failures" not in error.members:
                raise
            return [_as_failed(one) for one in _Reader(error.members, "a problem").list("failures")]
        failures = [_as_failed(one) for one in answer.list("failures")]
        return [*(read(one) for one in answer.list("scores")), *failures]

    def _streamed(
        self, what: _What, read: _Read[_S], chunks: Iterator[_Chunk], model: str | None
    ) -> Generator[_S | Failed, None, None]:
        results: queue.SimpleQueue[_S | Failed | Exception | None] = queue.SimpleQueue()
        stop, running, more = threading.Event(), 0, True

        def work(items: list[_Item]) -> None:
            patience = _Patience(self.patience, stop=stop)
            try:
                while items:
                    items = self._once(what, read, items, model, results.put, patience)
            except _StoppedError:
                pass
            except Exception as error:
                results.put(error)
            finally:
                results.put(None)

        pool = ThreadPoolExecutor(self.requests, "milnet-client")
        try:
            while more or running:
                while more and running < self.requests:
                    chunk = next(chunks, None)
                    more = chunk is not None
                    if chunk is None:
                        break
                    items, failures = chunk
                    yield from failures
                    if items:
                        pool.submit(work, items)
                        running += 1
                if not running:
                    return
                result = results.get()
                if isinstance(result, Exception):
                    raise result
                if result is None:
                    running -= 1
                else:
                    yield result
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _once(
        self,
        what: _What,
        read: _Read[_S],
        items: list[_Item],
        model: str | None,
        give: Callable[[_S | Failed], None],
        patience: _Patience,
    ) -> list[_Item]:
        """Send photos and give on each result; those that have to go again."""
        import httpx

        rest = dict(enumerate(items))
        try:
            with self._http.stream(
                "POST", f"/v1/{what}", params=_query(model), headers={"Accept": _NDJSON}, files=_parts(items)
            ) as response:
                if response.status_code != 200:
                    response.read()
                    _wait(response, patience)
                    return items
                for line in _lines(response):
                    if patience.stop.is_set():
                        raise _StoppedError
                    if line.has("done"):
                        break
                    result = _as_failed(line.data["failure"]) if line.has("failure") else read(line.data.get("score"))
                    give(_at_home(result, items))
                    if rest.pop(result.index, None) is None:
                        raise AnswerError(f"two results for photo {result.index} of a request")
        except httpx.TransportError as error:
            if rest:
                _lost(error, patience, self.url)
        else:
            if rest:  # something between here and there cut the answer short
                _lost(httpx.RemoteProtocolError("the answer ended too early"), patience, self.url)
        return list(rest.values())

    # ---- models and tastes ----

    def models(self) -> Models:
        """The models, which of them is asked where none is named, and what a call may send."""
        answer = _object(self._send("GET", "/v1/models"), "models")
        limits = answer.part("limits")
        self._limits = Limits(limits.whole("bytes"), limits.whole("pixels"), limits.whole("photos"))
        return Models(tuple(_as_model(one) for one in answer.list("models")), answer.text("default"), self._limits)

    def bursts(self, ids: Sequence[str], model: str | None = None) -> list[InBurst]:
        """Which of photos that were sent before are bursts; others, and what is forgotten, are left out."""
        response = self._send("POST", "/v1/bursts", params=_query(model), json={"ids": list(ids)})
        rows = [_Reader(row, "a burst") for row in _object(response, "bursts").list("bursts")]
        return [
            InBurst(row.text("id"), row.whole("group"), row.maybe_whole("rank"), row.maybe_yes("keep")) for row in rows
        ]

    def teach(self, ratings: Mapping[str, int], name: str | None = None, model: str | None = None) -> ServedModel:
        """Teach a taste: ratings from 1 to 5 of photos that were sent before, by their ids; at least 10 photos.

        The taste can be asked for by its name; it is gone when the service ends, unless it is downloaded. `checked`
        says whether it is better than the general model. Raises NotRememberedError with the ids to send again.
        """
        lesson: dict[str, Any] = {"ratings": [{"id": one, "rating": rating} for one, rating in ratings.items()]}
        lesson |= {key: value for key, value in (("name", name), ("model", model)) if value is not None}
        response = self._send("POST", "/v1/tastes", twice=False, json=lesson)
        return _as_model(_object(response, "a model").data)

    def download_taste(self, name: str, to: str | os.PathLike[str]) -> Path:
        """Write the MODEL folder of a taste that was taught as a ZIP; UsageError where `to` is there already."""
        from milnet.artifacts import atomic_path

        path = Path(to)
        if path.exists():
            raise UsageError(f"{path} is there already: choose another name, or remove it")
        response = self._send("GET", f"/v1/tastes/{quote(name, safe='')}/download")
        with atomic_path(path) as temporary:
            temporary.write_bytes(response.content)
        return path

    def remove_taste(self, name: str) -> None:
        """Make the service forget a taste that was taught."""
        self._send("DELETE", f"/v1/tastes/{quote(name, safe='')}", twice=False)

    # ---- the service ----

    def ready(self) -> bool:
        """Whether it can score: False while it cannot be reached, starts or stops."""
        import httpx

        try:
            response = self._http.get("/v1/ready", timeout=10.0)
        except httpx.TransportError:
            return False
        if response.status_code not in (200, 503):
            raise _refusal(response)
        return response.status_code == 200

    def wait_until_ready(self, seconds: float = 60.0) -> None:
        """Wait for a service that starts; LostError where it is not ready by then."""
        until = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > until:
                raise LostError(f"{self.url}: not ready after {seconds:g} s; does `milnet serve` run there?")
            time.sleep(0.1)

    # ---- requests ----

    def _known_limits(self) -> Limits:
        return self._limits or self.models().limits

    def _send(self, method: str, path: str, *, twice: bool = True, **more: Any) -> httpx.Response:
        """A request and its whole answer. `twice`: it does no harm when it is done again after a lost connection."""
        import httpx

        patience = _Patience(self.patience)
        while True:
            try:
                response = self._http.request(method, path, **more)
            except httpx.TransportError as error:
                patience.lost |= not twice and not isinstance(error, httpx.ConnectError)
                _lost(error, patience, self.url)
                continue
            if response.is_success:
                return response
            _wait(response, patience)


def _address(url: str) -> str:
    """Without a slash at the end; UsageError for what is no address of a service."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{url}: not an address ({error})") from error
    if parts.username is not None or parts.password is not None:
        raise UsageError("the address holds a name or password: expected none, pass the token as token=")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"{url}: expected an address like http://127.0.0.1:8500")
    return url.rstrip("/")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _query(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model}


# ---- photos ----------------------------------------------------------------------------------------------------------


def _several(photos: Photo | Iterable[Photo]) -> Iterator[Photo]:
    if isinstance(photos, str | bytes | os.PathLike):
        return iter([photos])
    if isinstance(photos, tuple) and len(photos) == 2 and isinstance(photos[1], bytes) and isinstance(photos[0], str):
        return iter([(photos[0], photos[1])])
    return iter(photos)


def _chunks(photos: Iterator[Photo], limits: Callable[[], Limits]) -> Iterator[_Chunk]:
    """Photos as they go together, read when it is their turn, with those that cannot be read or are too large."""
    items: list[_Item] = []
    failures: list[Failed] = []
    held = 0
    for index, photo in enumerate(photos):
        one = _item(index, photo, limits().bytes)
        if isinstance(one, Failed):
            failures.append(one)
            continue
        if items and (len(items) >= min(_CHUNK, limits().photos) or held + len(one.data) > _BYTES):
            yield items, failures
            items, failures, held = [], [], 0
        items.append(one)
        held += len(one.data)
    if items or failures:
        yield items, failures


def _item(index: int, photo: Photo, most: int) -> _Item | Failed:
    name = f"photo {index + 1}"
    if isinstance(photo, str | os.PathLike):
        path, name = Path(photo), os.fspath(photo)
        try:
            if not path.is_file():
                return Failed(index, name, "no such file")
            if path.stat().st_size > most:
                return Failed(index, name, _too_large(path.stat().st_size, most))
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            return Failed(index, name, f"cannot be read ({error})")
    elif isinstance(photo, bytes):
        data = photo
    elif isinstance(photo, tuple) and list(map(type, photo)) == [str, bytes]:
        name, data = photo
    else:
        raise UsageError(f"photo {index}: expected a path, bytes or (name, bytes), got {type(photo).__name__}")
    return _Item(index, name, data) if len(data) <= most else Failed(index, name, _too_large(len(data), most))


def _too_large(size: int, most: int) -> str:
    return f"too large for the service: expected at most {most} bytes, got {size}"


def _parts(items: Sequence[_Item]) -> list[tuple[str, tuple[str, bytes, str]]]:
    """For the form. Names are labels: what is no text in them is replaced."""
    return [
        ("photos", (item.name.encode("utf-8", "replace").decode(), item.data, "application/octet-stream"))
        for item in items
    ]


def _at_home(result: _S | Failed, items: Sequence[_Item]) -> _S | Failed:
    """With the place and the name that the photo has here."""
    if not 0 <= result.index < len(items):
        raise AnswerError(f"a result for photo {result.index}, expected 0 to {len(items) - 1}")
    item = items[result.index]
    return replace(result, index=item.index, photo=item.name)


def _ordered(results: list[_S | Failed]) -> list[_S | Failed]:
    return sorted(results, key=lambda one: one.index)


# ---- answers ---------------------------------------------------------------------------------------------------------


def _parsed(content: bytes, what: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AnswerError(f"{what}: expected JSON, got {content[:80]!r} ({error})") from error


def _object(response: httpx.Response, what: str) -> _Reader:
    return _Reader(_parsed(response.content, what), what)


def _lines(response: httpx.Response) -> Iterator[_Reader]:
    """The lines of an answer as they come. Only a line feed ends one: names may hold whatever else ends lines."""
    rest = b""
    for part in response.iter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield _Reader(_parsed(line, "a line"), "a line")


def _refusal(response: httpx.Response) -> RefusedError:
    status, members = response.status_code, None
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        with suppress(ValueError, RecursionError):
            members = json.loads(response.content)
    if not isinstance(members, dict):  # of something between here and there
        start = response.content[:80].decode("utf-8", "replace")
        detail = "an answer that is not of milnet's service; is the address right?"
        members = {"detail": detail, "expected": "application/problem+json", "got": start}
    if status == 409 and isinstance(members.get("missing"), list) and members["missing"]:
        return NotRememberedError(status, members)
    return (BusyError if status == 429 else RefusedError)(status, members)


def _wait(response: httpx.Response, patience: _Patience) -> None:
    """Wait as a busy service asks to; raise what it refuses otherwise, or what would take too long."""
    refusal = _refusal(response)
    if response.status_code != 429:
        raise refusal
    try:
        seconds = min(max(float(response.headers.get("retry-after", "1")), 0.0), _LONGEST)
    except ValueError:  # a date
        seconds = 1.0
    if seconds > patience.seconds:
        raise refusal
    patience.seconds -= max(seconds, _SHORTEST)
    if patience.stop.wait(max(seconds, _SHORTEST)):
        raise _StoppedError


def _lost(error: httpx.TransportError, patience: _Patience, url: str) -> None:
    """Let a request go once more after its connection was lost; LostError for anything else."""
    import httpx

    again = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)
    if not again or patience.lost:
        what = "no answer in time" if isinstance(error, httpx.TimeoutException) else "the connection was lost"
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            what = "cannot be reached; does `milnet serve` run there?"
        raise LostError(f"{url}: {what} ({type(error).__name__}: {error})") from error
    patience.lost = True
    if patience.stop.wait(_AGAIN):
        raise _StoppedError
