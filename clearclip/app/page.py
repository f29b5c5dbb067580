"""The page itself, in Gradio: what stands where, and what happens when it is touched."""

import functools
import html
import itertools
import logging
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from PIL import Image

from clearclip.app.answers import save_zip
from clearclip.app.limits import check_picture, read_names, read_picture, without_folders
from clearclip.app.markup import examples_html, heat_html, overlay, regions_html, why_html
from clearclip.app.studio import Example, Seen, Setting, Studio, examples
from clearclip.errors import UserError, one_line, out_of_memory
from clearclip.paths import safe_component

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger(__name__)

HERE = Path(__file__).parent
SIDES = (("small, quick: 336", 336), ("as published: 448", 448), ("fine: 672", 672), ("finest, slow: 896", 896))
SIDE, AGAINST = 448, "CLIP"  # the first size, and what the method is compared with at first
THUMBNAIL = 160  # pixels of its sides
NETWORK, SCORES = "network", "scores"  # queues: one picture at a time goes through the network
WAITING = 20  # visitors in the queue; more are told to come back
STEPS = 3  # of which `Studio.look` tells
HOUR = 3600  # seconds, after which what a visitor left is deleted
EMPTY = '<div class="cc-empty">Drop a picture, or take an example. Name what to look for. Then <b>Segment</b>.</div>'


