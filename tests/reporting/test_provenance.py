"""What is told of the machine that results were made on."""

import pytest

from fastervlm.reporting import provenance

NAMED = "processor\t: 0\nvendor_id\t: {}\nmodel name\t: {}\n"


@pytest.mark.parametrize(
    ("told", "name", "intel"),
    [
        (NAMED.format("GenuineIntel", "Intel(R) Xeon(R) Gold"), "Intel(R) Xeon(R) Gold", True),
        (NAMED.format("GenuineIntel", "QEMU Virtual CPU version 2.5+"), "QEMU Virtual CPU version 2.5+", True),
        (NAMED.format("AuthenticAMD", "QEMU Virtual CPU version 2.5+"), "QEMU Virtual CPU version 2.5+", False),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", "elsewhere", False),  # ARM
        (None, "Intel64 Family 6 Model 85, GenuineIntel", True),  # Windows
        (None, "arm", False),  # macOS
    ],
)
def test_the_processor_and_whether_intel_made_it(monkeypatch, tmp_path, told, name, intel):
    monkeypatch.setattr(provenance, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(provenance.platform, "processor", lambda: name if told is None else "elsewhere")
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    assert (provenance.processor(), provenance.by_intel()) == (name, intel)
