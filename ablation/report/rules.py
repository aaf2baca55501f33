"""Is a community's rule met, by how much, and how many runs more would decide it?

A rule is a row of RULES, or typed by hand: 'mean<=3.28,p<0.01'. `rule_named` finds it, `judged`
applies it to the final losses of a group of runs, and of a baseline where the rule compares. Pure
functions over numbers, as in `stats`, which has the statistics; lines for a report come with them.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from ablation import sequential, stats
from ablation.plan.decision import p_text
from ablation.runs.untrusted import printable

# ---------------------------------------------------------------------------------------------
# Rules


@dataclass(frozen=True)
class Form:
    """One way to meet a rule: an inequality, and how sure one must be of it."""

    of: str  # "mean" of the metric as logged, or "improvement" over the baseline: positive is good
    relation: str  # "<", "<=", ">" or ">="
    bound: float
    p: float | None = None  # the one-sided level at which it must hold
    p_relation: str = "<"  # or "<="
    evidence: float | None = None  # instead: distance from the bound / sqrt(1/n [+ 1/n_baseline])
    sigma: float | None = None  # is at least that; the sd of a run that it takes as known
    says: str = ""  # what it answers, where a rule has several

    @property
    def compares(self) -> bool:
        return self.of == "improvement"

    @property
    def side(self) -> int:
        """1 where the value must lie above the bound, -1 where below."""
        return 1 if self.relation.startswith(">") else -1

    @property
    def level(self) -> float | None:
        """One-sided, for one test; None for a form that asks for none."""
        if self.evidence is not None and self.sigma is not None:
            return sequential.upper_tail(self.evidence / self.sigma)
        return self.p

    def in_unit(self, factor: float) -> "Form":
        """The same for a metric whose numbers are so many times as large."""
        evidence, sigma = (v if v is None else factor * v for v in (self.evidence, self.sigma))
        return replace(self, bound=factor * self.bound, evidence=evidence, sigma=sigma)

    def __str__(self) -> str:
        if self.evidence is not None:
            ends = (self.of, f"{self.bound:g}")[:: self.side]
            distance = f"({ends[0]} - {ends[1]})" if self.bound else self.of
            root = "/ sqrt(1/n + 1/n_baseline)" if self.compares else "* sqrt(n)"
            return f"{distance} {root} >= {self.evidence:g} (sd {self.sigma:g} taken as known)"
        plain = f"{self.of} {self.relation} {self.bound:g}"
        if self.p is None:
            return plain
        return f"{plain} at one-sided p {self.p_relation} {self.p:g} ({self.test})"

    @property
    def test(self) -> str:
        return "Welch's t" if self.compares else "one-sample t"


@dataclass(frozen=True)
class CommunityRule:
    """By what a community accepts a result: met where one of its forms is."""

    name: str
    project: str
    source: str  # where it is stated
    forms: tuple[Form, ...]
    unit: str = ""  # that the bounds are in; empty: that of the metric, whatever it is
    notes: str = ""  # what the source says beside

    @property
    def inequality(self) -> str:
        return "; or ".join(map(str, self.forms))

    @property
    def needs(self) -> str:
        """In words."""
        only = "a group and a baseline" if self.needs_baseline else "a group"
        several = len({form.compares for form in self.forms}) > 1
        return f"{only}; its second form a baseline too" if several else only

    @property
    def needs_baseline(self) -> bool:
        return all(form.compares for form in self.forms)


NATS, BITS = "nats/token", "bits/byte"
ROWS = (
    CommunityRule(
        "speedrun",
        "modded-nanogpt",
        "https://github.com/KellerJordan/modded-nanogpt, README, Rules",
        (Form("mean", "<=", 3.28, p=0.01),),
        unit=NATS,
        notes="waived there where only the speed of the systems was improved",
    ),
    CommunityRule(
        "track3",
        "modded-nanogpt, track 3",
        "https://github.com/KellerJordan/modded-nanogpt, records/track_3_optimization/README.md",
        (
            Form("mean", "<=", 3.28, evidence=0.004, sigma=0.0013, says="that 3.28 is reached"),
            Form(
                *("improvement", ">=", 0.0),
                evidence=0.004,
                sigma=0.0013,
                says="that it is better than the baseline, not that 3.28 is reached",
            ),
        ),
        unit=NATS,
    ),
    CommunityRule(
        "parameter-golf",
        "parameter-golf",
        "https://github.com/openai/parameter-golf, README, Submission Process",
        (Form("improvement", ">=", 0.005, p=0.01),),
        unit=NATS,
        notes="the baseline is the record; waived there where only the speed was improved",
    ),
)
RULES = MappingProxyType({row.name: row for row in ROWS})

# ---------------------------------------------------------------------------------------------
# By name, and by hand

BY_HAND = "'mean<=3.28,p<0.01' or 'improvement>=0.005,p<0.01'"
PART = re.compile(r"\s*(mean|improvement|p)\s*(<=|>=|<|>)\s*(\S+)\s*")


def rule_named(text: str) -> CommunityRule:
    """A row of the table, or what was typed by hand. ValueError, in one line, for anything else."""
    if text.strip() in RULES:
        return RULES[text.strip()]
    if not re.search("[<>=]", text):
        known = ", ".join(RULES)
        raise ValueError(f"rule {shown(text)}: give one of {known}, or by hand {BY_HAND}")
    parts = dict(parts_of(text))
    if len(parts) - ("p" in parts) != 1:
        raise ValueError(f"rule {shown(text)}: give one of mean and improvement, as in {BY_HAND}")
    of = next(name for name in parts if name != "p")
    relation, bound = parts[of]
    p_relation, p = parts.get("p", ("<", None))
    form = Form(of, relation, bound, p, p_relation)
    return CommunityRule(re.sub(r"\s", "", text), "by hand", "the command line", (form,))


def shown(text: str) -> str:
    return printable(repr(text), limit=80)


def parts_of(text: str) -> Iterator[tuple[str, tuple[str, float]]]:
    """Each inequality of a rule by hand: its name, its relation and its number."""
    seen = set()
    for part in text.split(","):
        found = PART.fullmatch(part)
        if not found:
            raise ValueError(f"rule {shown(text)}: {shown(part)} is no inequality like {BY_HAND}")
        name, relation, number = found.groups()
        if name in seen:
            raise ValueError(f"rule {shown(text)}: {name} is there twice: give it once")
        if name != "mean" and (relation[0] == "<") is not (name == "p"):
            fit = "<, as in p<0.01" if name == "p" else ">=: an improvement is positive where good"
            raise ValueError(f"rule {shown(text)}: after {name} comes {fit}, not {relation}")
        seen.add(name)
        yield name, (relation, number_in(text, name, number))


def number_in(text: str, name: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if name == "p" and not 0 < value <= 0.5:
        raise ValueError(f"rule {shown(text)}: p {shown(number)}: give a level in (0, 0.5]")
    if not abs(value) < 1e150:
        raise ValueError(f"rule {shown(text)}: {name} {shown(number)}: give a number, as in 3.28")
    return value


# ---------------------------------------------------------------------------------------------
# Units


def unit_of(metric: str) -> str:
    """The unit of a metric as the logs of these communities name it; empty where it is unknown."""
    last = metric.split()[-1] if metric.split() else ""
    return {"val_loss": NATS, "val_bpb": BITS}.get(last, "")


SAME_RATIO = 1e-3  # relative; chosen: four printed decimals of either make 1e-4


def bpb_per_nat(values: Sequence[tuple[float, float]]) -> float | None:
    """Bits/byte of one nat/token: tokens / (bytes ln 2) of the validation text, by (val_loss,
    val_bpb) of each run; None where they do not agree, as with two tokenizers, or there are none.
    """
    ratios = [bpb / loss for loss, bpb in values if loss > 0 and 0 < bpb < math.inf]
    if len(ratios) < len(values) or not ratios or max(ratios) > min(ratios) * (1 + SAME_RATIO):
        return None
    return stats.mean_sd(ratios)[0]


def in_unit_of(rule: CommunityRule, metric: str, ratio: float | None) -> CommunityRule:
    """The rule with its bounds in the metric's unit. ValueError where that cannot be known."""
    unit = unit_of(metric)
    if not rule.unit or unit in ("", rule.unit):
        return rule
    if (rule.unit, unit) == (NATS, BITS) and ratio is not None:
        forms = tuple(form.in_unit(ratio) for form in rule.forms)
        return replace(rule, forms=forms, unit=unit)
    raise ValueError(
        f"rule {rule.name} is in {rule.unit}, metric {shown(metric)} in {unit}, and these logs do"
        f" not tell one ratio of the two: take a metric in {rule.unit}, or by hand a bound in"
        f" {unit}, as in {BY_HAND}"
    )