@dataclass(frozen=True)
class Desk:
    """What the parts of the page call, with their values: each method answers one touch.

    Attributes:
        studio: whom it asks.
        samples: the examples, in the order of the page.
        cache: Gradio's folder of files, the only one of which it serves any.
    """

    studio: Studio
    samples: Sequence[Example]
    cache: Path

    def check(self, path: str | None) -> None:
        """A picture was dropped."""
        if path:
            check_picture(path, self.studio.limits)

    def take(self, event: gr.EventData) -> tuple[str, list[str]]:
        """An example was chosen: its picture and names."""
        sample = self.samples[int(event.index)]
        return str(shutil.copy(sample.path, self._place(sample.path.name))), list(sample.names)

    def look(
        self, path: str | None, words: list[str], method: str, refinement: str, against: str, backbone: str, side: int,
        other: bool, threshold: float, progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:  # fmt: skip
        """Segment: what is kept, and all that is shown of it."""
        pixels, vocabulary = read_picture(path, self.studio.limits), read_names(words, self.studio.limits)
        setting = Setting(f"{method}+{refinement}" if refinement else method, backbone, side, other)
        steps = itertools.count()
        seen = self.studio.look(
            pixels, vocabulary, setting, against, lambda what: progress((next(steps), STEPS), desc=what)
        )
        seen = replace(seen, name=safe_component(Path(str(path)).stem))
        return (
            seen, *self.show(seen, threshold), heat_html(seen.answers[0].result), _notes(seen), "",
            gr.update(visible=True), gr.update(visible=True), gr.update(**_backbones(self.studio, backbone)),
        )  # fmt: skip

    def show(self, seen: Seen | None, threshold: float) -> tuple[Any, Any]:
        """The regions, and two methods side by side, at a threshold."""
        if seen is None:
            return EMPTY, None
        results = [answer.at(threshold) for answer in seen.answers]
        if len(results) == 1:
            return regions_html(results[0]), gr.update(value=None, label="Two methods: choose one to compare with")
        right, left = results
        label = f"left {left.about['method']}, right {right.about['method']}"
        return regions_html(right), gr.update(value=(overlay(left), overlay(right)), label=label)

    def explain(self, seen: Seen | None, threshold: float, event: gr.EventData) -> str:
        """The picture was clicked: why."""
        if seen is None:
            return ""
        height, width = seen.picture.shape[:2]
        point = int(height * _share(event.y)), int(width * _share(event.x))
        return why_html(self.studio.why(seen, point), seen.answers[0].at(threshold))

    def archive(self, seen: Seen | None, threshold: float) -> str:
        """Everything, as the path of a ZIP."""
        if seen is None:
            raise UserError("there is nothing to download yet; segment a picture")
        path = self._place(f"{seen.name}.zip")
        save_zip([answer.at(threshold) for answer in seen.answers], path, seen.name)
        return str(path)

    def _place(self, name: str) -> Path:
        """Where a file goes that the page is to serve."""
        folder = self.cache / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder / name


def build(studio: Studio, names: Sequence[str] = ()) -> gr.Blocks:
    """The page. `names` stand in it from the start."""
    samples = examples()
    with gr.Blocks(title="ClearCLIP", analytics_enabled=False, delete_cache=(HOUR, HOUR), fill_width=True) as page:
        seen = gr.State(None, time_to_live=HOUR)
        _html("<h1>ClearCLIP</h1><p>Name it, and see where it is: segmentation by words, without training.</p>",
                elem_id="cc-head")  # fmt: skip
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                picture = gr.Image(
                    type="filepath", format="png", sources=["upload", "clipboard"], label="Picture", height=300,
                    buttons=[], elem_id="cc-picture",
                )  # fmt: skip
                # The file as it is: Gradio would decode it first, and say nothing of what is wrong with it.
                picture.preprocess = lambda upload: upload and upload.path
                shelf = _html(
                    examples_html([(one.path.stem, _thumbnail(one.path)) for one in samples]),
                    js_on_load=(HERE / "examples.js").read_text(encoding="utf-8"),
                )
                words = gr.Dropdown(
                    label="Names, Enter after each", info="synonyms of one by commas: grass, lawn",
                    choices=[], value=list(names), multiselect=True, allow_custom_value=True, elem_id="cc-names",
                )  # fmt: skip
                run = gr.Button("Segment", variant="primary", elem_id="cc-run")
                with gr.Accordion("Method, size, comparison", open=False, elem_id="cc-more"):
                    method = gr.Dropdown(
                        label="Method", choices=[_choice(*one) for one in studio.methods], value=studio.method
                    )
                    with gr.Row():
                        refinement = gr.Dropdown(
                            label="Refinement", value="", min_width=150,
                            choices=[("none", ""), *(_choice(*one) for one in studio.refinements)],
                        )  # fmt: skip
                        against = gr.Dropdown(
                            label="Compare with", value=AGAINST if studio.method != AGAINST else "", min_width=150,
                            choices=[("nothing", ""), *(_choice(*one) for one in studio.methods)],
                        )  # fmt: skip
                    with gr.Row():
                        backbone = gr.Dropdown(label="Backbone and weights", min_width=150, **_backbones(studio))
                        side = gr.Dropdown(label="Short side in pixels", choices=list(SIDES), value=SIDE, min_width=150)
                    other = gr.Checkbox(
                        True,
                        label="other",
                        info="a class for what none of the names describes; else all is one of them",
                    )
                _html(f'<p class="cc-faint">{studio.limits}</p>')
            with gr.Column(scale=7, min_width=320):
                with gr.Tabs():
                    with gr.Tab("Regions"):
                        regions = _html(
                            EMPTY, elem_id="cc-regions", js_on_load=(HERE / "regions.js").read_text(encoding="utf-8")
                        )
                        threshold = gr.Slider(
                            0, 1, 0, step=0.01, label="other, where the best name is less probable than",
                            elem_id="cc-threshold", visible=False,
                        )  # fmt: skip
                    with gr.Tab("Heat maps"):
                        heat = _html(EMPTY, elem_id="cc-heat")
                    with gr.Tab("Compare"):
                        slider = gr.ImageSlider(
                            label="Two methods", format="jpeg", buttons=["fullscreen"], interactive=False,
                            elem_id="cc-slider",
                        )  # fmt: skip
                notes = _html("", elem_id="cc-notes")
                pack = gr.Button("Download everything (ZIP)", visible=False, elem_id="cc-pack")
                packed = gr.DownloadButton("ZIP", visible="hidden", elem_id="cc-zip")
        why = _html("", elem_id="cc-why")

        desk = Desk(studio, samples, Path(packed.GRADIO_CACHE))
        network: dict[str, Any] = dict(concurrency_id=NETWORK, concurrency_limit=1, api_visibility="private")
        scores: dict[str, Any] = dict(concurrency_id=SCORES, concurrency_limit=4, api_visibility="private")
        hidden: dict[str, Any] = dict(show_progress="hidden")
        asked = [picture, words, method, refinement, against, backbone, side, other, threshold]
        picture.upload(told(desk.check), picture, None, **scores, **hidden)
        shelf.example(told(desk.take), None, [picture, words], **scores, **hidden)
        run.click(
            told(desk.look), asked, [seen, regions, slider, heat, notes, why, threshold, pack, backbone],
            **network, show_progress_on=regions,
        ).success(None, None, None, js=seen_by("#cc-regions"))  # fmt: skip
        threshold.input(
            told(desk.show), [seen, threshold], [regions, slider], **scores, **hidden, trigger_mode="always_last"
        )
        regions.point(told(desk.explain), [seen, threshold], why, **network, trigger_mode="always_last").success(
            None, None, None, js=seen_by("#cc-why")
        )
        pack.click(told(desk.archive), [seen, threshold], packed, **scores).success(
            None, None, None, js="() => document.querySelector('#cc-zip').click()"
        )
    page.queue(max_size=WAITING)
    return page


def launch(page: gr.Blocks, studio: Studio, host: str, port: int) -> str:
    """Serve the page, and return its address. Nothing is told to anyone: no sharing, no statistics, no fonts fetched.

    Raises UserError where it cannot be served.
    """
    start = functools.partial(
        page.launch,
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=False,
        max_file_size=studio.limits.megabytes << 20,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(),
        css_paths=HERE / "page.css",
        js=(HERE / "page.js").read_text(encoding="utf-8"),
    )
    try:
        return str(start()[1])
    except (OSError, ValueError) as error:
        raise UserError(
            f"the page cannot be served at {host}:{port} ({one_line(error)}); give another --port, and where a proxy "
            "is set, NO_PROXY=127.0.0.1"
        ) from error


def seen_by(place: str) -> str:
    """JavaScript that brings a part of the page, by its selector, into the window where it is not."""
    return f"() => document.querySelector('{place}').scrollIntoView({{behavior: 'smooth', block: 'nearest'}})"


def told(function: Callable[P, R]) -> Callable[P, R]:
    """What goes wrong in a function, as a sentence for the visitor: without a traceback or a path of the machine."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            sentence = without_folders(str(error))
        except Exception as error:
            if out_of_memory(error):
                sentence = "there is not enough memory for that; take a smaller size or picture"
            else:
                log.exception("a visitor's request failed")
                sentence = "that failed in a way no one expected; the terminal of the program says how"
        raise gr.Error(html.escape(sentence), print_exception=False)

    return run


def _theme() -> gr.themes.Base:
    """Blue on grey, in fonts that are on the visitor's machine; grey text dark enough to be read."""
    fonts = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", **fonts).set(
        body_text_color_subdued="*neutral_500",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_700",
    )


def _html(value: str, **options: Any) -> gr.HTML:
    """A part of the page that page.css alone dresses."""
    return gr.HTML(value, apply_default_css=False, **options)


def _share(value: Any) -> float:
    """A number of the browser's, 0 to just below 1."""
    return min(max(float(value), 0.0), 1 - 1e-9)


def _choice(name: str, summary: str) -> tuple[str, str]:
    """What a list shows of a method, and its value."""
    return (f"{name} — {summary}" if summary else name), name


def _backbones(studio: Studio, value: str | None = None) -> dict[str, Any]:
    """What a list shows of backbones: those that are loaded come first, and say so."""
    choices = [(f"{name} (loaded)" if name in studio.loaded else name, name) for name in studio.backbones]
    return dict(choices=choices, value=value or studio.loaded[0])


def _notes(seen: Seen) -> str:
    return "".join(f'<p class="cc-faint">{html.escape(without_folders(note))}.</p>' for note in seen.notes)


def _thumbnail(path: Path) -> Image.Image:
    picture = Image.open(path).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side)).resize((THUMBNAIL, THUMBNAIL))
