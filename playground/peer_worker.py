"""One side of `playground.bench_peers`: a model in a Python of its own that answers requests, a line of JSON each.

`python peer_worker.py SIDE FOLDER DTYPE MORE` with SIDE "ours", "fastervlm", "visionzip", "vispruner" or "fastv", and what it
takes besides as JSON. The peer's clone is on PYTHONPATH; what is called there is written here, and none of their code. Beside
torch only the peer's own packages are imported, so that this runs in the environment that it needs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

PLACEHOLDER = -200  # what LLaVA's own code has for a picture


class Peer:
    """A LLaVA of the authors' layout that prunes by the peer's own code, loaded by its own classes."""

    def __init__(self, folder: Path, dtype: torch.dtype, more: dict[str, Any]) -> None:
        from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM  # type: ignore[import-not-found]

        self.model: Any = LlavaLlamaForCausalLM.from_pretrained(str(folder / "authors"), torch_dtype=dtype, **more).eval()
        tower = self.model.get_model().vision_tower
        if not tower.is_loaded:
            tower.load_model()
        tower.to(dtype)
        self.kept: Any = None

    def keep(self, kept: int) -> None:
        """Set how many tokens stay."""
        self.model.visual_token_num = kept

    def watch(self) -> None:
        """Note what the last call kept, for fidelity alone: what is timed runs without it."""
        inner = self.model.encode_images

        def noted(images: Any) -> Any:
            found = inner(images)
            self.kept = found[1][0].nonzero().flatten().tolist()
            return found

        self.model.encode_images = noted

    def inputs(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `generate`, made before the clock starts."""
        return {"inputs": given["authors_ids"], "images": given["pixels"]}

    def generate(self, inputs: dict[str, Any]) -> None:
        """One token."""
        self.model.generate(**inputs, do_sample=False, max_new_tokens=1, use_cache=True)


