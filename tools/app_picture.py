"""Draw docs/app.png, the page of `clearclip app`: `python tools/app_picture.py`. Needs Playwright and Chromium."""

import argparse
import shutil
import sys
from pathlib import Path

# `python tools/app_picture.py` puts only tools/ on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clearclip.cli.app import parse_arguments, start
from clearclip.cli.status import Status
from clearclip.errors import program

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE, POINT = "horses", (0.36, 0.47)  # where it asks why, as shares of width and height
WIDTH = 1200


@program
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="SC-CLIP")
    parser.add_argument("--pretrained", default="openai-int8")
    parser.add_argument("--chromium", default=shutil.which("chromium"), metavar="FILE")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the window, in pixels")
    parser.add_argument("--dark", action="store_true", help="as it looks where the system is dark")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/app.png")
    arguments = parser.parse_args()

    from playwright.sync_api import sync_playwright

    options = ["--method", arguments.method, "--pretrained", arguments.pretrained]
    page, address = start(parse_arguments(options), Status())
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        scheme = "dark" if arguments.dark else "light"
        window = chromium.new_page(viewport={"width": arguments.width, "height": 900}, color_scheme=scheme)
        window.set_default_timeout(300_000)
        window.goto(address)
        window.click(f".cc-examples button[title={EXAMPLE}]")
        window.wait_for_selector("#cc-names .token")
        window.click("#cc-run")
        frame = window.wait_for_selector(".cc-frame")
        box = frame.bounding_box()
        x, y = (share * box[side] for share, side in zip(POINT, ("width", "height")))
        frame.click(position={"x": x, "y": y})
        window.wait_for_selector(".cc-why")
        frame.hover(position={"x": x, "y": y})
        window.wait_for_timeout(1000)  # it scrolls to the answer
        window.evaluate("scrollTo(0, 0)")
        window.wait_for_timeout(1000)
        below = window.locator(".cc-why h4", has_text="What is behind that").bounding_box()
        shown = {"x": 0, "y": 0, "width": arguments.width, "height": below["y"] - 8}
        window.screenshot(path=arguments.output, full_page=True, clip=shown)
        chromium.close()
    page.close(verbose=False)


if __name__ == "__main__":
    main()
