"""Who may ask. In front of the application, and of every answer's headers."""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from pydantic_core import to_json

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN = frozenset(("/health", "/", "/page.js", "/page.css"))  # which say nothing that a token should guard
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
_OURS = [(b"cross-origin-resource-policy", b"same-origin")]
_CSP = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
ALWAYS = [*_HEADERS, *_OURS, _CSP]
"""Headers of every answer, unless it is a page, or another site may read it."""


def foreign(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a page of another site asks. By which scheme ours came is known only to what stands before us."""
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower()


class Door:
    """Turns away who should not ask; an ASGI application around another.

    A page of any other site may send requests from a user's browser to a server on this machine, or on a network that
    only the user can reach. It cannot hide where it comes from (`Origin`); or it has made its own name lead here
    ("DNS rebinding"), and then that name is the `Host`. An address, or `localhost`, cannot be made to lead elsewhere.

    Args:
        app: what is behind.
        hosts: names by which it may be called, beside addresses and localhost; with `*`, any.
        origins: other sites, such as `https://example.org`, whose pages may ask.
        token: what requests must bear, but for the page itself and `/health`; None if nothing.
    """

    def __init__(
        self, app: App, *, hosts: Collection[str] = (), origins: Collection[str] = (), token: str | None = None
    ) -> None:
        self._app, self._origins = app, {origin.encode().lower().rstrip(b"/") for origin in origins}
        self._hosts = None if "*" in hosts else {host.lower() for host in hosts} | {"localhost"}
        self._token = None if token is None else b"Bearer " + token.encode()
        self._known: set[bytes] = set()  # hosts that were let in before, as they were written

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        found = dict(scope["headers"])
        host, origin = found.get(b"host", b""), found.get(b"origin")
        elsewhere = foreign(found)
        allowed = _allowing(origin) if elsewhere and origin in self._origins else []
        more = [*_HEADERS, *(allowed or _OURS)]

        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = message["headers"]
                rules = [] if any(name == b"content-security-policy" for name, _ in own) else [_CSP]
                message["headers"] = [*own, *more, *rules]
            await send(message)

        if host not in self._known and not self._named(host):
            shown = host.decode("latin-1").encode("unicode_escape").decode()[:100]
            await _refuse(answer, 421, f"this server is not called {shown!r}: start it with --allow-host NAME")
        elif elsewhere and not allowed:
            await _refuse(answer, 403, "pages of other sites may not ask: start the server with --allow-origin URL")
        elif allowed and scope["method"] == "OPTIONS":
            await answer({"type": "http.response.start", "status": 204, "headers": []})
            await answer({"type": "http.response.body"})
        elif self._token and not self._borne(found.get(b"authorization", b""), scope):
            asked = (b"www-authenticate", b"Bearer")
            await _refuse(answer, 401, "a token is asked for: Authorization: Bearer ...", asked)
        else:
            await self._app(scope, receive, answer)

    def _named(self, host: bytes) -> bool:
        """Whether a request meant this server."""
        if self._hosts is not None:
            name = _name(host)
            if name not in self._hosts and not _is_address(name):
                return False
        if len(self._known) < 100:
            self._known.add(host)
        return True

    def _borne(self, given: bytes, scope: Scope) -> bool:
        assert self._token is not None
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return (path in _OPEN and scope["method"] in ("GET", "HEAD")) or hmac.compare_digest(given, self._token)


def _name(host: bytes) -> str:
    """Without the port."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.rpartition(":")[2].isdecimal() and ":" in text else text


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _allowing(origin: bytes | None) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin or b""),
        (b"access-control-allow-headers", b"content-type, authorization"),
        (b"access-control-allow-methods", b"GET, POST"),
        (b"cross-origin-resource-policy", b"cross-origin"),
        (b"vary", b"Origin"),
    ]


async def _refuse(send: Send, status: int, why: str, *more: tuple[bytes, bytes]) -> None:
    await respond(send, status, {"error": why}, *more)


async def respond(send: Send, status: int, told: object, *more: tuple[bytes, bytes]) -> None:
    """Send an answer as JSON, with more headers."""
    body = to_json(told)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
