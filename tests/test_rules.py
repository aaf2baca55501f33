"""A community's rule at its boundaries, against scipy, by hand, and where it cannot be judged."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from ablation import stats
from ablation.report import rules
from ablation.report.rules import RULES, Form, Lost, judged, rule_named
from benchmarks import repeated_testing

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "rules.md").read_text()


def group(text: str) -> list[float]:
    return [float(word) for word in text.split()]


BASE = group("3.2848 3.2861 3.2882 3.2889 3.2887 3.2858 3.2856 3.2859 3.2861 3.2873")
ARM = group("3.2794 3.2777 3.2783 3.2793 3.2759 3.2784 3.2786 3.2815 3.2775 3.2767")
OTHER = group("3.2767 3.2765 3.2771 3.2795 3.2798 3.2781 3.2767 3.2766 3.2777 3.2795")
SPEEDRUN, TRACK3, GOLF = (RULES[name] for name in ("speedrun", "track3", "parameter-golf"))

# ---------------------------------------------------------------------------------------------
# Published groups


def test_both_published_arms_meet_the_speedrun_rule_and_the_base_does_not():
    p_of = {"base": BASE, "arm": ARM, "other": OTHER}
    met = {name: judged(SPEEDRUN, losses) for name, losses in p_of.items()}
    assert {name: j.met for name, j in met.items()} == {"base": False, "arm": True, "other": True}
    for name, losses in p_of.items():
        expected = scipy_stats.ttest_1samp(losses, 3.28, alternative="less").pvalue
        assert met[name].p == pytest.approx(expected, rel=1e-6)
    assert met["arm"].p == pytest.approx(0.0040, abs=5e-5)
    assert met["other"].p == pytest.approx(0.00029, abs=5e-6)
    assert met["other"].by == pytest.approx(0.00218)
    assert (met["arm"].more, met["base"].more) == (0, None)


def test_the_published_arm_improves_by_0084_and_beats_the_golf_margin():
    j = judged(GOLF, ARM, BASE)
    shifted = [loss - 0.005 for loss in BASE]
    reference = scipy_stats.ttest_ind(shifted, ARM, equal_var=False, alternative="greater")
    assert (j.met, j.n, j.n_baseline) == (True, 10, 10)
    assert j.found[0].value == pytest.approx(0.00841)
    assert j.by == pytest.approx(0.00341)
    assert j.p == pytest.approx(reference.pvalue, rel=1e-6)
    c = stats.compare(BASE, ARM)
    assert (c.ci_high - c.ci_low) / 2 == pytest.approx(0.0014, abs=5e-5)


@pytest.mark.parametrize(
    ("mean", "n", "evidence", "met"),  # as two entries of the track's table give them
    [(3.27794, 8, 0.00584, True), (3.279260, 16, 0.00296, False), (3.278731, 16, 0.005077, True)],
)
def test_track3_gives_the_numbers_of_published_entries(mean, n, evidence, met):
    found = judged(TRACK3, [mean] * n).found[0]
    assert found.evidence == pytest.approx(evidence, abs=2e-5)
    assert found.met is met


# ---------------------------------------------------------------------------------------------
# Boundaries


@pytest.mark.parametrize(
    ("rule", "losses", "met"),
    [
        ("mean<=3.28", [3.27, 3.29], True),
        ("mean<3.28", [3.27, 3.29], False),
        ("mean<=3.28", [3.2701, 3.29], False),
        ("mean<3.28", [3.2699, 3.29], True),
        ("mean>=3.28", [3.27, 3.29], True),
        ("mean>3.28", [3.27, 3.29], False),
        ("mean>=3.28", [3.2699, 3.29], False),
        ("mean>3.28", [3.2701, 3.29], True),
    ],
)
def test_a_mean_at_its_bound_and_beside_it(rule, losses, met):
    sign = -1 if ">" in rule else 1
    assert judged(rule_named(rule), [sign * loss for loss in losses], sign=sign).met is met


@pytest.mark.parametrize(
    ("rule", "arm", "met"),  # 3.285 - 3.28 is below .005 by rounding
    [
        ("improvement>=0.005", 3.28, True),
        ("improvement>0.005", 3.28, False),
        ("improvement>=0.005", 3.280001, False),
        ("improvement>0.005", 3.279999, True),
    ],
)
def test_an_improvement_at_its_bound_and_beside_it(rule, arm, met):
    assert judged(rule_named(rule), [arm], [3.285]).met is met


def test_what_differs_by_rounding_alone_is_no_improvement():
    arm, baseline = [3.27, 3.271, 3.272], [3.271]
    assert stats.mean_sd(arm)[0] < 3.271  # by 5e-16
    assert judged(rule_named("improvement>0"), arm, baseline).met is False
    assert judged(rule_named("improvement>=0"), baseline, arm).met is True


def test_a_level_of_a_half_does_not_make_an_equal_mean_a_lower_one():
    assert judged(rule_named("mean<=3,p<=0.5"), [2.0, 4.0]).p == 0.5
    assert judged(rule_named("mean<=3,p<=0.5"), [2.0, 4.0]).met is True
    assert judged(rule_named("mean<3,p<=0.5"), [2.0, 4.0]).met is False


@pytest.mark.parametrize(("mean", "met"), [(3.279, True), (3.2790001, False), (3.2789999, True)])
def test_track3s_mean_at_its_bound_with_16_runs(mean, met):
    assert judged(TRACK3, [mean] * 16).met is met


@pytest.mark.parametrize(("arm", "met"), [(3.308, True), (3.3080001, False), (3.3079999, True)])
def test_track3s_improvement_at_its_bound_with_8_runs_each(arm, met):
    """The arm does not reach 3.28: the second form alone can be met, and the words say so."""
    j = judged(TRACK3, [arm] * 8, [3.31] * 8)
    assert [f.met for f in j.found] == [False, met]
    assert j.met is met
    assert any("not that 3.28 is reached" in line for line in j.words) is met


def just_at(level: float, n: int) -> list[float]:
    """Losses whose one-sample t test against 3.28 has this p."""
    z = np.resize([-1.0, 1.0], n)
    t = scipy_stats.t.isf(level, n - 1)
    shift = t * z.std(ddof=1) / math.sqrt(n)
    return (3.28 + 0.001 * (z - z.mean() - shift)).tolist()


@pytest.mark.parametrize("n", [2, 3, 10])
def test_p_just_below_its_level_meets_and_just_above_does_not(n):
    assert judged(SPEEDRUN, just_at(0.00999, n)).met is True
    assert judged(SPEEDRUN, just_at(0.01001, n)).met is False


def test_p_at_its_level_is_met_only_where_the_rule_says_so():
    p = judged(SPEEDRUN, ARM).p
    assert judged(rule_named(f"mean<=3.28,p<={p!r}"), ARM).met is True
    assert judged(rule_named(f"mean<=3.28,p<{p!r}"), ARM).met is False


def test_golf_just_at_its_level():
    arm = np.array(ARM)

    def p(shift):
        return judged(GOLF, (arm + shift).tolist(), BASE)

    low, high = 0.0, 0.004  # met at the first, not at the second
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if p(middle).met else (low, middle)
    assert p(low).p == pytest.approx(0.01, rel=1e-6)
    assert (p(low).met, p(high + 1e-9).met) == (True, False)
    assert p(low).found[0].limit == pytest.approx(0.005, abs=1e-8)


# ---------------------------------------------------------------------------------------------
# Against scipy, and a slow loop

values = st.lists(st.floats(2, 5), min_size=2, max_size=9).filter(lambda v: np.std(v) > 1e-4)


@settings(max_examples=100, deadline=None)
@given(values, st.floats(2, 5), st.sampled_from(["<", ">"]))
def test_a_mean_is_scipys_one_sample_test(losses, bound, relation):
    sign = 1 if relation == "<" else -1
    rule = rule_named(f"mean{relation}{bound!r},p<0.01")
    found = judged(rule, [sign * loss for loss in losses], sign=sign).found[0]
    alternative = "less" if relation == "<" else "greater"
    reference = scipy_stats.ttest_1samp(losses, bound, alternative=alternative)
    interval = reference.confidence_interval(0.99)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)
    limit = interval.high if relation == "<" else interval.low
    assert found.limit == pytest.approx(limit, rel=1e-7)


@settings(max_examples=100, deadline=None)
@given(values, values, st.floats(-1, 1))
def test_an_improvement_is_scipys_welch_of_shifted_values(baseline, arm, margin):
    found = judged(rule_named(f"improvement>{margin!r},p<0.01"), arm, baseline).found[0]
    shifted = [loss - margin for loss in baseline]
    reference = scipy_stats.ttest_ind(shifted, arm, equal_var=False, alternative="greater")
    assert found.p == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)
    limit = reference.confidence_interval(0.99).low + margin
    assert found.limit == pytest.approx(limit, rel=1e-6, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(values, st.floats(-1, 1))
def test_higher_is_better_is_the_same_rule_turned_round(losses, bound):
    down = judged(rule_named(f"mean<={bound!r},p<0.05"), losses)
    up = judged(rule_named(f"mean>={-bound!r},p<0.05"), losses, sign=-1)
    assert (up.met, up.p, up.by, up.more) == (down.met, down.p, down.by, down.more)
    assert up.found[0].value == pytest.approx(-down.found[0].value)
    rule = rule_named("improvement>=0.1,p<0.05")  # of losses, whose sign is turned already
    base = [loss + 0.2 for loss in losses]
    assert judged(rule, losses, base, sign=-1).found == judged(rule, losses, base).found


def replicated(mean: float, sd: float, n: int) -> list[float]:
    """n values with this mean and sd."""
    z = np.resize([-1.0, 1.0], n) - (0.0 if n % 2 == 0 else np.resize([-1.0, 1.0], n).mean())
    return (mean + sd * z / z.std(ddof=1)).tolist()


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("mean", [3.2795, 3.279])
def test_runs_more_by_a_slow_loop_over_samples(n, mean):
    j = judged(SPEEDRUN, replicated(mean, 0.0013, n))
    tried = (m for m in range(n, 1001) if judged(SPEEDRUN, replicated(mean, 0.0013, m)).met)
    assert j.met is False
    assert j.more == next(tried) - n > 0


def test_runs_more_of_the_group_alone_and_of_both():
    base, arm = replicated(3.2861, 0.0013, 3), replicated(3.28, 0.0013, 3)
    found = judged(GOLF, arm, base).found[0]

    def p(n_baseline: int, n: int) -> float:
        return scipy_stats.ttest_ind_from_stats(
            *(3.2811, 0.0013, n_baseline, 3.28, 0.0013, n),
            equal_var=False,
            alternative="greater",
        ).pvalue

    assert not any(p(3, n) < 0.01 for n in range(3, 1001))  # three of the record never suffice
    assert found.more is None
    assert found.more_of_each == next(n - 3 for n in range(3, 1001) if p(n, n) < 0.01) > 0
    ten = judged(GOLF, arm, replicated(3.2861, 0.0013, 30)).found[0]
    assert ten.more == next(n - 3 for n in range(3, 1001) if p(30, n) < 0.01) > 0


@pytest.mark.parametrize(
    ("mean", "more"),
    [
        (3.2795, 48),
        (3.28 - 0.00400001 / math.sqrt(1000), 984),
        (3.28 - 0.00399999 / math.sqrt(1000), None),
        (3.281, None),
    ],
)
def test_track3_needs_no_spread_to_say_how_many_runs_more(mean, more):
    """(.004 / .0005) ** 2 is 64 runs in all; at most 1000 are asked for."""
    assert judged(TRACK3, [mean] * 16).more == more


# ---------------------------------------------------------------------------------------------
# What cannot be judged


def test_one_run_and_equal_runs_have_no_p():
    for losses in ([3.27], [3.27] * 4):
        j = judged(SPEEDRUN, losses)
        assert (j.met, j.p, j.more) == (None, None, None)
        assert any("No spread" in line for line in j.words)
    assert judged(GOLF, [3.27], BASE).met is None
    assert judged(GOLF, ARM, [3.29]).met is None
    assert judged(GOLF, [3.27] * 3, [3.29] * 3).met is None


def test_an_inequality_that_fails_needs_no_p_to_fail():
    assert judged(SPEEDRUN, [3.29]).met is False
    assert judged(SPEEDRUN, [3.29] * 3).met is False
    assert judged(GOLF, [3.29], [3.29]).met is False


def test_a_diverged_run_is_never_left_out_of_a_mean():
    j = judged(SPEEDRUN, OTHER, lost=Lost(diverged=1))
    assert (j.met, j.p, j.more) == (False, None, None)
    assert any("Diverged: 1 run of the group." in line for line in j.words)
    assert judged(GOLF, ARM, BASE, lost=Lost(diverged=1)).met is False
    of_baseline = judged(GOLF, ARM, BASE, baseline_lost=Lost(diverged=1))
    assert of_baseline.met is None
    ranks = stats.worst_rank(BASE, ARM, 1, 0)
    assert ranks.p < 1e-4 and any("p < 0.0001, for the group" in w for w in of_baseline.words)
    track3 = judged(TRACK3, ARM, BASE, baseline_lost=Lost(diverged=1))
    assert [f.met for f in track3.found] == [True, None] and track3.met is True
    assert judged(SPEEDRUN, [], lost=Lost(diverged=2)).met is False


def test_runs_cut_off_are_told_and_an_empty_group_is_not_judged():
    j = judged(SPEEDRUN, OTHER, lost=Lost(other=2))
    assert j.met is True and any("metric: 2 runs of the group." in line for line in j.words)
    assert not any("Not counted" in line for line in judged(SPEEDRUN, OTHER).words)
    nothing = judged(SPEEDRUN, [])
    assert (nothing.met, nothing.n) == (None, 0)
    assert judged(GOLF, [], BASE).met is None


# ---------------------------------------------------------------------------------------------
# By hand, and mistakes


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("mean<=3.28,p<0.01", Form("mean", "<=", 3.28, 0.01)),
        (" mean < 3.28 , p <= 1e-2 ", Form("mean", "<", 3.28, 0.01, "<=")),
        ("p<0.05,improvement>0", Form("improvement", ">", 0.0, 0.05)),
        ("improvement >= -0.005", Form("improvement", ">=", -0.005)),
        ("mean>=0.9", Form("mean", ">=", 0.9)),
    ],
)
def test_a_rule_by_hand(text, form):
    assert rule_named(text).forms == (form,)
    assert rule_named(rule_named(text).name).forms == (form,)


def test_rows_by_name_are_the_rules_by_hand():
    for name, text in {
        "speedrun": "mean<=3.28,p<0.01",
        "parameter-golf": "improvement>=0.005,p<0.01",
    }.items():
        assert rule_named(f" {name} ") is RULES[name]
        assert RULES[name].forms == rule_named(text).forms


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("speedrn", "'speedrn': give one of speedrun, track3, parameter-golf, or by hand"),
        ("", "'': give one of"),
        ("mean<=3.28;p<0.01", "mean '3.28;p<0.01': give a number"),
        ("mean<=3,28,p<0.01", "'28' is no inequality"),
        ("mean=3.28", "'mean=3.28' is no inequality"),
        ("median<=3.28", "'median<=3.28' is no inequality"),
        ("mean<=nan", "mean 'nan': give a number"),
        ("mean<=inf", "mean 'inf': give a number"),
        ("mean<=1e999", "mean '1e999': give a number"),
        ("p<0.01", "give one of mean and improvement"),
        ("mean<=3.28,improvement>0", "give one of mean and improvement"),
        ("mean<=3.28,mean<=3.29", "mean is there twice"),
        ("mean<=3.28,p<0", "p '0': give a level in (0, 0.5]"),
        ("mean<=3.28,p<1", "p '1': give a level"),
        ("mean<=3.28,p<x", "p 'x': give a level"),
        ("mean<=3.28,p>0.01", "after p comes <"),
        ("improvement<=0.005", "after improvement comes >="),
        ("mean<=3.28,", "'' is no inequality"),
        ("mean<=3.28\n\x1b[2J,p<0.01", "is no inequality"),
        ("<" * 500, "is no inequality"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_value(text, said):
    with pytest.raises(ValueError) as caught:
        rule_named(text)
    message = str(caught.value)
    assert said in message and message.isprintable() and len(message) < 400


def test_what_a_rule_lacks_is_said_in_one_line():
    for losses, wanted, said in (
        ({"rule": GOLF, "group": ARM}, ValueError, "one group only"),
        ({"rule": SPEEDRUN, "group": ARM, "sign": -1}, ValueError, "give mean>=3.28"),
        ({"rule": rule_named("mean>3"), "group": ARM}, ValueError, "give mean<=3"),
        ({"rule": SPEEDRUN, "group": ARM, "metric": "x val_bpb"}, ValueError, "in bits/byte"),
        ({"rule": SPEEDRUN, "group": [math.nan]}, ValueError, "finite"),
    ):
        with pytest.raises(wanted, match=said) as caught:
            judged(**losses)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------
# Units


def test_golf_in_bits_per_byte_is_golf_in_nats_where_the_logs_tell_the_ratio():
    ratio = rules.bpb_per_nat([(loss, 0.387 * loss) for loss in (*ARM, *BASE)])
    assert ratio == pytest.approx(0.387)
    bits = judged(
        *(GOLF, [ratio * loss for loss in ARM], [ratio * loss for loss in BASE]),
        metric="final_int8_zlib_roundtrip_exact val_bpb",
        ratio=ratio,
    )
    nats = judged(GOLF, ARM, BASE, metric="final_int8_zlib_roundtrip_exact val_loss")
    assert (bits.met, bits.more) == (nats.met, nats.more)
    assert bits.p == pytest.approx(nats.p, rel=1e-9)
    assert bits.rule.unit == "bits/byte"
    assert bits.rule.forms[0].bound == pytest.approx(0.001935)
    track3 = judged(TRACK3, [0.387 * loss for loss in ARM], metric="val_bpb", ratio=0.387)
    assert track3.p == pytest.approx(judged(TRACK3, ARM).p, rel=1e-6)


@pytest.mark.parametrize(
    "pairs", [[], [(3.0, 1.2), (3.0, 1.21)], [(3.0, 1.2), (0.0, 1.2)], [(3.0, math.nan)]]
)
def test_logs_that_do_not_agree_tell_no_ratio(pairs):
    assert rules.bpb_per_nat(pairs) is None


def test_printed_digits_do_not_hide_a_ratio():
    losses = np.linspace(3.2, 3.4, 40)
    pairs = [(round(loss, 4), round(0.3871 * loss, 4)) for loss in losses]
    assert rules.bpb_per_nat(pairs) == pytest.approx(0.3871, rel=1e-4)


def test_a_metric_of_unknown_unit_is_taken_as_it_is_and_by_hand_has_none():
    assert judged(SPEEDRUN, OTHER, metric="test_loss").met is True
    assert judged(rule_named("mean<=4,p<0.01"), OTHER, metric="val_bpb").met is True


# ---------------------------------------------------------------------------------------------
# Words


@pytest.mark.parametrize(
    ("rule", "losses", "said"),
    [
        ("speedrun", ARM, "mean 3.27833 of 10 runs, 0.00167 below 3.28; one-sided 99 % limit"),
        ("speedrun", BASE, "mean 3.28674 of 10 runs, 0.00674 above 3.28; one-sided 99 % limit"),
        ("speedrun", BASE, "More runs do not meet it while the mean stays where it is."),
        ("speedrun", ARM[:3], "At the present mean and sd it takes 2 runs more."),
        ("speedrun", [3.2799], "mean 3.27990 of 1 run, 0.00010 below 3.28."),
        ("mean<4", ARM, "Without a level, as p<0.01, chance is not excluded."),
        ("track3", [3.2795] * 4, "in the rule's measure 0.00100"),
    ],
)
def test_the_words_say_by_how_much_and_what_it_takes(rule, losses, said):
    words = judged(rule_named(rule), losses).words
    assert any(said in line for line in words), words
    assert all(line.isprintable() and line[-1] == "." for line in words)


def test_the_words_of_a_comparison_say_what_more_runs_of_one_or_both_would_do():
    words = judged(GOLF, replicated(3.28, 0.0013, 3), replicated(3.2861, 0.0013, 3)).words
    assert any("more than 1000 runs of the group alone, or" in line for line in words)


def test_the_numbers_of_a_rule_are_those_of_the_form_that_is_nearest():
    j = judged(TRACK3, ARM[:3], BASE)
    assert [f.met for f in j.found] == [False, True]
    assert (j.p, j.more) == (j.found[1].p, 0)
    far = judged(TRACK3, [3.2795] * 3, [3.2796] * 3)
    assert (far.met, far.more) == (False, far.found[0].more)


# ---------------------------------------------------------------------------------------------
# Testing again


def test_asking_again_finds_what_is_not_there_and_the_bounds_do_not():
    found = repeated_testing.false_positives(60_000, seed=1)
    for name, share in zip(("one group", "Welch"), rules.REPEATED.values(), strict=True):
        assert found[name] == pytest.approx(share, abs=4 * math.sqrt(0.2 * 0.8 / 60_000))
        assert found[f"{name}, rule"] > 0.03
        assert found[f"{name}, rule by bounds"] < 0.011  # T_SHARE 1 gives .0118


def test_equal_seeds_give_equal_shares():
    one, again, other = (repeated_testing.false_positives(500, seed) for seed in (1, 1, 2))
    assert one == again != other


def test_the_bounds_grow_with_the_runs_and_stay_below_the_level():
    for form in (SPEEDRUN.forms[0], *TRACK3.forms, GOLF.forms[0]):
        ps = [bound.p for bound in rules.sequential_bound(form)]
        assert ps == sorted(ps) and ps[-1] < form.level
        assert len(ps) == 12
    for form in (*TRACK3.forms, GOLF.forms[0]):
        assert rules.sequential_bound(form, 5, 5) == (rules.Bound(5, pytest.approx(form.level)),)


def test_the_words_give_the_bound_at_these_runs():
    at_ten = rules.sequential_bound(SPEEDRUN.forms[0])[7]
    assert at_ten.n == 10
    line = judged(SPEEDRUN, ARM).words
    assert any(f"at 10 runs p < {at_ten.p:.2g}" in words for words in line)
    assert any("19.7 %" in words for words in line)
    assert not any("19.7 %" in words for words in judged(rule_named("mean<4"), ARM).words)


@pytest.mark.parametrize(("last", "first"), [(2, 3), (5, 1), (1000, 3)])
def test_looks_that_are_none_are_refused(last, first):
    with pytest.raises(ValueError, match=f"looks from {first} to {last} runs: give"):
        rules.sequential_bound(GOLF.forms[0], last, first)
    with pytest.raises(ValueError, match="give it a p"):
        rules.sequential_bound(rule_named("mean<3").forms[0])


# ---------------------------------------------------------------------------------------------
# The page


def test_the_table_of_the_page_is_the_one_in_the_code():
    rows = (
        f"| `{name}` | {rule.inequality} | {rule.unit} | {rule.needs} | {rule.source} |"
        for name, rule in RULES.items()
    )
    assert "needs | stated in |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n\n" in PAGE


def test_the_bounds_of_the_page_are_those_of_the_code():
    both = (rules.sequential_bound(rule.forms[0]) for rule in (SPEEDRUN, GOLF))
    rows = (f"| {a.n} | {a.p:.2g} | {b.p:.2g} |" for a, b in zip(*both, strict=True))
    assert "\n".join(rows) + "\n" in PAGE
    assert all(f"{100 * share:.1f} %" in PAGE for share in rules.REPEATED.values())
    assert f"{0.005 / math.log(2):.5f} bits/byte" in PAGE and f"up to {rules.MOST} runs" in PAGE


def test_a_row_of_data_is_a_rule():
    """What a community decides by next is a row, without a line of code."""
    row = rules.CommunityRule(
        *("both", "somewhere", "a page"),
        (Form("improvement", ">", 0.0, p=0.05),),
        unit="nats/token",
    )
    assert judged(row, ARM, BASE).met is True
    assert row.needs == "a group and a baseline"
