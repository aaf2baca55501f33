"""README.md and the code say the same."""

import re
import shlex
from pathlib import Path

import adaptive
import plan_report
from decision import CLASSIC_RULES, rule_text
from experiment import PROFILES, SHORT
from plans import PLANS
from run_aux import build_parser

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
STAGE_OF = {"gate": 1, "layers": 2}


def stage_rows():
    full = PROFILES["speedrun"].full_iterations
    for stage in PLANS["classic"]:
        names = [f"`{arm.name}`" for arm in stage.arms]
        iterations = round(full * stage.fraction)
        length = f"{iterations} iterations" if stage.fraction == SHORT else "full"
        row = (f"{stage.number} {stage.name}", ", ".join(names), length, rule_text(stage.number))
        yield f"| {' | '.join(row)} |"


def rule_rows():
    for name, rule in CLASSIC_RULES.items():
        yield f"| {STAGE_OF.get(name, 4)} | {rule} |"


ADAPTIVE_RUNS = {
    1: "5 short: baseline twice, `screen_aux_6`, `screen_aux_4_8`, `screen_aux_3_6_9`",
    2: "7: baseline and four placements once, the two best again",
    3: "2 or 6 cells around weight 0.1, constant",
    4: "pairs, from 4 on a look after each",
}


def adaptive_rows():
    for stage in PLANS["adaptive"]:
        rule = adaptive.rule_text(stage.number, PROFILES["speedrun"].design)
        yield f"| {stage.number} {stage.name} | {ADAPTIVE_RUNS[stage.number]} | {rule} |"


def profile_rows():
    for p in PROFILES.values():
        tokens = p.full_iterations * p.batch_size * p.sequence_length
        run = (
            f"{p.n_layer} layers, width {p.model_dim}, {p.full_iterations} iterations"
            f" of {p.batch_size * p.sequence_length:,} tokens ({tokens / 1e6:,.1f}M)"
        )
        yield f"| `{p.name}` | {p.machine}, {p.budget_hours:g} h | {run} | `{p.data_dir}` |"


def test_the_stage_table_is_the_one_in_the_code():
    assert "\n".join(stage_rows()) in README


def test_the_rules_are_the_ones_in_the_code():
    assert "\n".join(rule_rows()) in README


def test_the_profiles_are_the_ones_in_the_code():
    assert "\n".join(profile_rows()) in README


def test_the_adaptive_rules_are_the_ones_in_the_code():
    assert "\n".join(adaptive_rows()) in README


def test_the_sample_sizes_are_those_of_the_plan_report():
    assert "\n".join(plan_report.sample_size_rows(PROFILES["speedrun"])) in README


def test_every_command_of_the_readme_is_understood():
    commands = re.findall(r"^python run_aux\.py ([^#\n]*)", README, re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        build_parser().parse_args(shlex.split(command))


def test_every_file_is_named_in_the_readme():
    root = Path(__file__).resolve().parents[1]
    for path in root.glob("*.py"):
        assert f"| `{path.name}` |" in README, path.name


def test_help_has_one_line_per_option():
    lines = build_parser().format_help().splitlines()
    options = [line for line in lines if line.startswith("  -")]
    assert all(re.match(r"  \S+(, \S+)?( [A-Z]+)? {2,}\S", line) for line in options)
    assert not [line for line in lines if line.startswith(" " * 20 + " ") and "[" not in line]
