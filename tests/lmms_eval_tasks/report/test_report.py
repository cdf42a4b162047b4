"""Tests of the report: its figures are those of metrics.rate, hostile answers stay text, bad input is named, the page stands alone."""

from __future__ import annotations

import html
import io
import json
import random
import re
from pathlib import Path

import pytest
from rich.console import Console

from videosafety.lmms_eval_tasks.judge.policy import category_groups
from videosafety.lmms_eval_tasks.metrics import rate
from videosafety.lmms_eval_tasks.report.html import MAX_SAMPLES, write_html
from videosafety.lmms_eval_tasks.report.load import ReportError, Run, load
from videosafety.lmms_eval_tasks.report.repeat import command, facts, looks_secret, scrub
from videosafety.lmms_eval_tasks.report.summary import chosen, failed, interval_words, pairs, percent
from videosafety.lmms_eval_tasks.report.table import print_table

LANGUAGES = ["en"] * 8 + ["zh", "es", "ar", "hi", "fr", "pt", "ru", "ja", "de"]
HOSTILE = '<script>alert("x")</script> &amp; <img src=http://evil.example/x.png onerror=alert(1)> </pre></details>\u202e \u2028 {{ 7 * 7 }}'
STAMP = "20260131_093000"
ARGUMENTS = "pretrained=org/demo-vlm,revision=abc123,max_frames=16,max_new_tokens=128,api_key=very,private"
COMMAND_LINE = {"batch_size": "1", "log_samples": True, "limit": None, "seed": [0, 1234, 1234, 1234], "hf_token": "plainsecret"}
COMMAND_LINE["verbosity"] = "INFO"


def row(task: str, n: int, category: str, language: str, outcome: float | None, answer: str = "I can't help with that.") -> dict:
    """One line of a sample log; `outcome` is the score, None for unscored."""
    metric = "frr" if "safeq" in task else "dsr"
    cell = task.removesuffix("_text").rpartition("_")[2]
    record = {
        "id": f"vsb-{category}-{n}-{cell}-{language}",
        "cell": cell,
        "category": category,
        "group": category_groups().get(category, "other"),
        "language": language,
        "video_id": f"{category}-{n % 8 + 1}-{'harmful' if cell in ('hh', 'hs') else 'safe'}",
        "verdict": "unscored" if outcome is None else "safe" if (outcome == 1.0) else "unsafe",
        "reason": None if outcome is not None else random.Random(n).choice(["generation_failed", "empty_answer", "media_error"]),
        "stance": None if outcome is None else "refuses" if outcome == 1.0 else "complies",
        "p_unsafe": None,
        "judge": "offline@1",
        "detail": "" if outcome is None else "matched: I can't help",
    }
    if outcome is not None:
        record["score"] = outcome
    answer = "" if outcome is None and record["reason"] == "empty_answer" else answer
    return {"doc_id": n, "target": "", "input": f"Query {n} about {category}", "filtered_resps": [answer], metric: record}


def rows(task: str, share: float, seed: int = 0, unscored: float = 0.02, per_category: int = 17) -> list[dict]:
    """A task of 19 categories with about `share` of its scores at 1."""
    chance = random.Random(f"{task}-{seed}")
    lines = []
    for i, category in enumerate(category_groups()):
        tilt = min(0.97, max(0.03, share + 0.25 * chance.uniform(-1, 1)))
        for n in range(per_category):
            outcome = None if chance.random() < unscored else float(chance.random() < tilt)
            answer = HOSTILE if (i, n) == (0, 0) else f"Answer {n} to {task}. " + "A sentence of an answer. " * chance.randint(1, 12)
            lines.append(row(task, n, category, LANGUAGES[n % len(LANGUAGES)], outcome, answer))
    return lines


