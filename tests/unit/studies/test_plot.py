"""Plots are well-formed SVG that shows every point."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tlm_core.studies.plot import HEIGHT, LEFT, RIGHT, WIDTH, Curve, plot

CURVES = [
    Curve("a <model> & more", [(10, 0.5, 0.1), (100, 0.6, None), (1000, 0.7, 0.05)]),
    Curve("other", [(10, 0.4, None)], drawn=False),
]


def test_every_point_of_every_curve_is_drawn_inside_the_picture() -> None:
    root = ElementTree.fromstring(plot(CURVES, title="T", x="labels", y="accuracy", log_x=True))
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 4
    assert all(0 < float(c.get("cx", "")) < WIDTH and 0 < float(c.get("cy", "")) < HEIGHT for c in circles)
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"T", "labels", "accuracy", "a <model> & more", "other"} <= set(texts)


def test_equal_steps_of_a_logarithm_lie_equally_far_apart() -> None:
    root = ElementTree.fromstring(plot(CURVES[:1], title="T", x="x", y="y", log_x=True))
    left, middle, right = (float(c.get("cx", "")) for c in root.iter("{http://www.w3.org/2000/svg}circle"))
    assert middle - left == pytest.approx(right - middle, abs=0.2)


def test_one_point_and_equal_values_can_be_drawn() -> None:
    ElementTree.fromstring(plot([Curve("one", [(5, 0.5, None)])], title="T", x="x", y="y", log_x=True))
    ElementTree.fromstring(plot([Curve("flat", [(0, 0.5, 0.0), (1, 0.5, 0.0)])], title="T", x="x", y="y"))


def test_nothing_to_draw_and_a_logarithm_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no point"):
        plot([], title="T", x="x", y="y")
    with pytest.raises(ValueError, match="logarithmic"):
        plot([Curve("a", [(0, 1, None)])], title="T", x="x", y="y", log_x=True)


def test_names_stand_below_the_axis_where_they_are_given() -> None:
    points = [(place + 0.2, 0.5, 0.1) for place in range(3)]
    names = ["first", "a & b", "some/very/long/path:end"]
    root = ElementTree.fromstring(plot([Curve("one", points, drawn=False)], title="T", x="", y="y", names=names))
    texts = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"first", "a & b"} <= set(texts) and any(text.startswith("…") and text.endswith(":end") for text in texts)
    assert "0" not in texts and "1" not in texts, "numbers of an axis of names mean nothing"
    circles = [float(c.get("cx", "")) for c in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert LEFT < circles[0] < circles[1] < circles[2] < WIDTH - RIGHT
