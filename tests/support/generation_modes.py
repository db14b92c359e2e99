"""Modes of `generate` by their arguments, and what comes of a call, as tokens."""

import torch

GREEDY = {"do_sample": False, "max_new_tokens": 6}
MODES = {
    "greedy": {},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "chunked prefill": {"prefill_chunk_size": 5},
    "chunk of one": {"prefill_chunk_size": 1},
    "dictionary": {"return_dict_in_generate": True, "output_scores": True},
}
BEAMS = {
    "beams": {"num_beams": 3},
    "beams, several answers": {"num_beams": 4, "num_return_sequences": 3},
    "beams, no cache": {"num_beams": 2, "use_cache": False},
    "beams, static cache": {"num_beams": 2, "cache_implementation": "static"},
}
SAMPLES = {
    "sampling": {"do_sample": True, "top_k": 0},
    "several answers": {"do_sample": True, "num_return_sequences": 3, "temperature": 0.7},
    "beam sampling": {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
}
LOOKUP = {
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "longer lookup": {"prompt_lookup_num_tokens": 8, "max_new_tokens": 20},
}


def tokens(output):
    return output if isinstance(output, torch.Tensor) else output.sequences


def padded(rows):
    """Rows of new tokens as generation returns them: pads behind the end token."""
    return [row + [0] * (max(map(len, rows)) - len(row)) for row in rows]


class Collect:
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.parts, self.ended = [], 0

    def put(self, value):
        self.parts.append(value.flatten().tolist())

    def end(self):
        self.ended += 1
