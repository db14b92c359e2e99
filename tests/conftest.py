"""What all tests share."""

import os

import pytest
import torch

pytest.register_assert_rewrite("tests.support")  # so that what fails there is told as in tests


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models are slower on many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_ray():
    """A Ray of two CPUs on this machine, started once; gives its address."""
    import ray

    from fastervlm.eval.ray_session import SETTINGS

    os.environ.update(SETTINGS)
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init("local", num_cpus=2, object_store_memory=128 << 20, **quiet)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def numbers_in_words():
    """SmolVLM's processor wants a package for the words of numbers, which stand in prompts about clips alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
        yield


@pytest.fixture
def model():
    """A tiny LLaVA, made anew; folders whose tests are of another model have their own."""
    from tests.support import tiny

    return tiny.llava()
