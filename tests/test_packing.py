"""Runs side by side never share a GPU or a folder; each torchrun finds a port of its own."""

import random
from pathlib import Path

import pytest

from ablation.execute.command import build_command, extra_environment
from ablation.execute.launcher import Command
from ablation.execute.orchestrator import Limits, Orchestrator
from ablation.runs.outcome import Exit
from ablation.runs.run import RunConfig
from tests.support.invent import arm, code_at, experiment


class PretendedRun:
    """Ends when the test says so."""

    started, clock, nodes, age_s, exit = True, "pretended", 1, 0.0, None

    def __init__(self, command):
        self.command = command

    def poll(self):
        return self.exit

    def stop(self, why):
        self.exit = Exit(0, why, "c", 0.0, 1.0)


class PretendedLauncher:
    def start(self, command):
        return PretendedRun(command)

    def wait(self, runs, timeout_s):
        pass


@pytest.mark.parametrize(("gpus", "each"), [(8, 1), (8, 2), (8, 3), (16, 4)])
def test_over_a_thousand_starts_nothing_is_shared(tmp_path, monkeypatch, gpus, each):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    rng = random.Random(gpus * 100 + each)
    e = experiment(device="cuda", processes=each, parallel_runs=gpus // each)

    def command_of(run, folder, slot):
        words = build_command(e, run, code_at("t.py"), Path("d"), folder)
        assert "--standalone" in words
        return Command(words, extra_environment(e, tmp_path, slot), folder)

    parallel_runs = e.share.parallel_runs
    orchestrator = Orchestrator(tmp_path, "id", PretendedLauncher(), command_of, {}, parallel_runs)
    started = 0
    while started < 250:
        while orchestrator.free_slot() is not None:
            run = RunConfig(0, arm("aux_6", 6), rng.randrange(40), 1, 10)
            if run.name in orchestrator.flights:
                continue
            assert orchestrator.launch(run, Limits(9, "timeout", 9)) == []
            started += 1
        commands = [flight.handle.command for flight in orchestrator.flights.values()]
        gpus_of = [command.env["CUDA_VISIBLE_DEVICES"].split(",") for command in commands]
        used = [gpu for mine in gpus_of for gpu in mine]
        assert len(used) == len(set(used)) == each * parallel_runs
        assert len({command.folder for command in commands}) == len(commands)
        flights = list(orchestrator.flights.values())
        for flight in rng.sample(flights, rng.randint(1, parallel_runs)):
            flight.handle.stop("ended")
        orchestrator.wait(0)
    orchestrator.stop("the test is over")
    assert len(list(tmp_path.rglob("result.json"))) == started
