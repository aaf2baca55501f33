"""Figures show what the numbers say: bars, points, curves, axes and words are held against it.

They are read as matplotlib's artists. And whatever a person, a notebook or an operator has set for
matplotlib, the pixels are the same.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ablation import stats
from ablation.plan.looks import HARMFUL, IMPROVES, NO_EFFECT
from ablation.report import figures
from ablation.report.comparisons import ArmRuns, Block, blocks_of, final_block, reference
from ablation.report.drawing import BETTER, BLACK, WORSE, NothingToDraw, plain_matplotlib
from ablation.report.evidence import read_experiment
from ablation.report.figures import FIGURES, picture
from ablation.report.verdict import draw_pairs
from ablation.study.overrides import NOTHING_OVERRIDDEN
from ablation.study.study import Metric
from tests.support.invent import arm, pairs_of
from tests.support.invented_folder import adaptive_plan, make, manual, speedrun

ROOT = Path(__file__).resolve().parents[1]
MINUS = "\N{MINUS SIGN}"
GATES = NOTHING_OVERRIDDEN.ungated


@pytest.fixture(scope="module")
def classic(tmp_path_factory):
    """aux_8 is worse than its baseline, validations have none, aux_3_6_9 diverged."""
    failures = {"screen_aux_3_6_9/run_0": ("diverged",), "final_best/run_2": ("crashed",) * 3}
    exp_dir = make(tmp_path_factory.mktemp("classic"), speedrun(overrides=GATES), failures=failures)
    return read_experiment(exp_dir)


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory):
    exp_dir = make(tmp_path_factory.mktemp("adaptive"), adaptive_plan(), scale=0.2, sd=0.004)
    return read_experiment(exp_dir)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """aux_4_8 diverged once; the baseline lacks a seed that aux_6 has."""
    failures = {"aux_4_8/run_1": ("diverged",), "baseline/run_2": ("crashed",) * 3}
    e = manual("baseline", "aux_6", "aux_8", "aux_4_8", seeds=(1, 2, 3))
    return read_experiment(make(tmp_path_factory.mktemp("by_hand"), e, failures=failures))


def figure_of(draw, x):
    with plain_matplotlib():
        figure = draw(x)
        figure.canvas.draw()
    return figure


def losses(x, name: str) -> dict[int, float]:
    """Final val loss by seed."""
    found = [r for r in x.records.latest().values() if r.run.arm.name == name]
    return {r.run.seed: r.val_loss for r in found if r.status == "ok"}


def colour_of(artist) -> tuple:
    return to_rgb(artist.get_facecolor())


def points(ax) -> list[tuple[list, list]]:
    """Of the runs: white circles."""
    lines = [line for line in ax.lines if line.get_marker() == "o" and line.get_color() == "white"]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]


def words(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


# ---------------------------------------------------------------------------------------------
# Final losses, a panel for each stage


def bars_by_row(ax) -> dict[str, object]:
    """The bar beside each label."""
    labels = {k: t.get_text() for k, t in enumerate(ax.get_yticklabels())}
    bars = [p for p in ax.patches if p.get_height() == pytest.approx(0.6)]
    return {labels[round(p.get_y() + 0.3)]: p for p in bars}


@pytest.mark.parametrize("experiment", ["classic", "adaptive", "by_hand"])
def test_bars_reach_from_the_baseline_to_the_arm_on_shared_seeds(experiment, request):
    x = request.getfixturevalue(experiment)
    figure, seen = figure_of(figures.draw_comparison, x), set()
    for ax, block in zip(figure.axes, blocks_of(x), strict=True):
        bars = bars_by_row(ax)
        other, base = reference(x, block), {}
        if other:
            base = {r.run.seed: r.val_loss for r in other.ok}
        for y, group in enumerate(block.groups):
            mine = {r.run.seed: r.val_loss for r in group.ok}
            shared = sorted(base.keys() & mine.keys())
            said = words(ax)[y]
            assert f"n = {len(mine)}" in said
            assert ("✕" in said) == any(r.status != "ok" for r in group.runs)
            same = other and group.arm.configuration == other.arm.configuration
            if same or not shared:
                assert group.label not in bars and not {"+", MINUS} & set(said)
                continue
            start = np.mean([base[seed] for seed in shared])
            end = np.mean([mine[seed] for seed in shared])
            bar = bars[group.label]
            assert bar.get_x() == pytest.approx(start)
            assert bar.get_x() + bar.get_width() == pytest.approx(end)
            assert colour_of(bar) == to_rgb(BETTER if end < start else WORSE)
            assert f"{start - end:+.4f}".replace("-", MINUS) in said
            assert ("shared" in said) == (len(shared) < len(mine))
            seen.add(end < start)
    assert seen == {True, False} or experiment == "adaptive"


def test_each_panel_names_its_arms_from_above_and_its_stage(classic):
    figure = figure_of(figures.draw_comparison, classic)
    for ax, block in zip(figure.axes, blocks_of(classic), strict=True):
        assert [t.get_text() for t in ax.get_yticklabels()] == [g.label for g in block.groups]
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the baseline on top
        title = ax.get_title(loc="left")
        assert title.startswith(block.title)
        assert ("no baseline: compared with dive_constant + dive_w0p1" in title) == (
            block.stage == 3
        )
    assert "best: layers 4,8" in figure.axes[-1].get_title(loc="left")
    assert figure.axes[-1].get_xlabel() == "final val loss (nats/token); left is better"


def test_every_finished_run_is_a_point_at_its_loss(classic):
    figure = figure_of(figures.draw_comparison, classic)
    for ax, block in zip(figure.axes, blocks_of(classic), strict=True):
        drawn = points(ax)
        finished = [g for g in block.groups if g.losses]
        assert [at for at, _ in drawn] == [g.losses for g in finished]
        for (_, heights), group in zip(drawn, finished, strict=True):
            assert {round(y) for y in heights} == {block.groups.index(group)}


def test_the_baselines_mean_is_a_line_and_its_sd_a_band(classic):
    ax = figure_of(figures.draw_comparison, classic).axes[-1]
    base = list(losses(classic, "final_baseline").values())
    line = next(line for line in ax.lines if line.get_linestyle() == "-")
    assert line.get_xdata()[0] == pytest.approx(np.mean(base)) and line.get_color() == BLACK
    band = next(p for p in ax.patches if colour_of(p) == to_rgb(BLACK)).get_extents()
    low, high = ax.transData.inverted().transform(band)[:, 0]
    sd = np.std(base, ddof=1)
    assert (low, high) == pytest.approx((np.mean(base) - sd, np.mean(base) + sd))


def legend_of(figure) -> dict:
    """Handles of a figure's legend, by their label."""
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    return dict(zip(labels, legend.legend_handles, strict=True))


