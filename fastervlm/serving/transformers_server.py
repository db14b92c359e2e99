"""transformers' own OpenAI-compatible server (`transformers serve`) with a pruned model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

import fastervlm
from encoders.errors import UserError
from fastervlm.families.registry import family_of
from fastervlm.serving.options import Served

_QUANTIZE = {None: None, "bnb-4bit": "4bit", "bnb-8bit": "8bit"}


def start(checkpoint: str, served: Served, options: Sequence[str], remember: int = 0) -> None:
    """Run the server until it is stopped.

    Args:
        checkpoint: a folder, or a name on the hub; clients call the model by it.
        served: how it is pruned.
        options: those of `transformers serve`, as typed.
        remember: how many of the last pictures to keep, as for `fastervlm.prune`.

    Raises:
        UserError: what the server needs is not installed, or the model cannot be loaded or pruned.
    """
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise UserError("transformers' server needs some packages more; install them: pip install 'fastervlm[serving]'.")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(server_class(checkpoint, served, remember))
    app(args=[*options, "--non-blocking"], prog_name="transformers serve")


def server_class(checkpoint: str, served: Served, remember: int = 0) -> type[Any]:
    """transformers' `Serve`, which loads and prunes this model before it listens; `--non-blocking` has it do so."""
    from transformers.cli.serve import Serve

    class PrunedServe(Serve):
        """One model, pruned, under the name it was asked for by."""

        def start_server(self) -> None:
            """Load and prune; only then listen, in this thread, until a signal comes."""
            manager = self._model_manager
            if manager.force_model is not None:
                raise UserError(f"The model is {checkpoint}; leave {manager.force_model} out.")
            pin(manager, checkpoint, served, remember)
            self.server.run()

    return PrunedServe


def pin(manager: Any, checkpoint: str, served: Served, remember: int = 0) -> None:
    """Have a `ModelManager` of transformers serve this model alone, pruned.

    Raises:
        UserError: it cannot be loaded or pruned.
    """
    from transformers.cli.serving.model_manager import TimedModel

    device = (
        None if manager.device == "auto" else f"cuda:{manager.device}" if isinstance(manager.device, int) else manager.device
    )
    dtype = None if manager.dtype == "auto" else manager.dtype
    model, processor = fastervlm.load(checkpoint, dtype=dtype, device=device, quantize=_QUANTIZE[manager.quantization])  # type: ignore[arg-type]
    if manager.attn_implementation is not None:
        model.set_attn_implementation(manager.attn_implementation)
    layout: dict[str, Any] = {"newline": served.newline} if family_of(model).newlines else {}
    handle = fastervlm.prune(model, served.visual_tokens, method=served.method, remember=remember, **layout)
    manager.force_model, manager.model_timeout = checkpoint, -1
    manager.loaded_models[manager.process_model_name(checkpoint)] = TimedModel(model, -1, processor)
    stock, kept = manager.list_models, {**served.told, "method": repr(handle.method)}
    manager.list_models = lambda *args, **kwargs: [{**each, "fastervlm": kept} for each in stock(*args, **kwargs)]
