"""Figures for papers: their files, widths, words and captions.

Every figure is drawn at both widths, of experiments that ended in every way, and of hostile names;
texts are held against each other as boxes.
"""

import random
import re
import struct
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.text import Text

import analyze_aux
from ablation.report import compare_logs, figures, files
from ablation.report.captions import CAPTIONS
from ablation.report.comparisons import blocks_of
from ablation.report.content import number
from ablation.report.drawing import (
    KINDS,
    WIDTHS,
    NothingToDraw,
    Paper,
    folded,
    inches,
    numbered_ticks,
    paper_of,
    plain_matplotlib,
    settle,
)
from ablation.report.evidence import read_experiment
from ablation.report.figures import FIGURES, picture, told_apart
from ablation.report.validation import effect_line
from ablation.report.verdict import decided_pairs
from tests.support.invent import arm
from tests.support.invented_folder import adaptive_plan, make, manual

DIVERGED = {"final_best/run_1": ("diverged",), "final_baseline/run_2": ("diverged",)}
FAILURES = {"screen_aux_3_6_9/run_0": ("diverged",), "final_best/run_2": ("crashed",) * 3}
LOST = {"aux_4_8/run_1": ("diverged",), "baseline/run_2": ("crashed",) * 3}
BY_HAND = ("baseline", "aux_6", "aux_8", "aux_4_8")
EXPERIMENTS = {
    "classic": lambda folder: make(folder, failures=FAILURES),
    "improves": lambda folder: make(folder, adaptive_plan()),
    "inconclusive": lambda folder: make(folder, adaptive_plan(), scale=0.2, sd=0.004),
    "null": lambda folder: make(folder, adaptive_plan(), scale=0.0),
    "harmful": lambda folder: make(folder, adaptive_plan(), scale=-1.0),
    "diverged": lambda folder: make(folder, adaptive_plan(), failures=DIVERGED),
    "by_hand": lambda folder: make(folder, manual(*BY_HAND, seeds=(1, 2, 3)), failures=LOST),
}
HOSTILE = (
    "<script>alert(1)</script>",
    "a$x^{$ \"quotes\" & 'more'",
    "_under \U0001f9ea 漢字 עברית",
    "W" * 110,
    "and so on " * 20,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make_it(tmp_path_factory.mktemp(name)) for name, make_it in EXPERIMENTS.items()}


@pytest.fixture(scope="module")
def evidence(folders):
    return {name: read_experiment(folder) for name, folder in folders.items()}


def with_arms(x, arms) -> object:
    """The baseline of an experiment by hand, and these arms, each of one to three runs."""
    runs = {name: [r for r in x.records.results if r.run.arm.name == name] for name in BY_HAND}
    results, rng = list(runs["baseline"]), random.Random(1)
    for k, each in enumerate(arms):
        by = rng.gauss(0, 0.006)
        for r in runs["aux_6"][: 1 + k % 3]:
            curve = tuple((step, loss + by, t) for step, loss, t in r.curve)
            changed = {"run": replace(r.run, arm=each), "val_loss": r.val_loss + by}
            results.append(replace(r, curve=curve, **changed))
    records = replace(x.records, results=tuple(results))
    return replace(x, standing=replace(x.standing, records=records))


def many(x, n: int):
    layers = [(k, j) for k in range(1, 12) for j in range(k + 1, 12)]
    return with_arms(x, [arm(f"layers_{a}_{b}", a, b) for a, b in layers[:n]])


def long_names(x):
    name = "WWWW_a_very_long_name_that_somebody_once_gave"
    return with_arms(x, [arm(f"{name}_{k}", 4 + k) for k in range(4)])


