"""How is a figure read?  Its caption, a text file beside it; a chart of the page tells its own.

What is shown, of how many runs, what bars and bands are, what was left out; in the numbers of the
report, by the functions that it asks.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ablation.report.comparisons import ArmRuns, Block, reference, within_seeds
from ablation.report.content import level, number
from ablation.report.evidence import Compared, Evidence
from ablation.report.figures import MOST_NAMED, finished_blocks, is_timed, longest_blocks
from ablation.report.layers import tell_gradients, tell_layers
from ablation.report.validation import effect_line, planned, primary_interval
from ablation.report.verdict import decided_pairs
from ablation.study.study import Metric

MOST_LISTED = 8  # arms of a block that are named one by one: chosen, to stay a caption


def measured(metric: Metric) -> str:
    return f"{metric.words} ({metric.unit})" if metric.unit else metric.words


def difference(metric: Metric) -> str:
    """The estimand, its unit and its direction."""
    unit = f", in {metric.unit}" if metric.unit else ""
    return f"{metric.difference}{unit}; positive is good"


def listed(blocks: list[Block], about: Callable[[Block, ArmRuns], str]) -> str:
    """Something about every arm, block by block; of many arms only their n."""
    parts = []
    for block in blocks:
        if len(block.groups) <= MOST_LISTED + 1:
            words = ", ".join(about(block, group) for group in block.groups)
        else:
            n = sorted(len(group.losses) for group in block.groups)
            words = f"{len(block.groups)} configurations, n = {n[0]} to {n[-1]}"
        parts.append(f"{block.title}: {words}" if block.title.strip() else words)
    return "; ".join(parts)


def left_out(blocks: list[Block]) -> str:
    """The runs that no mean is of, as a sentence."""
    lost = [f"{g.label} {g.lost}" for block in blocks for g in block.groups if g.lost]
    return f"Not in the means: {', '.join(lost)}." if lost else "No run is left out of the means."


def tell_comparison(evidence: Compared) -> str:
    """The caption of the arms, stage by stage."""
    metric, blocks = evidence.metric, finished_blocks(evidence)
    by_seed = all(group.by_seed for block in blocks for group in block.groups)
    side = "left" if metric.sign > 0 else "right"
    on = " on the seeds that both finished" if by_seed else ""
    other = any(not b.baseline and reference(evidence, b) for b in blocks)
    line = "the baseline's mean" + (", or that of what the title names" if other else "")

    def about(block: Block, group: ArmRuns) -> str:
        found, n = within_seeds(reference(evidence, block), group), len(group.losses)
        if not found:
            return f"{group.label} (n = {n})"
        shared = f", {len(found.arm)} on shared seeds" if by_seed and len(found.arm) < n else ""
        return f"{group.label} {number(found.improvement, '+.4f')} (n = {n}{shared})"

    return " ".join(
        (
            f"Final {measured(metric)} of every finished run (circles); {side} is better.",
            f"Bars reach from the mean of the baseline to that of the arm{on}, and the number"
            f" beside them is this improvement, {difference(metric)}.",
            f"Black lines are {line}, grey bands ± one standard deviation of the baseline's runs"
            " where n > 1; no interval is drawn, and nothing is tested.",
            f"n, the runs that finished: {listed(blocks, about)}.",
            left_out(blocks),
        )
    )


def tell_curves(evidence: Compared) -> str:
    """The caption of the curves."""
    metric, blocks = evidence.metric, longest_blocks(evidence)
    time = "; a second panel, where there is one, is over training time, start-up left out"
    early = "losses lie above" if metric.sign > 0 else "values lie below"
    return " ".join(
        (
            f"Mean {measured(metric)} over steps of the finished runs of each configuration"
            f"{time if is_timed(blocks) else ''}; insets magnify the end, and early {early} the"
            " axis.",
            "Bands reach from the lowest to the highest run where n > 1, and are no interval."
            + (SPREAD_OF_TIMES if is_timed(blocks) else ""),
            f"n, the runs that finished: {listed(blocks, lambda _, g: f'{g.label} {len(g.ok)}')}.",
            left_out(blocks),
            *([GREY] if any(len(b.arms) > min(MOST_NAMED.values()) for b in blocks) else []),
            *([DIVERGED] if any(g.diverged for b in blocks for g in b.groups) else []),
        )
    )


SPREAD_OF_TIMES = " Over time, curves stand at mean times: how far times differ is not drawn."
GREY = "Where arms are many, the best have a colour and a name, and the others are grey."
DIVERGED = "Dotted curves are of runs that diverged, up to where they were seen last (✕)."


def tell_verdict(evidence: Evidence) -> str:
    """The caption of the verdict."""
    block = decided_pairs(evidence)
    return " ".join(verdict_sentences(evidence, block))


def verdict_sentences(evidence: Evidence, block: Block) -> Iterator[str]:
    design, n = evidence.design, len(block.groups[0].runs)
    of = f"{block.num_iterations} {block.counted} a run"
    yield f"Final validation on seeds used nowhere else, {of}: {evidence.decisions[4].title}."
    yield (
        f"Circles are the differences within {n} pairs, two runs of one seed each:"
        f" {difference(evidence.metric)}."
    )
    if any(group.diverged for group in block.groups):
        yield "A cross is a pair of which a run diverged: it counts as the worst, without a number."
    interval, kind = primary_interval(evidence, planned(evidence, block))
    if evidence.looks and all(look.low is None for look in evidence.looks):
        yield (
            "Below, the improvement of the runs that finished, at each look; ranks decide, in which"
            " a diverged run counts as the worst, and have no interval."
        )
    elif evidence.looks:
        narrow = level(2 * design.alpha)
        yield (
            f"Below, the improvement at each look, {len(evidence.looks)} in all, with the {kind}"
            f" interval (thin bars) and, for equivalence, the {narrow} one (wide bars), which allow"
            " for all looks; it improves above the dotted bounds, and is harmful below them."
        )
    elif interval:
        yield f"Beside them is the improvement with its {kind} interval, by Welch's t-test."
    yield effect_line(evidence, block)
    if design.noise_known:
        yield (
            f"The grey region, ±{design.delta_eq:g}, is no meaningful effect; the dashed line is"
            f" the target, {design.delta_target:g}."
        )


CAPTIONS: Mapping[str, Callable[[Any], str]] = {  # by the names of FIGURES
    "val_loss_comparison": tell_comparison,
    "layer_ablation": tell_layers,
    "training_curves": tell_curves,
    "verdict": tell_verdict,
    "gradient_flow": tell_gradients,
}