def test_the_legend_says_what_colours_and_bands_mean(classic, adaptive):
    for draw, line in (
        (figures.draw_comparison, "baseline's mean, or of what the title names"),
        (figures.draw_layers, "baseline's mean"),
    ):
        handles = legend_of(figure_of(draw, classic))
        assert colour_of(handles["arm, same seeds: better"]) == to_rgb(BETTER)
        assert colour_of(handles["arm, same seeds: worse"]) == to_rgb(WORSE)
        assert handles[line].get_color() == BLACK
    assert "baseline ± sd of its runs (n > 1)" in legend_of(
        figure_of(figures.draw_comparison, classic)
    )
    chosen = legend_of(figure_of(figures.draw_layers, adaptive))
    assert "aux_4_8" in chosen and not any("baseline" in label for label in chosen)


def test_an_arm_without_anything_of_its_seeds_has_its_mean_and_no_bar(classic):
    ax = figure_of(figures.draw_comparison, classic).axes[2]  # stage 3 has no baseline
    *_, fresh = blocks_of(classic)[2].groups
    assert fresh.label == "validation_0 … validation_3"
    (mean,) = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "|"]
    assert mean == pytest.approx(np.mean(fresh.losses))
    assert set(bars_by_row(ax)) == {
        *("dive_cosine_decay", "dive_linear_decay", "dive_w0p05", "dive_w0p2")
    }


