"""Files of the Hugging Face Hub: from the Hub's cache, else downloaded; a missing connection is told in seconds.

The Hub's own client tries for 38 seconds, and logs each try, before it says that nobody is there. So the connection is
tried first, within seconds; a download that has begun may take as long as it needs.
"""

from __future__ import annotations

import queue
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import huggingface_hub.errors
from huggingface_hub import constants

# To be connected to, and then to have the first answer from the server.
CONNECT_SECONDS = 2.5
ANSWER_SECONDS = 6.0

# No connection or answer, no such repository or file, not a repository's name. The client's own base of HTTP errors
# comes from another library in each of its major versions.
HUB_ERRORS = (
    OSError,
    ValueError,
    huggingface_hub.errors.EntryNotFoundError,
    huggingface_hub.errors.HTTPError,  # pyright: ignore[reportPrivateImportUsage]
)


def hub_address() -> str:
    """The URL that files are asked of."""
    return constants.ENDPOINT


def get_hub_file(repository: str, name: str) -> Path:
    """The local copy of a file of a repository "owner/name". One in the Hub's cache serves, and is not looked up again.

    The environment's HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and proxies are honoured. Raises one of `HUB_ERRORS`:
    within `CONNECT_SECONDS` where there is no connection, and some seconds later where a server does not answer.
    """
    cached = huggingface_hub.try_to_load_from_cache(repository, name)
    if isinstance(cached, str):
        return Path(cached)
    endpoint = hub_address()
    if not constants.HF_HUB_OFFLINE:
        check_connection(endpoint, CONNECT_SECONDS)
    # Asks once, where the download itself would try again and again.
    url = huggingface_hub.hf_hub_url(repository, name, endpoint=endpoint)
    huggingface_hub.get_hf_file_metadata(url, timeout=ANSWER_SECONDS, endpoint=endpoint)
    return Path(huggingface_hub.hf_hub_download(repository, name, endpoint=endpoint))


def get_newest_hub_file(repository: str, name: str, revision: str, most_bytes: int) -> Path:
    """A file as the Hub has it now at a branch or tag, or, of a commit, from the Hub's cache where it is there.

    The folder that it lies in is named by its commit. Raises as `get_hub_file`; ValueError for a larger file.
    """
    cached = cached_hub_file(repository, name, revision)
    if cached and cached.parent.name == revision:
        return cached
    endpoint = hub_address()
    check_connection(endpoint, CONNECT_SECONDS)
    url = huggingface_hub.hf_hub_url(repository, name, revision=revision, endpoint=endpoint)
    size = huggingface_hub.get_hf_file_metadata(url, timeout=ANSWER_SECONDS, endpoint=endpoint).size
    if size is None or size > most_bytes:
        raise ValueError(f"{name} has {size} bytes there, and may have {most_bytes}")
    return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, endpoint=endpoint))


def cached_hub_file(repository: str, name: str, revision: str) -> Path | None:
    """The file in the Hub's cache, of the commit that a branch or tag had when it was asked for last; None without."""
    cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def is_from_hub(folder: Path) -> bool:
    """Whether a folder lies in the Hub's cache, so that others may have written what it holds."""
    return folder.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve())


def refusal(error: BaseException) -> int | None:
    """The status by which a server refuses what it was asked (401, 403, 404); None of any other error.

    One that has failed itself (500 and more), or is asked too often (429), has not refused.
    """
    response = getattr(error, "response", None)
    status = None if response is None else response.status_code
    return status if status is not None and 400 <= status < 500 and status not in (408, 429) else None


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def check_connection(endpoint: str, seconds: float) -> None:
    """Raises OSError unless the server of a URL, or the proxy on the way to it, takes a connection in so many seconds.

    All addresses of its name are tried at once, in threads that nobody waits for: a resolver that cannot be reached,
    or packets that vanish, take the system minutes.
    """
    host, port = _first_hop(endpoint)
    outcomes: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
    threading.Thread(target=_try_addresses, args=(host, port, seconds, outcomes), daemon=True).start()
    try:
        failure = outcomes.get(timeout=seconds)
    except queue.Empty:
        failure = TimeoutError(f"no answer in {seconds:g} s")
    if failure:
        raise ConnectionError(f"no connection to {host}:{port}: {failure}") from failure


def _first_hop(endpoint: str) -> tuple[str, int]:
    """Host and port of the server of a URL, or of the proxy that the environment names for it."""
    url = urlsplit(endpoint)
    if not url.hostname:
        raise ValueError(f"HF_ENDPOINT is {endpoint!r}, not a URL as https://huggingface.co")
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(url.hostname):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return url.hostname or "", url.port or {"https": 443, "socks5": 1080, "socks5h": 1080}.get(url.scheme, 80)


def _try_addresses(host: str, port: int, seconds: float, outcomes: queue.SimpleQueue[OSError | None]) -> None:
    """Puts None once one of a host's addresses takes a connection, and an error when none has."""
    failures: list[OSError] = []

    def connect(family: int, kind: int, protocol: int, _: str, address: tuple) -> None:
        try:
            with socket.socket(family, kind, protocol) as connection:
                connection.settimeout(seconds)
                connection.connect(address)
            outcomes.put(None)
        except OSError as error:
            failures.append(error)

    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        outcomes.put(error)
        return
    tries = [threading.Thread(target=connect, args=address, daemon=True) for address in addresses]
    for each in tries:
        each.start()
    for each in tries:
        each.join()
    if len(failures) == len(tries):
        outcomes.put(failures[-1])
