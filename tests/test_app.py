"""The web page: limits, kept scores, files and HTML without Gradio; the page itself in headless Chromium."""

import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
from conftest import picture
from PIL import Image
from safetensors.numpy import load_file

from clearclip.analysis import explain_patch
from clearclip.app.answers import Answer, regions, save_zip
from clearclip.app.limits import Limits, check_picture, read_names, read_picture, without_folders
from clearclip.app.markup import heat_html, percent, regions_html, why_html
from clearclip.app.studio import Setting, Studio, examples, heard
from clearclip.cli.app import free_port, main, parse_arguments, start
from clearclip.cli.status import Status
from clearclip.errors import UserError
from clearclip.paths import cache_dir
from clearclip.vocabulary import Vocabulary

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = ["cat", "grass, lawn", "sky"]


# Limits


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(picture(60, 90)).save(path)
    return path


def test_a_picture_within_the_limits_is_read_as_it_is(photo):
    assert np.array_equal(read_picture(photo, Limits()), picture(60, 90))
    assert read_picture(photo, Limits(worked=45)).shape == (30, 45, 3)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (Limits(megabytes=0), "the picture has 1 MB, more than 0; give a smaller copy"),
        (Limits(side=80), "the picture has 90 × 60 pixels, more than 80 a side; give a smaller copy"),
    ],
)
def test_a_picture_beyond_the_limits_is_refused_in_a_sentence(photo, limits, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_picture(photo, limits)


def test_no_picture_is_said(tmp_path):
    with pytest.raises(UserError, match="there is no picture yet"):
        read_picture(None, Limits())
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(UserError, match="a HEIC picture"):
        check_picture(tmp_path / "a.jpg", Limits())


def test_names_are_counted_with_their_synonyms():
    assert read_names(["cat ", "", "grass, lawn"], Limits()).names == (("cat",), ("grass", "lawn"))
    with pytest.raises(UserError, match="there are 3 names, more than 2; take some away"):
        read_names(["cat", "grass, lawn"], Limits(names=2))
    with pytest.raises(UserError, match="has 12 letters, more than 10; shorten it"):
        read_names(["a long name!"], Limits(letters=10))
    with pytest.raises(UserError, match="there is no name yet"):
        read_names([" "], Limits())


def test_limits_are_a_sentence():
    assert str(Limits()) == "Pictures of up to 20 MB and 8,000 pixels a side, shrunk to 1,600; up to 40 names."


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/tmp/gradio/ab12/cat.jpg is damaged", "cat.jpg is damaged"),
        ("weights '/home/me/.cache/x.safetensors' (or .pt)", "weights 'x.safetensors' (or .pt)"),
        (r"C:\Users\me\cat.jpg is damaged", "cat.jpg is damaged"),
        ("~/models/a.pt does not exist", "a.pt does not exist"),
        ("put it into models/vit.pt, 448/224 and/or 1 / 2", "put it into models/vit.pt, 448/224 and/or 1 / 2"),
        ("see https://arxiv.org/abs/2407.12442", "see https://arxiv.org/abs/2407.12442"),
    ],
)
def test_sentences_name_no_folder_of_the_machine(said, shown):
    assert without_folders(said) == shown


def test_folders_with_spaces_are_known(monkeypatch):
    monkeypatch.setenv("CLEARCLIP_CACHE", "/srv/my own cache")
    assert without_folders(f"{cache_dir()}/text/a.safetensors is damaged") == "a.safetensors is damaged"


# What is kept of an answer


