"""The web page of a run: paste a post, mark two entities, drop a picture, read the answer.

Bars of the likeliest relations, and where the run looked; a run that finds entities shows them in
the text. A second run stands beside the first. `serve.py` serves it.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from PIL.Image import Image

from finetune.predict.extractor import Extractor
from finetune.predict.live_inputs import reads_captions
from finetune.predict.pane import LONGEST, Pane, answer, selected_words
from shards.files import InputError
from shards.images import POST_PIXELS

SESSIONS = 1000
"""Pages whose state and files are held; of more, the longest unused are forgotten. Callers of the
API never say that they are gone."""
SWEPT = (600, 3600)
"""Seconds: how often and from which age on files that no closed page took along are removed."""
INTRODUCTION = """## Fusion-MRE
Paste a post, select the words of an entity and press its button, add the picture, and read."""

SELECTION = """(_, text, now) => {
    const post = document.querySelector("#post textarea");
    const characters = (end) => [...post.value.slice(0, end)].length;
    return [`${characters(post.selectionStart)}:${characters(post.selectionEnd)}`, text, now];
}"""
"""The browser's share: which characters of the post are selected. It counts in UTF-16 units itself,
in which an emoji is two."""


class HeldFiles:
    """Pictures that open pages show. Pages that upload the same picture share its file."""

    def __init__(self) -> None:
        self.of_session: dict[str, set[str]] = {}
        self.lock = Lock()

    def hold(self, session: str, path: str) -> None:
        """The page shows this file."""
        with self.lock:
            self.of_session[session] = self.of_session.pop(session, set()) | {path}
            oldest = next(iter(self.of_session))
        if len(self.of_session) > SESSIONS:
            self.close(oldest)

    def close(self, session: str) -> None:
        """The page is gone: so are its files, but those that another page shows."""
        with self.lock:
            given_up = self.of_session.pop(session, set())
            for path in map(Path, given_up.difference(*self.of_session.values())):
                path.unlink(missing_ok=True)
                with suppress(OSError):  # another picture of the same content lies there, too
                    path.parent.rmdir()


def page(
    runs: dict[str, Extractor], examples: Sequence[list[str]], max_pixels: int = POST_PIXELS
) -> Any:
    """The `gradio.Blocks` of one or two runs."""
    import gradio as gr

    def as_uploaded(payload: Any) -> str | None:
        if payload is not None and payload.path is None:
            raise gr.Error("upload the picture first", print_exception=False)
        return payload and payload.path

    relation = any(e.run.info.kind == "relation" for e in runs.values())
    captions = any(reads_captions(e.run.inputs.get("captions")) for e in runs.values())
    hint = "its words, or [START, END] in characters"
    files = HeldFiles()

    def keep(selected: str, text: str, now: str) -> str:
        if (words := selected_words(selected, text)) is None:
            gr.Warning("Select the words of the entity in the post first.")
            return now
        return words

    def hold(image: str | None, request: gr.Request) -> None:
        if image and request.session_hash:
            files.hold(request.session_hash, image)

    def close(request: gr.Request) -> None:
        session = request.session_hash or ""
        files.close(session)
        # gradio keeps what a closed page showed, its texts included: to no one's use.
        for held in (blocks.state_holder.session_data, blocks.state_holder.time_last_used):
            held.pop(session, None)
        blocks._queue.pending_messages_per_session.pop(session, None)

    def stored(picture: Image | None, request: gr.Request) -> str | None:
        if picture is None:
            return None
        with TemporaryDirectory() as folder:
            picture.save(Path(folder) / "look.webp", quality=90)
            path = gr.processing_utils.save_file_to_cache(
                Path(folder) / "look.webp", upload.GRADIO_CACHE
            )
        files.hold(request.session_hash or "", path)
        return path

    def ask(
        text: str, image: str | None, head: str, tail: str, look: bool, caption: str,
        request: gr.Request,
    ) -> list[Any]:  # fmt: skip
        values: list[Any] = [gr.Row(visible=True)]
        for extract in runs.values():
            try:
                pane = answer(extract, text, head, tail, image, look, caption, max_pixels)
            except InputError as error:
                pane = Pane(note=f"**Not read:** {error}")
            values += [
                pane.note,
                gr.HighlightedText(pane.spans, color_map=pane.colors, visible=bool(pane.spans)),
                gr.Label(pane.bars or None, visible=bool(pane.bars)),
                gr.Image(stored(pane.picture, request), visible=pane.picture is not None),
            ]
        return values

    with gr.Blocks(title="Fusion-MRE", analytics_enabled=False, delete_cache=SWEPT) as blocks:
        gr.Markdown(INTRODUCTION + (" Or click an example below." if examples else ""))
        selected = gr.Textbox("0:0", visible="hidden", max_length=20)
        with gr.Row():
            with gr.Column():
                text = gr.Textbox(label="Post", lines=4, max_length=LONGEST, elem_id="post")
                with gr.Row(elem_id="pick", visible=relation):
                    use_head = gr.Button("Selected words → head", size="sm")
                    use_tail = gr.Button("Selected words → tail", size="sm")
                with gr.Row(visible=relation):
                    head = gr.Textbox(label="Head", elem_id="head", placeholder=hint)
                    tail = gr.Textbox(label="Tail", elem_id="tail", placeholder=hint)
                caption = gr.Textbox(
                    label="Caption",
                    placeholder="what the picture shows; blank: written by --caption-model",
                    max_length=LONGEST,
                    visible=captions,
                )
                look = gr.Checkbox(label="Show where it looked (slower)", visible=relation)
                go = gr.Button("Read", variant="primary", elem_id="read")
            upload = gr.Image(
                label="Picture",
                type="filepath",
                sources=["upload", "clipboard"],
                height=380,
                elem_id="picture",
            )
            # gradio's own would decode and encode every file before `answer` could judge it.
            upload.preprocess = as_uploaded
        with gr.Row(visible=False) as answers:  # empty panes would push the examples away
            outputs: list[Any] = [answers]
            for name in runs:
                with gr.Column():
                    gr.Markdown(f"### {'/'.join(Path(name).parts[-2:])}")
                    outputs += [
                        gr.Markdown(),
                        gr.HighlightedText(label="Entities", combine_adjacent=False),
                        gr.Label(label="Relation", num_top_classes=5),
                        gr.Image(
                            label="Where it looked",
                            show_label=False,  # it would hide a corner of the picture
                            buttons=["download", "fullscreen"],
                            height=380,
                        ),
                    ]
        if examples:
            gr.Examples(list(examples), [text, upload, head, tail], cache_examples=False)
        use_head.click(keep, [selected, text, head], head, js=SELECTION, show_progress="hidden")
        use_tail.click(keep, [selected, text, tail], tail, js=SELECTION, show_progress="hidden")
        go.click(ask, [text, upload, head, tail, look, caption], outputs, api_name="read")
        upload.upload(hold, upload, None, queue=False, api_visibility="private")
        blocks.unload(close)
    blocks.state_session_capacity = SESSIONS
    return blocks
