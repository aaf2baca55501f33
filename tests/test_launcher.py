"""What the orchestrator asks of a launcher: both kinds keep the contract."""

import inspect

import pytest

from ablation.execute import closing, local, slurm
from ablation.execute.launcher import Handle, Launcher, Pricing

KEEPERS = [
    (Launcher, local.LocalLauncher),
    (Launcher, slurm.SlurmLauncher),
    (Handle, local.LocalHandle),
    (Handle, slurm.SlurmHandle),
    *((Pricing, module) for module in closing.PRICING.values()),
]


def public(kind) -> set[str]:
    return {name for name in {*vars(kind), *inspect.get_annotations(kind)} if name[0] != "_"}


@pytest.mark.parametrize(
    ("contract", "keeper"), KEEPERS, ids=[f"{c.__name__}-{k.__name__}" for c, k in KEEPERS]
)
def test_each_launcher_keeps_the_contract(contract, keeper):
    assert public(contract) <= public(keeper)
    for name, asked in vars(contract).items():
        if inspect.isfunction(asked) and name in public(contract):
            words = [word for word in inspect.signature(asked).parameters if word != "self"]
            kept = inspect.signature(getattr(keeper, name)).parameters
            assert [word for word in kept if word != "self"] == words, name


def test_what_an_attempt_costs_is_asked_by_the_launcher_s_registered_name():
    for name, module in (("local", local), ("slurm", slurm)):
        assert closing.pricing_of({"machine": {"launcher": name}}) is module
    assert closing.pricing_of({}) is local  # a record of before there were others
    with pytest.raises(KeyError):
        closing.pricing_of({"machine": {"launcher": "another"}})