def both(make, names, other, threshold):
    """Labels below a threshold by the decoder itself, and from an answer that was made without one."""
    image, vocabulary = picture(96, 128), Vocabulary.of(names)
    other = ["f", "g"] if other else None
    direct = make("SCLIP", threshold=threshold, other=other)(image, vocabulary)
    answer = Answer.of(make("SCLIP", other=other)(image, vocabulary, scores=True))
    return direct, answer


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("other", [True, False])
def test_a_threshold_on_kept_scores_gives_the_decoders_labels(make, other, threshold):
    direct, answer = both(make, ["a", "b, c", "d"], other, threshold)
    mine = answer.at(threshold)
    assert np.array_equal(np.where(mine.labels == 255, 0, mine.labels), direct.labels)
    assert mine.about["threshold"] == threshold
    assert (mine.labels == 255).any() == (threshold > 0.25 and not other)


def test_a_higher_threshold_leaves_less(make):
    _, answer = both(make, ["a", "b", "c"], True, 0.0)
    shares = [np.mean(answer.at(step / 10).labels == 0) for step in range(11)]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] == 1


def test_one_name_alone_is_certain(make):
    answer = Answer.of(make()(picture(64, 64), ["a"], scores=True))
    assert (answer.certainty == 1).all()
    assert answer.at(0.9).areas == {"a": 1.0}


def test_regions_are_the_whole_picture(make):
    _, answer = both(make, ["a", "b", "c"], True, 0.0)
    for threshold in (0.0, 0.3, 1.0):
        result = answer.at(threshold)
        found = regions(result)
        assert sum(region.area for region in found) == pytest.approx(1)
        shown = {region.name: region.area for region in found if region.area}
        assert shown == pytest.approx(result.areas)
        named = [region.area for region in found if region.label]
        assert named == sorted(named, reverse=True)
    assert found[-1].name == "other"
    assert [region.area for region in found[:-1]] == [0, 0, 0]


def test_what_has_no_class_is_a_region_too(make):
    _, answer = both(make, ["a", "b"], False, 0.0)
    last = regions(answer.at(1.0))[-1]
    assert (last.label, last.name) == (255, "other")
    assert last.area == pytest.approx(np.mean(answer.certainty < 1))


def test_the_zip_has_what_save_writes(make, tmp_path):
    image = picture(64, 80)
    results = [make(method)(image, ["a", "b"], scores=True, features=True) for method in ("ClearCLIP", "CLIP")]
    save_zip(results, tmp_path / "x.zip", "photo")
    results[0].save(tmp_path / "saved", ["labels", "overlay", "scores", "heat", "features", "coco", "json"], "photo")
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        names = set(archive.namelist())
        mine = {path.name for path in (tmp_path / "saved").iterdir()}
        assert names == mine | {"photo_CLIP_labels.png", "photo_CLIP_overlay.png", "photo_CLIP.json"}
        archive.extractall(tmp_path / "unpacked")
    for name in mine:
        one, two = tmp_path / "unpacked" / name, tmp_path / "saved" / name
        if one.suffix == ".safetensors":  # whose metadata have no order
            for key, array in load_file(two).items():
                assert np.array_equal(load_file(one)[key], array)
        else:
            assert one.read_bytes() == two.read_bytes()


# The networks


@pytest.fixture
def studio(monkeypatch, tiny_backbone):
    monkeypatch.setitem(__import__("clearclip.vocabulary").vocabulary.TEMPLATES, "imagenet80", ("a photo of a {}.",))
    return Studio("ClearCLIP", tiny_backbone)


def setting(studio, **options):
    return Setting(**{"method": "ClearCLIP", "backbone": studio.loaded[0], "short_side": 80, **options})


def test_two_methods_are_asked_in_one_pass(studio, monkeypatch):
    from clearclip.segmenter import Segmenter

    passes, embed = [], type(studio.first).embed
    monkeypatch.setattr(type(studio.first), "embed", lambda self, *asked: passes.append(1) or embed(self, *asked))
    image, said = picture(80, 100), []
    seen = studio.look(image, Vocabulary.of(NAMES), setting(studio), "CLIP", said.append)
    assert said == ["embedding 4 names", "segmenting"]
    count = len(passes)
    for method, answer in zip(("ClearCLIP", "CLIP"), seen.answers, strict=True):
        alone = Segmenter(method, studio.first, short_side=80, other=True)(image, NAMES)
        assert np.array_equal(answer.result.labels, alone.labels)
        assert answer.result.about["method"] == method
        assert np.array_equal(answer.result.image, image)
        answer.at(0.4)
    assert count == len(passes) / 3


