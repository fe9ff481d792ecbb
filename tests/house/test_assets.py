"""Static files of pages: small, and all from this server."""

import gzip
import hashlib
import re
from pathlib import Path

import django_htmx
import httpx

from tests.workspace import ROOT, Serve

OURS = ROOT / "static" / "gateway"
HTMX = Path(django_htmx.__file__).parent / "static" / "django_htmx" / "htmx-2.min.js"
FETCHED = [OURS / "app.css", OURS / "app.js", OURS / "icons.svg", OURS / "favicon.svg", HTMX]


def test_style_sheet_scripts_and_icons_weigh_at_most_184_kb_and_60_kb_compressed() -> None:
    assert sum(file.stat().st_size for file in FETCHED) <= 184 * 1024
    assert sum(len(gzip.compress(file.read_bytes())) for file in FETCHED) <= 60 * 1024


def test_no_component_of_the_style_sheet_lies_in_the_block_of_another() -> None:
    text = re.sub(r'/\*.*?\*/|"[^"]*"', "", (OURS / "app.css").read_text(), flags=re.DOTALL)
    depth = 0
    for line in text.splitlines():
        # What is not indented lies in a layer, or in nothing.
        assert depth <= 1 or not line or line[0] in " }", line
        depth += line.count("{") - line.count("}")
    assert depth == 0


def test_fonts_are_served_by_us_never_move_a_page_that_is_there_and_carry_their_licence() -> None:
    faces = re.findall(r"@font-face \{(.*?)\}", (OURS / "app.css").read_text(), re.DOTALL)
    served = [found[1] for face in faces if (found := re.search(r"src: url\(([^)]+)\)", face))]
    stand_in = next(face for face in faces if "local(" in face)

    assert sorted(served) == [f"fonts/{file.name}" for file in sorted((OURS / "fonts").glob("*.woff2"))]
    assert all("font-display: optional" in face for face in faces if face is not stand_in)
    for head in ("base.html", "ui/failure.html"):
        assert re.search(r'rel="preload" href="[^"]*/inter-latin\.', (ROOT / "templates" / head).read_text())
    assert "size-adjust" in stand_in
    assert "SIL Open Font License" in (OURS / "fonts" / "OFL.txt").read_text()
    assert sum((OURS / name).stat().st_size for name in served) <= 160 * 1024


def test_a_font_is_kept_without_asking_again_and_so_named_by_its_bytes(live: Serve) -> None:
    for font in (OURS / "fonts").glob("*.woff2"):
        assert font.suffixes[-2] == f".{hashlib.sha256(font.read_bytes()).hexdigest()[:12]}"
        served = httpx.get(f"{live.url}/static/gateway/fonts/{font.name}")
        assert served.headers["Cache-Control"] == "public, max-age=31536000, immutable"

    style_sheet = httpx.get(f"{live.url}/static/gateway/app.css")
    assert "immutable" not in style_sheet.headers["Cache-Control"]