def test_cells_start_at_the_configuration_of_stage_2_on_its_seed(adaptive):
    """Stage 3 of the adaptive plan has no run of it, and no baseline."""
    block = blocks_of(adaptive)[1]
    assert block.stage == 3
    base = reference(adaptive, block)
    assert {r.run.stage for r in base.runs} == {2}
    assert {r.run.seed for r in base.runs} == {r.run.seed for g in block.groups for r in g.runs}
    ax = figure_of(figures.draw_comparison, adaptive).axes[1]
    (loss,) = base.losses
    starts = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "-"]
    assert starts == [loss] * len(block.groups) == [bar.get_x() for bar in bars_by_row(ax).values()]
    assert "compared with aux_4_8 of stage 2" in ax.get_title(loc="left")


# ---------------------------------------------------------------------------------------------
# Placements


@pytest.mark.parametrize("experiment", ["classic", "by_hand"])
def test_heights_are_improvements_over_the_baseline_of_the_same_seed(experiment, request):
    x = request.getfixturevalue(experiment)
    effect, taps = figure_of(figures.draw_layers, x).axes
    base = losses(x, "baseline")
    names = {"4": ["aux_4"], "6": ["aux_6", "aux_6_repeat"], "8": ["aux_8"], "4, 8": ["aux_4_8"]}
    labels = [t.get_text().splitlines()[0] for t in taps.get_xticklabels()]
    numbers = [t.get_text().splitlines()[1] for t in taps.get_xticklabels()]
    for number, label, (_, improvements) in zip(numbers, labels, points(effect), strict=True):
        finished = sum(len(losses(x, name)) for name in names[label])
        few = f" of {finished}" if len(improvements) < finished else ""
        assert number == f"n = {len(improvements)}{few}"
    wide = [p for p in effect.patches if p.get_width() == pytest.approx(0.6)]
    bars = {labels[round(p.get_x() + 0.3)]: p for p in wide}
    assert set(bars) == set(labels)
    for label, (at, improvements) in zip(labels, points(effect), strict=True):
        mine = {}
        for name in names[label]:
            mine |= losses(x, name)
        expected = [base[seed] - mine[seed] for seed in sorted(base.keys() & mine.keys())]
        assert improvements == pytest.approx(expected)
        assert set(at) == {labels.index(label)}
        bar = bars[label]
        assert bar.get_y() == 0 and bar.get_height() == pytest.approx(np.mean(expected))
        assert colour_of(bar) == to_rgb(BETTER if np.mean(expected) > 0 else WORSE)
    assert colour_of(bars["8"]) == to_rgb(WORSE) and bars["8"].get_height() < 0
    assert effect.get_ylabel() == "improvement\n(nats/token)"


def test_without_a_baseline_placements_are_beside_the_one_chosen_on_its_seeds(adaptive):
    effect, taps = figure_of(figures.draw_layers, adaptive).axes
    base = losses(adaptive, "aux_4_8")
    labels = [t.get_text() for t in taps.get_xticklabels()]
    assert labels == ["4\nn = 1", "6\nn = 2", "8\nn = 1", "4, 8\nothers' zero"]
    drawn = [sorted(improvements) for _, improvements in points(effect)]
    for name, improvements in zip(("aux_4", "aux_6", "aux_8"), drawn, strict=False):
        mine = losses(adaptive, name)
        assert improvements == pytest.approx(sorted(base[seed] - mine[seed] for seed in mine))
    assert drawn[3] == []
    title = effect.get_title(loc="left")
    assert "no baseline: compared with aux_4_8, the best of these" in title
    assert figures.ON_OTHER_SEEDS in title
    assert not [p for p in effect.patches if colour_of(p) == to_rgb(BLACK)]  # no sd of a baseline


