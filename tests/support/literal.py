"""What each method keeps, word by word from its definition: plain loops over one picture, whole numbers and fractions alone.

Nothing here rounds. Cosines are compared by their squares with sign, which order alike; determinants of similarities are those
of the dot products over the squared lengths.
"""

from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import torch

from fastervlm import (
    DART,
    CDPruner,
    ClipRelevance,
    Coverage,
    HiPrune,
    HoloV,
    MMTok,
    PruMerge,
    PruMergePlus,
    Scope,
    UserError,
    UserTypeError,
    VisionZip,
    VisPruner,
    VScan,
)
from tests.support import tiny


def exact(x) -> Any:
    """A tensor as nested lists of fractions."""
    return [exact(row) for row in x] if x.dim() else Fraction(x.item())


def dot(a, b):
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def likeness(a, b):
    """The cosine's square with the cosine's sign; a vector of zeros is like nothing."""
    product, lengths = dot(a, b), dot(a, a) * dot(b, b)
    return product * abs(product) / lengths if lengths else Fraction(0)


def highest(values, candidates, count):
    """The `count` candidates of the highest values; of equals the earlier candidate."""
    return sorted(candidates, key=lambda i: -values[i])[:count]


def vispruner(picture, k, important=0.5):
    count = int(k * important)
    ranked = highest(picture.scores, range(picture.size), picture.size)
    kept, rest = ranked[:count], ranked[count:]
    while k > count and len(rest) > k - count:
        first, second = rest[::2], rest[1::2]
        worst = {a: max(likeness(picture.features[a], picture.features[b]) for b in second) for a in first}
        first = sorted(first, key=lambda a: -worst[a])[min(8, len(rest) - (k - count)) :]
        rest = first + second
    return sorted((kept + rest)[:k])


def divprune(picture, k):
    features, kept = picture.features, []
    for _ in range(k):
        others = [i for i in range(picture.size) if i not in kept]
        compared = {i: kept or [j for j in range(picture.size) if j != i] for i in others}
        nearest = {i: max((likeness(features[i], features[j]) for j in compared[i]), default=0) for i in others}
        kept.append(min(others, key=lambda i: nearest[i]))
    return sorted(kept)


def determinant(rows):
    """By cofactors of the first row."""
    if not rows:
        return Fraction(1)
    minors = ([row[:i] + row[i + 1 :] for row in rows[1:]] for i in range(len(rows)))
    return sum(
        ((-1) ** i * x * determinant(minor) for i, (x, minor) in enumerate(zip(rows[0], minors, strict=True))), Fraction(0)
    )


def cdpruner(picture, k, relevance=None):
    """In the order of choice. Where every determinant is zero the definition is silent: then by relevance, then by score."""
    features, tiny = picture.features, Fraction(1e-6)
    r = [Fraction(1)] * picture.size if relevance is None else relevance
    span = max(r) - min(r)
    r = [((x - min(r)) / span + tiny) / (1 + tiny) if span else Fraction(1) for x in r]

    def volume(chosen):
        lengths, weights = Fraction(1), Fraction(1)
        for i in chosen:
            lengths, weights = lengths * dot(features[i], features[i]), weights * r[i] ** 2
        products = [[dot(features[i], features[j]) for j in chosen] for i in chosen]
        return weights * determinant(products) / lengths if lengths else Fraction(0)

    def order(i):
        grown = volume([*kept, i])
        return (grown, 0, 0) if grown else (grown, r[i], picture.scores[i])

    kept = []
    for _ in range(k):
        kept.append(max((i for i in range(picture.size) if i not in kept), key=order))
    return kept


def dart(picture, k, pivots=4):
    keys = picture.concatenated
    norms = [sum(map(abs, key)) for key in keys]
    kept = highest(norms, range(picture.size), min(pivots, k))
    leaders, remaining = list(kept), k - len(kept)
    for place, pivot in enumerate(leaders):
        share = remaining // len(leaders) + (1 if place < remaining % len(leaders) else 0)
        unlike = {i: -likeness(picture.features[i], picture.features[pivot]) for i in range(picture.size) if i not in kept}
        kept += highest(unlike, unlike, share)
    return sorted(kept)


