"""Two processes with half of each batch compute what one process does with all of it: loss, gradient, state and metrics."""

import pytest
import torch

from superself.labels import multilabel_loss

from cases import CASES
from two_processes import (
    RUNS,
    SETTINGS,
    embeddings_in_parts,
    is_error,
    known_labels,
    normalized,
    norms,
    run_all_jobs,
    short_name,
    step,
    train,
)

NAMES = [short_name(case) for case in CASES]
WHOLE_BATCH = {"MomentumContrast": {"splits": 1}}  # in one process, this row splits a batch too
TIMES = ("images_per_second", "waiting_share", "seconds", "seconds_left")  # columns of a row
TOLERANCE = 1e-5  # of losses, and of tensors as a fraction of their largest value, or of 1


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What the jobs of ``two_processes`` return, by name."""
    results = run_all_jobs(tmp_path_factory.mktemp("two_processes"))

    def result(name):
        nonlocal results
        results = results() if callable(results) else results  # the first question waits
        assert not is_error(results[name]), results[name]["error"]
        return results[name]

    yield result
    if callable(results):
        results()


def largest_difference(a, b):
    """The largest difference of tensors of the same names, relative to each tensor's largest value if that is above 1."""
    assert a.keys() == b.keys()
    pairs = [(a[name].double(), b[name].double()) for name in a if a[name].numel()]
    return max(((x - y).abs().max() / x.abs().max().clamp(min=1)).item() for x, y in pairs)


@pytest.mark.parametrize("setting", SETTINGS)
def test_loss_and_gradient_of_two_processes_are_those_of_one_with_the_whole_batch(together, setting):
    alone = step(setting, **WHOLE_BATCH.get(setting.split()[0], {}))
    both = together(f"step {setting}")
    assert both["loss"] == pytest.approx(alone["loss"], abs=TOLERANCE, rel=TOLERANCE)
    assert largest_difference(alone["gradients"], both["gradients"]) <= TOLERANCE
    assert max(gradient.abs().max() for gradient in alone["gradients"].values()) > 1000 * TOLERANCE


@pytest.mark.parametrize("setting", RUNS)
def test_a_run_of_two_processes_ends_in_the_same_state_as_a_run_of_one(together, setting):
    alone = train(setting, **WHOLE_BATCH.get(setting.split()[0], {}))
    both = together(f"train {setting}")
    assert both["differing"] == []
    assert largest_difference(alone["state"], both["state"]) <= TOLERANCE
    assert both["chance"] == alone["chance"]
    rows = [
        {name: value for name, value in found["row"].items() if value is not None and name not in TIMES}
        for found in (alone, both)
    ]
    assert rows[1] == pytest.approx(rows[0], abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_only_statistics_of_batch_norm_differ_between_processes_until_the_run_is_stored(together, name):
    found = together(f"local {name}")
    assert all(entry.endswith(("running_mean", "running_var")) for entry in found["differing"])
    has_batch_norm = any(entry.endswith("running_mean") for entry in found["state"])
    assert bool(found["differing"]) == has_batch_norm
    assert found["differing at the end"] == []


@pytest.mark.parametrize("case", [case for case in CASES if case.local], ids=short_name)
def test_batch_norm_of_two_processes_is_that_of_two_parts_in_one_where_it_is_local(together, case, monkeypatch):
    """Keys in the parts of one permutation of the whole batch, queries in the halves that the processes have."""
    draw, drawn = torch.randperm, []

    def first_of_keys_then_of_queries(n, **options):
        drawn.append(torch.arange(n) if drawn else draw(n, **options))
        return drawn[-1]

    monkeypatch.setattr(torch, "randperm", first_of_keys_then_of_queries)
    alone = step(short_name(case), synchronized=False, splits=2)
    both = together(f"local step {short_name(case)}")
    keys, queries = ({frozenset(part.tolist()) for part in order.chunk(2)} for order in drawn)
    assert keys != queries
    assert both["loss"] == pytest.approx(alone["loss"], abs=TOLERANCE)
    assert largest_difference(alone["gradients"], both["gradients"]) <= TOLERANCE
    whole = step(short_name(case), synchronized=False, splits=1)
    assert abs(whole["loss"] - both["loss"]) > 100 * TOLERANCE


@pytest.mark.parametrize("kind", norms())
def test_synchronized_batch_norm_is_batch_norm_of_the_whole_batch(together, kind):
    norm, x = norms()[kind]
    alone, both = normalized(norm, x.clone()), together("synchronized_norms")[kind]
    assert largest_difference(alone, both) <= TOLERANCE
    assert all(alone[name].dtype == both[name].dtype for name in alone)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("kind", norms())
def test_synchronized_batch_norm_on_an_accelerator_is_batch_norm_of_the_whole_batch(together, kind):
    norm, x = norms()[kind]
    both = together("synchronized_norms_on_an_accelerator")[kind]
    assert largest_difference(normalized(norm, x.clone()), both) <= 10 * TOLERANCE


def test_the_loss_of_multi_hot_labels_is_the_mean_over_the_known_labels_of_all_processes(together):
    assert together("multilabel") == pytest.approx(multilabel_loss(*known_labels()).item())


def test_batches_of_unequal_size_are_refused_in_both_processes(together):
    for gathered, trained in together("unequal_rows"):
        assert "the processes have batches of [3, 4] rows" in gathered and "drop_last=True" in gathered
        assert "the processes have batches of [4, 5] rows" in trained


def test_a_shared_draw_is_that_of_rank_0(together):
    assert together("shared_draw") == [[0, 7], [0, 7]]


def test_processes_share_the_work_of_filling_a_bank(together):
    assert torch.allclose(together("bank_rows"), embeddings_in_parts(), atol=1e-6)