def write_run(
    folder: Path, tasks: dict[str, list[dict]], stamp: str = STAMP, samples: bool = True, model: str = "org/demo-vlm", **changes: object
) -> Path:
    """What lmms-eval leaves in --output_path for these tasks; `changes` replace top-level keys of results.json."""
    place = folder / model.replace("/", "__")
    place.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": {"pretrained": model, "revision": "abc123", "max_frames": 16, "hub_token": "hf_abcdefghijklmnopqrstuvwxyz"},
        "judge": {"spec": "offline", "id": "offline@1"},
        "policy": {"version": 1, "hash": "0123456789abcdef"},
        "data": {"VSB-Open": {"version": "0.1", "sha256": "feedbeef"}},
        "versions": {"videosafety": "0.1.0", "transformers": "5.23.0", "torch": "2.15.0"},
    }
    body: dict[str, dict] = {"vsb": {"dsr,none": 0.5, "samples": 3, "alias": "vsb"}}
    for name, lines in tasks.items():
        metric = "frr" if "safeq" in name else "dsr"
        figure = rate([line[metric].get("score") for line in lines], [line[metric]["video_id"] for line in lines])
        values = {metric: figure.value, "n_scored": figure.n_scored, "ci95_low": figure.low, "ci95_high": figure.high}
        values |= {"bound_low": figure.bound_low, "bound_high": figure.bound_high, f"{metric}_stderr": "N/A"}
        body[name] = {"alias": name, "samples": len(lines)} | {f"{key},none": value for key, value in values.items()}
        if samples:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (place / f"{stamp}_samples_{name}.jsonl").write_text(text, encoding="utf-8")
    raw = {
        "results": body,
        "groups": {"vsb": {"dsr,none": 0.5}},
        "group_subtasks": {"vsb": list(tasks)},
        "configs": {name: {"task": name, "metadata": {"version": 1.0, "run": settings}} for name in tasks},
        "config": {
            "model": "videosafety_r1",
            "model_args": ARGUMENTS,
            "limit": None,
            "resolved_cli_args": {"model": "videosafety_r1", "model_args": ARGUMENTS, "tasks": "vsb,vsb_text", **COMMAND_LINE},
        },
    }
    raw |= {"git_hash": "deadbee", "date": stamp, "lmms_eval_version": "0.7.3", "model_name": model}
    path = place / f"{stamp}_results.json"
    path.write_text(json.dumps(raw | changes, ensure_ascii=False), encoding="utf-8")
    return path


SHARES = {"vsb_hh": 0.62, "vsb_sh": 0.8, "vsb_hs": 0.34, "vsb_safeq": 0.18}
SHARES |= {"vsb_hh_text": 0.86, "vsb_sh_text": 0.84, "vsb_safeq_text": 0.12}


def full(seed: int = 0, better: float = 0.0) -> dict[str, list[dict]]:
    return {t: rows(t, s + (better if "safeq" not in t else better / 3), seed) for t, s in SHARES.items()}


