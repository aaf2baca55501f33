"""Charts of the page show what the numbers say, in plotly's own terms, and a name stays a name.

They are read as the values that the page hands to plotly. What a browser makes of them is a
question of the page.
"""

import html
import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from ablation.plan.looks import HARMFUL, IMPROVES, NO_EFFECT
from ablation.report import charting, charts
from ablation.report.chart_of_curves import MOST_OF_MEANS, MOST_POINTS, thinned
from ablation.report.charts import CHARTS
from ablation.report.compare import compare_logs
from ablation.report.comparisons import ArmRuns, Block, blocks_of, final_block, reference
from ablation.report.drawing import PALETTE, NothingToDraw
from ablation.report.evidence import read_experiment
from ablation.report.figures import mean_curve
from ablation.report.validation import excluded
from ablation.runs.run import Arm, machine_seconds
from ablation.study.overrides import NOTHING_OVERRIDDEN
from ablation.study.study import Metric
from tests.support.invent import result
from tests.support.invented_folder import adaptive_plan, make, manual, speedrun
from tests.test_logs import ARM, BASE, group, run_of
from tests.test_studies import STUDIES, asked, best_of

GATES = NOTHING_OVERRIDDEN.ungated
MINUS = "\N{MINUS SIGN}"
DIVERGED = {"final_best/run_1": ("diverged",), "final_baseline/run_2": ("diverged",)}
FAILURES = {"screen_aux_3_6_9/run_0": ("diverged",), "final_best/run_2": ("crashed",) * 3}
BY_HAND = {"aux_4_8/run_1": ("diverged",), "baseline/run_2": ("crashed",) * 3}
ON_HAND = manual("baseline", "aux_6", "aux_8", "aux_4_8", seeds=(1, 2, 3))
ONE_ARM = STUDIES["one arm alone"]
WORLDS = {
    "classic": (speedrun(overrides=GATES), {"failures": FAILURES}),
    "classic null": (speedrun(overrides=GATES), {"scale": 0.0}),
    "adaptive": (adaptive_plan(), {}),
    "many looks": (adaptive_plan(), {"scale": 0.2, "sd": 0.004}),
    "null": (adaptive_plan(), {"scale": 0.0}),
    "harmful": (asked(ONE_ARM, "adaptive"), {"effects": {ONE_ARM.arms[0].configuration: -0.05}}),
    "diverged": (adaptive_plan(), {"failures": DIVERGED}),
    "by hand": (ON_HAND, {"failures": BY_HAND}),
    "before stage 4": (adaptive_plan(), {"most": 5}),
    "in stage 4": (speedrun(overrides=GATES), {"most": 24}),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The evidence of an invented folder, made once."""
    made = {}

    def of(name: str):
        if name not in made:
            e, how = WORLDS[name]
            made[name] = read_experiment(make(tmp_path_factory.mktemp("world"), e, **how))
        return made[name]

    return of


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory):
    """A study of another trainer, of whose metric more is better."""
    study = STUDIES["more is better"]
    effects = {a.configuration: 0.01 for a in study.arms} | {best_of(study): 0.1}
    how = {"effects": effects, "level": -0.6, "sd": 0.002, "evidence": "its log"}
    exp_dir = make(tmp_path_factory.mktemp("accuracy"), asked(study, "adaptive"), **how)
    x = read_experiment(exp_dir)
    assert x.verdict and not x.records.damaged
    return x


def drawn(x) -> dict:
    """Every chart that there is."""
    found = {}
    for name, draw in CHARTS.items():
        try:
            found[name] = draw(x)
        except NothingToDraw as why:
            assert str(why)
    return found


def named(chart, words: str) -> dict:
    """The trace whose name begins so."""
    (trace,) = (t for t in chart.data if t["name"].startswith(words))
    return trace


def runs_of(x, stage=None) -> list:
    return [r for r in x.records.latest().values() if stage in (None, r.run.stage)]


def texts_in(value) -> list[str]:
    """Every text in a chart, at any depth."""
    if isinstance(value, dict):
        return [t for each in value.values() for t in texts_in(each)]
    if isinstance(value, list | tuple):
        return [t for each in value for t in texts_in(each)]
    return [value] if isinstance(value, str) else []


# ---------------------------------------------------------------------------------------------
# All of them


@pytest.mark.parametrize("name", WORLDS)
def test_plotly_knows_every_term_and_all_is_plain_json(name, world):
    found = drawn(world(name))
    assert found and (name != "harmful" or world(name).verdict == HARMFUL)
    for key, chart in found.items():
        assert chart.name == key and chart.title and chart.caption
        assert json.loads(json.dumps(chart.layout, allow_nan=False)) == chart.layout
        assert json.loads(json.dumps(chart.data, allow_nan=False)) == list(chart.data)
        go.Figure(data=list(chart.data), layout=chart.layout)
        assert chart.layout["height"] > 100 and "width" not in chart.layout
        assert "title" not in chart.layout


def test_a_chart_that_is_missing_says_why(world):
    with pytest.raises(NothingToDraw, match="no final validation"):
        charts.verdict(world("by hand"))
    with pytest.raises(NothingToDraw, match="no pair"):
        charts.verdict(world("before stage 4"))
    assert set(drawn(world("before stage 4"))) >= {"curves", "costs"}


def test_a_folder_without_a_run_has_no_chart(tmp_path):
    assert drawn(read_experiment(make(tmp_path, adaptive_plan(), most=0))) == {}


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("colour", [*charting.SERIES, charting.BAND, charting.TARGET])
@pytest.mark.parametrize("paper", ["#ffffff", "#14161a"])
def test_lines_hold_on_white_and_in_the_dark(colour, paper):
    low, high = sorted((luminance(colour), luminance(paper)))
    assert (high + 0.05) / (low + 0.05) >= 3
    assert charting.SERIES[:4] == PALETTE[:4]


EVIL = '<b>bold</b> &amp; "q" <a href="javascript:alert(1)">x</a> %{x} $x^2$ <br>\N{ROCKET}'


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Groups of logs: a hostile name, one that diverged, and the baseline."""
    folder = tmp_path_factory.mktemp("logs")
    groups = {
        "baseline": group(folder / "base", BASE),
        EVIL: group(folder / "evil", ARM),
        "few": group(folder / "few", ARM[:3], lost=run_of("nan")),
    }
    return compare_logs(groups).findings


def test_a_hostile_name_stays_text_everywhere(logs):
    found = drawn(logs)
    assert set(found) == {"effects", "curves"}
    assert json.dumps([[c.data, c.layout] for c in found.values()], allow_nan=False)
    said = [t for c in found.values() for t in texts_in([c.data, c.layout])]
    assert any("&lt;b&gt;bold" in t for t in said)
    for text in said:
        for tag in re.findall(r"<[^>]*>", text):
            assert tag in ("<br>", "<b>", "</b>", "<extra>", "</extra>")
        assert "<b>bold" not in text and "<br>\N{ROCKET}" not in text
        assert "$" not in text.replace("&#36;", "")
        assert "%{x}" not in text.replace("%{xaxis", "").replace("step", "") or "%{y}" in text
    for chart in found.values():
        go.Figure(data=list(chart.data), layout=chart.layout)
        for trace in chart.data:
            for template in filter(None, [trace.get("hovertemplate")]):
                assert template.count("%{x}") == 1  # ours, not that of the name
                assert html.unescape(template).count("%{x}") == 2 or "bold" not in template


@given(st.text(max_size=60))
def test_no_text_holds_a_tag_an_entity_or_a_field_of_its_own(words):
    shown = charting.text(words)
    assert not set("<>$\n") & set(shown) and "%{" not in shown
    entities = set(re.findall("&([^;]*);", shown))
    assert entities <= {"amp", "lt", "gt", "#36", "#37"}  # all that plotly knows, of ours
    assert html.unescape(shown) == charting.printable(words)


# ---------------------------------------------------------------------------------------------
# The verdict


def slow_differences(x, n=None) -> dict[int, float]:
    """By seed, of stage 4: baseline - arm, of the pairs of which both finished."""
    sides = [
        {r.run.seed: r.val_loss for r in runs_of(x, 4) if (not r.run.arm.flags) == is_base}
        for is_base in (True, False)
    ]
    seeds = sorted(sides[0].keys() & sides[1].keys())[:n]
    pairs = {seed: [side[seed] for side in sides] for seed in seeds}
    return {seed: b - a for seed, (b, a) in pairs.items() if b is not None and a is not None}


@pytest.mark.parametrize("name", ["classic", "classic null", "many looks", "null", "in stage 4"])
def test_every_pair_is_a_circle_with_its_seed_and_losses(name, world):
    x = world(name)
    trace = named(charts.verdict(x), "a pair's difference")
    expected = slow_differences(x, x.looks[-1].n if x.looks else None)
    assert trace["y"] == pytest.approx(list(expected.values()))
    for k, (seed, difference) in enumerate(expected.items()):
        said = trace["hovertext"][k]
        assert said.startswith(f"seed {seed}<br>") and f"{difference:+.4f} nats/token" in said
        for r in runs_of(x, 4):
            if r.run.seed == seed:
                assert f"{r.val_loss:.4f}" in said


def test_a_side_that_diverged_is_a_cross_where_it_counts(world):
    x = world("diverged")
    chart = charts.verdict(x)
    low, high = chart.layout["yaxis"]["range"]
    (arm_lost, base_lost) = (named(chart, f"the {side} diverged") for side in ("arm", "baseline"))
    assert (arm_lost["x"], arm_lost["y"]) == ([2], [low])
    assert (base_lost["x"], base_lost["y"]) == ([3], [high])
    assert "diverged" in arm_lost["hovertext"][0]
    assert len(named(chart, "a pair's difference")["x"]) == len(slow_differences(x, x.looks[-1].n))
    assert "ranks decide" in chart.caption and "Bars" not in chart.caption


@pytest.mark.parametrize("name", ["adaptive", "many looks", "null"])
def test_each_look_has_its_two_intervals(name, world):
    x = world(name)
    chart = charts.verdict(x)
    trace = named(chart, "a look: improvement")
    assert trace["y"] == [look.improvement for look in x.looks]
    for k, look in enumerate(x.looks):
        assert round(trace["x"][k]) == look.n
        assert trace["y"][k] + trace["error_y"]["array"][k] == pytest.approx(look.high)
        assert f"{look.low:+.4f} to {look.high:+.4f}" in trace["hovertext"][k]
    thick = named(chart, "a look: 90 % interval")
    ends = [(look.eq_low, look.eq_high, None) for look in x.looks]
    assert thick["y"] == [end for each in ends for end in each]
    fell = [look for look in x.looks if look.verdict]
    rings = [t for t in chart.data if t["name"] == "the look at which the verdict fell"]
    assert [round(t["x"][0]) for t in rings] == [look.n for look in fell[:1]]


def test_a_plan_of_one_test_has_one_interval_beside_its_pairs(world):
    x = world("classic null")
    chart = charts.verdict(x)
    trace = named(chart, "improvement, Welch's 95 % interval")
    block = final_block(x)
    base, best = (np.array([r.val_loss for r in g.runs]) for g in block.groups)
    found = scipy_stats.ttest_ind(base, best, equal_var=False).confidence_interval(0.95)
    assert trace["x"] == [len(base) + 1]
    assert trace["y"][0] + trace["error_y"]["array"][0] == pytest.approx(found.high)
    assert f"{found.low:+.4f} to {found.high:+.4f}" in trace["hovertext"][0]


def test_what_matters_is_a_band_and_zero_and_target_are_lines(world):
    x = world("adaptive")
    chart = charts.verdict(x)
    band, beyond = chart.layout["shapes"]
    assert (beyond["y0"], beyond["name"]) == (x.design.delta_target, "target met")
    assert (
        beyond["y1"] > chart.layout["yaxis"]["range"][1] and beyond["fillcolor"] == charting.TARGET
    )
    assert (band["y0"], band["y1"]) == (-x.design.delta_eq, x.design.delta_eq)
    assert band["name"] == "no meaningful effect: within ±0.005"
    target = named(chart, "target: 0.02")
    assert target["y"] == [x.design.delta_target] * 2 and target["line"]["dash"] == "dash"
    assert [0, 0] in [list(t["y"]) for t in chart.data]
    low, high = chart.layout["yaxis"]["range"]
    assert low < -x.design.delta_eq and high > x.design.delta_target
    for t in (target, *(t for t in chart.data if list(t["y"]) == [0, 0])):
        assert list(t["x"]) == chart.layout["xaxis"]["range"]


def test_without_a_known_noise_neither_band_nor_target_is_drawn(world):
    x = world("adaptive")
    chart = charts.verdict(replace(x, design=replace(x.design, noise_known=False)))
    assert chart.layout["shapes"] == []
    assert not any(t["name"].startswith("target") for t in chart.data)


@pytest.mark.parametrize("name", ["null", "many looks", "classic null"])
def test_a_null_result_shows_what_it_excludes(name, world):
    x = world(name)
    assert x.verdict not in (IMPROVES, HARMFUL) and (name != "null" or x.verdict == NO_EFFECT)
    words = excluded(x, final_block(x))
    (beyond,) = re.findall(r"±([0-9.]+) nats", words)
    chart = charts.verdict(x)
    (region,) = (t for t in chart.data if "fillpattern" in t)
    heights = sorted({y for y in region["y"] if y is not None})
    low, high = chart.layout["yaxis"]["range"]
    assert heights[0] == low and heights[-1] == high
    assert [f"{y:.4f}" for y in heights[1:-1]] == [f"-{beyond}", beyond]
    said = [a["text"] for a in chart.layout["annotations"]]
    assert said == [f"<b>excluded:</b> below {MINUS}{beyond}", f"<b>excluded:</b> above +{beyond}"]


@pytest.mark.parametrize("name", ["adaptive", "classic", "in stage 4"])
def test_an_effect_or_an_open_question_excludes_nothing(name, world):
    chart = charts.verdict(world(name))
    assert not any("fillpattern" in t for t in chart.data)
    assert chart.layout["annotations"] == []


def test_before_the_decision_there_are_pairs_and_no_claim(world):
    x = world("in stage 4")
    assert 4 not in x.decisions
    chart = charts.verdict(x)
    shown = [t["name"] for t in chart.data if t["mode"] == "markers"]
    assert shown == ["a pair's difference"]
    assert "Nothing is concluded" in chart.caption


def test_of_a_changed_folder_there_are_pairs_and_no_claim(world):
    x = world("null")
    changed = replace(x, standing=replace(x.standing, step=None, changed=("a rule",)))
    chart = charts.verdict(changed)
    assert [t["name"] for t in chart.data if t["mode"] == "markers"] == ["a pair's difference"]
    assert "No decision can be shown" in chart.caption


# ---------------------------------------------------------------------------------------------
# Arms within seeds


def panels(chart) -> list[dict]:
    """Of each panel: title, lanes' words, traces."""
    notes = chart.layout["annotations"]
    axes = list(dict.fromkeys(t["yaxis"] for t in chart.data))
    titles = [a["text"] for a in notes if a["yref"] == "paper"]
    lanes = [[a for a in notes if a["yref"] == axis] for axis in axes]
    traces = [[t for t in chart.data if t["yaxis"] == axis] for axis in axes]
    return [
        dict(zip(("title", "lanes", "traces"), each, strict=True))
        for each in zip(titles, lanes, traces, strict=True)
    ]


@pytest.mark.parametrize("name", ["classic", "many looks", "by hand"])
def test_every_shared_seed_is_a_point_and_their_mean_a_bar(name, world):
    x = world(name)
    found = panels(charts.effects(x))
    blocks = [b for b in blocks_of(x) if reference(x, b)]
    assert len(found) == len(blocks)
    for panel, block in zip(found, blocks, strict=True):
        base = {r.run.seed: r.val_loss for r in reference(x, block).runs if r.status == "ok"}
        expected, means = [], []
        arms = [g for g in block.groups if g.arm.flags]
        assert len(panel["lanes"]) == len(arms)
        for group_, lane in zip(arms, panel["lanes"], strict=True):
            mine = {r.run.seed: r.val_loss for r in group_.runs if r.status == "ok"}
            assert f"n = {len(mine)}" in lane["text"]
            assert ("✕" in lane["text"]) == (len(mine) < len(group_.runs))
            same = group_.arm.configuration == reference(x, block).arm.configuration
            shared = [] if same else sorted(base.keys() & mine.keys())
            expected += [base[s] - mine[s] for s in shared]
            if shared:
                mean = np.mean([base[s] - mine[s] for s in shared])
                means.append(mean)
                assert f"{mean:+.4f}".replace("-", MINUS) in lane["text"]
            assert ("shared" in lane["text"]) == (0 < len(shared) < len(mine))
        points = [t for t in panel["traces"] if t["name"] == "one seed"]
        assert sorted(v for t in points for v in t["x"]) == pytest.approx(sorted(expected))
        bars = [v for t in panel["traces"] if t["name"].startswith("mean") for v in t["x"]]
        assert sorted(bars) == pytest.approx(sorted(means))
        for trace in panel["traces"]:
            if trace["name"].startswith("mean"):
                assert all((v > 0) == ("better" in trace["name"]) for v in trace["x"])


def test_a_mean_has_welchs_interval_where_there_is_one(world):
    x = world("classic")
    last = panels(charts.effects(x))[-1]
    (mean,) = (t for t in last["traces"] if t["name"].startswith("mean"))
    sides = [{r.run.seed: r.val_loss for r in g.ok} for g in blocks_of(x)[-1].groups]
    shared = sides[0].keys() & sides[1].keys()
    base, best = ([side[seed] for seed in shared] for side in sides)
    found = scipy_stats.ttest_ind(base, best, equal_var=False).confidence_interval(0.95)
    assert mean["x"][0] + mean["error_x"]["array"][0] == pytest.approx(found.high)
    assert f"{found.low:+.4f} to {found.high:+.4f}" in mean["hovertext"][0]
    one_run = panels(charts.effects(x))[1]
    assert not any("error_x" in t for t in one_run["traces"])


def test_pairs_that_were_looked_at_as_they_came_have_no_nominal_interval(world):
    chart = charts.effects(world("many looks"))
    last = panels(chart)[-1]
    assert [t["name"] for t in last["traces"] if t["name"].startswith("mean")]
    assert not any("error_x" in t for t in last["traces"])
    assert "by the intervals of its looks" in chart.caption


def test_where_a_run_diverged_there_is_no_interval_of_those_that_finished(world):
    x = world("diverged")
    last = panels(charts.effects(x))[-1]
    assert not any("error_x" in t for t in last["traces"])
    assert "✕ 1 diverged" in last["lanes"][0]["text"]
    assert "baseline n = " in last["title"] and "✕ 1 diverged" in last["title"]


def test_a_point_tells_its_seed_and_both_losses(world):
    x = world("by hand")
    by_seed = {
        name: {r.run.seed: r for r in runs_of(x) if r.run.arm.name == name}
        for name in ("baseline", "aux_8")
    }
    (panel,) = panels(charts.effects(x))
    (points,) = (t for t in panel["traces"] if t["name"] == "one seed")
    said = [t for t in points["hovertext"] if t.startswith("aux_8, ")]
    assert len(said) == 2  # one seed has no baseline
    for seed, text in zip((1, 2), said, strict=True):
        base, mine = (by_seed[name][seed].val_loss for name in ("baseline", "aux_8"))
        assert f"seed {seed}<br>" in text
        assert f"{base:.4f}" in text and f"{mine:.4f}" in text and f"{base - mine:+.4f}" in text


def test_groups_of_logs_are_held_against_the_baselines_mean(logs):
    chart = charts.effects(logs)
    (panel,) = panels(chart)
    (points,) = (t for t in panel["traces"] if t["name"] == "one run")
    base, arm_ = ([float(v) for v in values] for values in (BASE, ARM))
    values = [*base, *arm_, *arm_[:3]]
    assert points["x"] == pytest.approx([np.mean(base) - v for v in values])
    for k, text in enumerate(points["hovertext"][10:20]):
        assert f"run_{k}.txt" in text and f"baseline mean: {np.mean(base):.4f}" in text
    (means,) = (t for t in panel["traces"] if t["name"].startswith("mean: better"))
    found = scipy_stats.ttest_ind(base, arm_, equal_var=False).confidence_interval(0.95)
    assert means["x"][0] + means["error_x"]["array"][0] == pytest.approx(found.high)
    assert means["error_x"]["array"][1] is None  # of `few` a run diverged
    assert "against the baseline's mean" in chart.caption


def test_all_that_is_drawn_lies_within_its_axis(world):
    chart = charts.effects(world("classic"))
    for trace in chart.data:
        low, high = chart.layout["xaxis" + trace["xaxis"][1:]]["range"]
        assert all(low < v < high for v in trace["x"] if v is not None)


def test_a_long_name_is_cut_and_told_whole_where_the_mouse_is(logs):
    (panel,) = panels(charts.effects(logs))
    lane = panel["lanes"][1]
    assert "…: +" in lane["text"] and "javascript:alert(1)" not in lane["text"]
    assert html.unescape(lane["hovertext"]).startswith(EVIL)


# ---------------------------------------------------------------------------------------------
# Layers


@pytest.mark.parametrize("name", ["classic", "many looks", "by hand"])
def test_each_placement_has_its_mean_its_seeds_and_its_layers(name, world):
    x = world(name)
    chart = charts.CHARTS["layers"](x)
    block = next(b for b in blocks_of(x) if b.stage in (0, 2))
    other = reference(x, block)
    base = {r.run.seed: r.val_loss for r in other.runs if r.status == "ok"}
    ticks = chart.layout["xaxis"]["ticktext"]
    bars = {
        k: y for t in chart.data if t["type"] == "bar" for k, y in zip(t["x"], t["y"], strict=True)
    }
    seeds = named(chart, "one seed")
    taps = named(chart, "its heads")
    expected = {}
    for group_ in block.groups:
        layers = dict(group_.arm.flags).get("aux_head_layers")
        if not layers:
            continue
        words = re.sub("[^0-9]+", ", ", str(layers)).strip(", ")
        (k,) = (k for k, tick in enumerate(ticks) if tick.split("<br>")[0] == words)
        at = [layer for place, layer in zip(taps["x"], taps["y"], strict=True) if place == k]
        assert ", ".join(map(str, at)) == words
        mine = {r.run.seed: r.val_loss for r in group_.runs if r.status == "ok"}
        if group_.arm.configuration != other.arm.configuration:
            expected[k] = [base[s] - mine[s] for s in sorted(base.keys() & mine.keys())]
            assert f"n = {len(expected[k])}" in ticks[k]
        else:
            assert "the zero" in ticks[k]
    for t in chart.data:
        assert t["type"] != "bar" or all((y > 0) == (t["name"] == "mean: better") for y in t["y"])
    assert bars == pytest.approx({k: np.mean(each) for k, each in expected.items()})
    drawn_ = sorted(zip(seeds["x"], seeds["y"], strict=True))
    assert [k for k, _ in drawn_] == sorted(k for k, each in expected.items() for _ in each)
    values = sorted((k, v) for k, each in expected.items() for v in each)
    assert [v for _, v in drawn_] == pytest.approx([v for _, v in values])


def test_layers_are_of_the_built_in_study_alone(world, logs):
    for x in (world("harmful"), logs):
        with pytest.raises(NothingToDraw, match="built-in"):
            charts.CHARTS["layers"](x)


# ---------------------------------------------------------------------------------------------
# Curves

POINTS = st.lists(st.floats(-9, 9), min_size=1, max_size=60).map(
    lambda losses: [(k, loss, float(k)) for k, loss in enumerate(losses)]
)


@given(POINTS, st.integers(4, 30))
def test_thinning_keeps_order_ends_and_every_extreme(points, most):
    kept = thinned(points, most)
    assert len(kept) <= max(most, 4) and kept == sorted(kept)
    assert set(kept) <= set(points)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    for extreme in (min, max):
        assert extreme(kept, key=lambda p: p[1])[1] == extreme(points, key=lambda p: p[1])[1]


def test_a_curve_that_fits_is_whole_and_each_bucket_keeps_its_peak_and_its_dip():
    points = [(k, float((-1) ** k * (k % 7)), 0.0) for k in range(102)]
    assert thinned(points, 102) == points
    kept = {step for step, *_ in thinned(points, 22)}
    for bucket in (points[1 + 10 * k : 11 + 10 * k] for k in range(10)):
        inside = [p for p in bucket if p[0] in kept]
        assert {p[1] for p in inside} == {f(p[1] for p in bucket) for f in (min, max)}


def curves_in(trace, over="x") -> list[list[tuple]]:
    """The curves of a trace, apart at its gaps: (x, y, which run)."""
    found: list[list[tuple]] = [[]]
    for x, y, which in zip(trace[over], trace["y"], trace["customdata"], strict=True):
        if y is None:
            assert x is None and which is None
            found.append([])
        else:
            found[-1].append((x, y, which))
    return found


def test_every_run_of_a_block_is_a_curve_with_its_seed(world):
    x = world("many looks")
    shown = [t for t in charts.curves(x).data if t["visible"]]
    thin = [t for t in shown if t["line"]["width"] == 1.0]
    for trace, group_ in zip(thin, blocks_of(x)[-1].groups, strict=True):
        assert f"(n = {len(group_.runs)})" in trace["name"] and group_.label in trace["name"]
        curves = curves_in(trace)
        assert len(curves) == len(group_.runs)
        for curve, r in zip(curves, group_.runs, strict=True):
            assert {which for *_, which in curve} == {r.run.seed}
            expected = [(step, round(loss, 6)) for step, loss, _ in r.curve]
            assert [(step, loss) for step, loss, _ in curve] == expected


def test_the_mean_is_a_thick_line_of_the_runs_that_finished(world):
    x = world("many looks")
    shown = [t for t in charts.curves(x).data if t["visible"] and t["line"]["width"] == 2.5]
    for trace, group_ in zip(shown, blocks_of(x)[-1].groups, strict=True):
        (curve,) = curves_in(trace)
        mean = np.mean([[loss for _, loss, _ in r.curve] for r in group_.ok], axis=0)
        assert [y for _, y, _ in curve] == pytest.approx(mean, abs=1e-6)


def test_each_arm_has_one_place_in_the_legend_and_one_colour(world):
    chart = charts.curves(world("classic"))
    shown = [t for t in chart.data if t["visible"]]
    for key in {t["legendgroup"] for t in shown}:
        mine = [t for t in shown if t["legendgroup"] == key]
        assert sum(t.get("showlegend", True) for t in mine) == 1
        assert len({t["line"]["color"] for t in mine if "line" in t}) == 1
    base = next(t for t in shown if t["name"].startswith("final_baseline"))
    assert base["line"]["color"] == charting.INK


def test_a_run_that_diverged_ends_in_a_cross(world):
    x = world("by hand")
    chart = charts.curves(x)
    (cross,) = (t for t in chart.data if t["mode"] == "markers")
    (r,) = (r for r in runs_of(x) if r.status == "diverged")
    assert (cross["x"], cross["y"]) == ([r.curve[-1][0]], [round(r.curve[-1][1], 6)])
    assert cross["marker"]["symbol"] == "x" and cross["customdata"] == [r.run.seed]
    line = next(t for t in chart.data if t["name"] == cross["name"] and t["mode"] == "lines")
    assert cross["x"][0] in line["x"] and "✕ 1 diverged" in line["name"]


def buttons_of(chart, changes: str) -> dict[str, list]:
    """Of the menu that changes this of the traces."""
    buttons = [b for menu in chart.layout.get("updatemenus", ()) for b in menu["buttons"]]
    return {b["label"]: b["args"] for b in buttons if changes in b["args"][0]}


def test_buttons_swap_steps_and_training_time_and_nothing_else(world):
    x = world("many looks")
    chart = charts.curves(x)
    buttons = buttons_of(chart, "x")
    assert list(buttons) == ["steps", "training time (s)"]
    for words, (traces, axes) in buttons.items():
        assert set(traces) == {"x"}
        assert axes == {"xaxis.title.text": words, "xaxis.autorange": True}
        assert len(traces["x"]) == len(chart.data)
    assert buttons["steps"][0]["x"] == [t["x"] for t in chart.data]
    by_seed = {(r.run.seed, r.run.arm.name, s): t for r in runs_of(x, 4) for s, _, t in r.curve}
    for trace, times in zip(chart.data, buttons["training time (s)"][0]["x"], strict=True):
        name = trace["name"].split(" ")[0]
        if not name.startswith("final") or trace["line"]["width"] != 1.0:
            continue
        for step, time_s, seed in zip(trace["x"], times, trace["customdata"], strict=True):
            if step is not None:
                assert time_s == pytest.approx(by_seed[seed, name, step] / 1000, abs=0.006)


def test_without_all_times_there_is_no_button_of_time(tmp_path):
    untimed = {f"r{k}": run_of("3.2", total=4).replace("train_time", "x") for k in range(2)}
    logs = {"a": group(tmp_path / "a", BASE), "b": group(tmp_path / "b", **untimed)}
    chart = charts.curves(compare_logs(logs, num_iterations=4).findings)
    assert not buttons_of(chart, "x")


def test_the_menu_shows_one_block_and_its_heights(world):
    x = world("classic")
    chart = charts.curves(x)
    blocks, menu = blocks_of(x), buttons_of(chart, "visible")
    assert len(menu) == len(blocks)
    for block, (label, (traces, axes)) in zip(blocks, menu.items(), strict=True):
        assert block.name in html.unescape(label) or "…" in label
        seen = [t for t, v in zip(chart.data, traces["visible"], strict=True) if v]
        ok = [r for g in block.groups for r in g.runs if r.status == "ok"]
        names = {t["name"].split(" (n")[0] for t in seen}
        assert names == {charting.text(g.label, charting.MOST_NAME) for g in block.groups}
        late = [loss for r in ok for s, loss, _ in r.curve if s >= 0.4 * block.num_iterations]
        low, high = axes["yaxis.range"]
        assert low < min(late) and max(late) < high
        first = max(loss for r in ok for _, loss, _ in r.curve)
        assert high < first
    assert chart.layout["updatemenus"][-1]["active"] == len(blocks) - 1
    assert [t["visible"] for t in chart.data] == [*menu.values()][-1][0]["visible"]


def many(n_runs: int, n_arms: int, steps: int = 220):
    """So many runs of one stage, with noise on their curves."""
    groups = []
    for k in range(n_arms):
        rng, one = random.Random(k), Arm(f"arm_{k}", (("lr", k),) if k else ())
        runs = []
        for index in range(n_runs // n_arms):
            curve = tuple((s, 3 + rng.gauss(0, 0.01), 165.123 * s) for s in range(steps))
            fields = {"stage": 2, "index": index, "iterations": steps - 1, "curve": curve}
            runs.append(result(one, curve[-1][1], **fields))
        groups.append(ArmRuns(tuple(runs)))
    return SimpleNamespace(blocks=(Block(2, "Arms", steps - 1, tuple(groups)),), metric=Metric())


def test_a_thousand_runs_of_twenty_arms_stay_small_and_all_are_there():
    x = many(1000, 20)
    chart = charts.curves(x)
    assert len(json.dumps([chart.data, chart.layout])) < 800_000
    assert len(chart.data) == 40
    thin = [t for t in chart.data if t["line"]["width"] == 1.0]
    assert sum(len(curves_in(t)) for t in thin) == 1000
    n_points = [sum(y is not None for y in t["y"]) for t in chart.data]
    assert sum(n_points) <= MOST_POINTS + MOST_OF_MEANS
    looks = {(t["line"]["color"], t["line"]["dash"]) for t in chart.data}
    assert len(looks) == 20
    effects = charts.effects(x)
    assert len(json.dumps([effects.data, effects.layout])) < 200_000


def test_sixty_runs_keep_all_their_points():
    x = many(60, 6)
    thin = [t for t in charts.curves(x).data if t["line"]["width"] == 1.0]
    assert sum(y is not None for t in thin for y in t["y"]) == 60 * 220


def test_more_arms_than_can_be_told_apart_are_not_drawn():
    for draw in (charts.curves, charts.effects):
        with pytest.raises(NothingToDraw, match="too many"):
            draw(many(204, 102, steps=5))


def test_numbers_that_no_trainer_means_are_drawn_without_failing():
    huge = tuple((s, (-1) ** s * 1.7e308, 1e300) for s in range(10))
    runs = (result(Arm("a", (("x", 1),)), 3.0, seed=(1 << 62) + 1, curve=huge),)
    block = Block(2, "Arms", 9, (ArmRuns(runs),))
    chart = charts.curves(SimpleNamespace(blocks=(block,), metric=Metric()))
    assert json.dumps([chart.data, chart.layout], allow_nan=False)
    assert chart.data[0]["customdata"][0] == str((1 << 62) + 1)  # 2^53 is all that a browser has


@pytest.mark.parametrize("huge", [1e308, -1e308, 1e150])
def test_a_number_that_has_no_mean_costs_its_step_alone(huge):
    curves = [((0, 9.0, 0.0), (1, loss, 1.0), (2, 3.0, 2.0)) for loss in (4.0, huge)]
    runs = [result(Arm("baseline"), 3.0, seed=k, curve=curve) for k, curve in enumerate(curves)]
    assert [row[0] for row in mean_curve(ArmRuns(tuple(runs)))] == [0, 2]


# ---------------------------------------------------------------------------------------------
# Hours


@pytest.mark.parametrize("name", ["classic", "adaptive", "by hand"])
def test_bars_of_hours_add_up_to_what_was_spent(name, world):
    x = world(name)
    chart = charts.costs(x)
    ends, at = [], 0.0
    for stage in sorted({r.run.stage for r in x.records.results}):
        mine = [r for r in x.records.results if r.run.stage == stage]
        good = sum(r.end_s - r.start_s for r in mine if r.status in ("ok", "diverged")) / 3600
        whole = sum(r.end_s - r.start_s for r in mine) / 3600
        ends.append((at, good, whole - good))
        at += whole
    assert at == pytest.approx(machine_seconds(x.records.results) / 3600)
    outcome = named(chart, "attempts with an outcome")
    assert outcome["base"] == pytest.approx([begun for begun, _, _ in ends])
    assert outcome["x"] == pytest.approx([good for _, good, _ in ends])
    failed = [t for t in chart.data if t["name"] == "failed attempts"]
    assert bool(failed) == any(r.status == "crashed" for r in x.records.results)
    for trace in failed:
        assert trace["x"] == pytest.approx([lost for *_, lost in ends], abs=1e-9)
        assert trace["base"] == pytest.approx([begun + good for begun, good, _ in ends])
    assert f"{at:.2f} of 12 h spent" in chart.caption


def test_the_budget_is_a_line_unless_it_is_far_away(world, tmp_path):
    chart = charts.costs(world("adaptive"))
    (line,) = chart.layout["shapes"]
    assert line["x0"] == line["x1"] == 12
    assert any(a["text"] == "budget 12 h" for a in chart.layout["annotations"])
    full = charts.costs(world("many looks")).layout["annotations"]
    assert [a["x"] for a in full][-2:] == [12, 12]  # no number is crossed by the line
    far = charts.costs(read_experiment(make(tmp_path, adaptive_plan(budget_hours=9999.0), most=2)))
    assert far.layout["shapes"] == [] and "of 9999 h spent" in far.caption


# ---------------------------------------------------------------------------------------------
# A metric of which more is better


def test_more_is_better_is_shown_as_it_is_logged(accuracy):
    found = drawn(accuracy)
    curves, verdict, effects = (found[name] for name in ("curves", "verdict", "effects"))
    assert curves.layout["yaxis"]["title"]["text"] == "accuracy"
    low, high = curves.layout["yaxis"]["range"]
    assert 0 < low < high < 1
    shown = [t for t in curves.data if t["visible"]]
    ends = {name: [c[-1][1] for t in shown for c in curves_in(t) if name in t["name"]]
            for name in ("baseline", "best")}  # fmt: skip
    assert np.mean(ends["best"]) > np.mean(ends["baseline"]) > 0
    differences = named(verdict, "a pair's difference")
    assert np.mean(differences["y"]) > 0 and "arm - baseline" in verdict.caption
    assert re.search(r"baseline: 0\.[56]\d+<br>", differences["hovertext"][0])
    assert verdict.layout["yaxis"]["title"]["text"] == "improvement"
    said = json.dumps([t for c in found.values() for t in texts_in([c.data, c.layout, c.caption])])
    assert "nats" not in said and "loss" not in said
    assert any("better" in t["name"] for t in effects.data)
