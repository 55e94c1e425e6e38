"""Downloads a file, and continues a download that was interrupted."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from dafw import __version__
from dafw.errors import UserError

_CHUNK = 1 << 20
_WAIT = 60.0
"""Seconds without an answer after which a server counts as unreachable."""


def fetch(url: str, path: Path, tell: Callable[[int, int | None], None] = lambda done, total: None) -> None:
    """Downloads a file. What an interrupted call left is continued, if the server can do that.

    Args:
        url: its address, http or https.
        path: where it goes. Its folder is made. It has this name only when all of it is there.
        tell: called now and then with the bytes that are there and, where known, those of the whole file.

    Raises:
        UserError: if the server cannot be reached, or sends something else.
        OSError: if the disk is full or fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"dafw/{__version__}", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        answer = urllib.request.urlopen(urllib.request.Request(_checked(url), headers=headers), timeout=_WAIT)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and done:  # nothing is missing, or another file
            part.unlink()
            return fetch(url, path, tell)
        raise UserError(f"{url} cannot be fetched: the server answers {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url} cannot be reached ({reason})") from error
    with answer:
        continued = answer.status == http.client.PARTIAL_CONTENT
        length = answer.headers.get("Content-Length")
        done = done if continued else 0
        total = done + int(length) if length and length.isdecimal() else None
        with part.open("ab" if continued else "wb") as file:
            while chunk := _read(answer, url):
                file.write(chunk)
                done += len(chunk)
                tell(done, total)
    if total is not None and done < total:
        raise UserError(f"{url} broke off after {done:,} of {total:,} bytes: the same command continues")
    part.replace(path)
    return None


def _checked(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("its address is neither http nor https")
    return url


def _read(answer: http.client.HTTPResponse, url: str) -> bytes:
    try:
        return answer.read(_CHUNK)
    except http.client.IncompleteRead as error:
        return error.partial
    except (http.client.HTTPException, OSError) as error:
        raise UserError(f"{url} broke off ({error}): the same command continues") from error