# ---------------------------------------------------------------------------------------------
# Judging

MOST = 1000  # runs of a group that are asked for; chosen: nobody trains more


class Runs(NamedTuple):
    """What a form asks of a group: the metric as logged."""

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Found:
    """One form of a rule, and what the runs say to it."""

    form: Form
    met: bool | None  # None: it cannot be judged
    value: float | None  # the mean as logged, or the improvement
    by: float | None = None  # the distance from the bound: positive where the inequality holds
    limit: float | None = None  # one-sided confidence limit of the value, at the form's level
    p: float | None = None  # one-sided, against the bound
    evidence: float | None = None  # where the form asks for it
    more: int | None = None  # runs more of the group that would meet it; None: no number would
    more_of_each: int | None = None  # the same where the baseline gets as many


@dataclass(frozen=True)
class Judged:
    """A rule, and what became of it."""

    rule: CommunityRule  # in the unit of the metric
    met: bool | None  # None: it cannot be judged
    n: int  # runs of the group with a metric
    n_baseline: int
    found: tuple[Found, ...]  # one of each form that could be asked
    words: tuple[str, ...]  # lines for a report

    @property
    def deciding(self) -> Found:
        """The form that is met, or else the one nearest to it."""
        return min(self.found, key=lambda f: math.inf if f.more is None else f.more)

    @property
    def p(self) -> float | None:
        return self.deciding.p

    @property
    def by(self) -> float | None:
        return self.deciding.by

    @property
    def more(self) -> int | None:
        return self.deciding.more


