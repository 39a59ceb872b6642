"""Plots are well-formed SVG and show every point."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tlm_core.studies.plot import HEIGHT, LEFT, RIGHT, WIDTH, Curve, plot

CURVES = [
    Curve("a <model> & more", [(10, 0.5, 0.1), (100, 0.6, None), (1000, 0.7, 0.05)]),
    Curve("other", [(10, 0.4, None)], line=False),
]


def test_all_points_are_inside_the_picture() -> None:
    root = ElementTree.fromstring(plot(CURVES, title="T", x="labels", y="accuracy", log_x=True))
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 4
    assert all(0 < float(c.get("cx", "")) < WIDTH and 0 < float(c.get("cy", "")) < HEIGHT for c in circles)
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"T", "labels", "accuracy", "a <model> & more", "other"} <= set(texts)


def test_logarithmic_axis_has_equal_distances_for_equal_ratios() -> None:
    root = ElementTree.fromstring(plot(CURVES[:1], title="T", x="x", y="y", log_x=True))
    left, middle, right = (float(c.get("cx", "")) for c in root.iter("{http://www.w3.org/2000/svg}circle"))
    assert middle - left == pytest.approx(right - middle, abs=0.2)


def test_single_point_and_equal_values_are_plotted() -> None:
    for curve, log_x in (
        (Curve("one", [(5, 0.5, None)]), True),
        (Curve("flat", [(0, 0.5, 0.0), (1, 0.5, 0.0)]), False),
    ):
        root = ElementTree.fromstring(plot([curve], title="T", x="x", y="y", log_x=log_x))
        assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == len(curve.points)


def test_curves_without_points_have_no_picture() -> None:
    assert plot([Curve("a", [])], title="T", x="x", y="y") == ""


def test_logarithm_of_zero_is_rejected() -> None:
    with pytest.raises(ValueError, match="logarithmic"):
        plot([Curve("a", [(0, 1, None)])], title="T", x="x", y="y", log_x=True)


def test_names_replace_numbers_of_the_axis() -> None:
    points = [(place + 0.2, 0.5, 0.1) for place in range(3)]
    names = ["first", "a & b", "some/very/long/path:end"]
    root = ElementTree.fromstring(plot([Curve("one", points, line=False)], title="T", x="", y="y", names=names))
    texts = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"first", "a & b"} <= set(texts) and any(text.startswith("…") and text.endswith(":end") for text in texts)
    assert "0" not in texts and "1" not in texts, "numbers of an axis of names mean nothing"
    circles = [float(c.get("cx", "")) for c in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert LEFT < circles[0] < circles[1] < circles[2] < WIDTH - RIGHT