def test_what_an_improvement_is_not_of_is_said_below_its_bar(classic, by_hand):
    taps = figure_of(figures.draw_layers, classic).axes[1]
    assert taps.get_xticklabels()[1].get_text() == "6\nn = 1 of 2"  # aux_6_repeat
    taps = figure_of(figures.draw_layers, by_hand).axes[1]
    assert taps.get_xticklabels()[-1].get_text() == "4, 8\nn = 1 of 2\n✕ 1 diverged"


def test_the_map_shows_which_layers_are_tapped(classic):
    taps = figure_of(figures.draw_layers, classic).axes[1]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in taps.lines]
    assert drawn == [([0], [4]), ([1], [6]), ([2], [8]), ([3, 3], [4, 8])]
    assert [to_rgb(line.get_color()) for line in taps.lines] == [
        to_rgb(c) for c in (BETTER, BETTER, WORSE, BETTER)
    ]


# ---------------------------------------------------------------------------------------------
# Curves


def test_curves_are_mean_losses_over_steps_and_over_seconds(classic):
    figure = figure_of(figures.draw_curves, classic)
    blocks = [b for b in blocks_of(classic) if b.num_iterations == 5100]
    assert figure.axes[-2].get_xlabel() == "steps"
    assert figure.axes[-1].get_xlabel() == "training time (s)"
    for k, block in enumerate(blocks):
        by_step, by_time = figure.axes[2 * k : 2 * k + 2]
        assert by_step.get_ylabel() == "val loss (nats/token)"
        for group in block.groups:
            label = f"{group.label} (n = {len(group.ok)})"
            curves = np.array([r.curve for r in group.ok])
            for ax, at in ((by_step, curves[0, :, 0]), (by_time, curves[:, :, 2].mean(0) / 1000)):
                line = next(n for n in ax.lines if n.get_label().splitlines()[0] == label)
                assert line.get_xdata() == pytest.approx(at)
                assert line.get_ydata() == pytest.approx(curves[:, :, 1].mean(0))
                assert (to_rgb(line.get_color()) == to_rgb(BLACK)) == group.arm.is_baseline
    assert by_time.get_xlim()[1] < 5100 * 0.2  # 165 ms a step


def test_bands_reach_from_the_lowest_run_to_the_highest(classic):
    block = blocks_of(classic)[-1]
    ax = figure_of(figures.draw_curves, classic).axes[-2]
    for band, group in zip(ax.collections, block.groups, strict=True):
        ends = [r.curve[-1][1] for r in group.ok]
        at_end = [y for x, y in band.get_paths()[0].vertices if x == 5100]
        assert (min(at_end), max(at_end)) == pytest.approx((min(ends), max(ends)))


def test_a_diverged_run_is_drawn_to_where_it_was_seen_last(by_hand):
    (lost,) = (r for r in by_hand.records.results if r.status == "diverged")
    by_step, by_time = figure_of(figures.draw_curves, by_hand).axes
    for ax, at in ((by_step, lost.curve[-1][0]), (by_time, lost.curve[-1][2] / 1000)):
        (cross,) = (line for line in ax.lines if line.get_marker() == "X")
        assert list(cross.get_xdata()) == pytest.approx([at])
        assert list(cross.get_ydata()) == pytest.approx([lost.curve[-1][1]])


def test_a_configuration_looks_the_same_in_all_panels(classic):
    figure, looks = figure_of(figures.draw_curves, classic), {}
    for ax in figure.axes:
        for line in ax.lines:
            name = line.get_label().split(" (n")[0]
            if not name.startswith("_"):
                looks.setdefault(name, set()).add((line.get_color(), line.get_linestyle()))
    assert all(len(seen) == 1 for seen in looks.values())
    assert looks["aux_4_8"] != looks["aux_4"]


