"""Made-up devices, and the files of benchmarks on them."""

import json
from dataclasses import asdict

from fastervlm.bench.device_spec import DeviceSpec
from fastervlm.bench.plan import job_of, predict
from fastervlm.bench.shapes import get_shape

PRODUCTS = ("encoder", "projector", "prefill", "attention", "maps", "causal")
ALL = dict.fromkeys((*PRODUCTS, "weights", "memory", "launches"), 1.0)
SHAPE = get_shape("llava-1.5-7b")


def spec(tflops, gbytes, starts=1e12, kind="cuda", **efficiency):
    """A made-up device, of TFLOP/s, GB/s and launches/s."""
    return DeviceSpec("made-up", kind, {"float16": tflops * 1e12}, gbytes * 1e9, starts, ALL | efficiency)


def bench_of(maker, path, batches=(1, 8), decode=True, **changes):
    """The file of a benchmark on a device that does as the roofline says."""
    rows = []
    for method, kept in (("none", 576), ("cls", 288), ("cls", 58), ("cls", 1), ("fastv", 58), ("eager-maps", 58)):
        for batch in batches:
            job = job_of(SHAPE, method, kept, batch)
            told = predict(maker, SHAPE.config, job, "float16")
            stages = {"image_processing": 0.25 * batch, "selection": 0.5, "splice": 1.5, **told.stages}
            row = {
                "method": method,
                "batch": batch,
                "job": asdict(job),
                "time_to_first_token_s": {"median": sum(stages.values())},
                "stages_s": {name: {"median": seconds} for name, seconds in stages.items()},
            }
            if decode:
                row["decode_tokens_per_s"] = {"median": batch / told.step}
            rows.append(row)
    rows.append({"method": "visionzip", "job": None})
    told = {"shape": "llava-1.5-7b", "dtype": "float16", "text_tokens": 64, "device": "cuda (Made-up)", "rows": rows}
    path.write_text(json.dumps(told | changes))
    return path
