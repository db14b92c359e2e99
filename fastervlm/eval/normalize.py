"""The answer normalisation of the EvalAI server, which TextVQA, VQAv2 and VizWiz are scored with.

OCR-VQA is scored without its first step. Its oddities are kept, since published numbers contain them; each is named where it
happens.
"""

from __future__ import annotations

import re

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", **{word: str(digit) for digit, word in enumerate(NUMBERS)}}
ARTICLES = {"a", "an", "the"}
MARKS = ';/[]"{}()=+\\_-><@`,?!'

_PERIOD = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")
_MOST_PERIODS = 32

# The official table, less the entries with a capital letter, which a lower-cased answer never meets.
_CONTRACTIONS = """
aint ain't, arent aren't, cant can't, couldve could've, couldnt couldn't, couldn'tve couldn't've, couldnt've couldn't've,
didnt didn't, doesnt doesn't, dont don't, hadnt hadn't, hadnt've hadn't've, hadn'tve hadn't've, hasnt hasn't,
havent haven't, hed he'd, hed've he'd've, he'dve he'd've, hes he's, howd how'd, howll how'll, hows how's, isnt isn't,
itd it'd, itd've it'd've, it'dve it'd've, itll it'll, let's let's, maam ma'am, mightnt mightn't, mightnt've mightn't've,
mightn'tve mightn't've, mightve might've, mustnt mustn't, mustve must've, neednt needn't, notve not've, oclock o'clock,
oughtnt oughtn't, ow's'at 'ow's'at, 'ows'at 'ow's'at, 'ow'sat 'ow's'at, shant shan't, shed've she'd've,
she'dve she'd've, she's she's, shouldve should've, shouldnt shouldn't, shouldnt've shouldn't've,
shouldn'tve shouldn't've, somebody'd somebodyd, somebodyd've somebody'd've, somebody'dve somebody'd've,
somebodyll somebody'll, somebodys somebody's, someoned someone'd, someoned've someone'd've, someone'dve someone'd've,
someonell someone'll, someones someone's, somethingd something'd, somethingd've something'd've,
something'dve something'd've, somethingll something'll, thats that's, thered there'd, thered've there'd've,
there'dve there'd've, therere there're, theres there's, theyd they'd, theyd've they'd've, they'dve they'd've,
theyll they'll, theyre they're, theyve they've, twas 'twas, wasnt wasn't, wed've we'd've, we'dve we'd've, weve we've,
werent weren't, whatll what'll, whatre what're, whats what's, whatve what've, whens when's, whered where'd,
wheres where's, whereve where've, whod who'd, whod've who'd've, who'dve who'd've, wholl who'll, whos who's,
whove who've, whyll why'll, whyre why're, whys why's, wont won't, wouldve would've, wouldnt wouldn't,
wouldnt've wouldn't've, wouldn'tve wouldn't've, yall y'all, yall'll y'all'll, y'allll y'all'll, yall'd've y'all'd've,
y'alld've y'all'd've, y'all'dve y'all'd've, youd you'd, youd've you'd've, you'dve you'd've, youll you'll,
youre you're, youve you've
"""
CONTRACTIONS: dict[str, str] = {}
for _pair in _CONTRACTIONS.split(","):
    _short, _long = _pair.split()
    CONTRACTIONS[_short] = _long


def normalize(answer: str) -> str:
    """The form in which two answers are compared.

    Example:
        >>> normalize("The Two-Way sign's")
        '2 way sign 's'
    """
    return clean(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def clean(answer: str) -> str:
    """`normalize` without its first step, so that commas, question marks and "'s" go the way of other marks.

    Example:
        >>> clean("the Two-Way sign's"), clean("a-b 1,000")
        ('2 way sign's', 'ab 1000')
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    words = [DIGITS.get(word, word) for word in _without_marks(text).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_marks(text: str) -> str:
    """Marks and periods removed.

    A mark that touches a space anywhere in the input vanishes everywhere, and so does every mark of an input with a comma
    between digits; any other becomes a space. A period goes unless a digit follows it, and at most 32 of them go.
    """
    result, thousands = text, _THOUSANDS.search(text)
    for mark in MARKS:
        vanishes = thousands or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)
