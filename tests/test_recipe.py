import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telescopic.data import Augment, Preprocess
from telescopic.train import Recipe, pairwise

FULL = Recipe(
    epochs=7,
    batch_size=3,
    learning_rate=0.25,
    milestones=(2, 5),
    gamma=0.5,
    momentum=0.8,
    nesterov=True,
    l2=1e-3,
    weight_decay=1e-4,
    warmup=0.5,
    weights=(1.0, 2.0),
    drawn=3,
    mix=pairwise(2),
    distillation=0.25,
    temperature=3.0,
    label_smoothing=0.1,
    preprocess=Preprocess((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    augment=Augment(pad=4, flip=True),
)


def test_the_rate_drops_after_each_milestone() -> None:
    rates = [FULL.rate(epoch) for epoch in range(1, 8)]
    assert rates == [0.25, 0.25, 0.125, 0.125, 0.125, 0.0625, 0.0625]
    assert Recipe(epochs=1, learning_rate=0.7).rate(1000) == 0.7


def test_one_cycle_rises_and_falls_in_straight_lines() -> None:
    recipe = Recipe(epochs=10, learning_rate=0.8, schedule="one-cycle", warmup=2)
    rates = {(1, 0.0): 0.0, (1, 0.5): 0.2, (2, 0.5): 0.6, (3, 0.0): 0.8, (7, 0.0): 0.4, (10, 0.5): 0.05, (10, 1.0): 0.0}
    assert {at: recipe.rate(*at) for at in rates} == pytest.approx(rates)
    assert recipe.rate(4) == recipe.rate(4, 0.5), "an epoch's rate is the one in its middle"
    falling = Recipe(epochs=4, learning_rate=1.0, schedule="one-cycle")
    assert [falling.rate(epoch, 0.0) for epoch in (1, 2, 3, 4)] == [1.0, 0.75, 0.5, 0.25]
    assert falling.rate(6) == 0.0, "a run that goes on has nothing left to learn with"


def test_steps_may_have_a_warm_up() -> None:
    recipe = Recipe(epochs=5, learning_rate=1.0, warmup=1.5, milestones=(1, 3))
    rates = [recipe.rate(1, 0.0), recipe.rate(1, 0.75), recipe.rate(2, 0.0), recipe.rate(3), recipe.rate(4)]
    assert rates == pytest.approx([0.0, 0.5, 0.1 / 1.5, 0.1, 0.01])


def test_a_recipe_survives_json() -> None:
    again = Recipe.from_dict(json.loads(json.dumps(FULL.to_dict())))
    assert again == FULL
    assert hash(again) == hash(FULL), "lists must have become tuples again, to the last level"
    assert Recipe.from_dict({"epochs": 2}) == Recipe(epochs=2), "what is not given has its default"


@given(
    st.builds(
        Recipe,
        epochs=st.integers(1, 1000),
        batch_size=st.integers(1, 1000),
        learning_rate=st.floats(1e-6, 10),
        milestones=st.lists(st.integers(1, 99), max_size=3).map(tuple),
        l2=st.floats(0, 1),
        weights=st.none() | st.lists(st.floats(0, 9), min_size=1, max_size=4).map(tuple),
        drawn=st.none() | st.integers(0, 9),
        mix=st.none() | st.integers(1, 4).map(pairwise),
        augment=st.builds(Augment, pad=st.integers(0, 8), flip=st.booleans()),
    )
)
def test_any_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs of a recipe is 1 or more, not 0"),
        ({"batch_size": 0}, "batch_size of a recipe is 1 or more, not 0"),
        ({"l2": -1e-9}, "l2 of a recipe is 0 or more, not -1e-09"),
        ({"momentum": -0.1}, "momentum of a recipe is 0 or more"),
        ({"learning_rate": 0.0}, r"learning_rate of a recipe is above 0, not 0\.0"),
        ({"learning_rate": float("nan")}, "learning_rate of a recipe is above 0, not nan"),
        ({"weight_decay": -0.1}, "weight_decay of a recipe is 0 or more"),
        ({"warmup": 1}, "warmup lies in 0 to the number of epochs, 1, not 1"),
        ({"warmup": -0.5}, r"warmup lies in 0 to the number of epochs, 1, not -0\.5"),
        ({"schedule": "cosine"}, "schedule of a recipe is steps or one-cycle, not 'cosine'"),
        ({"schedule": "one-cycle", "milestones": (1,)}, "a one-cycle schedule has no milestones"),
        ({"gamma": 0.0}, "gamma of a recipe is above 0"),
        ({"temperature": -2.0}, "temperature of a recipe is above 0"),
        ({"distillation": 1.5}, r"distillation of a recipe lies in 0 to 1, not 1\.5"),
        ({"drawn": -1}, "drawn is a number of members, 0 or more, not -1"),
        ({"label_smoothing": -0.5}, "label_smoothing of a recipe lies in 0 to 1"),
    ],
)
def test_numbers_outside_their_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**{"epochs": 1, **values})


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a recipe has no \['lr'\]; it has \['epochs', 'batch_size', 'learning_rate'"):
        Recipe.from_dict({"epochs": 1, "lr": 0.1})
