"""`python -m finetune serve RUN`: a web page to try a run on a post and a picture.

Paste a post, mark two entities by selecting their words, drop a picture: bars of the likeliest
relations, and where the run looked. A run that finds entities shows them in the text. A second run
stands beside the first. gradio (extra `serve`) draws the page; it is bound to this machine alone
unless `--host` says otherwise, and sends nothing anywhere.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune.predict import occlusion
from finetune.predict.command import ServeConfig
from finetune.predict.extractor import Extractor
from finetune.predict.live_inputs import live_inputs, reads_captions
from finetune.tasks.metrics import NO_RELATION
from finetune.tasks.posts import parse_post
from shards.files import InputError
from shards.images import decoded

LONGEST = 2_000
"""Characters of a post."""
LARGEST_UPLOAD = "16mb"
NOTHING = {"bars": {}, "spans": [], "colors": {}, "note": "", "picture": None}
EXAMPLES = 6
COLORS = ("blue", "green", "orange", "purple", "teal", "red", "yellow", "pink", "cyan", "lime")
"""Of entity types, in the order of the run's labels."""
STYLE = """
.gradio-container { width: 100% !important; max-width: 75rem !important; margin: 0 auto !important }
#pick button { min-width: 8rem }
"""
INTRODUCTION = """## Fusion-MRE
Paste a post, select the words of an entity and press its button, add the picture, and read."""

SELECTION = """(_, text, now) => {
    const post = document.querySelector("#post textarea");
    return [`${post.selectionStart}:${post.selectionEnd}`, text, now];
}"""
"""The browser's share: which characters of the post are selected."""


