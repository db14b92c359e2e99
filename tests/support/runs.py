"""Settings of runs."""

from __future__ import annotations

from fastervlm.commands.common import settings_of
from fastervlm.eval.medium import Pictures
from fastervlm.eval.settings import Settings


def about_pictures(task, **given):
    """Settings of a run about pictures; files by the names of their options."""
    return Settings(task, **{"medium": Pictures(), **settings_of(given)})
