"""`python -m video video-qa`: the commands of this package, also where it is checked out and not installed."""

from __future__ import annotations

from fastervlm.cli import app, main
from video.commands import video_qa
from video.compare_command import video_compare
from video.score_command import video_score

if __name__ == "__main__":
    for function in (video_qa, video_score, video_compare):
        app.command(function.__name__.replace("_", "-"))(function)
    main()
