"""The demo: upload or pick a clip, ask, and see the answer, both alarm probabilities and where in the clip the harm is. As a Space too.

Clips to pick are drawings of everyday things, from the safe cell of VSB-Open: a public page shows no gallery of harm.
"""

from __future__ import annotations

import html
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from videosafety.hf_models.calibrate import MODALITIES
from videosafety.hf_models.guard import Decoder, Guard
from videosafety.hf_models.guarded import REFUSAL

CLIPS = 6  # to pick from
MAX_UPLOAD = "200mb"
WINDOW, STRIDE = 4.0, 2.0  # seconds a segment of the timeline, and between two of them
COLOURS = {True: "#b03030", False: "#2f7d4f", None: "#777777"}
FILES = ("app.py", "requirements.txt", "README.md")
_NAMES = {"visual": "what is shown", "textual": "what is asked"}


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page shows of one question. `error` is None, or why nothing else is known."""

    answer: str = ""
    flagged: bool | None = None
    visual: float | None = None
    textual: float | None = None
    timeline: Any = None  # a matplotlib Figure; None without a video
    error: str | None = None


def ask(guard: Guard, video: Path | None, question: str, guarded: bool = False, max_new_tokens: int = 128) -> Shown:
    """The answer to a question about a clip, or about nothing; probabilities are those of the answer's own prefill.

    Args:
        guarded: stand a refusal in the answer's place where an alarm is above its threshold.
    """
    from videosafety.hf_models.guarded import generate_guarded
    from videosafety.hf_models.prompts import on_model
    from videosafety.hf_models.timeline import plot, timeline
    from videosafety.lmms_eval_tasks.inputs import model_inputs
    from videosafety.lmms_eval_tasks.pipeline import Loaded, Request
    from videosafety.lmms_eval_tasks.video import MediaError

    if video is None and not question.strip():
        return Shown(error="Pick or upload a clip, or ask something.")
    content: list[dict[str, Any]] = [{"type": "video"}] * (video is not None) + [{"type": "text", "text": question}]
    figure = None
    try:
        clips = [Decoder(guard.sampling).get(str(video))] if video else []
        request = Request(0, "demo", [{"role": "user", "content": content}], [str(v) for v in [video] if v], [], {})
        inputs = model_inputs(guard.processor, [Loaded(request, clips)])
        (found,) = generate_guarded(guard.model, guard.processor, inputs, guard.calibration, max_new_tokens=max_new_tokens, do_sample=False)
        answer = found.text
        if found.flagged and not guarded:
            kept = on_model(inputs, guard.model)
            ids = guard.model.generate(**kept, max_new_tokens=max_new_tokens, do_sample=False)
            answer = guard.processor.tokenizer.decode(ids[0, kept["input_ids"].shape[1] :], skip_special_tokens=True)
        if video:
            scores, clip = timeline(guard, video, question, WINDOW, STRIDE)
            figure = plot(scores, clip, guard.calibration.visual.value, title="Where in the clip")
    except (MediaError, ValueError) as error:
        return Shown(error=str(error))
    return Shown(answer.strip(), found.flagged, found.visual, found.textual, figure)


def bars(shown: Shown, thresholds: dict[str, float]) -> str:
    """Both probabilities as HTML, each with its threshold."""
    parts = []
    for name, words in _NAMES.items():
        value = getattr(shown, name)
        over = None if value is None else value > thresholds[name]
        number = "no probability" if value is None else f"{value:.3f}"
        width = 0 if value is None else 100 * value
        parts.append(
            f'<div style="margin:0.6em 0"><div style="display:flex;justify-content:space-between"><span>p(harmful), {words}</span>'
            f'<b style="color:{COLOURS[over]}">{number}</b></div>'
            f'<div style="background:#8883;height:0.8em;position:relative;border-radius:2px">'
            f'<div style="background:{COLOURS[over]};height:100%;width:{width:.1f}%;border-radius:2px"></div>'
            f'<div title="threshold {thresholds[name]:.2f}" style="position:absolute;left:{100 * thresholds[name]:.1f}%;top:-0.2em;'
            f'height:1.2em;border-left:2px solid currentColor"></div></div></div>'
        )
    return "".join(parts)


def safe_clips(count: int = CLIPS) -> list[Path]:
    """Clips of VSB-Open's safe cell, one a category, rendered here where they are not there yet."""
    from videosafety.lmms_eval_tasks.vsb import dataset

    first = {row["category"]: row["video_id"] for row in reversed(dataset.rows("safeq"))}
    return list(dataset.ensure_videos(list(first.values())[:count]).values())


