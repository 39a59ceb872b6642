"""The dashboard's font and colors."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest

from services.api.dashboard.present import COLORS, colors
from services.api.dashboard.web import STATIC, read_assets
from tests.contract.dashboard_pages import visitor
from tests.contract.gateway import Gateway

FONT = "vendor/inter-latin-wght-normal.woff2"
STYLE = (STATIC / "dashboard.css").read_text(encoding="utf-8")
_LMS = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
_LAB = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
# How a color looks to readers: all cones, no red, no green, no blue ones (Machado et al. 2009, linear RGB).
SIGHTS = [
    np.eye(3),
    [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
]


def palette(scheme: int, *names: str) -> np.ndarray:
    """Linear RGB values of variables in the light (0) or the dark (1) scheme."""
    texts = [re.findall(rf"--{name}: #(\w+);", STYLE)[scheme] for name in names]
    full = [text if len(text) == 6 else "".join(digit * 2 for digit in text) for text in texts]
    values = np.array([[int(text[at : at + 2], 16) / 255 for at in (0, 2, 4)] for text in full])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_eight_chart_colors_are_visible_and_distinct_for_all_readers(scheme: int) -> None:
    shown, luminance = palette(scheme, *(f"c{n}" for n in range(8))), np.array([0.2126, 0.7152, 0.0722])
    for back in palette(scheme, "paper", "card", "faint") @ luminance:
        pairs = np.sort(np.stack([shown @ luminance, np.full(8, back)]), axis=0) + 0.05
        assert (pairs[1] / pairs[0]).min() >= 3
    for sight in SIGHTS:
        seen = np.cbrt(np.clip(shown @ np.transpose(sight), 0, 1) @ np.transpose(_LMS)) @ np.transpose(_LAB)
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) >= 0.06


def test_color_of_a_label_depends_on_all_names_only() -> None:
    assert colors(["b", "a"]) == colors(["a", "b"]) == {"a": "c0", "b": "c1"}
    assert set(colors(map(str, range(20))).values()) == {f"c{n}" for n in range(COLORS)}


def test_pages_preload_the_font_of_the_style_sheet(gateway: Gateway) -> None:
    url = read_assets("/ui")[FONT].url
    page = visitor(gateway).get("/ui/sign-in")
    assert (
        f'<link rel="preload" href="{url}" as="font"' in page.text
        and "font-src 'self'" in page.headers["content-security-policy"]
    )
    assert f'url("{url.removeprefix("/ui/static/")}")' in STYLE