def mmtok(picture, k, words=(), word_temperature: float = 0.02, temperature: float = 0.2, weight: float = 0.5):
    """In decimals of 60 digits, given the likeness of words to patches as fractions; gains alike to 8 digits are equal."""
    if not words:
        return coverage(picture, k, temperature)
    with localcontext() as context:
        context.prec = 60
        likes = [[cosine(a, b) for b in picture.features] for a in picture.features]
        tables = (([[decimal(x) for x in row] for row in words], word_temperature, 1), (likes, temperature, weight))
        rows = []
        for table, warmth, share in tables:
            for row in table:
                close = [(x / decimal(Fraction(warmth))).exp() for x in row]
                rows.append([decimal(Fraction(share)) * x / sum(close) / len(table) for x in close])
        covered, kept = [Decimal(0)] * len(rows), []
        for _ in range(k):
            others = [i for i in range(picture.size) if i not in kept]
            gains = {i: round(sum(max(row[i] - own, 0) for row, own in zip(rows, covered, strict=True)), 8) for i in others}
            kept.append(max(others, key=lambda i: gains[i]))
            covered = [max(row[kept[-1]], own) for row, own in zip(rows, covered, strict=True)]
    return sorted(kept)


def decimal(x):
    """A fraction as a decimal of the digits that are asked for."""
    return Decimal(x.numerator) / Decimal(x.denominator)


def cosine(a, b):
    """As a decimal; a vector of zeros is like nothing."""
    lengths = dot(a, a) * dot(b, b)
    return decimal(dot(a, b)) / decimal(lengths).sqrt() if lengths else Decimal(0)


def coverage(picture, k, temperature: float = 0.2):
    """In decimals of 60 digits; gains that agree to 11 digits are equal."""
    with localcontext() as context:
        context.prec = 60
        warmth = decimal(Fraction(temperature))
        close = [[(cosine(a, b) / warmth).exp() for b in picture.features] for a in picture.features]
        shares = [[x / sum(row) for x in row] for row in close]
        covered, kept = [Decimal(0)] * picture.size, []
        for _ in range(k):
            others = [i for i in range(picture.size) if i not in kept]
            gains = {i: round(sum(max(row[i] - own, 0) for row, own in zip(shares, covered, strict=True)), 11) for i in others}
            kept.append(max(others, key=lambda i: gains[i]))
            covered = [max(row[kept[-1]], own) for row, own in zip(shares, covered, strict=True)]
    return sorted(kept)


def scope(picture, k, alpha: float = 1.0):
    """In decimals of 60 digits; gains that agree to 7 digits are equal, as products in float32 are."""
    with localcontext() as context:
        context.prec = 60
        similar = [[max(cosine(a, b), Decimal(0)) for b in picture.features] for a in picture.features]
        weights = [decimal(score) ** decimal(Fraction(alpha)) if score else Decimal(0) for score in picture.scores]
        covered, kept = [Decimal(0)] * picture.size, []
        for _ in range(k):
            others = [i for i in range(picture.size) if i not in kept]
            news = {i: sum(max(row[i] - own, 0) for row, own in zip(similar, covered, strict=True)) for i in others}
            kept.append(largest({i: weights[i] * news[i] for i in others}))
            covered = [max(row[kept[-1]], own) for row, own in zip(similar, covered, strict=True)]
    return sorted(kept)


def holov(picture, k, runs=16, diversity: float = 0.09):
    """Run by run, as a list of the patches that it still has to give, the best first."""
    count, start, weights, waiting, kept = min(runs, picture.size), 0, [], [], []
    for run in range(count):
        end = start + picture.size // count + (1 if run < picture.size % count else 0)
        own = range(start, end)
        waiting.append(highest(picture.scores, own, len(own)))
        attention = 1000 * sum((decimal(picture.scores[i]) for i in own), Decimal(0)) / len(own)
        scale = attention / (variance(picture.features[start:end]) + Decimal("1e-6"))
        weights.append(attention + decimal(Fraction(diversity)) * variance(picture.features[start:end]) * scale)
        start = end
    weights = [weight / (sum(weights) + Decimal("1e-6")) for weight in weights]
    for run, weight in enumerate(weights):
        share = int(weight * k)
        kept, waiting[run] = kept + waiting[run][:share], waiting[run][share:]
    order = sorted(range(count), key=lambda run: -round(weights[run] * 2**30))
    while len(kept) < k:
        for run in order:
            if waiting[run] and len(kept) < k:
                kept.append(waiting[run].pop(0))
    return sorted(kept)


