"""README.md, docs/ and the code say the same."""

import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import analyze_aux
import staged_analysis_helper
from ablation.execute import sitting
from ablation.execute.command import build_command
from ablation.plan import power
from ablation.plan.classic import CLASSIC_RULES, N_PAIRS
from ablation.plan.forecast import forecast, of_stage
from ablation.plan.next_step import MAX_ATTEMPTS, PLANS
from ablation.runs.log import SUMMARY_FIELDS
from ablation.runs.run import RunConfig
from ablation.study.asked import TERMS_ASKED
from ablation.study.experiment import STOP_ON
from ablation.study.heads import HEADS
from ablation.study.profiles import PROFILES, TERMS, default_profile
from ablation.study.study import SHORT
from run_aux import build_parser
from tests.support.invent import ARMS, code_at, settings_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README, ALL = PAGES["README.md"], "\n".join(PAGES.values())
STAGE_OF = {"gate": 1, "choice": 2}


def stage_rows():
    full = PROFILES["speedrun"].full_iterations
    for stage in PLANS["classic"](HEADS):
        names = [f"`{arm.name}`" for arm in stage.arms]
        iterations = round(full * stage.fraction)
        length = f"{iterations} iterations" if stage.fraction == SHORT else "full"
        row = (f"{stage.number} {stage.name}", ", ".join(names), length, stage.rule)
        yield f"| {' | '.join(row)} |"


def rule_rows():
    for name, rule in CLASSIC_RULES.items():
        yield f"| {STAGE_OF.get(name, 4)} | {rule} |"


def adaptive_runs():
    """What the table says of each stage's runs, counted in what the plan asks for."""
    e = power.as_meant(PROFILES["speedrun"])
    words = ("no", "one", "two", "three", "four", "five")
    planned = forecast(replace(e, screen=True))[0]
    screening, layers, cells = ([p.run for p in of_stage(planned, k)] for k in (1, 2, 3))
    names = [run.arm.name for run in screening if not run.arm.is_baseline]
    arms = [f"`{name}`" for name in dict.fromkeys(names)]
    again = sum(run.index > 0 for run in layers)
    weight, schedule = settings_of(HEADS.cells[0])
    return {
        1: f"none; with `--screen` {len(screening)} short: baseline twice, {', '.join(arms)}",
        2: f"{len(layers)}: {words[len(layers) - again]} placements once, the {words[again]} best"
        " again on a second seed",
        3: f"{len(cells)}, on stage 2's first seed: cells around weight {weight:g}, {schedule}",
        4: f"pairs, from {e.profile.design.first_look} on a look after each",
    }


def adaptive_rows():
    for stage in PLANS["adaptive"](HEADS):
        rule = stage.rule_text(PROFILES["speedrun"].design)
        yield f"| {stage.number} {stage.name} | {adaptive_runs()[stage.number]} | {rule} |"


def term_rows():
    for name, (plans, about) in TERMS_ASKED.items():
        fit = TERMS[name][1].removeprefix("give ")
        yield f"| `--{name}` | {about} | {fit} | {' and '.join(plans)} |"


def profile_rows():
    for p in PROFILES.values():
        scale = p.own_scale
        a_step = scale.batch_size * scale.sequence_length
        tokens = p.full_iterations * a_step
        run = (
            f"{scale.n_layer} layers, width {scale.model_dim}, {p.full_iterations} iterations"
            f" of {a_step:,} tokens ({tokens / 1e6:,.1f}M)"
        )
        yield f"| `{p.name}` | {p.machine}, {p.budget_hours:g} h | {run} | `{p.data_dir}` |"


def test_the_stage_table_is_the_one_in_the_code():
    assert "\n".join(stage_rows()) in ALL


def test_the_rules_are_the_ones_in_the_code():
    assert "\n".join(rule_rows()) in ALL


def test_the_profiles_are_the_ones_in_the_code():
    assert "\n".join(profile_rows()) in ALL


def test_the_adaptive_rules_are_the_ones_in_the_code():
    assert "\n".join(adaptive_rows()) in ALL


def test_numbers_in_the_text_are_those_of_the_code():
    speedrun = power.as_meant(PROFILES["speedrun"], "classic")
    everything = forecast(replace(speedrun, budget_hours=1e6))[0]
    full = sum(p.run.num_iterations for p in everything) / speedrun.full_iterations
    assert f"The classic plan asks for {full:.1f} full runs" in ALL
    p = speedrun.profile.own_scale
    tokens = speedrun.full_iterations * p.batch_size * p.sequence_length
    assert f"fineweb --shards {math.ceil(tokens / 100_000_000)}`" in ALL
    assert f"in {N_PAIRS} interleaved pairs (`run_0` … `run_{N_PAIRS - 1}`" in ALL
    assert f"tried up to {('no', 'one', 'two', 'three')[MAX_ATTEMPTS]} times" in ALL


def test_numbers_of_the_pages_are_those_of_the_code():
    design, words = PROFILES["speedrun"].design, ("two", "three", "four")
    level = f"(two-sided {design.alpha:g}, power {power.TABLE_POWER:g}, sd {design.sigma0:g}"
    assert level in PAGES["docs/plans.md"]
    assumed = " | ".join(power.last_tests(power.as_meant(PROFILES["speedrun"])))
    assert f"| effect, nats/token | runs of a seed {assumed} |" in PAGES["docs/plans.md"]
    nine, three = {9: "Nine"}[sitting.FAULT_ATTEMPTS], words[sitting.FAULT_RUNS - 2]
    assert f"{nine} attempts at {three} or more runs" in PAGES["docs/promises.md"]
    few, many = (
        [n for n in range(1, 9) if default_profile(n)[0] == name] for name in ("small", "speedrun")
    )
    assert f"{many[0]} or more, {few[0]} to {few[-1]}, none." in README
    p = PROFILES["speedrun"].own_scale
    of_a_head = 6 * p.vocab_size * p.model_dim * p.batch_size * p.sequence_length
    assert f"{of_a_head / p.flops_per_step:.0%}".replace("%", " %") in PAGES["docs/trainers.md"]
    assert f"is 1/{1 / p.aux_token_fraction:g}, because" in PAGES["docs/trainers.md"]


