"""Fetches an image by URL, where the settings allow it at all, without becoming a way into the private network.

Only https, only listed hosts, only public addresses; the address that was checked is the one that is asked (a name
may resolve differently the second time), redirects are not followed, and bytes and time are limited.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit

import httpx

from serve_app.errors import MalformedRequest, PayloadTooLarge, SourceUnavailable
from serve_app.settings import AppSettings

TIMEOUT_S = 10.0


async def fetch(url: str, settings: AppSettings) -> bytes:
    """The body behind the URL. Raises MalformedRequest, PayloadTooLarge or SourceUnavailable."""
    host = allowed_host(url, settings.image_url_hosts)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            pinned = httpx.URL(url).copy_with(host=await public_address(host))
            return await _get(pinned, host, settings.max_body_bytes)
    except (TimeoutError, OSError, httpx.HTTPError) as error:
        raise SourceUnavailable(f"cannot fetch the image from {host}: {type(error).__name__}") from error


def allowed_host(url: str, hosts: tuple[str, ...]) -> str:
    """The host of an https URL on the list. Raises MalformedRequest."""
    if not hosts:
        raise MalformedRequest("image URLs are switched off: send the image itself")
    try:
        parts = urlsplit(url)
        plain = parts.scheme == "https" and parts.port in (None, 443) and not parts.username and not parts.password
    except ValueError:
        plain = False
    if not plain or parts.hostname not in hosts:
        raise MalformedRequest(f"image URLs are https://HOST/… with a host of: {', '.join(hosts)}")
    return str(parts.hostname)


async def public_address(host: str) -> str:
    """An address of the host. Raises MalformedRequest unless all it resolves to are public, OSError if it does not."""
    found = await asyncio.get_running_loop().getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not all(ipaddress.ip_address(a.partition("%")[0]).is_global for a in addresses):
        raise MalformedRequest(f"{host} is not a public host")
    return addresses[0]


async def _get(url: httpx.URL, host: str, max_bytes: int) -> bytes:
    """GETs a URL that holds an address, in the name of a host: its certificate is checked for that name."""
    body = bytearray()
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False) as http:  # no proxy: it would resolve again
        request = http.stream("GET", url, headers={"Host": host}, extensions={"sni_hostname": host})
        async with request as answer:
            if answer.status_code != httpx.codes.OK:
                raise SourceUnavailable(f"{host} answered {answer.status_code} instead of the image")
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > max_bytes:
                    raise PayloadTooLarge(f"the image at {host} has more than {max_bytes} bytes")
    return bytes(body)