# ---------------------------------------------------------------------------------------------
# The verdict


def by_label(ax) -> dict:
    handles, labels = ax.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Runs of one seed are alike, so the test of pairs is the sharper one."""
    e = adaptive_plan()
    e = replace(e, profile=replace(e.profile, design=replace(e.profile.design, pairing=0.8)))
    world = {"scale": 0.2, "sd": 0.002, "seed_sd": 0.02}
    return read_experiment(make(tmp_path_factory.mktemp("alike"), e, **world))


def differences(x) -> list[float]:
    """Baseline - arm of each pair of stage 4, in the order of the seeds."""
    base, best = losses(x, "final_baseline"), losses(x, "final_best")
    return [base[seed] - best[seed] for seed in sorted(base.keys() & best.keys())]


@pytest.mark.parametrize("experiment", ["classic", "adaptive", "alike"])
def test_every_pair_is_a_point_at_its_difference(experiment, request):
    x = request.getfixturevalue(experiment)
    above, *_ = figure_of(figures.draw_verdict, x).axes
    ((at, heights),) = points(above)
    assert at == list(range(1, len(heights) + 1))
    assert heights == pytest.approx(differences(x)[: len(heights)])
    assert len(heights) == (x.looks[-1].n if x.looks else 7)  # classic: a pair was given up


@pytest.mark.parametrize(
    ("experiment", "label"),
    [
        ("adaptive", "improvement; the interval is Welch's"),
        ("alike", "improvement; the interval is that of pairs"),
    ],
)
def test_every_look_is_drawn_with_both_levels_of_the_interval_that_counts(
    experiment, label, request
):
    x = request.getfixturevalue(experiment)
    _, ax = figure_of(figures.draw_verdict, x).axes
    looks, found = x.looks, by_label(ax)
    ns = [look.n for look in looks]
    dots = found[label]
    assert list(dots.get_xdata()) == ns
    assert list(dots.get_ydata()) == pytest.approx([look.improvement for look in looks])
    for about, ends in (
        ("sequential 95 % interval", [(look.low, look.high) for look in looks]),
        ("sequential 90 % interval, for equivalence", [(k.eq_low, k.eq_high) for k in looks]),
    ):
        segments = found[about].lines[2][0].get_segments()
        assert np.array(segments)[:, :, 0] == pytest.approx(np.array([(n, n) for n in ns]))
        assert np.array(segments)[:, :, 1] == pytest.approx(np.array(ends))
    bound = found["bound: improves above, harmful below"]
    reach = [look.high - look.improvement for look in looks]
    assert list(bound.get_ydata()) == pytest.approx(reach)
    (below,) = (n for n in ax.lines if n.get_linestyle() == ":" and n is not bound)
    assert list(below.get_ydata()) == pytest.approx([-r for r in reach])


def test_the_look_at_which_the_verdict_fell_is_ringed(adaptive, alike):
    about = "the look at which the verdict fell"
    _, ax = figure_of(figures.draw_verdict, alike).axes
    fell = next(look for look in alike.looks if look.verdict)
    ring = by_label(ax)[about]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([fell.n], [fell.improvement])
    _, ax = figure_of(figures.draw_verdict, adaptive).axes
    assert about not in by_label(ax)  # inconclusive


@pytest.mark.parametrize("experiment", ["classic", "adaptive"])
def test_the_regions_are_those_of_the_design(experiment, request):
    x = request.getfixturevalue(experiment)
    figure, d = figure_of(figures.draw_verdict, x), x.design
    for ax in figure.axes:
        found = by_label(ax)
        assert list(found[f"target: {d.delta_target:g}"].get_ydata()) == [d.delta_target] * 2
        band = found[f"no meaningful effect: within ±{d.delta_eq:g}"].get_extents()
        low, high = ax.transData.inverted().transform(band)[:, 1]
        assert (low, high) == pytest.approx((-d.delta_eq, d.delta_eq))
    assert figure.axes[0].get_ylabel() == "difference of a pair\n(nats/token)"
    most = f"(at most {x.looks[0].n_max})" if x.looks else "and their mean"
    assert figure.axes[-1].get_xlabel().endswith(most)


def test_a_plan_that_tests_once_has_its_interval_beside_its_pairs(classic):
    (ax,) = figure_of(figures.draw_verdict, classic).axes
    bar = by_label(ax)["improvement, with Welch's 95 % interval"]
    ((low_end, high_end),) = bar.lines[2][0].get_segments()
    c = stats.compare(*(g.losses for g in final_block(classic).groups))
    assert (low_end[1], high_end[1]) == pytest.approx((c.ci_low, c.ci_high))
    assert low_end[0] == len(differences(classic)) + 1  # after the last pair


@pytest.mark.parametrize("verdict", [IMPROVES, HARMFUL, NO_EFFECT])
def test_the_title_is_the_decisions(adaptive, verdict):
    """Whatever the last interval has come to cover."""
    told = replace(adaptive.decisions[4], title=f"{verdict} at look 2, below target")
    step = replace(adaptive.standing.step, decisions={**adaptive.decisions, 4: told})
    x = replace(adaptive, standing=replace(adaptive.standing, step=step))
    ax, _ = figure_of(figures.draw_verdict, x).axes
    title, about = ax.get_title(loc="left").splitlines()
    last = x.looks[-1]
    assert title == told.title
    assert about == (
        f"{told.chosen.label}: {last.improvement:+.4f} at n = {last.n} pairs".replace("-", MINUS)
    )


def test_a_pair_of_which_a_run_diverged_is_marked_and_ranks_have_no_interval(tmp_path):
    failures = {"final_best/run_1": ("diverged",), "final_baseline/run_2": ("diverged",)}
    x = read_experiment(make(tmp_path, adaptive_plan(), failures=failures))
    above, ax = figure_of(figures.draw_verdict, x).axes
    marked = by_label(above)
    assert list(marked["the arm diverged"].get_xdata()) == [2]  # worse than any loss: below all
    assert list(marked["the arm diverged"].get_ydata()) == [0]
    assert list(marked["the baseline diverged"].get_xdata()) == [3]
    assert list(marked["the baseline diverged"].get_ydata()) == [1]
    ((at, _),) = points(above)
    assert at == [k for k in range(1, x.looks[-1].n + 1) if k not in (2, 3)]
    assert not any("interval" in label for label in by_label(ax))
    ranked = by_label(ax)["improvement of runs that finished; ranks decide"]
    assert list(ranked.get_ydata()) == pytest.approx([look.improvement for look in x.looks])


def test_looks_at_an_arm_that_always_diverged_are_marked(tmp_path):
    failures = {f"final_best/run_{k}": ("diverged",) for k in range(9)}
    x = read_experiment(make(tmp_path, adaptive_plan(), failures=failures))
    above, ax = figure_of(figures.draw_verdict, x).axes
    assert not points(above) and len(by_label(above)["the arm diverged"].get_xdata()) == (
        x.looks[-1].n
    )
    looks = by_label(ax)["a look: no pair of which both finished; ranks decide"]
    assert list(looks.get_xdata()) == [look.n for look in x.looks]


# ---------------------------------------------------------------------------------------------
# Gradients


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """The arm has twice the baseline's gradient below its tap; of its main loss half of that."""
    exp_dir = make(tmp_path_factory.mktemp("grad"), manual("baseline", "aux_6"))
    for name, below in (("baseline", 1.0), ("aux_6", 2.0)):
        lines = []
        for step in (0, 2550, 5100):
            total = [(below if block <= 6 else 1.0) * (1 + step / 1000) for block in range(1, 13)]
            value = {"step": step, "main": [v / 2 for v in total], "total": total}
            lines.append(f"grad_norms: {json.dumps(value)}")
        (exp_dir / name / "run_0" / "train_log.txt").write_text("\n".join([*lines, ""]))
    return read_experiment(exp_dir)


