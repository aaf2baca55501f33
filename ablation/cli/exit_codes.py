"""What does a sitting's exit code say?  For scripts and queues; the README has the same table."""

DONE = 0
REFUSED = 1
USAGE = 2
RUNS_FAILED = 3
FAULT = 4
BUDGET_SPENT = 5
IMPROVES, NO_EFFECT, HARMFUL, UNDECIDED = 20, 21, 22, 23  # --exit_verdict
STOPPED = 128  # plus the number of the signal: 130 for Ctrl-C, 143 for SIGTERM

MEANING = {
    DONE: "what was asked for was done; a STOP by a rule, or a null result, is an answer too",
    REFUSED: "nothing was started: one line says what is wrong and what to do",
    USAGE: "the command line cannot be meant",
    RUNS_FAILED: "runs failed for good, or none has an outcome",
    FAULT: "the machine seems broken, or the trainer refuses or cannot be trusted",
    BUDGET_SPENT: "the budget was spent before a verdict",
    IMPROVES: "with `--exit_verdict`: improves",
    NO_EFFECT: "with `--exit_verdict`: no meaningful effect",
    HARMFUL: "with `--exit_verdict`: harmful",
    UNDECIDED: "with `--exit_verdict`: inconclusive",
    STOPPED: "n is the signal's number: stopped by the operator (130: Ctrl-C)",
}
