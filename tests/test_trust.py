"""Code of one's own runs only when the person agrees to it by name."""

import io

import pytest

from llmlab.cli.options import trust_rewards
from llmlab.config.rewards import RewardSource
from llmlab.errors import LabError
from llmlab.training.rewards import refuse_untrusted


class Typed(io.StringIO):
    """A terminal at which somebody typed."""

    def isatty(self):
        return True


@pytest.mark.parametrize("typed, agreed", [("mine:a\nmine:b\n", True), ("mine:a\nyes\n", False)])
def test_each_reward_of_ones_own_is_agreed_to_by_its_name(monkeypatch, capsys, typed, agreed):
    trusted = set()
    monkeypatch.setattr("llmlab.trust.TRUSTED", trusted)
    monkeypatch.setattr("llmlab.training.rewards.TRUSTED", trusted)
    monkeypatch.setattr("sys.stdin", Typed(typed))
    rewards = [RewardSource(name=name) for name in ("mine:a", "exact_match", "mine:b")]
    if agreed:
        trust_rewards(rewards)
        assert trusted == {"mine:a", "mine:b"}
    else:
        with pytest.raises(LabError, match=r"mine:b.* runs only if you trust it by name"):
            trust_rewards(rewards)
    asked = capsys.readouterr()
    assert asked.out == "" and asked.err.count("Type its name to agree") == 2


def test_where_nobody_can_be_asked_nobody_is(monkeypatch, capsys):
    """The run refuses it instead, with what to add."""
    trust_rewards([RewardSource(name="mine:a")])
    monkeypatch.setattr("sys.stdin", Typed("mine:a\n"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    trust_rewards([RewardSource(name="mine:a")])
    assert capsys.readouterr().err == ""
    with pytest.raises(LabError, match="add --trust mine:a"):
        refuse_untrusted([RewardSource(name="mine:a")])
