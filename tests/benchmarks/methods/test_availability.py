import pytest
import torch
from torch import Tensor, nn

from benchmarks.methods import Explainer, MethodUnavailableError, Query, Subject
from benchmarks.methods.availability import TRIAL_BUDGET, TRIAL_SIDES, trial_query, tried
from benchmarks.methods.match import Match


class Pooled(nn.Module):
    def __init__(self, only_side: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.only_side = only_side

    def forward(self, image: Tensor) -> Tensor:
        if self.only_side not in (None, image.shape[2]):
            raise RuntimeError("another size")
        return self.conv(image).mean((2, 3))


def subject_of(network: Pooled, budget: int = 200) -> Subject:
    return Subject(Match(network), network.conv, budget=budget)


def constant(value: float, channels: int = 1) -> Explainer:
    return lambda query: torch.full((1, channels, 2, 2), value)


def test_the_trial_has_references_and_foils() -> None:
    subject = subject_of(Pooled())
    query = trial_query(subject)
    assert query is not None
    assert query.image.shape == (1, 3, TRIAL_SIDES[0], TRIAL_SIDES[0])
    assert [len(one[0]) for one in query.references] == [2, 2]
    assert subject.forward(query.image, *query.references).abs() > 0


def test_the_trial_takes_the_size_that_the_network_takes() -> None:
    query = trial_query(subject_of(Pooled(only_side=TRIAL_SIDES[1])))
    assert query is not None
    assert query.image.shape[2] == TRIAL_SIDES[1]


def test_a_network_of_another_size_is_not_tried() -> None:
    subject = subject_of(Pooled(only_side=33))
    assert trial_query(subject) is None
    explain = tried(lambda _: constant(torch.nan))(subject)
    assert torch.isnan(explain(Query(torch.zeros(1, 3, 33, 33)))).all()


def test_the_trial_leaves_the_generator_alone() -> None:
    subject = subject_of(Pooled())
    before = torch.get_rng_state()
    trial_query(subject)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_trial_is_cheap_and_the_method_is_not() -> None:
    budgets: list[int] = []

    def build(subject: Subject) -> Explainer:
        budgets.append(subject.budget)
        return constant(1.0)

    tried(build)(subject_of(Pooled()))
    assert budgets == [TRIAL_BUDGET, 200]
    tried(build)(subject_of(Pooled(), budget=3))
    assert budgets[2:] == [3, 3]


def test_what_a_method_raises_is_the_reason() -> None:
    def fail(query: Query) -> Tensor:
        raise AssertionError("no rule\n   for this module")

    def fail_to_build(subject: Subject) -> Explainer:
        raise KeyError("layer")

    subject = subject_of(Pooled())
    with pytest.raises(MethodUnavailableError, match=r"^AssertionError: no rule for this module$"):
        tried(lambda _: fail)(subject)
    with pytest.raises(MethodUnavailableError, match=r"^KeyError: 'layer'$"):
        tried(fail_to_build)(subject)


def test_a_map_that_is_none_is_refused() -> None:
    subject = subject_of(Pooled())
    with pytest.raises(MethodUnavailableError, match="NaN or infinite"):
        tried(lambda _: constant(torch.nan))(subject)
    with pytest.raises(MethodUnavailableError, match=r"gives shape \(2, 4, 2, 2\)"):
        tried(lambda _: lambda query: torch.ones(2, 4, 2, 2))(subject)
