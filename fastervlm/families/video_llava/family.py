"""Video-LLaVA (`VideoLlavaForConditionalGeneration`): pictures, and clips whose frames are each pruned by their own [CLS].

Dims: B clips of F frames, S frames of a chunk, N patches of a frame, T visual tokens, D language model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import ScoredPatches, UserError, VisionEncoder
from fastervlm.families.base import Encoded, Family
from fastervlm.families.encoding import check_thinned, check_tower, encoder_of, flat, in_groups, thinned
from fastervlm.families.processing import complete, placeholders, square
from fastervlm.families.pruning import Options, Pruning
from fastervlm.families.video_llava.settings import Clips
from fastervlm.families.video_llava.trace import ClipTrace
from fastervlm.selection.budget import TokenBudget
from fastervlm.selection.choice import asked, check_questions, choose, counts_for, keep_all

# Frames that go through the tower at a time, twice where there are more and they keep unequal numbers; of the others only what
# is kept takes memory. A tower that attends over time gets whole clips.
CHUNK = 32


class VideoLlava(Family):
    """How a Video-LLaVA model encodes clips and pictures under pruning."""

    class_name = "VideoLlavaForConditionalGeneration"
    model_type = "video_llava"
    lmms_model = "fastervlm_video_llava"
    of_paper = True
    tower_kind = "LanguageBind"
    kinds = ("image", "video")
    inputs = (
        *("pixel_values", "pixel_values_images", "pixel_values_videos", "image_index", "video_index"),
        *("vision_feature_layer", "vision_feature_select_strategy", "questions"),
    )
    budgets = ("frame", "clip", "crop")
    parts = "frames"
    unpruned = {"keep_cls": True}  # noqa: RUF012 - read only, like those of the other families

    def settings(self, options: Options) -> Clips:
        """How clips are pruned, and pictures beside them."""
        super().settings(options)
        return Clips(options.keep_cls, options.images, "clip" if options.budget == "clip" else "frame")

    def check(self, model: Any, pruning: Pruning) -> None:
        """Refuse a model whose towers or settings cannot be pruned, before anything is changed."""
        towers = (model.model.video_tower, model.model.image_tower)
        check_thinned(pruning, *(check_tower(model, tower, pruning) for tower in towers), clips=True)
        if pruning.encoder_keep is not None and pruning.settings.budget == "clip":
            raise UserError("budget='clip' may give a frame more tokens than encoder_keep leaves; use budget='frame'.")

    def check_questions(self, call: Mapping[str, Any]) -> None:
        """Refuse questions that are not one text for each picture of a call, then one for each clip."""
        _questions(call, *_shown(call))

    def check_compiled(self, pruning: Pruning) -> None:
        """Refuse tokens that frames share by score, too."""
        super().check_compiled(pruning)
        if pruning.settings.budget == "clip":
            raise UserError("budget='clip' shares tokens by score, which cannot be compiled; use budget='frame'.")
        if pruning.encoder_keep is not None and pruning.encoder_keep.still is not None:
            raise UserError("Pixels decide which frames are encoded, which cannot be compiled; leave still= out.")

    def encode(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """All clips and pictures of the call, by the kind of their placeholders."""
        (pictures, videos), encoded = _shown(call), {}
        about_pictures, about_clips = _questions(call, pictures, videos)
        if pictures is not None:
            encoded["image"] = _encode_pictures(model, pruning, call, pictures, about_pictures)
        if videos is not None:
            encoded["video"] = _encode_clips(model, pruning, call, videos, about_clips)
        return encoded

    def outputs(self, features: list[Tensor], kind: str) -> Tensor:
        """One tensor, see `in_groups`."""
        return in_groups(features)

    def tower(self, model: Any) -> Any:
        """The one for clips."""
        return model.model.video_tower

    def towers(self, model: Any) -> list[Any]:
        """The one for pictures, and the one for clips."""
        return [model.model.image_tower, model.model.video_tower]

    def model_class(self, config: Any) -> Any:
        """The stock class, or where the config says that its video tower attends over time the one that does."""
        if not getattr(config.vision_config, "add_time_attn", False):
            return super().model_class(config)
        from fastervlm.families.video_llava.model import TemporalVideoLlava

        return TemporalVideoLlava

    def complete(self, processor: Any, config: Any, anyres: str) -> Any:
        """The processor with what older ones do not say, and with the resize of clips that it was saved with."""
        from fastervlm.families.video_llava.processor import restore

        restore(processor)
        return complete(processor, config)

    def config(self, vision: Any, text: Any, tokens: Mapping[str, int], frames: int = 0) -> Any:
        """A `VideoLlavaConfig`."""
        from transformers import VideoLlavaConfig

        patches = (vision.image_size // vision.patch_size) ** 2
        return VideoLlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokens["image"],
            video_token_index=tokens["video"],
            image_seq_length=patches,
            video_seq_length=frames * (patches + 1),
        )

    def processor(self, config: Any, tokenizer: Any) -> Any:
        """A `VideoLlavaProcessor`."""
        from transformers import CLIPImageProcessor, VideoLlavaProcessor, VideoLlavaVideoProcessor

        return VideoLlavaProcessor(
            image_processor=CLIPImageProcessor(**square(config)),
            video_processor=VideoLlavaVideoProcessor(**square(config)),
            **placeholders(config, tokenizer),
        )

    def separators(self, side: int, frames: int = 0) -> int:
        """[CLS] of each frame."""
        return frames


def _shown(call: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """The pictures of a call, by either of their names, and its clips."""
    pictures, old = call.get("pixel_values"), call.get("pixel_values_images")
    if pictures is not None and old is not None:
        raise UserError("pixel_values and pixel_values_images are two names of the same pictures; pass one of them.")
    return old if pictures is None else pictures, call.get("pixel_values_videos")


def _questions(
    call: Mapping[str, Any], pictures: Tensor | None, videos: Tensor | None
) -> tuple[Sequence[str] | None, Sequence[str] | None]:
    """What is asked about each picture of the call, and about each clip; None where nothing is said."""
    questions, shown, clips = call.get("questions"), *(0 if x is None else len(x) for x in (pictures, videos))
    if questions is None:
        return None, None
    check_questions(questions, shown + clips, f"each of the {shown} pictures, then one for each of the {clips} clips")
    return questions[:shown], questions[shown:]


def _encode_pictures(
    model: Any, pruning: Pruning, call: Mapping[str, Any], pixel_values: Tensor, questions: Sequence[str] | None
) -> Encoded:
    """Pictures (B, 3, H, W) by the image tower; their [CLS] never reaches the language model."""
    encoder = encoder_of(model, pruning, call, model.model.image_tower)
    if pruning.settings.images:
        patches = asked(thinned(encoder, pruning, pixel_values), questions)
        choice = choose(patches, counts_for(pruning.budget, patches.scores), pruning.method)
    else:
        choice = keep_all(asked(encoder(pixel_values), questions))
    return flat(choice, model.model.multi_modal_projector)


def _encode_clips(
    model: Any, pruning: Pruning, call: Mapping[str, Any], videos: Tensor, questions: Sequence[str] | None
) -> Encoded:
    """Clips (B, F, 3, H, W) by the video tower, a chunk of frames or of whole clips at a time."""
    if videos.dim() != 5:
        raise UserError(f"pixel_values_videos of shape (B, F, 3, H, W) are needed, but these are {tuple(videos.shape)}.")
    cls, (clips, frames) = pruning.settings.keep_cls, videos.shape[:2]
    encoder = encoder_of(model, pruning, call, model.model.video_tower)
    still = _still(pruning, encoder, videos)
    shown = None if still is None else still[0]
    if still is None:
        found = _encode_frames(model, pruning, encoder, videos, questions)
    else:
        own = still[0].unique()
        found = _encode_frames(model, pruning, encoder, videos.flatten(0, 1)[own][:, None], None, still[1][own])
    tokens, mask, scores = (torch.cat(parts) for parts in zip(*(part[:3] for part in found), strict=True))
    each = [count + cls for part in found for count in part[4]]
    rows = list(tokens.split(each))
    if shown is not None:
        place = torch.unique(shown, return_inverse=True)[1]
        mask, scores = mask[place.to(mask.device)], scores[place.to(scores.device)]
        rows = [rows[row] for row in place.tolist()]
    mask, scores, grid = mask.unflatten(0, (clips, frames)), scores.unflatten(0, (clips, frames)), found[0][3]
    keep = F.pad(mask, (1, 0), value=cls).flatten(1)
    features = [torch.cat(rows[first : first + frames]) for first in range(0, len(rows), frames)]
    told = [None] * clips if shown is None else list(shown.view(clips, frames) % frames)
    traces = [ClipTrace(one, kept, grid, cls, shown=own) for one, kept, own in zip(scores, mask, told, strict=True)]
    return Encoded(features, list(keep), traces)


def _encode_frames(
    model: Any,
    pruning: Pruning,
    encoder: VisionEncoder,
    videos: Tensor,
    questions: Sequence[str] | None,
    last: Tensor | None = None,
) -> list[tuple[Tensor, Tensor, Tensor, tuple[int, int], list[int]]]:
    """What each chunk of clips (B, F, 3, H, W) keeps, see `_chunk`; patches where `last` (S, N) is true leave first."""
    frames = videos.shape[1]
    # Temporal attention looks across the frames of a clip: such a tower gets whole clips, as many as fit, or one.
    few = max(1, CHUNK // max(1, frames))
    chunks = videos.split(few) if encoder.takes_clips else videos.flatten(0, 1).split(CHUNK)
    counts = _counts_ahead(pruning, encoder, chunks, frames)
    first = [None] * len(chunks) if last is None else last.split(CHUNK)
    asks = zip(chunks, _by_chunk(questions, chunks, frames), counts, first, strict=True)
    return [
        _chunk(model, pruning, asked(thinned(encoder, pruning, chunk, leave), about), own, frames)
        for chunk, about, own, leave in asks
    ]


def _still(pruning: Pruning, encoder: VisionEncoder, videos: Tensor) -> tuple[Tensor, Tensor] | None:
    """What says nothing new in clips (B, F, 3, H, W); None where that is not asked.

    (B * F,) for each frame the number of the one whose tokens it shows, its own where it is encoded; and (B * F, N) bool, the
    patches that differ no more than that from when they last changed. Small changes thus add up.
    """
    schedule = pruning.encoder_keep
    if schedule is None or schedule.still is None:
        return None
    shown, unchanged = list[int](), list[Tensor]()
    for first, clip in zip(range(0, len(videos) * videos.shape[1], videos.shape[1]), videos.detach().float(), strict=True):
        last, seen = 0, clip[0]
        for number, frame in enumerate(clip):
            change = F.avg_pool2d((frame - seen).abs().mean(dim=0)[None, None], encoder.patch_size)
            same = change[0, 0] <= schedule.still  # NaN is no small change
            unchanged.append(same.flatten())
            if not bool(same.all()):
                last = number
                # All of it is encoded where nothing leaves inside the tower, else what changed before the rest.
                seen = torch.where(_pixels(same, frame, encoder.patch_size), seen, frame) if schedule.blocks else frame
            shown.append(first + last)
    return torch.tensor(shown, device=videos.device), torch.stack(unchanged)


def _pixels(patches: Tensor, frame: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(H, W) of a frame (3, H, W), for each pixel what `patches` (rows, columns) say of its patch; true beyond them."""
    spread = patches.repeat_interleave(patch_size[0], dim=0).repeat_interleave(patch_size[1], dim=1)
    missing = [size - here for size, here in zip(frame.shape[-2:], spread.shape, strict=True)]
    return F.pad(spread, (0, missing[1], 0, missing[0]), value=True)


