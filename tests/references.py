"""The equations of the method once more, for one map at a time, in NumPy float64 and plain loops."""

import math

import numpy as np


def constant(m):
    return m.max() - m.min() <= 1e-5 * np.abs(m).max()


def minmax(m):
    return np.zeros_like(m) if constant(m) else (m - m.min()) / (m.max() - m.min())


def mse(a, b):
    return sum((x - y) ** 2 for x, y in zip(a.flat, b.flat, strict=True)) / a.size


def l1(a, b):
    return sum(abs(x - y) for x, y in zip(a.flat, b.flat, strict=True)) / a.size


def bce(a, b):
    total = 0.0
    for x, y in zip(a.flat, b.flat, strict=True):
        x = min(max(x, 1e-6), 1 - 1e-6)
        total -= y * math.log(x) + (1 - y) * math.log(1 - x)
    return total / a.size


def kl(a, b):
    q, p = (x.ravel() + 1e-6 * (x.max() or 1) for x in (a, b))
    q, p = q / q.sum(), p / p.sum()
    return sum(y * math.log(y / x) for x, y in zip(q, p, strict=True))


def pearson(a, b):
    return 1.0 if constant(a) or constant(b) else 1 - np.corrcoef(a.ravel(), b.ravel())[0, 1]


def cyborg(t, s, d):
    return d(minmax(t), s)


def opposed(t, u, s, d):
    return (d(minmax(t), s) + d(minmax(u), 1 - s)) / 2


def difference(t, u, s, d):
    return d(minmax(t - u), s)


def contrast(t, u, s):
    v, value = minmax(t) - minmax(u), 0.0
    if s.mean() > 0:
        value += np.mean(s * (1 - v) ** 2) / s.mean() / 2
    if (1 - s).mean() > 0:
        value += np.mean((1 - s) * v**2) / (1 - s).mean() / 2
    return value


def energy(a, s):
    inside = sum(y * x for x, y in zip(a.flat, s.flat, strict=True) if x > 0)
    everywhere = sum(x for x in a.flat if x > 0)
    return 1 - inside / everywhere if everywhere > 0 else 1.0


def outside(a, s):
    return sum((1 - y) * x**2 for x, y in zip(a.flat, s.flat, strict=True))


def entropy(t):
    p = minmax(t)
    return -sum(x * math.log(x) for x in (p / p.sum()).flat if x > 0) if p.sum() > 0 else 0.0


def hard_negative(u):
    return sum(x**2 for x in u.flat) / u.size


def apart(t, u):
    """T - U, 0 where it is rounding of the two alone."""
    return np.zeros_like(t) if np.abs(t - u).max() <= 1e-5 * max(np.abs(t).max(), np.abs(u).max()) else t - u


def unsigned_energy(t, u, s):
    return energy(np.abs(apart(t, u)), s)


def aligned(t, u, s, d):
    return (d(minmax(t), s) + d(minmax(u), s)) / 2


def against(t, u, s):
    d = apart(t, u)
    total = sum(y * max(-x, 0) for x, y in zip(d.flat, s.flat, strict=True))
    return total / s.sum() / np.abs(d).max() if s.any() and d.any() else 0.0


def place_and_sign(t, u, s, d):
    return d(minmax(t), s) + against(t, u, s)


def order(a, s):
    z = np.zeros_like(a) if constant(a) else (a - a.mean()) / a.std()
    pairs = [(y - v, x - w) for x, y in zip(z.flat, s.flat, strict=True) for w, v in zip(z.flat, s.flat, strict=True)]
    total = sum(more for more, _ in pairs if more > 0)
    return sum(more * max(0.5 - above, 0) for more, above in pairs if more > 0) / total if total else 0.0


def consistency(t, u, other_t, other_u, d):
    one, other = minmax(apart(t, u)), minmax(apart(other_t, other_u))
    return (d(one, other) + d(other, one)) / 2


def uneven(t, u):
    d = apart(t, u)
    return np.var(d / np.abs(d).max()) if d.any() else 0.0


def ring(h, w):
    """Places whose centre is farther than 0.65 from the middle, the map spanning [-1, 1] both ways."""
    inside = lambda i, j: math.sqrt(((i + 0.5) / h * 2 - 1) ** 2 + ((j + 0.5) / w * 2 - 1) ** 2) <= 0.65
    return np.array([[0.0 if inside(i, j) else 1.0 for j in range(w)] for i in range(h)])


def sham(t, d):
    return cyborg(t, ring(*t.shape), d)


def input_gradient(g, s):
    return sum((1 - s[i, j]) * (g[i, j] ** 2).sum() for i in range(s.shape[0]) for j in range(s.shape[1]))