class VisionZip(Peer):
    """VisionZip on the LLaVA that it changes; ten of 64 tokens are contextual, as published."""

    def __init__(self, folder: Path, dtype: torch.dtype, more: dict[str, Any]) -> None:
        super().__init__(folder, dtype, more)
        from visionzip import visionzip  # type: ignore[import-not-found]

        visionzip(self.model, dominant=54, contextual=10)
        tower = self.model.get_model().vision_tower.vision_tower
        tower.r = [0] * (tower.config.num_hidden_layers - 2) + [1, 0]  # the block it reads keys of, in a tower of any depth

    def keep(self, kept: int) -> None:
        """Nothing to set; it was told once."""
        if kept != 64:
            raise ValueError("VisionZip is set to 64 tokens once")

    def watch(self) -> None:
        """Tell of 64 tokens what is comparable: 54 patches beside [CLS], which then leaves, and all of them in order of place.

        Ours has no [CLS] among them, and puts a merged token at the place of the patch that it is built on.
        """
        tower, encode = self.model.get_model().vision_tower, self.model.encode_images_visionzip
        tower.vision_tower._info["dominant"] = 54
        inner, dominant = tower.forward, []

        def noted(images: Any) -> Any:
            found = inner(images)
            dominant[:] = sorted(i - 1 for i in found[1][0].tolist() if i)
            return found

        def ordered(images: Any) -> Any:
            tokens = encode(images)[:, 1:]
            left = sorted({*range(tower.num_patches)} - {*dominant})
            places = dominant + left[:: len(left) // 10][:10]
            self.kept = sorted(places)
            return tokens[:, sorted(range(len(places)), key=places.__getitem__)]

        tower.forward, self.model.encode_images_visionzip = noted, ordered


class FastV(Peer):
    """FastV in its way that drops tokens, behind two layers."""

    def keep(self, kept: int) -> None:
        """Set how many tokens stay."""
        config = self.model.config
        config.use_fast_v, config.fast_v_inplace, config.fast_v_agg_layer = True, True, 2
        config.fast_v_sys_length, config.fast_v_image_token_length, config.fast_v_attention_rank = self.before, 576, kept
        self.model.model.reset_fastv()

    def watch(self) -> None:
        """What it keeps is known inside it alone; its logits tell."""
        self.kept = None

    def inputs(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `generate`."""
        return {"input_ids": given["authors_ids"], "images": given["pixels"]}

    def generate(self, inputs: dict[str, Any]) -> None:
        """One token."""
        with torch.no_grad():  # it keeps no cache where it drops
            self.model.generate(**inputs, do_sample=False, max_new_tokens=1, use_cache=False, output_attentions=True)

    before = 0


class Ours:
    """The same weights in transformers' layout under `fastervlm.prune`, as it is or compiled."""

    def __init__(self, folder: Path, dtype: torch.dtype, more: dict[str, Any]) -> None:
        from transformers import LlavaForConditionalGeneration

        import fastervlm

        self.prune = fastervlm.prune
        self.model: Any = LlavaForConditionalGeneration.from_pretrained(folder / "transformers", dtype=dtype).eval()
        self.method = fastervlm.FastV(layer=2) if more["method"] == "fastv" else more["method"]
        self.inside, self.budget = more["method"] == "fastv", {}
        self.handle: Any = None
        if not self.inside:
            self.handle = self.prune(self.model, 58, method=self.method)
            if more["compiled"]:
                self.handle.compile(language_model=True)
        elif more["compiled"]:  # the encoder alone: all its tokens stay until FastV chooses
            encoder: Any = self.prune(self.model, 1.0)
            encoder.compile()

    def keep(self, kept: int) -> None:
        """Set how many tokens stay, by call where the method can."""
        if not self.inside:
            self.budget = {"keep": kept}
            return
        if self.handle is not None:
            self.handle.remove()
        self.handle = self.prune(self.model, kept, method=self.method)

    def watch(self) -> None:
        """Each call tells what it kept."""

    @property
    def kept(self) -> list[int]:
        """What the last call kept."""
        return self.handle.trace[0].index.tolist()

    def inputs(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `generate`."""
        return {"input_ids": given["ids"], "pixel_values": given["pixels"], **self.budget}

    def generate(self, inputs: dict[str, Any]) -> None:
        """One token."""
        self.model.generate(**inputs, do_sample=False, max_new_tokens=1)


SIDES = {"ours": Ours, "fastervlm": Peer, "visionzip": VisionZip, "vispruner": Peer, "fastv": FastV}


def timed(side: Any, given: dict[str, Any], kept: int) -> dict[str, float]:
    """Seconds to the first token on the clock, and of this process's own."""
    side.keep(kept)
    inputs = side.inputs(given)
    start, own = time.perf_counter(), time.process_time()
    side.generate(inputs)
    return {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - own}


def peak_bytes(side: Any, given: dict[str, Any], kept: int) -> dict[str, int]:
    """The most memory that torch's allocator held at once during a call, beyond what it held before."""
    side.keep(kept)
    inputs = side.inputs(given)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        side.generate(inputs)
    recorded: Any = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    held = peak = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in recorded if event.name() == "[memory]"):
        held += size
        peak = max(peak, held)
    return {"bytes": peak}


def told(side: Any, given: dict[str, Any], kept: int) -> dict[str, Any]:
    """What a call keeps, and the logits of its first token."""
    side.keep(kept)
    found: list[Any] = []
    hook = side.model.lm_head.register_forward_hook(lambda _, __, output: found.append(output[0, -1].float()))
    side.generate(side.inputs(given))
    hook.remove()
    return {"kept": side.kept, "logits": found[0].tolist()}


def main(name: str, folder: Path, dtype: str, more: str) -> None:
    """Load, then answer each line of standard input by a line of standard output."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    prompts = torch.load(folder / "prompts.pt", weights_only=True)
    prompts = [
        {key: x.to(getattr(torch, dtype)) if x.is_floating_point() else x for key, x in each.items()} for each in prompts
    ]
    FastV.before = int((prompts[0]["authors_ids"][0] == PLACEHOLDER).nonzero()[0])
    side = SIDES[name](folder, getattr(torch, dtype), json.loads(more))
    tasks = {"timed": timed, "peak_bytes": peak_bytes, "told": told}
    import transformers

    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}), file=answers, flush=True)
    watched = False
    for line in sys.stdin:
        request = json.loads(line)
        if request["task"] == "told" and not watched:
            side.watch()
            watched = True
        answer = tasks[request["task"]](side, prompts[request["prompt"]], request["kept"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4])
