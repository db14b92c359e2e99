"""Drafts of a pruned model for another pruned one, in assisted generation.

The stock loop hands a draft what the main model reads: its shortened prompt, and no pictures. A draft that is pruned itself, by
a budget of its own, reads the unpruned prompt with the pictures instead; a draft that is not pruned is left as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.generation.candidate_generator import AssistedCandidateGenerator

from fastervlm.generation.history import known
from fastervlm.generation.host import HOST, Host
from fastervlm.generation.kv_cache import CACHE, cache_in
from fastervlm.generation.running import Running, current
from fastervlm.generation.splice import Splice
from fastervlm.generation.whole_prompt import with_whole_lengths


def get_candidate_generator(host: Host, call: dict[str, Any]) -> Any:
    """`model._get_candidate_generator(**call)`; a pruned assistant gets the unpruned prompt."""
    found, running = host.original("_get_candidate_generator")(**call), current(host)
    if type(found) is not AssistedCandidateGenerator or running is None or running.splice is None:
        return found
    return Draft(running, running.splice, call) if HOST in vars(found.assistant_model) else found


class Draft(AssistedCandidateGenerator):
    """Candidates of a pruned assistant, which reads the unpruned prompt.

    Args:
        running: the main model's call.
        splice: how its prompt was shortened.
        call: what the stock loop makes a candidate generator of.
    """

    def __init__(self, running: Running, splice: Splice, call: dict[str, Any]) -> None:
        self.splice, self.inputs = splice, running.host.family.inputs
        shown = {name: running.given[name] for name in self.inputs if running.given.get(name) is not None}
        alike = {name: running.given.get(name) for name in call["model_kwargs"] if name in running.given}
        super().__init__(
            input_ids=splice.ids,  # type: ignore[arg-type]
            assistant_model=call["assistant_model"],
            generation_config=with_whole_lengths(call["generation_config"], splice),
            model_kwargs=_without_history({**call["model_kwargs"], **alike, **shown, "attention_mask": splice.mask}),
            inputs_tensor=splice.ids,
            logits_processor=call["logits_processor"],
        )

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """Candidates behind input_ids (1, L + new), those of the pruned prompt; and their logits."""
        whole = self.splice.restore(input_ids)  # type: ignore[arg-type]
        found, logits = super().get_candidates(whole, **kwargs)  # type: ignore[arg-type]
        return torch.cat((input_ids, found[:, whole.shape[1] :].to(input_ids.device)), dim=1), logits

    def _update_past_and_masks(self, input_ids: Tensor, remove_from_pkv: int = 0, num_added_tokens: int = 0) -> bool:
        """Cut the draft's cache to all but the last of what was accepted, which is shorter by what its own pruning took off.

        The stock one cuts one token more, which may be the last of the pruned prompt.
        """
        own = known(cache_in(self.assistant_kwargs))
        removed = own.removed if own is not None else 0
        return super()._update_past_and_masks(input_ids, remove_from_pkv + removed, num_added_tokens)  # type: ignore[arg-type]

    def _generate_candidates(self, generation_args: dict[str, Any]) -> tuple[Any, Any]:
        """As it was; pictures are shown once, behind that they are in the draft's cache."""
        found = super()._generate_candidates(generation_args)
        for name in self.inputs:
            self.assistant_kwargs.pop(name, None)
        return found


def _without_history(model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments without what belongs to the shortened prompt."""
    return {name: value for name, value in model_kwargs.items() if name not in ("mm_encoder_outputs", CACHE, "position_ids")}
