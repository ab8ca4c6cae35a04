"""Fetches images by URL, if `image_url_hosts` allows it, without giving access to the private network.

It accepts only https, listed hosts and public addresses. It connects to the address that it checked, because a name may
resolve differently the second time. It follows no redirects, and limits bytes and time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit

import httpx

from serve_app.errors import MalformedRequest, PayloadTooLarge, SourceUnavailable
from serve_app.settings import AppSettings

TIMEOUT_S = 10.0  # for one image, from name resolution to the last byte


async def fetch(url: str, settings: AppSettings) -> bytes:
    """Fetches the image at the URL. Raises MalformedRequest, PayloadTooLarge or SourceUnavailable."""
    host = allowed_host(url, settings.image_url_hosts)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            pinned = httpx.URL(url).copy_with(host=await public_address(host))
            return await _get(pinned, host, settings.max_body_bytes)
    except (TimeoutError, OSError, httpx.HTTPError) as error:
        reason = f"it took more than {TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else type(error).__name__
        raise SourceUnavailable(f"the image cannot be fetched from {host}: {reason}") from error


def allowed_host(url: str, hosts: tuple[str, ...]) -> str:
    """Returns the host of the URL. Raises MalformedRequest unless the URL is plain https and its host is listed."""
    if not hosts:
        raise MalformedRequest("image URLs are switched off for this service: send the image itself")
    try:
        parts = urlsplit(url)
        plain = parts.scheme == "https" and parts.port in (None, 443) and not parts.username and not parts.password
    except ValueError:
        plain = False
    if not plain or parts.hostname not in hosts:
        raise MalformedRequest(f"an image URL must be https://HOST/…, where HOST is one of: {', '.join(hosts)}")
    return str(parts.hostname)


async def public_address(host: str) -> str:
    """Resolves the host. Raises MalformedRequest unless all its addresses are public, OSError if it has none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not all(ipaddress.ip_address(a.partition("%")[0]).is_global for a in addresses):
        raise MalformedRequest(f"{host} is not a public host: all its addresses must be public")
    return addresses[0]


async def _get(url: httpx.URL, host: str, max_bytes: int) -> bytes:
    """GETs a URL whose host is an IP address. TLS checks the certificate for `host`, the name behind the address."""
    body = bytearray()
    # trust_env=False: a proxy from the environment would resolve the name again.
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False) as http:
        request = http.stream("GET", url, headers={"Host": host}, extensions={"sni_hostname": host})
        async with request as answer:
            if answer.status_code != httpx.codes.OK:
                raise SourceUnavailable(f"{host} answered with status {answer.status_code} instead of the image")
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > max_bytes:
                    raise PayloadTooLarge(f"the image at {host} is larger than the limit of {max_bytes} bytes")
    return bytes(body)