def hiprune(picture, k, anchored: float = 0.1, block: int | float = 0.375):
    (rows, columns), middle = picture.grid, picture.scores_in(block)
    anchors = highest(middle, range(picture.size), round(k * anchored / 5))
    beside = set()
    for place in anchors:
        row, column = divmod(place, columns)
        for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= y < rows and 0 <= x < columns and y * columns + x not in anchors:
                beside.add(y * columns + x)
    kept = (anchors + highest(picture.scores, sorted(beside), len(beside)))[:k]
    others = [i for i in range(picture.size) if i not in kept]
    return sorted(kept + highest(picture.scores, others, k - len(kept)))


def vscan(picture, k, local: float = 0.5, window=6, block: int | float = 0.25):
    """Places, and for each the weights of all patches."""
    columns, early, kept, windows = picture.grid[1], picture.scores_in(block), [], {}
    if k == picture.size:
        return list(range(k)), [one(i, k) for i in range(k)]
    for place in range(picture.size):
        windows.setdefault((place // columns // window, place % columns // window), []).append(place)
    waiting = [highest(early, own, len(own)) for own in windows.values()]
    while len(kept) < int(k * Fraction(local)):
        heads = sorted(own.pop(0) for own in waiting if own)
        kept += highest(early, heads, int(k * Fraction(local)) - len(kept))
    others = [i for i in range(picture.size) if i not in kept]
    kept = sorted(kept + highest(picture.scores, others, k - len(kept)))
    joined = {i: [i] for i in kept}
    for i in range(picture.size):
        if i not in kept:
            joined[max(kept, key=lambda j: likeness(picture.features[i], picture.features[j]))].append(i)
    return kept, [[Fraction(int(i in joined[j]), len(joined[j])) for i in range(picture.size)] for j in kept]


def variance(features):
    """Of the cosines of each to the others, its own being 0; the mean over all."""
    found = []
    for i, one in enumerate(features):
        similar = [cosine(one, other) if i != j else Decimal(0) for j, other in enumerate(features)]
        mean = sum(similar, Decimal(0)) / max(1, len(features) - 1)
        found.append(sum(((x - mean) ** 2 for x in similar), Decimal(0)) / max(1, len(features) - 1))
    return sum(found, Decimal(0)) / len(found)


def largest(values):
    """The place of the largest of some decimals; of those that agree to 7 digits the first."""
    most = max(values.values())
    return next(place for place, value in values.items() if most - value <= Decimal("1e-7") * most)


def visionzip(picture, k, contextual: int | Fraction = Fraction(10, 64)):
    """Places, and for each the weights of all patches."""
    count = min(contextual, k) if isinstance(contextual, int) else int(k * contextual + Fraction(1, 2))
    dominant = highest(picture.scores, range(picture.size), k - count)
    tokens = {i: one(i, picture.size) for i in dominant}
    left = [i for i in range(picture.size) if i not in dominant]
    if count and k < picture.size:
        keys = [[sum(parts) / len(parts) for parts in zip(*heads, strict=True)] for heads in zip(*picture.keys, strict=True)]
        step = max(1, len(left) // count)
        targets = [left[step * place] for place in range(count)]
        joined = {target: [] for target in targets}
        for i in left:
            if i not in targets:
                joined[max(targets, key=lambda target: likeness(keys[i], keys[target]))].append(i)
        for target, members in joined.items():
            tokens[target] = one(target, picture.size)
            for i in members:
                tokens[target][i] += Fraction(1, len(members))
    else:
        tokens = {i: one(i, picture.size) for i in highest(picture.scores, range(picture.size), k)}
    return sorted(tokens), [tokens[i] for i in sorted(tokens)]


def prumerge(picture, k, neighbours=32):
    """Places, and for each the weights of all patches."""
    return with_neighbours(picture, sorted(highest(picture.scores, range(picture.size), k)), neighbours)


def prumerge_plus(picture, k, important: float = 0.25, neighbours=32):
    """Places, and for each the weights of all patches."""
    count = min(k, max(1, int(k * Fraction(important) + Fraction(1, 2))))
    best = highest(picture.scores, range(picture.size), count)
    left = [i for i in range(picture.size) if i not in best]
    spread = [left[len(left) * step // (k - count)] for step in range(k - count)]
    return with_neighbours(picture, sorted(best + spread), neighbours)


def with_neighbours(picture, kept, neighbours):
    """Places, and for each the weights of all patches."""
    rows, keys, k = [], picture.concatenated, len(kept)
    for i in kept:
        row, others = one(i, picture.size), [j for j in range(picture.size) if j != i]
        alike = {j: likeness(keys[i], keys[j]) for j in others}
        for j in highest(alike, others, neighbours) if k < picture.size else []:
            row[j] += picture.scores[j]
        rows.append(row)
    return kept, rows


def one(place, size):
    return [Fraction(int(i == place)) for i in range(size)]


class Picture:
    """One picture of some `ScoredPatches`, exactly: `size` N, `grid`, `scores`, `features`, `keys` by head."""

    def __init__(self, patches, row=0):
        self.scores = exact(patches.scores[row])
        self.features = exact(patches.features()[row].double())
        self.keys = exact(patches.keys()[row].double())
        self.size = len(self.scores)
        self.grid = patches.grid
        self.scores_in = lambda block: exact(patches.scores_in(block)[row])

    @property
    def concatenated(self):
        """The key of each patch, heads one after the other."""
        return [[x for head in self.keys for x in head[i]] for i in range(self.size)]


METHODS = {
    "vispruner": vispruner,
    "divprune": divprune,
    "cdpruner": lambda *args: sorted(cdpruner(*args)),
    "dart": dart,
    "coverage": coverage,
    "mmtok": mmtok,
    "scope": scope,
    "holov": holov,
    "hiprune": hiprune,
}
MERGING = {"visionzip": visionzip, "prumerge": prumerge, "prumerge-plus": prumerge_plus, "vscan": vscan}

# Settings otherwise than by default that are held to the definition too.
SETTINGS = {
    "vispruner": {"important": [0.0, 0.25, 1.0]},
    "visionzip": {"contextual": [0.0, 0.25, 1.0, 0, 2, 10]},
    "prumerge": {"neighbours": [1, 6, 21]},
    "prumerge-plus": {"important": [0.0, 0.5, 1.0], "neighbours": [1, 6]},
    "hiprune": {"anchored": [0.5, 1.0], "block": [2]},
    "vscan": {"local": [0.0, 1.0], "window": [1, 2, 3], "block": [2]},
    "holov": {"runs": [1, 3, 5], "diversity": [0.0, 1.0]},
    "dart": {"pivots": [1, 2, 7]},
    "coverage": {"temperature": [0.1, 1.0, 50]},
    "mmtok": {"temperature": [0.1]},
    "scope": {"alpha": [0.5, 2, 0.01]},
}
# A class, a value of its first setting that is refused, and the kind of error.
REFUSED: list[Any] = [
    (VisPruner, -0.1, UserError),
    (VisPruner, 1.5, UserError),
    (VisPruner, float("nan"), UserError),
    (VisPruner, "half", UserTypeError),
    (VisPruner, True, UserTypeError),
    (VisionZip, 1.5, UserError),
    (VisionZip, -1, UserError),
    (VisionZip, "ten", UserTypeError),
    (VisionZip, True, UserTypeError),
    (PruMerge, 0, UserError),
    (PruMerge, 2.5, UserTypeError),
    (PruMergePlus, 1.5, UserError),
    (HoloV, 0, UserError),
    (HiPrune, 1.5, UserError),
    (lambda block: HiPrune(block=block), 0, UserError),
    (lambda block: HiPrune(block=block), 1.0, UserError),
    (lambda block: VScan(block=block), "six", UserTypeError),
    (VScan, -1, UserError),
    (DART, 0, UserError),
    (DART, None, UserTypeError),
    (Coverage, 0, UserError),
    (Coverage, float("inf"), UserError),
    (Coverage, "warm", UserTypeError),
    (Coverage, True, UserTypeError),
    (Scope, 0, UserError),
    (MMTok, "words", UserTypeError),
    (lambda weight: MMTok(weight=weight), 0, UserError),
    (Scope, float("nan"), UserError),
    (Scope, "much", UserTypeError),
    (CDPruner, "clip", UserTypeError),
    (CDPruner, 3, UserTypeError),
    (CDPruner, ClipRelevance, UserTypeError),
    (CDPruner, tiny.llava(), UserTypeError),
]


def mixtures(rows):
    """Weights as a tensor (K, N), float64."""
    return torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.double)
