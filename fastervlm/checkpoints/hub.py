"""Whether the hub can be reached, asked once and briefly: its own client tries again for more than a minute."""

from __future__ import annotations

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from encoders import UserError

PATIENCE = 4.0  # seconds
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def refuse_out_of_reach(name: str) -> None:
    """A `UserError` if the checkpoint has to come from the hub, and nothing answers there.

    A folder, a checkpoint that the hub's cache holds and a name that is none are left to those who read them.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if Path(name).exists() or constants.HF_HUB_OFFLINE or not _NAME.fullmatch(name):
        return
    try:
        is_here = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:
        return
    if not is_here and not _answers(constants.ENDPOINT):
        raise UserError(
            f"There is no checkpoint {name!r}: neither a folder with one nor a model of the hub in reach, for "
            f"nothing answers at {constants.ENDPOINT}; give a folder, or connect this machine."
        )


def _answers(url: str) -> bool:
    """Whether anything listens at the address, or at the proxy on the way to it."""
    target = urlsplit(url)
    proxy = getproxies().get(target.scheme)
    if proxy and not proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = target.port or (80 if target.scheme == "http" else 443)
    pool = ThreadPoolExecutor(1)  # a name server may be silent for longer than any timeout of a socket
    try:
        pool.submit(_knock, target.hostname or "", port).result(PATIENCE)
    except (OSError, Late):
        return False
    finally:
        pool.shutdown(wait=False)
    return True


def _knock(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=PATIENCE).close()