def test_every_argument_and_every_number_of_the_trainer_is_in_the_contract():
    page = PAGES["docs/trainers.md"]
    e = replace(power.as_meant(PROFILES["speedrun"]), unet_skips=True, log_grad_norms=True)
    words = build_command(
        e, RunConfig(1, ARMS["aux_4_8"], 0, 42, 10), code_at("t.py"), Path("d"), Path("l")
    )
    arguments = [word for word in words[words.index("t.py") :] if word.startswith("--")]
    assert not [name for name in arguments if f"`{name}`" not in page]
    assert set(re.findall(r"`(--\w+)`", page.split("## What heads")[0])) - {"--train_script"} == {
        *arguments
    }
    summary = re.search(r"^summary: .*$", page, re.MULTILINE)[0]
    assert re.findall(r'"(\w+)":', summary) == [field.name for field in SUMMARY_FIELDS]


def test_what_heads_cost_is_what_was_measured():
    """The page rounds what benchmarks/RESULTS.md has of aux_4_8 without options."""
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    row = r"^\| `aux_4_8` \| ([\d.]+) \| - \| [\d.]+ \| ([\d.]+) \([^)]*\) \| ([\d.]+) "
    measured = [tuple(map(float, found)) for found in re.findall(row, results, re.MULTILINE)]
    cells_of = re.compile(r"^\| (?:`mini`|width).*?((?: \| [\d.]+){4}) \|$", re.MULTILINE)
    told = cells_of.findall(PAGES["docs/trainers.md"])
    assert len(told) == 2 and [fraction for fraction, *_ in measured] == [0.125, 1.0] * 2
    for cells, (some, every) in zip(told, (measured[:2], measured[2:]), strict=True):
        assert cells.split(" | ")[1:] == [f"{value:.2f}" for value in (*some[1:], *every[1:])]


def test_the_sample_sizes_are_those_of_the_plan_report():
    assert "\n".join(power.sample_size_rows(PROFILES["speedrun"])) in ALL


def test_the_terms_and_stops_are_those_of_the_command_line():
    assert "\n".join(term_rows()) in ALL
    assert {"any", *re.findall(r"`--stop_on (\w+)`", ALL)} == STOP_ON.keys()


def test_every_command_of_the_pages_is_understood(monkeypatch):
    commands = re.findall(r"^python (\S+\.py) ?([^#\n]*)", ALL, re.MULTILINE)
    assert len(commands) >= 20
    main_of = {
        "analyze_aux.py": (analyze_aux.main, analyze_aux.Parser),
        "staged_analysis_helper.py": (
            staged_analysis_helper.main,
            staged_analysis_helper.Parser,
        ),
    }
    for program, arguments in commands:
        if program == "run_aux.py":
            build_parser().parse_args(shlex.split(arguments))
            continue
        main, parser = main_of[program]
        with monkeypatch.context() as patch, pytest.raises(Understood):
            patch.setattr(parser, "parse_args", understood(parser.parse_args))
            main(shlex.split(arguments))


class Understood(Exception):
    """A program's own parser took its command line; nothing more is done."""


def understood(parse_args):
    def parse(parser, argv):
        parse_args(parser, argv)
        raise Understood

    return parse


def test_the_readme_is_read_in_ten_minutes():
    assert len(README.splitlines()) <= 200


def test_every_link_leads_to_a_file():
    assert {name for name in PAGES if name != "README.md"} <= set(links("README.md"))
    for page in PAGES:
        for target in links(page):
            assert (ROOT / target).exists(), f"{page}: {target}"


def links(page: str) -> list[str]:
    """The files that a page links to, seen from the root."""
    targets = re.findall(r"\]\(([^)#:]+)[^)]*\)", PAGES[page])
    return [((ROOT / page).parent / t).resolve().relative_to(ROOT).as_posix() for t in targets]


def test_the_answer_shown_is_one_that_the_report_gives():
    golden = (ROOT / "tests" / "golden" / "adaptive.answer.txt").read_text()
    assert golden.split("\n  FOLDER")[0].strip() in ALL


def test_every_file_is_named_in_the_row_of_its_room():
    root = Path(__file__).resolve().parents[1]
    rows = dict(re.findall(r"^\| `(\w+)/` \| (.*) \|$", README, re.MULTILINE))
    rooms = {path.parent.name for path in (root / "ablation").rglob("*/*.py")}
    assert rows.keys() == rooms
    for room, row in rows.items():
        for path in (root / "ablation" / room).glob("[a-z]*.py"):
            assert f"`{path.name}`" in row, path
    for path in root.glob("*.py"):
        assert f"`{path.name}`" in README, path


def test_help_has_one_line_per_option():
    lines = build_parser().format_help().splitlines()
    options = [line for line in lines if line.startswith("  -")]
    assert all(re.match(r"  \S+(, \S+)?( [A-Z]+)? {2,}\S", line) for line in options)
    assert not [line for line in lines if line.startswith(" " * 20 + " ") and "[" not in line]