def app(guard: Guard, clips: Sequence[Path], title: str) -> Any:
    """The page, a `gradio.Blocks`. One question at a time; nothing is kept of what is uploaded or asked beyond gradio's own cache."""
    import gradio as gr

    thresholds = {name: getattr(guard.calibration, name).value for name in MODALITIES}

    def answered(video: str | None, question: str, guarded: bool) -> tuple[str, str, Any]:
        shown = ask(guard, Path(video) if video else None, question, guarded)
        if shown.error:
            raise gr.Error(html.escape(shown.error), title="This cannot be answered", print_exception=False)
        said = shown.answer or "(the model's answer is empty)"
        return said, bars(shown, thresholds), shown.timeline

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(
            f"# {html.escape(title)}\nHow probable it is that a clip, and a question about it, are harmful; known before a word is written."
        )
        with gr.Row():
            with gr.Column():
                video = gr.Video(label="Clip", sources=["upload"], height=300)
                question = gr.Textbox(label="Question", placeholder="What happens in this video?", max_length=2000)
                guarded = gr.Checkbox(label=f"Guarded: answer “{REFUSAL}” where an alarm is raised", value=False)
                go = gr.Button("Ask", variant="primary")
                if clips:
                    gr.Examples(
                        [[str(clip)] for clip in clips],
                        inputs=[video],
                        label="Clips to pick: drawings of everyday things",
                        cache_examples=False,
                    )
            with gr.Column():
                answer = gr.Textbox(label="Answer", lines=4, interactive=False)
                probabilities = gr.HTML(label="Alarm probabilities")
                where = gr.Plot(label="Timeline")
        gr.Markdown(
            "Probabilities are a model's opinion, not a verdict; heads that were not trained say nothing. Marks are the thresholds."
        )
        inputs, outputs = [video, question, guarded], [answer, probabilities, where]
        go.click(answered, inputs, outputs, concurrency_limit=1, api_name="ask")
        question.submit(answered, inputs, outputs, concurrency_limit=1, api_visibility="private")
    return page


def serve(guard: Guard, title: str, host: str = "127.0.0.1", port: int | None = None) -> None:
    """Serve the page until interrupted. Files of this machine are not readable through it, but for the clips to pick."""
    with tempfile.TemporaryDirectory() as folder:  # of their own: what lies beside them in the cache is nobody's business
        clips = [Path(shutil.copy(clip, folder)) for clip in safe_clips()]
        app(guard, clips, title).launch(
            server_name=host, server_port=port, allowed_paths=[folder], max_file_size=MAX_UPLOAD, share=False, show_error=True
        )


def export(out: Path, repo: str, revision: str) -> Path:
    """Write the Space of this demo for a published model to the folder `out`: its program, what it needs, and its card.

    Raises:
        ValueError: `out` is not empty, or `revision` is no commit, without which code of the repository could change under the page.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from videosafety.hf_models.checkpoint import check_empty

    check_empty(out)
    if len(revision) != 40 or set(revision) - set("0123456789abcdef"):
        raise ValueError(f"--revision must be a whole commit of {repo} (40 hex digits), got {revision!r}")
    environment = Environment(  # noqa: S701 - writes Python and Markdown, of checked facts
        loader=FileSystemLoader(Path(__file__).with_name("templates") / "demo_space"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    out.mkdir(parents=True, exist_ok=True)
    facts = {"repo": repo, "revision": revision, "gradio": version("gradio"), "videosafety": version("videosafety")}
    for name in FILES:
        (out / name).write_text(environment.get_template(f"{name}.jinja").render(facts), encoding="utf-8")
    return out