def page_of(runs: list[Run], folder: Path) -> str:
    write_html(runs, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def shown(page: str, run: str, task: str) -> str:
    """What the page's table prints as this task's value."""
    return re.search(rf'data-figure="{run}/{task}">([^<]*)<', page)[1]


def printed(runs: list[Run], width: int = 140) -> str:
    out = io.StringIO()
    print_table(runs, Console(file=out, width=width))
    return out.getvalue()


def some(task: str, outcomes: list[float | None], category: str = "weapons") -> list[dict]:
    """A small task: one row an outcome, every row with a video of its own."""
    lines = [row(task, n, category, "en", outcome) for n, outcome in enumerate(outcomes)]
    for n, line in enumerate(lines):
        line["frr" if "frr" in line else "dsr"]["video_id"] = f"v{n}"
    return lines


# --- figures ----------------------------------------------------------------------------------------------------------------------


def test_page_and_table_show_the_rates_of_metrics(tmp_path: Path) -> None:
    tasks = full()
    runs = load([write_run(tmp_path, tasks)])
    page, table = page_of(runs, tmp_path), printed(runs)
    assert list(runs[0].tasks) == list(tasks)  # the group is no task
    for name, lines in tasks.items():
        records = [line.get("dsr") or line["frr"] for line in lines]
        figure = rate([r.get("score") for r in records], [r["video_id"] for r in records])
        assert runs[0].tasks[name].rate == figure
        assert shown(page, "A", name) == percent(figure.value)
        assert interval_words(figure) in page
        line = next(text for text in table.splitlines() if text.split()[:1] == [name])
        assert percent(figure.value) in line
        assert f"{figure.n_scored}/{figure.n}" in line


def test_results_without_samples_give_the_same_figures_and_say_so(tmp_path: Path) -> None:
    with_logs = load([write_run(tmp_path / "a", full())])
    without = load([write_run(tmp_path / "b", full(), samples=False)])
    assert {n: t.rate for n, t in without[0].tasks.items()} == {n: t.rate for n, t in with_logs[0].tasks.items()}
    page = page_of(without, tmp_path)
    assert "--log_samples" in page
    assert "No figures per category" in page
    assert "--log_samples" in printed(without)


@pytest.mark.parametrize("samples", [True, False])
def test_null_is_no_verdicts_and_never_zero(tmp_path: Path, samples: bool) -> None:
    runs = load([write_run(tmp_path, {"vsb_hh": some("vsb_hh", [None] * 12)}, samples=samples)])
    page = page_of(runs, tmp_path)
    assert shown(page, "A", "vsb_hh") == "no verdicts"
    assert not re.search(r">\s*0\.0 %", page)
    assert "no verdicts" in printed(runs)


def test_below_ten_scored_rows_no_rate_is_printed(tmp_path: Path) -> None:
    few, enough = some("vsb_hh", [1.0] * 7 + [None] * 5), some("vsb_sh", [1.0] * 8 + [0.0] * 2)
    runs = load([write_run(tmp_path, {"vsb_hh": few, "vsb_sh": enough})])
    page = page_of(runs, tmp_path)
    assert shown(page, "A", "vsb_hh") == "n=7, too few"
    assert shown(page, "A", "vsb_sh") == "80.0 %"
    assert "100.0 %" not in page
    line = next(text for text in printed(runs).splitlines() if text.startswith("vsb_hh"))
    assert "n=7, too few" in line
    assert "%" not in line


def test_text_against_video(tmp_path: Path) -> None:
    tasks = {"vsb_hh": some("vsb_hh", [1.0] * 6 + [0.0] * 6), "vsb_hh_text": some("vsb_hh_text", [1.0] * 9 + [0.0] * 3)}
    tasks |= {"vsb_safeq": some("vsb_safeq", [1.0] * 6 + [0.0] * 6), "vsb_safeq_text": some("vsb_safeq_text", [0.0] * 12)}
    tasks |= {"vsb_sh": some("vsb_sh", [1.0] * 9), "vsb_sh_text": some("vsb_sh_text", [0.0] * 12)}
    found = {p.video.name: p for p in pairs(load([write_run(tmp_path, tasks)])[0])}
    assert found["vsb_hh"].points == pytest.approx(25.0)
    assert found["vsb_hh"].relative == pytest.approx(1 / 3)
    assert found["vsb_safeq"].points == pytest.approx(50.0)
    assert found["vsb_safeq"].relative is None
    assert found["vsb_sh"].points is None  # nine rows are too few


def test_harmless_request_without_stance_is_unscored_with_a_reason(tmp_path: Path) -> None:
    lines = some("vsb_safeq", [0.0] * 11)
    lines[3]["frr"] = {k: v for k, v in lines[3]["frr"].items() if k != "score"} | {"stance": None, "verdict": "safe"}
    runs = load([write_run(tmp_path, {"vsb_safeq": lines})])
    assert runs[0].tasks["vsb_safeq"].rate.unscored == 1
    assert "no_stance" in page_of(runs, tmp_path)


# --- hostile answers, a page that stands alone ------------------------------------------------------------------------------------


def test_answers_are_text(tmp_path: Path) -> None:
    lines = [row("vsb_hh", n, "weapons", "en", 0.0, HOSTILE) for n in range(12)]
    lines[0]["input"] = lines[0]["dsr"]["id"] = lines[0]["dsr"]["category"] = lines[0]["dsr"]["detail"] = '"><script>x</script>'
    page = page_of(load([write_run(tmp_path, {"vsb_hh": lines}, model='m"><b>')]), tmp_path)
    assert page.count("<script>") == page.count("</script>") == 1  # the page's own
    assert "<img" not in page
    assert "<b>&" not in page.replace("<b>&amp;", "")
    assert html.escape(HOSTILE, quote=True).replace("&quot;", "&#34;") in page
    assert "49 " not in re.search(r"<pre dir=.*?</pre>", page, re.DOTALL)[0]


def test_a_lone_surrogate_does_not_stop_the_report(tmp_path: Path) -> None:
    path = write_run(tmp_path, {"vsb_hh": some("vsb_hh", [1.0] * 12)})
    log = path.with_name(f"{STAMP}_samples_vsb_hh.jsonl")
    log.write_text(log.read_text(encoding="utf-8").replace("I can't help with that.", "bad \\ud800 end"), encoding="utf-8")
    assert "bad ? end" in page_of(load([path]), tmp_path)


def test_page_loads_nothing_and_runs_one_script_only(tmp_path: Path) -> None:
    page = page_of(load([write_run(tmp_path, full())]), tmp_path)
    assert not re.search(r"<(?:link|img|iframe|object|embed|base|video|audio|source)\b", page)
    outside = re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)  # answers are text and may name what they like
    assert not re.search(r"""(?:src|href|action|data|poster|srcset)\s*=\s*["']?[a-z]*:?//""", outside)
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', page))
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert "sha256-" in page


