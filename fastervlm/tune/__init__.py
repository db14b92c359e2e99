"""Which method and how many tokens: the search behind `fastervlm tune`."""
