"""Map tiles in place of OpenStreetMap's: land and sea, drawn from the npm package world-atlas."""

import json
import math
import struct
import zlib
from functools import cache
from itertools import accumulate, batched, chain, pairwise
from operator import itemgetter
from pathlib import Path

ATLAS = Path(__file__).with_name("node_modules") / "world-atlas" / "land-110m.json"
SIZE = 256
SEA = (84, 146, 186)
LAND = (150, 176, 112)

type Point = tuple[float, float]


def tile(zoom: int, column: int, row: int) -> bytes:
    """Return a tile as a PNG, in the Web Mercator projection."""
    across = SIZE << zoom  # The width of the whole map in pixels.
    crossings: list[list[float]] = [[] for _ in range(SIZE)]
    for edge in coastline():
        ends = ((x * across - column * SIZE, y * across - row * SIZE) for x, y in edge)
        (x1, y1), (x2, y2) = sorted(ends, key=itemgetter(1))
        for line in range(max(0, math.ceil(y1 - 0.5)), min(SIZE, math.ceil(y2 - 0.5))):
            crossings[line].append(x1 + (line + 0.5 - y1) / (y2 - y1) * (x2 - x1))
    pixels = bytearray()
    for xs in crossings:
        filled = bytearray(SIZE)
        for left, right in batched((min(SIZE, max(0, round(x))) for x in sorted(xs)), 2):
            filled[left:right] = b"\1" * (right - left)
        pixels += b"\0" + filled
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 3, 0, 0, 0)
    chunks = (b"IHDR", header), (b"PLTE", bytes(SEA + LAND)), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@cache
def coastline() -> list[tuple[Point, Point]]:
    """Return the edges of all land, on a map whose width and height are 1."""
    topology = json.loads(ATLAS.read_text())
    scale, translate = topology["transform"]["scale"], topology["transform"]["translate"]
    [land] = topology["objects"]["land"]["geometries"]
    edges: list[tuple[Point, Point]] = []
    for ring in chain.from_iterable(land["arcs"]):
        points = []
        for arc in ring:
            steps = zip(*map(accumulate, zip(*topology["arcs"][arc], strict=True)), strict=True)
            points += [_on_map(x * scale[0] + translate[0], y * scale[1] + translate[1]) for x, y in steps]
        for one, other in pairwise([*points, points[0]]):
            if abs(one[0] - other[0]) < 0.5:
                edges.append((one, other))
            else:  # Across the antimeridian: close both ends of the map down to its lower edge.
                edges += [(one, (one[0], 1)), (other, (other[0], 1))]
    return edges


def _on_map(longitude: float, latitude: float) -> Point:
    sine = math.sin(math.radians(min(85.1, max(-85.1, latitude))))
    return longitude / 360 + 0.5, 0.5 - math.atanh(sine) / math.tau
