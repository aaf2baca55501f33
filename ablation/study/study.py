"""What is asked, of which arms, with which trainer?  A study: the built-in one, or a TOML file's.

A study is a value. One is built in, `study_file` reads any other; plans, commands, texts and
figures speak of its arms, refinements and words, and of nothing that one study has alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import product

from ablation.runs.formats import FORMATS, Reading, own_format
from ablation.runs.run import Arm, RunResult
from ablation.runs.untrusted import printable
from ablation.study.profiles import Design

BASELINE = "baseline"  # the name of the arm without any difference, unless a stage has its own
SHORT = 1000 / 5100  # of a full run: a complete short training, cooldown included

LAUNCHES = {  # key: how the trainer's command is started
    "torchrun": "torchrun with one process a GPU, or one process on a CPU",
    "plain": "this Python, one process",
    "command": "as it stands",
}
FLAG_FORMS = ("--name value", "--name=value", "name=value")  # how the trainer takes its flags
BETTER = ("lower", "higher")
LENGTHS = {"steps": "{num_iterations}", "time": "{seconds}"}  # what ends a run: how it is told


@dataclass(frozen=True)
class Metric:
    """What is compared. In records and comparisons it is a loss, and lower is better: where higher
    is, its sign is turned when a log is read, and turned back when a person reads it."""

    name: str = "val_loss"  # as the log prints it after the last step
    unit: str = "nats/token"
    better: str = "lower"  # or "higher"

    @property
    def sign(self) -> int:
        return -1 if self.better == "higher" else 1

    @property
    def best(self) -> str:
        """What the best mean is, as the log has it."""
        return "highest" if self.sign < 0 else "lowest"

    @property
    def words(self) -> str:
        return self.name.replace("_", " ")

    @property
    def noun(self) -> str:
        """One word for it."""
        return "loss" if self.name == "val_loss" else self.words

    @property
    def difference(self) -> str:
        """Of two means, so that positive is good."""
        sides = ("mean(baseline)", "mean(arm)")
        return " - ".join(sides if self.sign > 0 else reversed(sides))

    def text(self, loss: float, digits: int = 4) -> str:
        """A loss as the trainer's log has it."""
        return f"{self.sign * loss:.{digits}f}"

    def outcome(self, r: RunResult) -> str:
        """What became of an attempt, for a person."""
        return r.in_words(self.words, self.sign)

    def amount(self, number: str) -> str:
        """A difference with its unit, where it has one."""
        return f"{number} {self.unit}" if self.unit else number

    def delta(self, improvement: float) -> str:
        """An improvement, with its unit; positive is good."""
        return self.amount(f"{improvement:+.4f}")


@dataclass(frozen=True)
class Trainer:
    """How a trainer is started, told its seed and length, and read."""

    command: tuple[str, ...] = ("train_gpt.py",)  # a script, or python -m MODULE, and what follows
    folder: str = ""  # that relative paths start from; empty: the checkout of this project
    launch: str = "torchrun"  # a key of LAUNCHES
    flag_form: str = FLAG_FORMS[0]
    log: str | tuple[tuple[str, str | int], ...] = (
        "ours"  # a row of the log formats, or the study's own
    )
    metric: Metric = Metric()
    length: str = "steps"  # a key of LENGTHS
    seed: str = "told"  # or "none": the trainer has none, so repeats are independent
    full_iterations: int = 0  # of a full run; with length "time", seconds. 0: the profile's
    expected_hours: float = 0.0  # of a full run on the whole machine; 0: by the profile's costs
    budget_hours: float = 0.0  # unless the command line gives another; 0: the profile's
    companions: tuple[str, ...] = ()  # files that run with it, beside those found by imports
    data: tuple[str, ...] = ()  # folders or files; fingerprinted, linked into a run's folder
    profile: str = ""  # of this project's own trainer: "by machine", or a name; empty: another's

    @property
    def is_ours(self) -> bool:
        """Whether it takes the flags of a profile."""
        return bool(self.profile)

    @property
    def by_time(self) -> bool:
        return self.length == "time"

    @cached_property
    def reading(self) -> Reading:
        """How its logs are read."""
        log, name = self.log, self.metric.name
        form = FORMATS[log] if isinstance(log, str) else own_format(dict(log), name)
        return Reading(form, name, self.metric.better, not self.by_time)

    @property
    def counted(self) -> str:
        """What the length of a run is counted in."""
        return "s of training" if self.by_time else "steps"


