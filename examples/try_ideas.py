"""Which of these ideas improve a trainer, each beside all that was kept before it?

    python examples/try_ideas.py IDEAS --hours 1

IDEAS is a folder of study files, each with one arm that differs by flags or env. What improves
joins the baseline of those after it. Every idea is a test, and every test can err: of 20 ideas
without any effect, each at level 0.05, one is found to improve or to harm by chance. So the level
is divided by the number of ideas (Bonferroni): that chance is then 0.05 for all of them together,
and an effect takes more runs to show. An idea that is added later, or tried again, is one more
test. Each idea has seeds of its own: what kept one never also tests the next.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path

LEVEL, IMPROVES = 0.05, 20  # of all ideas together; the exit code of an idea to keep
RUN_AUX = Path(__file__).resolve().parents[1] / "run_aux.py"
WORDS = ["--staged", "--plan", "adaptive", "--json", "--exit_verdict"]


def as_toml(value) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(k)} = {as_toml(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Try ideas, keep what improves.")
    parser.add_argument("ideas", type=Path)
    parser.add_argument("--hours", default="1", help="for each idea")
    parser.add_argument("--run_aux", type=Path, default=RUN_AUX)
    args = parser.parse_args()
    kept: dict[str, dict] = {"flags": {}, "env": {}}
    ideas = {p: tomllib.loads(p.read_text()) for p in sorted(args.ideas.glob("[!_]*.toml"))}
    for idea, study in ideas.items():
        arms = [*study.get("arms", {}).values()]
        if len(arms) != 1 or not arms[0].keys() <= kept.keys() or "refinements" in study:
            parser.error(f"{idea}: give one arm, of flags or env, without refinements")
    for number, (idea, study) in enumerate(ideas.items()):
        (arm,), base = study["arms"].values(), study.get("base", {})
        study["base"] = {**base, **{what: base.get(what, {}) | kept[what] for what in kept}}
        tried = idea.with_name(f"_{idea.name}")  # beside it: its paths are relative to the file
        tried.write_text("".join(f"{json.dumps(k)} = {as_toml(v)}\n" for k, v in study.items()))
        words = [sys.executable, args.run_aux, "--study", tried, "--max_budget_hours", args.hours]
        words += ["--alpha", f"{LEVEL / len(ideas):g}", "--first_seed", f"{10000 * number}", *WORDS]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
        if done.returncode == 4 or not 0 <= done.returncode < 128:
            sys.exit(f"{idea}: exit code {done.returncode}; a machine that is broken, or a stop")
        found = json.loads(done.stdout)
        print(f"{idea.stem}: {found['error'] or found['title']} ({found['folder']})", flush=True)
        if done.returncode == IMPROVES:
            kept = {what: kept[what] | arm.get(what, {}) for what in kept}
    print(f"Kept of {len(ideas)} ideas, at level {LEVEL:g} for all of them: {json.dumps(kept)}")


if __name__ == "__main__":
    main()