def test_a_method_is_not_compared_with_itself(studio):
    assert len(studio.look(picture(48, 64), Vocabulary.of(NAMES), setting(studio), "ClearCLIP").answers) == 1


def test_why_is_what_the_analysis_says(studio):
    seen = studio.look(picture(80, 100), Vocabulary.of(NAMES), setting(studio))
    why = studio.why(seen, (30.0, 60.0))
    direct = explain_patch(studio.segmenter(seen.setting), seen.picture, NAMES, (30.0, 60.0))
    assert why.explanation.name == direct.name
    np.testing.assert_array_equal(why.explanation.scores, direct.scores)
    assert why.window.shape[:2] == (direct.place.height, direct.place.width)


def test_what_is_to_be_known_is_noted(studio):
    seen = studio.look(picture(48, 64), Vocabulary.of(["cat"]), setting(studio, other=False))
    assert len(seen.notes) == 1
    assert seen.notes[0].startswith("one name takes every pixel")
    with heard() as notes:
        logging.getLogger("clearclip.text").warning("mind %s", "this")
        logging.getLogger("clearclip.text").info("not this")
    logging.getLogger("clearclip.text").warning("nor this")
    assert notes == ["mind this"]


def test_backbones_take_turns(studio, monkeypatch, tiny_backbone):
    loaded = []
    monkeypatch.setattr("clearclip.app.studio.load_backbone", lambda *asked: loaded.append(asked) or tiny_backbone)
    first, (second, third) = studio.loaded[0], list(studio.backbones)[1:3]
    assert studio.backbones[second] == ("ViT-B-32", "openai")
    for name in (first, second, second, third, first):
        studio.segmenter(setting(studio, backbone=name))
    assert studio.loaded == [first, third]
    assert [asked[:2] for asked in loaded] == [studio.backbones[second], studio.backbones[third]]
    assert {key.backbone for key in studio._segmenters} == {first, third}


def test_methods_begin_with_the_one_that_was_asked_for(tiny_backbone):
    names = [name for name, _ in Studio("SC-CLIP+PAMR", tiny_backbone).methods]
    assert names[0] == "SC-CLIP+PAMR"
    assert names.count("ClearCLIP") == names.count("SC-CLIP") == 1


def test_examples_have_the_names_of_what_they_show():
    found = {example.path.stem: example.names for example in examples()}
    assert len(found) == 10
    assert found["horses"] == ("horse", "sky", "grass, meadow")
    for names in found.values():
        read_names(names, Limits())


# HTML


def test_what_is_shown_holds_its_pictures_and_no_address(studio):
    seen = studio.look(picture(80, 100), Vocabulary.of(["<b>cat</b>", "dog & co", "sky"]), setting(studio))
    result = seen.answers[0].result
    shown = regions_html(result) + heat_html(result) + why_html(studio.why(seen, (30.0, 60.0)), result)
    assert set(re.findall(r'(?:src|href)="(.{0,15})', shown)) == {"data:image/jpeg", "data:image/png;"}
    assert "<b>cat" not in shown
    assert "&lt;b&gt;cat&lt;/b&gt;" in shown
    assert "dog & co" not in shown


def test_the_label_map_that_a_pointer_reads_is_the_results(make):
    import base64
    import io

    result = make()(picture(64, 80), ["a", "b", "c"])
    encoded = re.search(r'cc-labels" src="data:image/png;base64,([^"]+)', regions_html(result))[1]
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    assert np.array_equal(read, result.labels)
    there = set(re.findall(r'data-label="(\d+)"', regions_html(result)))
    assert there == set(map(str, np.unique(result.labels)))


