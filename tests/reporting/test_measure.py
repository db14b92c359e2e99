import statistics

import pytest
import torch
from transformers import DynamicCache

from encoders import UserError
from fastervlm.reporting.measure import FirstTokenClock, Spread, cache_bytes, peak_bytes

CPU = torch.device("cpu")


def layered(lengths, dtype=torch.float32):
    """A cache whose layers hold these numbers of tokens: 3 rows, 2 heads of width 5."""
    cache = DynamicCache()
    for layer, length in enumerate(lengths):
        keys, values = torch.zeros(2, 3, 2, length, 5, dtype=dtype)
        cache.update(keys, values, layer)
    return cache


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("lengths", [[7], [7, 7, 7], [9, 9, 4], []])
def test_bytes_of_a_cache_are_those_of_keys_and_values(lengths, dtype, size):
    assert cache_bytes(layered(lengths, dtype)) == sum(2 * 3 * 2 * length * 5 * size for length in lengths)


def test_peak_is_what_was_held_at_once():
    held = torch.zeros(1000)

    def call():
        first = torch.zeros(1000, 100)
        second = torch.zeros(500, 100)
        del first
        third = torch.zeros(700, 100)
        return second.sum() + third.sum() + held.sum()

    assert 4 * 150_000 <= peak_bytes(CPU, call) < 4 * 150_000 + 1000
    assert peak_bytes(CPU, lambda: None) == 0


def test_peak_counts_what_an_operation_takes_inside():
    square = torch.rand(200, 200)
    assert peak_bytes(CPU, lambda: (square @ square).softmax(-1)) >= 2 * 4 * 200**2


def test_memory_of_an_unknown_device_is_refused():
    with pytest.raises(UserError, match="on cpu and cuda, not on meta"):
        peak_bytes(torch.device("meta"), lambda: None)


@pytest.mark.parametrize("values", [[3.0], [1.0, 4.0, 2.0, 8.0], [5, 1, 3]])
def test_spread_is_median_and_quartiles(values):
    spread = Spread(values)
    assert spread.median == statistics.median(values)
    expected = statistics.quantiles(values, n=4, method="inclusive")[::2] if len(values) > 1 else values * 2
    assert spread.quartiles == pytest.approx(tuple(expected))
    assert spread.summary()["values"] == values


def test_ratio_is_the_median_of_pairs():
    """Load that comes and goes falls on both of a pair."""
    base = [1.0, 10.0, 2.0]
    assert Spread([0.5, 5.0, 1.2]).ratio(Spread(base)) == 0.5
    assert Spread(base).ratio(Spread(base)) == 1
    with pytest.raises(ValueError, match="argument 2 is longer"):
        Spread([1.0]).ratio(Spread(base))


def test_total_time_begins_where_the_time_to_the_first_token_does(monkeypatch):
    ticks = iter([0.0, 1.0, 4.0, 9.0])
    monkeypatch.setattr("fastervlm.reporting.measure.time.perf_counter", lambda: next(ticks))
    clock = FirstTokenClock(CPU)
    clock.start()
    assert not clock(torch.zeros(2, 3), None).any()
    assert (clock.seconds, clock.stop()) == (3, 8)
