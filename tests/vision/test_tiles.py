"""Tiles lie where SAHI cuts them, show the photo's own pixels, and are never too many."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serve_app.errors import CorruptImage, InvalidParameter
from serve_app.vision import tiles
from serve_app.vision.tiles import Tiling

# What sahi 0.12.8's `get_slice_bboxes` returns: left and top of each tile of a photo of width x height.
SAHI: dict[tuple[int, int, int, float], list[tuple[int, int]]] = {
    (1920, 1440, 640, 0.2): [(x, y) for y in (0, 512, 800) for x in (0, 512, 1024, 1280)],
    (640, 641, 640, 0.2): [(0, 0), (0, 1)],
    (2000, 300, 512, 0.5): [(x, 0) for x in (0, 256, 512, 768, 1024, 1280, 1488)],
    (1152, 1153, 640, 0.2): [(x, y) for y in (0, 512, 513) for x in (0, 512)],
    (700, 700, 300, 0.33): [(x, y) for y in (0, 201, 400) for x in (0, 201, 400)],
}


@pytest.mark.parametrize("case", SAHI)
def test_tiles_are_those_of_sahi(case: tuple[int, int, int, float]) -> None:
    width, height, side, overlap = case
    tiling = Tiling(side, overlap, 100)
    assert [place[:2] for place in tiling.places(width, height, side)] == SAHI[case]
    assert tiling.count(width, height, side) == len(SAHI[case])


sides = st.integers(32, 3000)


@given(sides, sides, sides, st.floats(0, 0.5))
def test_tiles_cover_the_photo_and_overlap_at_least_as_asked(
    width: int, height: int, side: int, overlap: float
) -> None:
    tiling = Tiling(side, overlap, 10**6)
    places = list(tiling.places(width, height, side))
    if max(width, height) <= side:
        assert not places, "the whole photo is a network input anyway"
        return
    for low, high, length in ((0, 2, width), (1, 3, height)):
        edges = sorted({(place[low], place[high]) for place in places})
        assert (edges[0][0], edges[-1][1]) == (0, length)
        assert all(end - start == min(side, length) for start, end in edges)
        shared = [end - start for (_, end), (start, _) in pairwise(edges)]
        assert min(shared, default=side) >= int(overlap * side)


@given(sides, sides, st.integers(1, 50))
def test_auto_takes_the_smallest_tiles_that_are_few_enough(width: int, height: int, most: int) -> None:
    tiling = Tiling("auto", 0.2, most)
    side = tiling.side_of(width, height, 320)
    assert tiling.count(width, height, side) <= most
    assert side == 320 or tiling.count(width, height, side - tiles.STEP) > most


def test_too_many_tiles_are_refused() -> None:
    with pytest.raises(
        InvalidParameter, match=r"64 pixels cut the image of 4000 x 3000 pixels into 4466 tiles, .* 256"
    ):
        Tiling(64, 0.2, 256).side_of(4000, 3000, 640)


def photo(width: int, height: int, spots: list[tuple[int, int]], kind: str = "PNG", **options: Any) -> bytes:
    """A black photo with white squares of 40 pixels around these spots."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for x, y in spots:
        pixels[y - 20 : y + 20, x - 20 : x + 20] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def seen(data: bytes, side: int, size: int = 320) -> list[tuple[float, float]]:
    """The middle of the white square in each network input that shows all of one, in pixels of the photo."""
    inputs, boxes, _ = tiles.prepare(data, size, 10**8, 10, Tiling(side, 0.2, 400))
    found = []
    for network_input, box in zip(inputs, boxes, strict=True):
        y, x = np.nonzero(network_input.min(2) > 127)
        if len(x) * 0.8 <= 1600 * box.scale_x * box.scale_y <= len(x) * 1.25:
            left, top = (x.mean() + 0.5 - box.left) / box.scale_x, (y.mean() + 0.5 - box.top) / box.scale_y
            found.append((left + box.tile_x, top + box.tile_y))
    return found


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("side", [160, 320, 500, 700, 1301])
def test_what_a_tile_shows_is_where_its_letterbox_says(kind: str, side: int) -> None:
    """Also where a JPEG is decoded at 1/2 or 1/4 of its size."""
    spot = (1210, 503)
    places = seen(photo(1503, 999, [spot], kind), side)
    assert len(places) >= 2, "the whole photo and a tile"
    np.testing.assert_allclose(places, [spot] * len(places), atol=1.5)


@pytest.mark.parametrize("orientation", [3, 6])
def test_tiles_are_cut_from_the_upright_photo(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying, upright = (1000, 300), {3: (503, 699), 6: (699, 1000)}[orientation]
    places = seen(photo(1503, 999, [lying], "JPEG", exif=exif), 400)
    np.testing.assert_allclose(places, [upright] * len(places), atol=1.5)


def test_the_first_input_is_the_whole_photo_as_without_tiles() -> None:
    data = photo(900, 500, [(300, 300)], "JPEG")
    (whole, *cut), (box, *_), side = tiles.prepare(data, 320, 10**8, 10, Tiling("auto", 0.2, 50))
    assert (whole.shape, box.width, box.height, side, len(cut)) == ((192, 320, 3), 900, 500, 320, 8)
    assert {one.shape for one in cut} == {(320, 320, 3)}


@pytest.mark.parametrize(("width", "height"), [(1, 6000), (6000, 1), (5, 6001), (6001, 17)])
def test_a_photo_of_a_few_pixels_across(width: int, height: int) -> None:
    """As a JPEG it is decoded at 1/4 of its length; its tiles still lie in a row that ends with the photo."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(file, "JPEG")
    _, (_, *cut), _ = tiles.prepare(file.getvalue(), 320, 10**8, 10, Tiling(1500, 0.2, 50))
    assert len(cut) == 5
    ends = [(box.tile_x + box.width, box.tile_y + box.height) for box in cut]
    assert ends[-1] == (width, height)
    assert all(0 < end[0] <= width and 0 < end[1] <= height for end in ends)


def test_a_photo_that_one_tile_holds_has_none() -> None:
    inputs, _, side = tiles.prepare(photo(300, 200, [(100, 100)]), 320, 10**8, 10, Tiling("auto", 0.2, 50))
    assert (len(inputs), side) == (1, 320)


def test_a_damaged_photo_is_refused() -> None:
    with pytest.raises(CorruptImage):
        tiles.prepare(photo(900, 500, [])[:500], 320, 10**8, 10, Tiling("auto", 0.2, 50))