def test_shares_are_short():
    assert [percent(share) for share in (0, 0.001, 0.27, 1)] == ["0 %", "<1 %", "27 %", "100 %"]


# The program


def test_a_port_that_is_taken_is_said():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        number = one.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {number} is in use; give another --port"):
            free_port("127.0.0.1", number)
    assert free_port("127.0.0.1", number) == number


def test_without_a_port_the_first_free_one_is_taken():
    first = free_port("127.0.0.1", None)
    with socket.socket() as one:
        one.bind(("127.0.0.1", first))
        one.listen()
        assert free_port("127.0.0.1", None) > first


@pytest.mark.parametrize("host", ["no host", "192.0.2.1"])
def test_a_host_that_is_not_ours_is_said(host):
    with pytest.raises(UserError, match=f"--host {host} is no address"):
        free_port(host, 7860)


@pytest.mark.parametrize("text", ["0", "65536", "-1", "web"])
def test_a_port_is_a_number(text, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--port", text])
    assert "must be a whole number from 1 to 65535" in capsys.readouterr().err


def test_missing_gradio_is_said_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().err == (
        'error: the page needs Gradio, which is not installed: pip install "clearclip[app]"\n'
    )


@pytest.fixture
def gradio():
    return pytest.importorskip("gradio", minversion="6")


def test_what_goes_wrong_is_told_without_folders(gradio, caplog):
    from clearclip.app.page import told

    def fail(error):
        raise error

    for error, sentence in (
        (UserError("/srv/data/<cat>.jpg is damaged"), "&lt;cat&gt;.jpg is damaged"),
        (RuntimeError("CUDA out of memory"), "there is not enough memory for that; take a smaller size or picture"),
        (ValueError("/srv/secret"), "that failed in a way no one expected; the terminal of the program says how"),
    ):
        with pytest.raises(gradio.Error) as raised:
            told(fail)(error)
        assert raised.value.message == sentence
    assert "/srv/secret" in caplog.text
    assert told(len)("abc") == 3


@pytest.mark.slow
def test_the_program_serves_and_ends(gradio, tiny_folder, tmp_path):
    """As its user starts it, and ends it with Ctrl-C."""
    number = free_port("127.0.0.1", None)
    command = [sys.executable, "-m", "clearclip", "app", "--port", str(number), "--quiet"]
    command += ["--backbone", f"local-dir:{tiny_folder}", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == f"http://127.0.0.1:{number}/ (Ctrl-C ends it)\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/") as answer:
            assert b"ClearCLIP" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""


# The page


@pytest.fixture
def served(gradio, monkeypatch, studio, tiny_backbone, tmp_path):
    """The address of the page, upon the tiny network, started from a folder that has nothing to do with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clearclip.backbones.load_backbone", lambda *asked: tiny_backbone)
    page, address = start(parse_arguments(["--names", "sky", "--device", "cpu"]), Status(quiet=True))
    yield address
    page.close(verbose=False)


@pytest.fixture
def browser():
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(served, browser):
    """The page, opened; nothing it asks for is elsewhere, and nothing in it fails."""
    page = browser.new_page(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    page.set_default_timeout(60_000)
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(served)
    page.wait_for_selector("#cc-run")
    yield page
    assert not [address for address in asked if not address.startswith((served, "data:", "blob:"))]
    assert not failed


def give(page, path, names):
    """Drop a picture, and type names."""
    page.set_input_files("#cc-picture input[type=file]", path)
    page.wait_for_selector("#cc-picture img")
    for name in names:
        page.fill("#cc-names input", name)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#cc-names .token:has-text('{name}')")


def run(page):
    """Segment; the address of the picture that is shown."""
    before = page.evaluate("document.querySelector('.cc-picture')?.src ?? ''")
    page.click("#cc-run")
    return changed(page, before)


def changed(page, before):
    page.wait_for_function("src => (document.querySelector('.cc-picture')?.src ?? '') !== src", arg=before)
    return page.locator(".cc-picture").get_attribute("src")


def legend(page):
    """{name: share} as the legend shows it."""
    lines = page.locator(".cc-legend").inner_text().replace("\n", " ")
    return dict(re.findall(r"(\S+) (<?\d+ %)", lines))


@pytest.mark.slow
def test_from_a_picture_to_files(page, photo):
    assert page.locator("#cc-names .token").inner_text().strip() == "sky"
    give(page, photo, ["cat", "grass, lawn"])
    page.click("#cc-more button")
    page.get_by_label("other", exact=True).uncheck()  # to a random network nearly all is
    first = run(page)
    assert set(legend(page)) <= {"sky", "cat", "grass"}

    page.hover(".cc-frame", position={"x": 50, "y": 50})
    tip = page.locator(".cc-tip").inner_text()
    assert tip.split()[0] in legend(page)
    assert page.locator(".cc-legend li.cc-lit").inner_text().split() == tip.split()

    slider = page.locator("#cc-threshold input[type=range]")
    slider.focus()
    page.keyboard.press("End")
    changed(page, first)
    assert legend(page) == {"other": "100 %"}
    page.keyboard.press("Home")
    page.wait_for_function("src => document.querySelector('.cc-picture').src === src", arg=first)

    page.click(".cc-frame", position={"x": 50, "y": 50})
    page.wait_for_selector(".cc-why")
    assert page.locator(".cc-why h3").inner_text().startswith(("This patch is", "The region is"))
    assert page.locator(".cc-bars li").count() == 3
    assert page.locator(".cc-why figure").count() == 9
    assert page.locator(".cc-why td").count() == 20

    page.get_by_role("tab", name="Heat maps").click()
    assert page.locator("#cc-heat figcaption").all_inner_texts() == ["sky", "cat", "grass"]
    page.get_by_role("tab", name="Compare").click()
    assert page.locator("#cc-slider img").count() == 2
    assert "left CLIP, right ClearCLIP" in page.locator("#cc-slider").inner_text()

    with page.expect_download() as download:
        page.click("#cc-pack")
    assert download.value.suggested_filename == "photo.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        assert {"photo_labels.png", "photo_overlay.png", "photo_CLIP_labels.png", "photo.json"} <= set(
            archive.namelist()
        )
    seen = page.inner_text("body")
    assert not re.search(r"/tmp|/home|/root|gradio", seen)


@pytest.mark.slow
def test_an_example_brings_its_names(page):
    page.click(".cc-examples button[title=horses]")
    page.wait_for_selector("#cc-names .token:has-text('meadow')")
    assert page.locator("#cc-names .token").count() == 3
    page.fill("#cc-names input", "tree")  # without Enter: leaving the field makes it a chip, which moves the button
    first = run(page)
    assert "tree" in page.locator(".cc-regions").inner_text()
    page.locator("#cc-names .token:has-text('horse') .token-remove").click()
    assert run(page) != first
    assert "horse" not in legend(page)


@pytest.mark.slow
def test_what_cannot_be_is_told_in_the_page(page, tmp_path):
    page.click("#cc-run")
    page.wait_for_selector("text=there is no picture yet")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    page.set_input_files("#cc-picture input[type=file]", tmp_path / "broken.jpg")
    page.wait_for_selector("text=broken.jpg is a damaged picture")
    assert "/tmp" not in page.inner_text("body")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_its_window(page, photo, width):
    page.set_viewport_size({"width": width, "height": 800})
    give(page, photo, [])
    run(page)
    page.click(".cc-frame", position={"x": 50, "y": 50})
    page.wait_for_selector(".cc-why")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_files_of_the_machine_are_not_read_through_the_page(served):
    """The page takes uploaded pictures, not paths: what is not in Gradio's own folder is refused."""
    for path in (str(__file__), "/etc/hostname"):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{served}gradio_api/file={path}")
        assert raised.value.code in (403, 404)