def answer(
    extract: Extractor,
    text: str,
    head: str,
    tail: str,
    image: str | None,
    look: bool,
    caption: str = "",
) -> dict[str, Any]:
    """What the page shows of one run.

    Args:
        head, tail: words that occur once in the text, or START:END in characters, or nothing.
        caption: what the picture shows; blank: not said.

    Returns:
        `bars` relation -> probability, `spans` (text, name or None) pieces, `colors` of names
        (one a type), `note` one line, `picture` the overlay or None.

    Raises:
        InputError: one line for the user.
    """
    if len(text or "") > LONGEST:
        raise InputError(f"a post of {len(text)} characters; this page reads {LONGEST}")
    entities = {"head": (head or "").strip() or None, "tail": (tail or "").strip() or None}
    entities["caption"] = (caption or "").strip() or None
    post = parse_post({"text": text or "", "image": image, **entities}, Path(), extract.task)
    (post,) = extract.run.with_captions([post])  # once, not of every covered picture
    (found,) = extract.answer([post], top_k=5)
    if "error" in found:
        raise InputError(found["error"])
    chosen = ((post.head, "head"), (post.tail, "tail"))
    spans = [(*post.characters(span), name) for span, name in chosen if span]
    shown = NOTHING | {"spans": pieces(text, spans)}
    if "entities" in found:
        named = [(e, scored(e)) for e in found["entities"]]
        shown["spans"] = pieces(text, [(e["start"], e["end"], name) for e, name in named])
        labels = (extract.ner or extract.run).info.labels  # O, B-x, I-x, B-y, …
        colors = {label[2:]: COLORS[(i - 1) // 2 % len(COLORS)] for i, label in enumerate(labels)}
        shown["colors"] = {name: colors[e["type"]] for e, name in named}
        shown["note"] = f"{len(found['entities'])} entities"
    if "relations" in found:
        related = [pair for pair in found["relations"] if pair["related"]]
        shown["note"] += f", {len(related)} of {len(found['relations'])} pairs related"
        shown["bars"] = {
            f"{p['head']['text']} → {p['tail']['text']}: {p['relation']}": p["probability"]
            for p in sorted(related, key=lambda p: -p["probability"])[:5]
        }
    if "top" in found:
        shown["bars"] = {entry["relation"]: entry["probability"] for entry in found["top"]}
        if look and image:
            worth = occlusion.occlusion(extract, post, found["relation"])
            loss, share = 100 * occlusion.strongest(worth)["loss"], 100 * found["probability"]
            if loss < 0.05:
                shown["note"] = "No part of the picture speaks for this answer."
            else:
                shown["note"] = (
                    f"Without the framed part of the picture, {found['relation']} would lose "
                    f"{loss:.1f} of {share:.1f} %."
                )
                shown["picture"] = occlusion.overlay(decoded(image), worth)
    return shown


def scored(entity: dict[str, Any]) -> str:
    """`PER 93%`, or `PER` alone where the run gives no score."""
    return entity["type"] + ("" if entity["score"] is None else f" {entity['score']:.0%}")


def pieces(text: str, spans: Sequence[tuple[int, int, str]]) -> list[tuple[str, str | None]]:
    """(text, label or None) pieces that make up `text`; a span inside another is left out."""
    found, end = [], 0
    for start, stop, name in sorted(spans):
        if start < end:
            continue
        found += [(text[end:start], None), (text[start:stop], name)]
        end = stop
    return [piece for piece in [*found, (text[end:], None)] if piece[0]]


def read_examples(folder: str) -> list[list[Any]]:
    """[post, picture, head, tail] of some related validation rows that have their picture."""
    from finetune.tasks.mnre import Mnre

    task = Mnre(Path(folder))
    found = []
    for row in task.read("val"):
        picture = task.image_folder("val") / (row.image_id or "")
        text = " ".join(row.tokens)
        starts = [0]
        for token in row.tokens:
            starts.append(starts[-1] + len(token) + 1)
        marks = [
            mention(text, starts[first], starts[last] - 1) for first, last in (row.head, row.tail)
        ]
        if picture.is_file() and row.relation not in NO_RELATION:
            found.append([text, str(picture), *marks])
        if len(found) == EXAMPLES:
            break
    return found


def mention(text: str, start: int, end: int) -> str:
    """An entity as the page's fields take it: its words, or START:END where they occur again."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    words = text[start:end]
    return words if words and text.count(words) == 1 else f"{start}:{end}"


def page(runs: dict[str, Extractor], examples: list[list[Any]]) -> Any:
    """The `gradio.Blocks` of one or two runs."""
    import gradio as gr

    relation = any(e.run.info.kind == "relation" for e in runs.values())
    captions = any(reads_captions(e.run.inputs.get("captions")) for e in runs.values())
    hint = "its words, or START:END in characters"

    def keep(selected: str, text: str, now: str) -> str:
        start, end = map(int, selected.split(":"))
        if not text[start:end].strip():
            gr.Warning("Select the words of the entity in the post first.")
            return now
        return mention(text, start, end)

    def ask(
        text: str, image: str | None, head: str, tail: str, look: bool, caption: str
    ) -> list[Any]:
        values: list[Any] = [gr.Row(visible=True)]
        for extract in runs.values():
            try:
                shown = answer(extract, text, head, tail, image, look, caption)
            except InputError as error:
                shown = NOTHING | {"note": f"**Not read:** {error}"}
            values += [
                shown["note"],
                gr.HighlightedText(
                    shown["spans"], color_map=shown["colors"], visible=bool(shown["spans"])
                ),
                gr.Label(shown["bars"] or None, visible=bool(shown["bars"])),
                gr.Image(shown["picture"], visible=shown["picture"] is not None),
            ]
        return values

    with gr.Blocks(title="Fusion-MRE", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
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
            image = gr.Image(
                label="Picture",
                type="filepath",
                sources=["upload", "clipboard"],
                height=380,
                elem_id="picture",
            )
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
            gr.Examples(examples, [text, image, head, tail], cache_examples=False)
        use_head.click(keep, [selected, text, head], head, js=SELECTION, show_progress="hidden")
        use_tail.click(keep, [selected, text, tail], tail, js=SELECTION, show_progress="hidden")
        go.click(ask, [text, image, head, tail, look, caption], outputs, api_name="read")
    return blocks


def start(config: ServeConfig, launch: Callable[..., Any] | None = None) -> None:
    """Load the runs and serve the page until interrupted.

    Raises:
        InputError: gradio is not installed, or a run cannot be read.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise InputError("the page needs gradio: pip install 'fusion-mre[serve]'") from None
    live = live_inputs(config)
    names = [config.run, *([config.compare] if config.compare else [])]
    runs = {
        name: Extractor.from_pretrained(name, ner=config.ner, live=live)
        for name in dict.fromkeys(names)
    }
    folders = [config.examples] if config.examples else None
    blocks = page(runs, read_examples(config.examples) if config.examples else [])
    (launch or blocks.launch)(
        server_name=config.host,
        server_port=config.port,
        share=False,
        max_file_size=LARGEST_UPLOAD,
        allowed_paths=folders,
        css=STYLE,
        footer_links=[],
        quiet=True,
    )
