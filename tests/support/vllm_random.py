"""Checkpoints of random models that vLLM can load on CPUs, and questions about noise of several shapes."""

from pathlib import Path

import torch
from PIL import Image

from fastervlm.families.registry import family_of_type
from tests.support import family_cases as cases
from tests.support import tiny_families as made

SIDE = 64  # pixels of a tile or crop
# Width and height; beside a tile or crop of the whole, the second and third have parts. Of the last picture of LLaVA-OneVision
# there are so many crops that their map is resized.
SHAPES = {
    "llava with siglip": ((64, 64), (128, 64)),
    "internvl": ((64, 64), (128, 64), (64, 192), (100, 90)),
    "llava_onevision": ((64, 64), (128, 64), (64, 192), (250, 256)),
}
SPECIAL = {"internvl": made.INTERN, "llava_onevision": made.LLAVA, "llava with siglip": made.LLAVA}


def checkpoint(kind: str, folder: Path, **vision: object) -> Path:
    """Write a random model of a kind, a `model_type` perhaps, and its processor into a new folder, and return that."""
    siglip, names = kind.endswith(" with siglip"), SPECIAL[kind]
    family = family_of_type(kind.removesuffix(" with siglip"))
    tower = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 3}
    tower |= {"image_size": SIDE, "patch_size": 8, **vision}
    decoder = cases.TEXT | {"hidden_size": 64, "num_key_value_heads": 1, "vocab_size": cases.WORDS}
    parts = (family_of_type("llava_onevision") if siglip else family).configs(tower, decoder)
    tokens = {"image": cases.IMAGE_ID, "video": cases.VIDEO_ID}
    config = family.config(*parts, tokens)
    if siglip:
        config.vision_feature_layer, config.vision_feature_select_strategy = -1, "full"
    model = cases.random(lambda: family.model_class(config)(config), 1)
    with torch.no_grad():  # a random model would answer with placeholders
        model.lm_head.weight[[cases.IMAGE_ID, cases.VIDEO_ID, cases.START_ID, cases.STOP_ID]] = 0
        for name, weight in model.model.language_model.layers.named_parameters():
            weight *= 2 if "proj" in name else 1  # so that what is read decides what is answered
    model.save_pretrained(folder)
    processor = family.processor(config, made.tokenizer(*names))
    if siglip:
        processor.vision_feature_select_strategy, processor.num_additional_image_tokens = "full", 0
    processor.save_pretrained(folder)
    return folder


def questions(kind: str, folder: Path, count: int) -> list[dict]:
    """Questions about a picture each, of which there are four shapes."""
    folder.mkdir(exist_ok=True)
    image, shapes, found = SPECIAL[kind][0], SHAPES[kind], []
    for number in range(count):
        width, height = shapes[number % len(shapes)]
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(256, (height // 4 + 1, width // 4 + 1, 3), dtype=torch.uint8, generator=generator)
        file = folder / f"{number}.png"
        Image.fromarray(pixels.numpy()).resize((width, height)).save(file)
        found.append({"prompt": f"USER: {image}\nWhat is number {number}? ASSISTANT:", "images": [str(file)]})
    return found