def _chunk(
    model: Any, pruning: Pruning, patches: ScoredPatches, counts: list[int] | None, frames: int
) -> tuple[Tensor, Tensor, Tensor, tuple[int, int], list[int]]:
    """What a chunk keeps, projected (T, D), its mask and scores (S, N), its grid and how many each frame keeps.

    The rest is released with `patches`.
    """
    if counts is None:
        groups = _groups(len(patches.scores), frames)
        counts = counts_for(pruning.budget, patches.scores, groups=groups, pool=pruning.settings.budget == "clip")
    choice = choose(patches, counts, pruning.method)
    tokens, _ = choice.project(model.model.multi_modal_projector, cls=pruning.settings.keep_cls)
    return tokens, choice.mask, patches.scores.detach().clamp(min=0), patches.grid, choice.counts


def _by_chunk(questions: Sequence[str] | None, chunks: Sequence[Tensor], frames: int) -> Sequence[Sequence[str] | None]:
    """For each chunk, of frames (S, 3, H, W) or of whole clips (b, F, 3, H, W), what is asked about its frames."""
    if questions is None:
        return [None] * len(chunks)
    texts = iter([text for text in questions for _ in range(frames)])
    return [list(islice(texts, chunk[..., 0, 0, 0].numel())) for chunk in chunks]


@torch.no_grad()
def _counts_ahead(
    pruning: Pruning, encoder: VisionEncoder, chunks: Sequence[Tensor], frames: int
) -> Sequence[list[int] | None]:
    """For each chunk how many patches its frames keep, where that is known only once all are scored; else None."""
    pool = pruning.settings.budget == "clip"
    if len(chunks) == 1 or encoder.takes_clips or (isinstance(pruning.budget, TokenBudget) and not pool):
        return [None] * len(chunks)
    if pruning.budget.reads_scores or pool:
        scores = torch.cat([encoder(chunk).scores for chunk in chunks])
    else:  # the shape decides
        (high, wide), (rows, columns) = chunks[0].shape[-2:], encoder.patch_size
        scores = torch.empty(sum(map(len, chunks)), high // rows * (wide // columns), device="meta")
    counts = counts_for(pruning.budget, scores, groups=_groups(len(scores), frames), pool=pool)
    return [counts[first : first + CHUNK] for first in range(0, len(counts), CHUNK)]


def _groups(rows: int, frames: int) -> list[int]:
    """How many rows each clip has; a chunk of frames that each count for themselves may begin and end within one."""
    return [frames] * (rows // frames) + [rows % frames] * bool(rows % frames)