def holds(value: float, relation: str, bound: float, scale: Sequence[float]) -> bool:
    """An inequality of sums and differences of numbers of that scale: what differs by rounding
    alone is equal."""
    if stats.only_rounding(abs(value - bound), value, bound, *scale):
        return relation.endswith("=")
    return (value < bound) is relation.startswith("<")


def standard_error(form: Form, sides: Sequence[Runs]) -> tuple[float, float] | None:
    """Of the form's value, with its degrees of freedom; None where the runs do not tell it. sides:
    the group, and the baseline where the form compares."""
    if form.sigma is not None:
        return form.sigma * math.sqrt(sum(1 / runs.n for runs in sides)), math.inf
    known = [(runs.n, runs.sd) for runs in sides if runs.sd is not None]
    if len(known) < len(sides):
        return None
    se, df = stats.mean_error(*known[0]) if len(sides) == 1 else stats.welch_error(*sum(known, ()))
    return None if stats.only_rounding(se, *(runs.mean for runs in sides)) else (se, df)


def asked(form: Form, sides: Sequence[Runs], sign: int) -> Found:
    """What these numbers say to the form, without asking what more runs would."""
    means = [runs.mean for runs in sides]
    value = sign * (means[1] - means[0]) if form.compares else means[0]
    by, met = form.side * (value - form.bound), holds(value, form.relation, form.bound, means)
    plain = Found(form, met, value, by)
    if form.level is None:
        return plain
    error = standard_error(form, sides)
    if error is None:  # an inequality that fails, fails at any p
        return replace(plain, met=None if met else False)
    p = stats.one_sided_p(by, *error)
    limit = value - form.side * stats.one_sided_reach(*error, form.level)
    if form.sigma is None or form.evidence is None:
        sure = p < form.level or (p == form.level and form.p_relation == "<=")
        return replace(plain, met=met and sure, p=p, limit=limit)
    root = error[0] / form.sigma
    least = form.bound + form.side * form.evidence * root
    met = holds(value, form.relation, least, means)
    return replace(plain, met=met, p=p, limit=limit, evidence=by / root)