@dataclass(frozen=True)
class Words:
    """How a study's arms are spoken of; everything has a word that fits any study."""

    title: str = ""  # Staged ablation of ...; empty: the study's name
    idea: str = "these changes"  # nothing is concluded about ...
    short: str = "these changes"  # ... show promise, help, make the final loss worse
    baseline: str = "nothing is changed"
    arm: str = "arm"  # does any ... help at once?
    an_arm: str = "an arm"
    best: str = "Best arm's"  # ... loss
    choice: str = "arm"  # that stage 2 chooses: the best ...
    it: str = "it"  # the same as a pronoun: Single runs chose ...
    compared: str = "arms"  # the name of stage 2
    which: str = "which arm?"  # its question
    refinement: str = "refinement"  # that stage 3 chooses
    refined: str = "refinements"  # the name of stage 3
    which_refinement: str = "which refinement?"  # its question
    default: str = "without a refinement"  # the choice of stage 2 as it is, in stage 3
    costs: str = "arms may cost both"


NOTHING = Arm(BASELINE)


@dataclass(frozen=True)
class Phase:
    """Arms to run by hand, outside the stages."""

    name: str
    arms: tuple[Arm, ...]
    fraction: float = 1.0  # of a full run


@dataclass(frozen=True)
class Study:
    """The question, its baseline, arms and refinements, its trainer and its words.

    Flags and variables of an arm are laid over those of the base, a refinement's over the arm's.
    """

    name: str  # of its experiments' folders
    question: str
    hypothesis: str = ""
    trainer: Trainer = Trainer()
    base: Arm = NOTHING  # what every run is told, the baseline too
    arms: tuple[Arm, ...] = ()
    refinements: tuple[Arm, ...] = ()  # of stage 3; each as what it changes of the arm chosen
    cells: tuple[Arm, ...] = ()  # the same of the adaptive plan, the default first; else those
    screening: tuple[Arm, ...] = ()  # of stage 1; else the arms
    repeated: str = ""  # the arm that the classic plan runs twice in stage 2; else the first
    favourite: str = ""  # the arm that a forecast takes to win; else the first
    grid: tuple[tuple[str, tuple], ...] = ()  # flag, values: what the refinements are drawn from
    words: Words = Words()
    names: tuple[tuple[str, str], ...] = ()  # flag: what it is called
    noise: Design | None = None  # of the final metric; None: the profile's, or to be measured
    phases: tuple[Phase, ...] = field(default=(), compare=False)  # by hand; not registered

    @property
    def metric(self) -> Metric:
        return self.trainer.metric

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.question, self.base, self.arms, self.refinements))

    def baseline(self, name: str = BASELINE) -> Arm:
        return Arm(name, description=self.words.baseline)

    @cached_property
    def screened(self) -> tuple[Arm, ...]:
        """The arms of stage 1, the baseline first."""
        arms = self.screening or self.arms
        screened = (replace(arm, name=f"screen_{arm.name}") for arm in arms)
        return self.baseline(f"screen_{BASELINE}"), *screened

    @cached_property
    def repeat(self) -> Arm:
        """An arm once more, on another seed: how much runs differ."""
        arm = self.arm(self.repeated) if self.repeated else self.arms[0]
        about = f"same arm as {arm.name}, new seed: run-to-run variance"
        return replace(arm, name=f"{arm.name}_repeat", description=about)

    @property
    def expected_best(self) -> Arm:
        """The arm that a forecast takes to win."""
        return self.arm(self.favourite) if self.favourite else self.arms[0]

    def favourite_in_words(self, best: Arm) -> str:
        """The arm that a forecast takes to win, and that no refinement does."""
        chosen = self.settings(best, self.arms)
        spoken = chosen.startswith(f"{self.words.choice} ")
        return f"the {chosen} and the defaults" if spoken else best.name

    def arm(self, name: str) -> Arm:
        """Raises KeyError for a name that no arm has."""
        return {arm.name: arm for arm in self.arms}[name]

    @cached_property
    def compared_cells(self) -> tuple[Arm, ...]:
        """What the adaptive plan compares in stage 3, as changes of the arm chosen; the default
        first."""
        default = Arm("unrefined", description=self.words.default)
        return self.cells or (default, *self.refinements)

    def described(self, arm: Arm, called: str = "") -> Arm:
        """The arm with what differs in words: by its name, unless all that differs has one."""
        label, names = self.label(arm), dict(self.names)
        if arm.env or arm.trainer or any(flag not in names for flag, _ in arm.flags):
            label = f"{called or arm.name} ({label})"
        return replace(arm, label=label)

    def refined(self, arm: Arm, refinement: Arm, name: str = "") -> Arm:
        """An arm with a refinement laid over it, under the refinement's name or another."""
        whole = overlaid(arm, refinement)
        whole = replace(
            whole,
            name=name or refinement.name,
            description=refinement.description or arm.description,
        )
        of = arm.label.partition(" (")[0]  # the arm's name, or its words
        called = f"{of} + {refinement.name}" if refinement.configuration else of
        return self.described(whole, called)

    def refined_arms(self, arm: Arm) -> tuple[Arm, ...]:
        """Every refinement, laid over this arm."""
        return tuple(self.refined(arm, refinement) for refinement in self.refinements)

    # -- in words

    def label(self, arm: Arm) -> str:
        """What differs from the baseline, in one line."""
        names = dict(self.names)
        words = [setting(names.get(flag), flag, value) for flag, value in arm.flags]
        words += [f"{name}={value}" for name, value in arm.env]
        words += [arm.script] if arm.script else []
        words += [f"{r.file}: {printable(r.new, limit=60)}" for r in arm.replacements]
        words += [f"revision {arm.revision}"] if arm.revision else []
        return ", ".join(words) or BASELINE

    def settings(self, arm: Arm, like: tuple[Arm, ...]) -> str:
        """The named flags of an arm in which these arms differ, or else its name: what a choice
        among them chose."""
        names, mine = dict(self.names), dict(arm.flags)
        varied = [f for f in mine if len({dict(a.flags).get(f) for a in like}) > 1]
        unnamed = any(flag not in names for flag in varied) or arm.env or arm.trainer
        if unnamed or not varied:
            return arm.name
        return ", ".join(f"{names[flag]} {text_of(mine[flag])}" for flag in varied)

    def chosen(self, arm: Arm, among: tuple[Arm, ...]) -> str:
        """What a choice among arms chose, at the beginning of a sentence; a name stays as it is."""
        words = self.settings(arm, among)
        return words if words == arm.name else words[:1].upper() + words[1:]

    # -- what a verdict is one of

    @cached_property
    def factors(self) -> tuple[tuple[Arm, ...], ...]:
        """The arms; and what may be laid over each, by what is varied at once."""
        if not self.grid:
            return (self.arms, (Arm("unrefined"), *self.refinements))
        grid = [tuple(Arm("of_grid", ((flag, v),)) for v in values) for flag, values in self.grid]
        return (self.arms, *grid)

    @cached_property
    def configurations(self) -> tuple[tuple, ...]:
        """Every configuration that the plans could have compared, in the order of the factors."""
        whole = (reduce(overlaid, levels) for levels in product(*self.factors))
        return tuple(arm.configuration for arm in whole)

    # -- by hand

    @cached_property
    def by_hand(self) -> dict[str, Arm]:
        """Every arm that may be asked for by hand, by its name."""
        return {arm.name: arm for phase in self.phases for arm in phase.arms}

    def fraction_of(self, arm: Arm) -> float:
        """How long an arm runs by hand, as a share of a full run."""
        return next((phase.fraction for phase in self.phases if arm in phase.arms), 1.0)


def overlaid(arm: Arm, change: Arm) -> Arm:
    """An arm with what a change says in place of, or beside, what it says; under its own name."""
    return replace(
        arm,
        flags=merged(arm.flags, change.flags),
        env=merged(arm.env, change.env),
        script=change.script or arm.script,
        replacements=(*arm.replacements, *change.replacements),
        revision=change.revision or arm.revision,
        slower=arm.slower + change.slower,
    )


def merged(under: tuple, over: tuple) -> tuple:
    """Pairs of name and value; a name keeps its place and takes the later value."""
    return tuple((dict(under) | dict(over)).items())


def setting(called: str | None, flag: str, value) -> str:
    """A flag's value in words. A word as the value of a flag that has a name speaks for itself."""
    text = text_of(value)
    if value is True:
        return called or flag
    if called is not None and text.replace("_", "a").isalpha():
        return text
    return f"{called or flag} {text}"


def text_of(value) -> str:
    """A value as it stands on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    values = getattr(value, "values", value)
    return ",".join(map(text_of, values)) if isinstance(values, tuple) else str(values)


def placed(text: str, values: Mapping[str, object]) -> str:
    """A text with {num_iterations} and the like filled in; other braces stay as they are."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text