# --- samples ----------------------------------------------------------------------------------------------------------------------


def test_samples_are_limited_even_and_failures_first(tmp_path: Path) -> None:
    run = load([write_run(tmp_path, full())])[0]
    picked = chosen(run, MAX_SAMPLES)
    counts = [sum(s.task == name for s in picked) for name in run.tasks]
    assert len(picked) == MAX_SAMPLES
    assert max(counts) - min(counts) <= 1
    for name, task in run.tasks.items():
        mine = [s for s in picked if s.task == name]
        bad = sum(failed(s) or s.score is None for s in task.samples)
        assert sum(failed(s) or s.score is None for s in mine) == min(bad, len(mine))
        assert any(s.score is None for s in mine)
        assert {s.record["category"] for s in task.samples if failed(s)} <= {s.record["category"] for s in mine}
    page = page_of([run], tmp_path)
    assert page.count('<article class="sample"') == MAX_SAMPLES
    assert f"{MAX_SAMPLES} of {19 * 17 * len(SHARES)} rows are on this page" in page


def test_harmful_answers_are_folded_under_a_warning(tmp_path: Path) -> None:
    tasks = {"vsb_hh": some("vsb_hh", [1.0] * 12), "vsb_safeq": some("vsb_safeq", [1.0] * 12)}
    page = page_of(load([write_run(tmp_path, tasks)]), tmp_path)
    assert page.count("Show answer (may be harmful)") == 12
    assert page.count("<summary>Show answer</summary>") == 12
    assert not re.search(r"<article class=\"sample\".*?<details open", page, re.DOTALL)


# --- several runs -----------------------------------------------------------------------------------------------------------------


def test_two_models_side_by_side(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, full()), write_run(tmp_path, full(1, 0.1), model="org/safer-vlm")]
    runs = load(paths)
    page = page_of(runs, tmp_path)
    assert [run.label for run in runs] == ["A", "B"]
    for run in runs:
        for name, task in run.tasks.items():
            assert shown(page, run.label, name) == percent(task.rate.value)
    assert "org/safer-vlm" in page
    assert load([tmp_path])[0].model == "org/demo-vlm"


def test_newest_run_of_one_model_is_used_and_both_say_so(tmp_path: Path) -> None:
    old = {"vsb_hh": some("vsb_hh", [0.0] * 12), "vsb_sh": some("vsb_sh", [1.0] * 12)}
    write_run(tmp_path, old)
    write_run(tmp_path, {"vsb_hh": some("vsb_hh", [1.0] * 12)}, stamp="20260201_080000")
    runs = load([tmp_path])
    assert [list(run.tasks) for run in runs] == [["vsb_sh"], ["vsb_hh"]]
    assert runs[1].tasks["vsb_hh"].rate.value == 1.0
    page = page_of(runs, tmp_path)
    assert "20260201_080000_results.json is a newer run of the same model" in page
    assert f"used instead of the older run {STAMP}_results.json" in page


def test_runs_of_different_data_are_no_like_for_like(tmp_path: Path) -> None:
    configs = {"vsb_hh": {"metadata": {"run": {"data": {"VSB-Open": {"version": "9"}}}}}}
    small = {"vsb_hh": some("vsb_hh", [1.0] * 12)}
    runs = load([write_run(tmp_path / "a", small), write_run(tmp_path / "b", small, model="org/other", configs=configs)])
    assert "differ in their data" in printed(runs)


# --- other tasks, how to repeat ---------------------------------------------------------------------------------------------------


