"""What is wrong with files that cannot be read, in one sentence."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from encoders import UserError


@contextmanager
def reading_weights(name: str) -> Iterator[None]:
    """Turn what torch, safetensors and transformers raise over damaged or dangerous weight files into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise UserError(f"The weights of {name} cannot be read (they are no torch file); download them again.") from error
        raise UserError(
            f"The weights of {name} are a pickle that holds more than plain tensors and were not opened "
            f"({_offender(error)}); convert them to safetensors where you trust them."
        ) from error
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"The weights of {name} cannot be read ({reason(error)}); download them again.") from error


def refuse_missing(name: str, missing: set[str]) -> None:
    """Refuse a checkpoint that lacks some of the model's weights."""
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise UserError(f"The checkpoint {name} lacks {len(missing)} of the model's weights ({some}, ...); download it again.")


def reason(error: BaseException) -> str:
    """The first sentence of an error's message, to be quoted within another."""
    if "mismatched_sizes" in str(error):
        return "their shapes are not those that config.json asks for"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(" .:")[:200]


def _offender(error: BaseException) -> str:
    """What a refused pickle wanted to call, as far as torch's message names it."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"it calls {found.group(1)}" if found else reason(error)