def fewest_more(meets: Callable[[int], bool | None], n: int) -> int | None:
    """The fewest runs more with which a group of n meets a form; None where MOST in all do not."""
    return next((more for more in range(max(1, MOST - n + 1)) if meets(more)), None)


def with_more(form: Form, sides: Sequence[Runs], sign: int) -> Found:
    """The same with the runs that it would take if mean and sd stayed as they are."""

    def meets(*more: int) -> bool | None:
        larger = [runs._replace(n=runs.n + k) for runs, k in zip(sides, more, strict=True)]
        return asked(form, larger, sign).met

    n, found = sides[0].n, asked(form, sides, sign)
    if found.by is not None and found.by < 0:
        return found  # whatever n is
    if not form.compares:
        return replace(found, more=fewest_more(meets, n))
    return replace(
        found,
        more=fewest_more(lambda k: meets(k, 0), n),
        more_of_each=fewest_more(lambda k: meets(k, k), max(n, sides[1].n)),
    )


class Lost(NamedTuple):
    """Runs of a group without a metric at their last step."""

    diverged: int = 0  # an outcome: worse than any number
    other: int = 0  # cut off, or without a metric: what they would have shown is unknown


NONE_LOST = Lost()


def without_diverged(form: Form, found: Found, lost: Sequence[Lost]) -> Found:
    """A diverged run is worse than any number, and cannot be left out of a mean: with one in the
    group no mean is good; with one in the baseline alone the improvement is unknown."""
    if not any(side.diverged for side in lost):
        return found
    met = False if lost[0].diverged else None
    return Found(form, met, found.value)


def judged(
    rule: CommunityRule,
    group: Sequence[float],
    baseline: Sequence[float] | None = None,
    *,
    sign: int = 1,
    metric: str = "val_loss",
    ratio: float | None = None,
    lost: Lost = NONE_LOST,
    baseline_lost: Lost = NONE_LOST,
) -> Judged:
    """The rule, judged on the losses of a group, and of a baseline where it compares.

    sign: -1 for a metric that is better higher, whose losses come with their sign turned; a rule
    on a mean speaks of it as logged. ratio: as `bpb_per_nat`, for a metric in bits/byte. ValueError
    where the rule lacks what it needs.
    """
    rule = in_unit_of(rule, metric, ratio)
    check(rule, baseline, sign, metric)
    sides = [runs_of(group, sign)] + ([] if baseline is None else [runs_of(baseline, sign)])
    losses = [lost] if baseline is None else [lost, baseline_lost]
    found = []
    for form in rule.forms:
        count = 2 if form.compares else 1
        if count > len(sides):
            continue
        known = [runs for runs in sides[:count] if runs is not None]
        whole = with_more(form, known, sign) if len(known) == count else Found(form, None, None)
        found.append(without_diverged(form, whole, losses[:count]))
    mets = [f.met for f in found]
    met = True if True in mets else None if None in mets else False
    n, n_baseline = len(group), len(baseline or ())
    plain = Judged(rule, met, n, n_baseline, tuple(found), ())
    return replace(plain, words=tuple(words_of(plain, group, baseline or (), losses)))


