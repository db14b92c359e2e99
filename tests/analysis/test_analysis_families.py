"""What of the analyses means something to families without a [CLS] token that ranks patches."""

import pytest

from encoders import UserError
from fastervlm.analysis.reading import read_questions
from fastervlm.eval.subject import Subject
from fastervlm.families.registry import FAMILIES
from tests.support.tiny_families import save

WITHOUT = [family.model_type for family in FAMILIES if family.usual_method != "cls"]


@pytest.mark.parametrize("name", WITHOUT)
def test_shift_and_dispersion_need_cls(name, tmp_path, settings):
    subject = Subject(str(save(name, tmp_path / "tiny")))
    with pytest.raises(UserError, match=r"compare with the attention of \[CLS\]"):
        read_questions(subject, settings(keep=None), tmp_path / "read")
    assert not (tmp_path / "read").exists()


@pytest.mark.parametrize("name", ["vipllava", "llava_next_video"])
def test_shift_and_dispersion_where_there_is_cls(name, tmp_path, settings):
    subject = Subject(str(save(name, tmp_path / "tiny")))
    found = read_questions(subject, settings(keep=None, limit=2), tmp_path / "read")
    assert found.about["questions"] == 2