def test_gradient_norms_are_drawn_by_depth_at_three_moments(gradients):
    figure = figure_of(figures.draw_gradients, gradients)
    moments = [ax for ax in figure.axes if ax.get_title(loc="left").startswith("step ")]
    assert [ax.get_title(loc="left") for ax in moments] == ["step 2550", "step 5100"]
    for ax, step in zip(moments, (2550, 5100), strict=True):
        found, scale = by_label(ax), 1 + step / 1000
        blocks = np.arange(1, 13)
        arm = np.where(blocks <= 6, 2.0, 1.0) * scale
        for label, values in (
            ("baseline", np.full(12, scale)),
            ("aux_6, heads included", arm),
            ("aux_6, its main loss alone", arm / 2),
        ):
            assert list(found[label].get_xdata()) == list(blocks)
            assert found[label].get_ydata() == pytest.approx(values)
        assert found["baseline"].get_color() == BLACK
        assert 6 in [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"]
        assert ax.get_yscale() == "log"


def test_ratios_of_gradients_are_arm_over_baseline(gradients):
    figure = figure_of(figures.draw_gradients, gradients)
    (ax,) = (ax for ax in figure.axes if ax.get_ylabel() == "block")
    (mesh,) = ax.collections
    ratios = 2.0 ** np.asarray(mesh.get_array()).reshape(12, 3)
    assert ratios == pytest.approx(np.array([[2.0] * 3] * 6 + [[1.0] * 3] * 6))
    low, high = mesh.get_clim()
    assert low == -high  # white is equal


# ---------------------------------------------------------------------------------------------
# Words from files, and limits


def test_texts_from_files_are_drawn_printable_and_in_silence(by_hand, recwarn, capfd):
    evil = "\x1b[2J\x07 $x^{$ 漢字 🧪 \ud800\n" + "x" * 5000
    results = [
        replace(r, run=replace(r.run, arm=arm("aux_6", 6, schedule=evil)))
        if r.run.arm.name == "aux_6"
        else r
        for r in by_hand.records.results
        if r.run.arm.name in ("aux_6", "baseline")
    ]
    records = replace(by_hand.records, results=tuple(results))
    x = replace(by_hand, standing=replace(by_hand.standing, records=records))
    for draw in (figures.draw_comparison, figures.draw_layers, figures.draw_curves):
        drawn = picture(draw, x)
        assert drawn.image.startswith(b"\x89PNG\r\n")
    title = figure_of(figures.draw_layers, x).axes[0].get_title(loc="left")
    assert all(line.isprintable() and len(line) < 200 for line in title.splitlines())
    assert not recwarn and capfd.readouterr() == ("", "")


def test_more_configurations_than_can_be_told_apart_are_not_drawn(by_hand):
    first = by_hand.records.results[0]
    arms = [arm(f"a{k}", k) for k in range(1, 200)]
    runs = [replace(first, run=replace(first.run, arm=arm)) for arm in arms]
    records = replace(by_hand.records, results=tuple(runs))
    x = replace(by_hand, standing=replace(by_hand.standing, records=records))
    drawn = picture(figures.draw_comparison, x)
    assert drawn.why == "199 configurations are too many to be told apart" and not drawn.failed


@pytest.mark.parametrize("error", [ValueError("a\x1b[2J"), MemoryError(), RecursionError("deep")])
def test_a_figure_that_fails_says_how_and_where(by_hand, error):
    def draw(x):
        raise error

    drawn = picture(draw, by_hand)
    assert drawn.failed and not drawn.image
    assert drawn.why.startswith(type(error).__name__) and "(figures.py, line " in drawn.why
    assert drawn.why.isprintable()


def test_what_there_is_nothing_of_is_no_failure(by_hand):
    assert not picture(figures.draw_verdict, by_hand).failed
    with pytest.raises(NothingToDraw):
        figures.draw_verdict(by_hand)


# ---------------------------------------------------------------------------------------------
# Settings of a person, a notebook, an operator

USETEX = "text.usetex: True\nfont.size: 40\nlines.linewidth: 9\nsavefig.facecolor: red\n"
ONE_FIGURE = (
    "import sys, hashlib, pathlib; from ablation.report.figures import *;"
    "from ablation.report.evidence import *;"
    "x = read_experiment(pathlib.Path(sys.argv[1])); p = picture(FIGURES[sys.argv[2]], x);"
    "print(hashlib.sha256(p.image).hexdigest(), p.why)"
)


def hash_of_figure(exp_dir: Path, cwd: Path, **environment) -> str:
    """As a process of its own draws it; "" for a variable takes it away. It says nothing else."""
    merged = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", ONE_FIGURE, str(exp_dir), "val_loss_comparison"],
        cwd=cwd,
        env={k: v for k, v in merged.items() if v},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.strip()


SETTINGS = {  # name: variables, and files in the folder @ that is also the working folder
    "a notebook's backend": ({"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, {}),
    "a backend that is none": ({"MPLBACKEND": "nonsense"}, {}),
    "MATPLOTLIBRC": ({"MATPLOTLIBRC": "@/rc"}, {"rc": USETEX}),
    "MATPLOTLIBRC of garbage": ({"MATPLOTLIBRC": "@/rc"}, {"rc": b"\xff\xfe\x00: \n"}),
    "a personal matplotlibrc": (
        {"HOME": "@", "XDG_CONFIG_HOME": "", "MPLCONFIGDIR": ""},
        {".config/matplotlib/matplotlibrc": USETEX + "backend: TkAgg\n"},
    ),
    "MPLCONFIGDIR with its own": ({"MPLCONFIGDIR": "@"}, {"matplotlibrc": USETEX}),
    "a matplotlibrc where it is run": ({}, {"matplotlibrc": b"\xff garbage"}),
    "folders that cannot be written to": (
        {"HOME": "/dev/null", "MPLCONFIGDIR": "/dev/null/x", "XDG_CACHE_HOME": "/dev/null"},
        {},
    ),
}


@pytest.fixture(scope="module")
def plain_hash(by_hand, tmp_path_factory):
    return hash_of_figure(by_hand.exp_dir, tmp_path_factory.mktemp("cwd"))


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_of_matplotlib_changes_a_pixel(by_hand, plain_hash, tmp_path, name):
    variables, files = SETTINGS[name]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    variables = {k: v.replace("@", str(tmp_path)) for k, v in variables.items()}
    assert hash_of_figure(by_hand.exp_dir, tmp_path, **variables) == plain_hash


def test_settings_made_in_the_same_process_change_no_pixel_either(by_hand):
    import matplotlib

    draw = FIGURES["training_curves"]
    before = picture(draw, by_hand).image
    hostile = {"text.usetex": True, "font.size": 40, "axes.grid": True, "savefig.dpi": 10}
    with matplotlib.rc_context(hostile):
        assert picture(draw, by_hand).image == before
        assert matplotlib.rcParams["font.size"] == 40  # theirs again


@pytest.mark.parametrize(
    ("better", "difference"), [("lower", "baseline - arm"), ("higher", "arm - baseline")]
)
def test_a_pair_is_told_by_the_difference_that_is_good(better, difference):
    pairs = pairs_of([-0.5, -0.5], [-0.6, -0.7])  # higher is better: signs are turned
    block = Block(4, "final validation", 100, tuple(map(ArmRuns, zip(*pairs, strict=True))))
    ax = Figure().add_subplot()
    assert draw_pairs(ax, Metric("acc", "", better), block) == pytest.approx([0.1, 0.2])
    assert ax.get_legend_handles_labels()[1] == [f"one pair: {difference}"]