def runs_of(losses: Sequence[float], sign: int) -> Runs | None:
    """None for none."""
    if not losses:
        return None
    mean, sd = stats.mean_sd([sign * loss for loss in losses])
    return Runs(len(losses), mean, sd)


def check(rule: CommunityRule, baseline: Sequence[float] | None, sign: int, metric: str) -> None:
    """ValueError where the rule asks for what is not there, or for the wrong side."""
    if rule.needs_baseline and baseline is None:
        raise ValueError(
            f"rule {rule.name} compares with a baseline and there is one group only: give a second"
            " one, --logs baseline=... before it"
        )
    for form in rule.forms:
        if not form.compares and form.side == sign:
            better, other = ("lower", "<=") if sign > 0 else ("higher", ">=")
            raise ValueError(
                f"rule {rule.name}: {metric} is better {better}, and the rule wants"
                f" mean{form.relation}{form.bound:g}: give mean{other}{form.bound:g}"
            )


# ---------------------------------------------------------------------------------------------
# Testing again after each added run

FIRST, LAST = 3, 14  # runs at which one looks; as in the shares below, which
REPEATED = {"a t test of one group, or of pairs": 0.197, "Welch's": 0.174}  # of tests of nothing at
REPEATED_LEVEL = 0.05  # two-sided find something: by simulation, benchmarks/repeated_testing.py
T_SHARE = 0.8  # of the level that a one-sample t may spend by bounds made for z, which it crosses
# up to 1.2 times as often at few runs: by the same; Welch's, 1.0 times
MOST_LOOKS = 200  # chosen: bounds in a second


class Bound(NamedTuple):
    """What to ask at one look, where one looks again after each added run."""

    n: int  # runs of the group; of either group where the rule compares
    p: float  # one-sided: below it the rule is met, at the rule's level over all looks


def sequential_bound(form: Form, last: int = LAST, first: int = FIRST) -> tuple[Bound, ...]:
    """The bound on p at each number of runs from first to last that keeps the form's level over all
    looks, by `sequential.cubic_spending`; last is fixed before the first look. ValueError for looks
    that are none, and a form without a level.

    Where a baseline stays as it is and the group alone grows, the looks are more alike than these
    bounds assume, which errs on the safe side.
    """
    if form.level is None:
        raise ValueError(f"rule {form} has no level that bounds could keep: give it a p, as p<0.01")
    if not 2 <= first <= last < first + MOST_LOOKS:
        raise ValueError(
            f"looks from {first!r} to {last!r} runs: give 2 <= first <= last, at most"
            f" {MOST_LOOKS} looks"
        )
    is_t_of_mean = form.sigma is None and not form.compares
    level = form.level * (T_SHARE if is_t_of_mean else 1.0)
    ns = range(first, last + 1)
    spent = [sequential.cubic_spending(n / last, level) for n in ns]
    bounds = sequential.bounds(ns, spent)
    return tuple(Bound(n, sequential.upper_tail(z)) for n, z in zip(ns, bounds, strict=True))


# ---------------------------------------------------------------------------------------------
# Words

VERDICTS = {True: "met", False: "not met", None: "cannot be judged"}


def words_of(
    j: Judged, group: Sequence[float], baseline: Sequence[float], lost: Sequence[Lost]
) -> Iterator[str]:
    """What a report says of it."""
    unit = f" ({j.rule.unit})" if j.rule.unit else ""
    yield f"{j.rule.name}, {j.rule.project}: {j.rule.inequality}{unit}: {VERDICTS[j.met]}."
    for found in j.found:
        yield from words_of_form(j, found)
    yield from words_of_lost(group, baseline, lost)
    if j.deciding.p is not None:
        yield from words_of_repeats(j.n, j.deciding.form)
    if j.rule.notes:
        yield f"The rule's source adds: {j.rule.notes}."


