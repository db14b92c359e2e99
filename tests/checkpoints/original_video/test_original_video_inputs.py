"""Text and pixels of a Video-LLaVA of its authors: tokens, conversations and frames are theirs."""

from typing import Any

import pytest
import sentencepiece
import torch
from torch.nn import functional as F

import fastervlm
from fastervlm.checkpoints.templates import LLAVA_V1
from tests.support import original, original_video
from tests.support.original_video import ASKED
from tests.support.plain import pictures


@pytest.mark.parametrize("prompt", [*ASKED, "<video>", "<image> or <video>?", "One <video>\nand  <video> more"])
def test_tokens_are_the_authors(whole, scratch, prompt):
    """The authors write `<image>` once a frame, side by side, and tokenize what stands between on its own."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(scratch / "tiny.model"))  # type: ignore[call-arg]
    _, processor = fastervlm.load(whole, device="cpu")
    shown: dict[str, Any] = {"images": pictures(prompt.count("<image>")) or None}
    if "<video>" in prompt:
        shown["videos"] = [original_video.clip(2, seed) for seed in range(prompt.count("<video>"))]
    ours = processor(text=prompt, return_tensors="pt", **shown)["input_ids"][0].tolist()
    theirs = [1]
    runs = {"<image>": [400] * original.PATCHES, "<video>": [401] * 2 * (original.PATCHES + 1)}
    for part in prompt.replace("<image>", "\0<image>\0").replace("<video>", "\0<video>\0").split("\0"):
        theirs += runs[part] if part in runs else pieces.encode(part)
    assert ours == theirs


def test_the_conversation(whole):
    _, processor = fastervlm.load(whole, device="cpu")
    asks = {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "video"}]}
    about = LLAVA_V1.replace("{text}", "What?")
    assert processor.apply_chat_template([asks], add_generation_prompt=True) == about.replace("<image>", "<video>")
    asks["content"][1]["type"] = "image"
    assert processor.apply_chat_template([asks], add_generation_prompt=True) == about


@pytest.mark.parametrize("size", [(40, 56), (64, 36), (32, 32), (90, 160)])
def test_frames_are_shrunk_cropped_and_normalised(whole, size):
    _, processor = fastervlm.load(whole, device="cpu")
    frames = original_video.clip(3, size=size)
    ours = processor.video_processor(videos=[frames], return_tensors="pt")["pixel_values_videos"]
    assert ours.shape == (1, 3, 3, original.IMAGE, original.IMAGE)
    assert torch.equal(ours, processor.video_processor(videos=[frames], return_tensors="pt")["pixel_values_videos"])
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    mean, deviation = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (pixels - mean[:, None, None]) / deviation[:, None, None]
    short = min(size)
    scaled = F.interpolate(
        pixels, size=[int(side / short * original.IMAGE) for side in size], mode="bilinear", align_corners=False
    )
    top, left = ((side - original.IMAGE) / 2 for side in scaled.shape[-2:])
    expected = scaled[..., round(top) : round(top) + original.IMAGE, round(left) : round(left) + original.IMAGE]
    assert (ours[0] - expected).abs().max() < 1.5 / 255 / 0.26