def log_of(loss: float, steps: int = 1000) -> str:
    return "".join(
        f"step:{i}/{steps} val_loss:{loss + 2 * (1 - i / steps) ** 2:.4f}"
        f" train_time:{100 * i}ms step_avg:100.00ms\n"
        for i in range(0, steps + 1, steps // 8)
    )


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Five groups of hostile names; the second one has a run that diverged."""
    groups, rng = {}, random.Random(2)
    for k, name in enumerate(HOSTILE):
        folder = tmp_path_factory.mktemp(f"group_{k}")
        for n in range(4):
            (folder / f"{n}.txt").write_text(log_of(3.28 - 0.01 * k + rng.gauss(0, 0.001)))
        groups[name] = str(folder)
    return groups


# ---------------------------------------------------------------------------------------------
# Words have room


def shown_texts(figure) -> list[Text]:
    """Every text that is drawn: of ticks only those within the view."""
    inside = [child for ax in figure.axes for child in ax.child_axes]
    hidden = set()
    for axis in (axis for ax in (*figure.axes, *inside) for axis in (ax.xaxis, ax.yaxis)):
        drawn = {id(tick) for tick in axis._update_ticks()}
        ticks = [t for t in (*axis.majorTicks, *axis.minorTicks) if id(t) not in drawn]
        hidden |= {id(label) for tick in ticks for label in (tick.label1, tick.label2)}
    found = figure.findobj(Text)
    return [t for t in found if t.get_visible() and t.get_text().strip() and id(t) not in hidden]


def without_room(figure) -> list[tuple[str, ...]]:
    """Texts that lie over each other, or leave the figure, by more than a pixel at 200 dpi."""
    figure.draw_without_rendering()
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown_texts(figure)]
    width, height = figure.bbox.width, figure.bbox.height
    found = []
    for k, (words, box) in enumerate(boxes):
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
            found.append(("cut", words))
        for others, other in boxes[k + 1 :]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            if wide > 1 and high > 1:
                found.append((words, others))
    return found


def check_words(x, names=tuple(FIGURES)) -> int:
    """Of every figure at both widths: room, height of words, width; returns how many were drawn."""
    drawn = 0
    for name in names:
        for columns, wide in WIDTHS.items():
            with plain_matplotlib(Paper(columns=columns)):
                try:
                    figure = FIGURES[name](x)
                except NothingToDraw:
                    continue
                settle(figure)
                assert without_room(figure) == [], (name, columns)
                assert min(t.get_fontsize() for t in shown_texts(figure)) >= 6.5
                assert figure.get_figwidth() == wide
                drawn += 1
    return drawn


@pytest.mark.parametrize(("name", "drawn"), [*((n, 8) for n in EXPERIMENTS if n != "by_hand"),
                                             ("by_hand", 6)])  # fmt: skip
def test_no_word_is_cut_or_covered_at_either_width(evidence, name, drawn):
    assert check_words(evidence[name]) == drawn


@pytest.mark.parametrize(("arms", "drawn"), [(20, 6), (36, 5), (0, 6)])
def test_nor_where_arms_are_many_or_their_names_long(evidence, arms, drawn):
    x = evidence["by_hand"]
    assert check_words(many(x, arms) if arms else long_names(x)) == drawn


def test_nor_where_names_are_hostile(logs):
    found = compare_logs(logs).findings
    assert check_words(found, ("val_loss_comparison", "training_curves")) == 4


def test_the_check_of_words_sees_a_text_on_another(evidence):
    with plain_matplotlib():
        figure = FIGURES["verdict"](evidence["null"])
        settle(figure)
        ax = figure.axes[0]
        ax.text(0, 1.02, "on the title", transform=ax.transAxes)
        figure.text(0.99, 0.5, "cut off")
        found = [set(pair) for pair in without_room(figure)]
    assert found == [{ax.get_title(loc="left"), "on the title"}, {"cut", "cut off"}]


def test_placements_that_cannot_be_told_apart_in_one_column_are_not_drawn(evidence):
    x = many(evidence["by_hand"], 36)
    one, two = (picture(FIGURES["layer_ablation"], x, paper=Paper(columns=c)) for c in (1, 2))
    assert one.why == "36 placements are too many for a figure 3.5 in wide" and not one.failed
    assert two.image


@pytest.mark.parametrize(("columns", "named"), [(1, 7), (2, 14)])
def test_of_many_curves_the_best_have_colours_and_the_others_are_counted(evidence, columns, named):
    x = many(evidence["by_hand"], 20)
    with plain_matplotlib(Paper(columns=columns)):
        figure = FIGURES["training_curves"](x)
        (block,) = blocks_of(x)
        best = told_apart(block)
    (legend,) = (ax.get_legend() for ax in figure.axes if ax.get_legend())
    words = [text.get_text() for text in legend.get_texts()]
    assert len(words) == 1 + named + 1 and words[-1] == f"{20 - named} others (n = 1 to 3)"
    assert len(best) == named
    last = {g.key: sum(r.curve[-1][1] for r in g.ok) / len(g.ok) for g in block.arms}
    assert {g.key for g in best} == set(sorted(last, key=last.get)[:named])
    looks = {(h.get_color(), h.get_linestyle()) for h in legend.legend_handles}
    assert len(looks) == len(words)


@pytest.mark.parametrize("text", [*HOSTILE, "", " ", "a" * 3, "x_" * 60, "aux_6 (n = 12)"])
def test_a_text_is_folded_into_its_room(text):
    with plain_matplotlib(Paper(columns=1)):
        lines = folded(text, 0.8, notes=True).split("\n")
    assert len(lines) <= 4
    assert all(inches(line, 6.5) <= 0.8 for line in lines)
    whole = "".join(lines).replace(" ", "")
    begin, dots, _ = whole.partition("…")
    squeezed = text.strip().replace(" ", "")
    assert squeezed.startswith(begin) if dots else whole == squeezed
    assert all(line.count("n =") == line.count("n = 12") for line in lines)


def test_numbers_below_an_axis_are_as_many_as_it_holds():
    assert numbered_ticks(6, 10) == [1, 2, 3, 4, 5, 6]
    assert numbered_ticks(19, 10) == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]
    assert numbered_ticks(40, 10) == [1, 5, 10, 15, 20, 25, 30, 35, 40]
    assert all(len(numbered_ticks(n, 10)) <= 11 for n in range(1, 1000))


# ---------------------------------------------------------------------------------------------
# Files


def width_of(image: bytes, kind: str, dpi: int) -> float:
    """Inches, as the file says it."""
    if kind == "png":
        return struct.unpack(">I", image[16:20])[0] / dpi
    if kind == "svg":
        return float(ET.fromstring(image).get("width").removesuffix("pt")) / 72
    return float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", image)[1]) / 72


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", WIDTHS)
def test_a_file_is_as_wide_as_its_columns_and_the_same_again(evidence, kind, columns):
    paper = Paper((kind,), 150, columns)
    for name in ("verdict", "training_curves"):
        drawn = picture(FIGURES[name], evidence["null"], kind, paper)
        assert width_of(drawn.image, kind, 150) == pytest.approx(WIDTHS[columns], abs=0.01)
        assert picture(FIGURES[name], evidence["null"], kind, paper).image == drawn.image


def test_files_bear_no_date_and_their_words_are_words(evidence):
    svg, pdf = (picture(FIGURES["verdict"], evidence["null"], k).image for k in ("svg", "pdf"))
    assert b"<dc:date>" not in svg and b"CreationDate" not in pdf
    words = [node.text for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert "no meaningful effect" in words and "difference of a pair" in words
    assert b"/Type3" not in pdf and b"/CIDFontType2" in pdf


def test_hostile_names_are_words_of_an_svg_and_nothing_else(logs):
    found = compare_logs(logs, paper=paper_of("svg"))
    for drawn in found.figures.values():
        tree = ET.fromstring(drawn.image)
        tags = {node.tag.rpartition("}")[2] for node in tree.iter()}
        assert "script" not in tags
        text = "".join(filter(None, (node.text for node in tree.iter())))
        assert "<script>alert(1)</script>" in text and "a$x^{$" in text
        assert drawn._repr_svg_().startswith("<?xml") and drawn._repr_png_() is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--figures", "gif"), "--figures 'gif': give one or more of png, svg, pdf"),
        (("--figures", "png,,svg"), "--figures '': give one or more of"),
        (("--figures", "png;rm"), "--figures 'png;rm': give"),
        (("--dpi", "71"), "--dpi 71: give 72 to 600"),
        (("--dpi", "601"), "--dpi 601: give 72 to 600"),
        (("--dpi", "many"), "argument --dpi: invalid int value"),
        (("--columns", "3"), "--columns 3: give 1 or 2"),
        (("--columns", "0"), "--columns 0: give 1 or 2"),
    ],
)
def test_an_option_that_cannot_be_meant_is_one_line(words, line, folders, capsys):
    before = sorted(folders["null"].iterdir())
    for of in (["--exp_dir", str(folders["null"])], ["--logs", "a=b"]):
        with pytest.raises(SystemExit) as end:
            analyze_aux.main([*of, *words])
        said = capsys.readouterr()
        assert end.value.code == 2 and said.err.count("\n") == 1 and line in said.err
    assert sorted(folders["null"].iterdir()) == before


def test_limits_of_the_options_are_in_reach():
    assert paper_of("svg, pdf,svg", 72, 1) == Paper(("svg", "pdf"), 72, 1)
    assert paper_of(dpi=600).dpi == 600 and paper_of() == Paper(("png",), 200, 2)


def written_by(exp_dir: Path, folder: Path, *words: str) -> set[str]:
    """The figures and captions in a folder after the command."""
    assert analyze_aux.main(["--exp_dir", str(exp_dir), "--output_dir", str(folder), *words]) == 0
    return {path.name for path in folder.iterdir()} - {files.REPORT, files.RUNS, files.PAGE}


def test_each_figure_has_a_caption_and_kinds_of_an_earlier_report_are_told(folders, tmp_path):
    names = ("val_loss_comparison", "layer_ablation", "training_curves", "verdict")
    exp_dir = folders["null"]
    for name in ("gradient_flow.svg", "gradient_flow.txt"):  # of an older report
        (tmp_path / name).write_text("stale")
    both = written_by(exp_dir, tmp_path, "--figures", "svg,pdf", "--columns", "1")
    assert both == {f"{name}.{kind}" for name in names for kind in ("svg", "pdf", "txt")}
    assert width_of((tmp_path / "verdict.svg").read_bytes(), "svg", 72) == pytest.approx(3.5)
    assert "  verdict.svg:   drawn\n  verdict.pdf:   drawn" in (tmp_path / files.REPORT).read_text()
    before = (tmp_path / "verdict.pdf").read_bytes()
    again = written_by(exp_dir, tmp_path, "--dpi", "100")
    assert again == both | {f"{name}.png" for name in names}
    assert (tmp_path / "verdict.pdf").read_bytes() == before
    told = (tmp_path / files.REPORT).read_text()
    assert f"verdict.pdf:   {files.OLDER}" in told and "verdict.png:   drawn" in told
    assert width_of((tmp_path / "verdict.png").read_bytes(), "png", 100) == pytest.approx(7.1)
    assert both | again <= set(files.OURS)


def test_a_caption_is_written_through_no_link_and_a_folder_in_its_place_is_named(
    folders, tmp_path, capsys
):
    secret = tmp_path / "secret"
    secret.write_text("theirs")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "verdict.txt").symlink_to(secret)
    (tmp_path / "out" / "layer_ablation.txt").mkdir()
    words = ["--exp_dir", str(folders["null"]), "--output_dir", str(tmp_path / "out")]
    assert analyze_aux.main(words) == 1
    assert secret.read_text() == "theirs" and not (tmp_path / "out" / "verdict.txt").is_symlink()
    assert "no layer_ablation.txt: see above for why" in capsys.readouterr().err
    report = (tmp_path / "out" / files.REPORT).read_text()
    assert "layer_ablation.txt: not written: Is a directory" in report


def test_captions_and_figures_of_a_comparison_are_no_logs(logs, tmp_path):
    found = compare_logs({"a": next(iter(logs.values()))}, paper=paper_of("png,svg,pdf"))
    found.write(tmp_path)
    for n in (1, 2):
        (tmp_path / f"{n}.txt").write_text(log_of(3.2 + n / 1000))
    assert len(compare_logs({"a": str(tmp_path)}).rows) == 2


def test_a_kind_is_an_option_with_logs_too(logs, tmp_path, capsys):
    group = f"a={next(iter(logs.values()))}"
    words = ["--logs", group, "--output_dir", str(tmp_path), "--figures", "pdf"]
    assert analyze_aux.main(words) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"training_curves.pdf", "training_curves.txt", "val_loss_comparison.pdf"} < names
    assert not [name for name in names if name.endswith(("png", "svg"))]


# ---------------------------------------------------------------------------------------------
# Captions


def test_every_figure_has_a_caption():
    assert CAPTIONS.keys() == FIGURES.keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_caption_says_the_unit_and_direction_and_n_of_every_arm(evidence, name):
    x = evidence[name]
    told = CAPTIONS["val_loss_comparison"](x)
    assert "mean(baseline) - mean(arm), in nats/token; positive is good" in told
    curves = CAPTIONS["training_curves"](x)
    longest = max(b.num_iterations for b in blocks_of(x))
    for block in blocks_of(x):
        assert block.title in told
        for group in block.groups:
            assert re.search(rf"{re.escape(group.label)} (\S+ )?\(n = {len(group.losses)}\b", told)
            if group.lost:
                assert f"{group.label} {group.lost}" in told
            if block.num_iterations == longest and group.ok:
                assert f"{group.label} {len(group.ok)}" in curves


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "by_hand"])
def test_the_caption_of_the_verdict_has_the_numbers_of_the_report(evidence, name):
    x = evidence[name]
    told, block = CAPTIONS["verdict"](x), decided_pairs(x)
    assert effect_line(x, block) in told and x.decisions[4].title in told
    assert f"within {len(block.groups[0].runs)} pairs" in told
    assert ("ranks decide" in told) == (name == "diverged")
    assert ("sequential 95 % interval (thin" in told) == (name not in ("diverged", "classic"))
    assert "±0.005, is no meaningful effect" in told and "target, 0.02" in told


def test_the_caption_of_the_placements_has_their_improvements_and_what_they_leave_out(evidence):
    told = CAPTIONS["layer_ablation"](evidence["by_hand"])
    effect = FIGURES["layer_ablation"]
    with plain_matplotlib():
        bars = [p.get_height() for p in effect(evidence["by_hand"]).axes[0].patches]
    listed = re.findall(r"layers [\d, ]+ ([+-][\d.]+) n = ", told)
    assert listed == [number(height, "+.4f") for height in bars if abs(height) < 1][-3:]
    assert "layers 4, 8" in told and "n = 1 of 2 ✕ 1 diverged" in told
    assert "± one sd of the baseline's 2 runs" in told


@pytest.mark.parametrize("name", ["classic", "by_hand", "harmful"])
def test_improvements_of_a_caption_are_those_beside_the_bars(evidence, name):
    with plain_matplotlib():
        figure = FIGURES["val_loss_comparison"](evidence[name])
    beside = [
        text.get_text().replace("\N{MINUS SIGN}", "-") for ax in figure.axes for text in ax.texts
    ]
    drawn = [number for words in beside for number in re.findall(r"[+-]0\.\d{4}", words)]
    told = CAPTIONS["val_loss_comparison"](evidence[name])
    assert drawn and re.findall(r" ([+-]\d\.\d{4}) \(n = ", told) == drawn


def test_a_caption_of_many_arms_stays_short(evidence):
    x = many(evidence["by_hand"], 36)
    assert "37 configurations, n = 1 to 3" in CAPTIONS["val_loss_comparison"](x)
    assert "others are grey" in CAPTIONS["training_curves"](x)


def test_a_caption_file_is_one_paragraph_of_plain_lines(logs, tmp_path):
    compare_logs(logs).write(tmp_path)
    text = (tmp_path / "val_loss_comparison.txt").read_text()
    lines = text.splitlines()
    assert text.endswith(".\n") and all(line and line.isprintable() for line in lines)
    assert all(len(line) <= 90 or " " not in line for line in lines)
    flat = " ".join(lines)
    assert "<script>alert(1)</script> (n = 4)" in flat and "mean(baseline) - mean(arm)" in flat


def test_what_there_is_no_figure_of_has_no_caption(evidence):
    for name in ("verdict", "gradient_flow"):
        with pytest.raises(NothingToDraw):
            CAPTIONS[name](evidence["by_hand"])


def test_a_caption_that_fails_takes_its_figure_with_it(evidence):
    drawn = picture(FIGURES["verdict"], evidence["null"], tell=lambda x: 1 / 0)
    assert drawn.failed and not drawn.image and "ZeroDivisionError" in drawn.why
    assert figures.picture(FIGURES["verdict"], evidence["null"]).caption == ""