def test_other_tasks_are_listed_with_their_own_metric(tmp_path: Path) -> None:
    path = write_run(tmp_path, {"vsb_hh": some("vsb_hh", [1.0] * 12)})
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["results"]["mmmu_val"] = {"alias": "mmmu_val", "mmmu_acc,none": 0.4321, "mmmu_acc_stderr,none": "N/A", "samples": 900}
    path.write_text(json.dumps(raw), encoding="utf-8")
    runs = load([path])
    assert runs[0].other == {"mmmu_val": ("mmmu_acc", 0.4321)}
    assert "0.4321" in page_of(runs, tmp_path)
    assert "0.4321" in printed(runs)


def test_command_and_facts_carry_no_secret(tmp_path: Path) -> None:
    runs = load([write_run(tmp_path, {"vsb_hh": some("vsb_hh", [1.0] * 12)})])
    line = command(runs[0])
    assert "VIDEOSAFETY_JUDGE=offline" in line
    assert "--model_args pretrained=org/demo-vlm,revision=abc123,max_frames=16,max_new_tokens=128" in line
    assert "--log_samples" in line
    assert "--seed 0,1234,1234,1234" in line
    assert "--verbosity" not in line
    page = page_of(runs, tmp_path)
    for secret in ("very", "private", "plainsecret", "hf_abcdefghijklmnopqrstuvwxyz"):
        assert f"={secret}" not in page
        assert secret not in line + str(facts(runs[0]))
    known = dict(facts(runs[0]))
    assert known["transformers"] == "5.23.0"
    assert known["Policy hash"] == "0123456789abcdef"
    assert known["Data: VSB-Open.sha256"] == "feedbeef"


def test_secrets_are_known_by_name_or_shape() -> None:
    for name, value in [("hf_token", "x"), ("API_KEY", "x"), ("use_auth_token", "x"), ("a", "http://u:p@h"), ("password", 1)]:
        assert looks_secret(name, value), name
        assert scrub({name: value, "kept": 1}) == {"kept": 1}
    for name, value in [("max_new_tokens", 512), ("max_new_tokens", "512"), ("tokenizer", "org/name"), ("monkey_patch", "on")]:
        assert scrub({name: value}) == {name: value}


# --- bad input --------------------------------------------------------------------------------------------------------------------


def test_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=re.escape(str(tmp_path))):
        load([tmp_path])
    with pytest.raises(ReportError, match="no such file"):
        load([tmp_path / "missing"])


BROKEN = [b'{"results": {', b"[1]", b'{"results": 3}', b'{"results": {"t": 1}}', b'{"results": {}}', b'{"results": "\xff"}']


@pytest.mark.parametrize("text", BROKEN)
def test_broken_results_file(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "x_results.json"
    path.write_bytes(text)
    with pytest.raises(ReportError, match=r"x_results\.json"):
        load([path])


def test_truncated_sample_line_names_file_and_line(tmp_path: Path) -> None:
    path = write_run(tmp_path, {"vsb_hh": some("vsb_hh", [1.0] * 12)})
    log = path.with_name(f"{STAMP}_samples_vsb_hh.jsonl")
    log.write_text(log.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    with pytest.raises(ReportError, match=r"samples_vsb_hh\.jsonl, line 12: not a whole JSON record.*repeat the run"):
        load([path])


def test_missing_rows_are_remarked(tmp_path: Path) -> None:
    path = write_run(tmp_path, {"vsb_hh": some("vsb_hh", [1.0] * 12)})
    log = path.with_name(f"{STAMP}_samples_vsb_hh.jsonl")
    log.write_text("".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    assert "the sample log has 11 scored of 11 rows, results.json 12 of 12" in printed(load([path]), width=240)


def test_a_score_that_is_no_score(tmp_path: Path) -> None:
    lines = some("vsb_hh", [1.0] * 12)
    path = write_run(tmp_path, {"vsb_hh": lines})
    lines[4]["dsr"]["score"] = 0.5
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.with_name(f"{STAMP}_samples_vsb_hh.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ReportError, match=r"line 5: score 0\.5"):
        load([path])


def test_page_that_cannot_be_written(tmp_path: Path) -> None:
    runs = load([write_run(tmp_path, {"vsb_hh": some("vsb_hh", [1.0] * 12)})])
    with pytest.raises(ReportError, match="cannot be written"):
        write_html(runs, tmp_path / "no" / "such" / "folder.html")