def words_of_form(j: Judged, found: Found) -> Iterator[str]:
    form, value = found.form, found.value
    if len(j.rule.forms) > 1:
        meaning = f": it says {form.says}" if found.met and form.says else ""
        yield f"{form}: {VERDICTS[found.met]}{meaning}."
    if value is None:
        yield "No run with the metric at its last step: no mean."
        return
    against = f" against {j.n_baseline}" if form.compares else ""
    text = f"{form.of} {value:.5f} of {runs_words(j.n)}{against}"
    if found.by is None:  # a run diverged: what that means is said of all forms at once
        yield text + "."
        return
    text += f", {abs(found.by):.5f} {'above' if value >= form.bound else 'below'} {form.bound:g}"
    if found.evidence is not None:
        text += f", in the rule's measure {found.evidence:.5f}"
    if found.limit is not None and form.level is not None:
        text += f"; one-sided {100 * (1 - form.level):.4g} % limit {found.limit:.5f}"
        text += f", {p_text(found.p)}"
    yield text + "."
    yield from words_of_more(found, found.by)


def words_of_more(found: Found, by: float) -> Iterator[str]:
    """How many runs would decide, at the present mean and sd."""
    if found.met is None:
        yield "No spread is known, so no p: it takes two runs or more a group that are not equal."
    elif found.met and found.form.level is None:
        yield "Without a level, as p<0.01, chance is not excluded."
    elif not found.met and by < 0:
        yield "More runs do not meet it while the mean stays where it is."
    elif not found.met:
        alone = " of the group alone" if found.form.compares else ""
        text = f"At the present mean and sd it takes {more_words(found.more)}{alone}"
        if found.form.compares:
            text += f", or {more_words(found.more_of_each)} of each group"
        yield text + "."


def runs_words(n: int) -> str:
    return f"{n} run" if n == 1 else f"{n} runs"


def more_words(more: int | None) -> str:
    return f"more than {MOST} runs" if more is None else f"{runs_words(more)} more"


def words_of_lost(
    group: Sequence[float], baseline: Sequence[float], lost: Sequence[Lost]
) -> Iterator[str]:
    diverged = [side.diverged for side in lost]
    if any(diverged):
        yield (
            f"Diverged: {of_sides(diverged)}. A diverged run is worse than any number, so the mean"
            " of the others decides nothing."
        )
        if len(lost) > 1:
            ranks = stats.worst_rank(baseline, group, diverged[1], diverged[0])
            side = "the group" if ranks.favours_arm else "the baseline"
            yield f"By worst rank, two-sided, without a margin: {p_text(ranks.p)}, for {side}."
    if any(side.other for side in lost):
        yield (
            f"Not counted, cut off or without the metric: {of_sides([s.other for s in lost])}. What"
            " they would have shown is unknown."
        )


def of_sides(counts: Sequence[int]) -> str:
    sides = zip(counts, ("the group", "the baseline"), strict=False)
    return ", ".join(f"{runs_words(count)} of {side}" for count, side in sides)


def words_of_repeats(n: int, form: Form) -> Iterator[str]:
    """A p-value says what it says for one test, at a number of runs that was fixed before."""
    shares = ", ".join(f"{test} {100 * share:.1f} %" for test, share in REPEATED.items())
    yield (
        "This p is that of one test, at a number of runs fixed beforehand. Who tests again after"
        f" each added run, from {FIRST} to {LAST}, at {REPEATED_LEVEL:g}, finds something in"
        f" nothing far more often: {shares}."
    )
    last = max(LAST, n)
    if FIRST <= n < FIRST + MOST_LOOKS:
        at = next(bound for bound in sequential_bound(form, last) if bound.n == n)
        yield (
            f"Who looks after each run, up to {last} fixed beforehand, keeps the rule's level with"
            f" the sequential bound, at {n} runs p < {at.p:.2g}."
        )
