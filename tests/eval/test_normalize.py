import hashlib

import pytest

from fastervlm.eval.normalize import CONTRACTIONS, normalize

CASES = [
    # what is said, how it is compared
    ("", ""),
    ("  Stop \n", "stop"),
    ("1,000", "1000"),
    ("a,b", "ab"),
    ("what?now", "whatnow"),
    ("it's", "it 's"),
    ("Joe's", "joe 's"),
    ("whats", "what's"),
    ("DONT", "don't"),
    ("youve", "you've"),
    ("somebody'd", "somebodyd"),
    ("im", "im"),
    ("none", "0"),
    ("Ten", "10"),
    ("eleven", "eleven"),
    ("the", ""),
    ("The end of an era", "end of era"),
    ("a-b", "b"),
    ("x-ray", "x ray"),
    ("x -ray-y", "x rayy"),
    ("x- ray-y", "x rayy"),
    ("[x] {y}", "x y"),
    ("(a)", ""),
    ("x ;/y c/d", "x y c d"),
    ("7/8", "7 8"),
    ("a\tb\nc", "b c"),
    ("1.", "1"),
    ("1.5", "1.5"),
    ("1.5.", "1.5"),
    (".5", ".5"),
    ("u.s.a.", "usa"),
    ("e.g. this", "eg this"),
    ("x" + "." * 40, "x" + "." * 8),
    ("'quoted'", "'quoted'"),
    ("\u201cquoted\u201d", "\u201cquoted\u201d"),
    ("caf\u00c9", "caf\u00e9"),
    ("100%", "100%"),
    ("one-way", "1 way"),
    ("wow!", "wow"),
    ("a!b", "b"),
    ("hi ! there!", "hi there"),
]


@pytest.mark.parametrize(("said", "compared"), CASES)
def test_normalize(said, compared):
    assert normalize(said) == compared


def test_contractions_are_the_official_table():
    assert len(CONTRACTIONS) == 116
    table = " ".join(f"{short} {long}" for short, long in sorted(CONTRACTIONS.items()))
    digest = "30ce378c51ad4572170ed7682b7fce9317713781464394c3b9963ea2989b4cb0"
    assert hashlib.sha256(table.encode()).hexdigest() == digest, "one of the contractions is not the official one"
    assert CONTRACTIONS["yall'd've"] == "y'all'd've"
    assert CONTRACTIONS["'ow'sat"] == "'ow's'at"
    assert not any(key != key.lower() or " " in key for key in CONTRACTIONS)
